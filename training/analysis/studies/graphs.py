"""Study 5: graph-based similarity beside CKA. L taps, S images, M taps of another network."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reluguard.training.analysis.checks import Floats, Packed, check_memory
from reluguard.training.analysis.cka import center_gram, gram_cka, rbf_gram, unbiased_hsic
from reluguard.training.analysis.gbs import layer_graph, lsim, lsim_table, motifs
from reluguard.training.analysis.material import Material
from reluguard.training.analysis.rdm import balanced_order
from reluguard.training.analysis.recording import Recording
from reluguard.training.analysis.similarity import (
    bit_counts,
    cosine_similarity,
    hamming_counts,
    overlaps,
)

__all__ = ["GraphStudy", "LayerGraphs", "layer_graphs", "minibatch_table", "study_graphs"]

_NODES = 500
_NEIGHBOURS = 5
_BATCH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGraphs:
    """What a network's layers say of the same S images.

    Attributes:
        graphs: float32, (L, S, S). Cosines of the bit patterns, zero diagonal.
        linear: float32, (L, S, S). Centred Gram matrices of the bits, of unit norm.
        rbf: float32, (L, S, S). Centred Gaussian kernels, of unit norm.
    """

    graphs: NDArray[np.float32]
    linear: NDArray[np.float32]
    rbf: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphStudy:
    """How alike layers are, by three measures.

    Attributes:
        lsim: (L, L). Graph-based similarity of all pairs of layers, all edges weighted.
        lsim_near: (L, L). The same for graphs of the five nearest neighbours.
        cka: (L, L). Linear CKA on bits.
        cka_rbf: (L, L).
        cka_minibatch: (L, L). Linear CKA on feature-map means, unbiased, in batches of 100.
        lsim_attack: (L,). Between the graph of clean images and that of their attacked versions.
        near_attack: (L,). The same for neighbour graphs.
        near_noise: (L,). The same for harmless noise of that size.
        cka_attack: (L,).
        cka_noise: (L,).
        same_clean: (L,). Share of triangles of the 5-neighbour graph within one class.
        same_attacked: (L,).
        other_lsim: (L, M). Neighbour graphs against another network's; empty without one.
        other_cka: (L, M).
    """

    lsim: Floats
    lsim_near: Floats
    cka: Floats
    cka_rbf: Floats
    cka_minibatch: Floats
    lsim_attack: Floats
    near_attack: Floats
    near_noise: Floats
    cka_attack: Floats
    cka_noise: Floats
    same_clean: Floats
    same_attacked: Floats
    other_lsim: Floats
    other_cka: Floats


def layer_graphs(patterns: tuple[Packed, ...]) -> LayerGraphs:
    """Return graphs and kernels of every layer, all from Hamming counts.

    Raises:
        ConstantError: a layer is constant.
        OutOfMemoryError: they would not fit.
    """
    s = len(patterns[0])
    check_memory(3 * 4 * len(patterns) * s * s, f"graphs and kernels of {s} images at every tap")
    graphs, linear, rbf = [], [], []
    for packed in patterns:
        counts, on = hamming_counts(packed), bit_counts(packed)
        graphs.append(layer_graph(cosine_similarity(counts, on)))
        linear.append(_unit(overlaps(counts, on).astype(np.float64)))
        rbf.append(_unit(rbf_gram(counts)))
    return LayerGraphs(graphs=np.stack(graphs), linear=np.stack(linear), rbf=np.stack(rbf))


def _unit(gram: Floats) -> NDArray[np.float32]:
    centred = center_gram(gram)
    return (centred / np.linalg.norm(centred)).astype(np.float32)


def _products(a: NDArray[np.float32], b: NDArray[np.float32]) -> Floats:
    table = a.reshape(len(a), -1) @ b.reshape(len(b), -1).T
    return np.clip(table.astype(np.float64), 0, 1)


def study_graphs(material: Material, other: Recording | None = None) -> GraphStudy:
    """Return the study.

    Args:
        material: the network.
        other: another network's recording of the P images, clean.

    Raises:
        ConstantError: a layer is constant.
    """
    labels = material.row_labels
    nodes = balanced_order(labels, max(3, _NODES // len(np.unique(labels))), seed=material.seed)
    attacked, noisy = material.attacked[material.main], material.noisy
    own = layer_graphs(tuple(np.asarray(p[material.rows[nodes]]) for p in material.clean.patterns))
    count = len(material.taps)
    found = np.full((7, count), np.nan)
    near = np.stack([_nearest(graph) for graph in own.graphs])
    for i in range(count):
        after, shaken = (_after(x.patterns[i][nodes]) for x in (attacked, noisy))
        near_after = _nearest(after.graphs[0])
        found[:, i] = (
            lsim(own.graphs[i], after.graphs[0]),
            lsim(near[i], near_after),
            lsim(near[i], _nearest(shaken.graphs[0])),
            gram_cka(own.linear[i], after.linear[0]),
            gram_cka(own.linear[i], shaken.linear[0]),
            motifs(near[i], labels[nodes]).same_share,
            motifs(near_after, labels[nodes]).same_share,
        )
    other_lsim, other_cka = np.empty((count, 0)), np.empty((count, 0))
    if other is not None:
        theirs = layer_graphs(tuple(np.asarray(p[nodes]) for p in other.patterns))
        other_lsim = lsim_table(near, np.stack([_nearest(graph) for graph in theirs.graphs]))
        other_cka = _products(own.linear, theirs.linear)
    return GraphStudy(
        lsim=lsim_table(own.graphs),
        lsim_near=lsim_table(near),
        cka=_products(own.linear, own.linear),
        cka_rbf=_products(own.rbf, own.rbf),
        cka_minibatch=minibatch_table(
            [means[material.rows] for means in material.clean.means], seed=material.seed
        ),
        lsim_attack=found[0],
        near_attack=found[1],
        near_noise=found[2],
        cka_attack=found[3],
        cka_noise=found[4],
        same_clean=found[5],
        same_attacked=found[6],
        other_lsim=other_lsim,
        other_cka=other_cka,
    )


def _nearest(graph: NDArray[np.float32]) -> NDArray[np.float32]:
    sparse = layer_graph(graph, min(_NEIGHBOURS, len(graph) - 1))
    return sparse.astype(np.float32)


def _after(packed: Packed) -> LayerGraphs:
    return layer_graphs((np.asarray(packed),))


def minibatch_table(codes: list[NDArray[np.float32]], *, seed: int = 0) -> Floats:
    """Return unbiased minibatch CKA between all layers: float64, (L, L).

    Args:
        codes: per layer (N, C), on the same images; batches of 100 in random order.
        seed: of the order.
    """
    n = len(codes[0])
    order = np.random.default_rng(seed).permutation(n)
    batches = [order[i : i + _BATCH] for i in range(0, n, _BATCH)]
    sums = np.zeros((len(codes), len(codes)))
    for rows in batches:
        if len(rows) < 4:
            continue
        grams = [x[rows].astype(np.float64) @ x[rows].astype(np.float64).T for x in codes]
        for i in range(len(codes)):
            for j in range(i, len(codes)):
                sums[i, j] += unbiased_hsic(grams[i], grams[j])
    sums = np.triu(sums) + np.triu(sums, 1).T
    norms = np.sqrt(np.maximum(np.diagonal(sums), 1e-300))
    table: Floats = sums / np.outer(norms, norms)
    return table
