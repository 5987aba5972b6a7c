"""Networks of one architecture and several seeds, for the layer-matching check. S nets, L layers.

A similarity measure worth its name finds, for a layer of one network, the same layer in another
that was only started from other random weights.

Source: Kornblith et al. 2019, section 6; Chen et al., arXiv 2111.11165, section 4.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.images import Images
from reluguard.training.analysis.checks import Floats, Ints, check_labels, check_rows
from reluguard.training.analysis.cka import center_gram
from reluguard.training.analysis.gbs import layer_graph, lsim_table, match_layers
from reluguard.training.analysis.networks.trained import Architecture, trained
from reluguard.training.analysis.stages import homogeneity_of, narrowed, stage_ends
from reluguard.training.errors import ShapeError

__all__ = ["SeedStudy", "study_seeds"]

_NEIGHBOURS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedStudy:
    """How often layers of twin networks find each other; one value per unordered pair of networks.

    A pair's value is the mean over both ways to look: from the one's layers and from the other's.

    Attributes:
        architecture: of all of them.
        networks: S.
        layers: L.
        accuracy: (S,). Of the networks on the images they are compared on.
        pairs: int64, (Q, 2), Q = S (S - 1) / 2. Which networks, the first one lower.
        gbs: (Q,). Share of layers matched by LSim of cosine graphs, full features.
        cka: (Q,). By linear CKA on the same features.
        cka_averaged: (Q,). By linear CKA on spatial means, as the authors reckon theirs.
        gbs_bits: (Q,). By LSim of graphs of the bits alone.
        gbs_near: (Q,). By LSim of graphs of the five nearest neighbours.
        gbs_table: (L, L). Mean LSim between layers of two networks.
        cka_table: (L, L).
        homogeneity: (3, S, G). Participation ratio, codebook distance and entropy of units at the
            last layer of each stage, with as many columns of each; mean over parts of the images.
    """

    architecture: Architecture
    networks: int
    layers: int
    accuracy: Floats
    pairs: Ints
    gbs: Floats
    cka: Floats
    cka_averaged: Floats
    gbs_bits: Floats
    gbs_near: Floats
    gbs_table: Floats
    cka_table: Floats
    homogeneity: Floats


def study_seeds(
    train: tuple[Images, Ints],
    test: tuple[Images, Ints],
    *,
    architecture: Architecture = "plain",
    networks: int = 5,
    steps: int = 400,
    batch: int = 64,
    seed: int = 0,
    folder: Path | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> SeedStudy:
    """Train small convolutional networks from several seeds and match their layers.

    Args:
        train: uint8 (N, H, W, C) and int64 (N,).
        test: other images, on which layers are compared; 500 of them at most.
        architecture: of the networks.
        networks: S.
        steps: of training, per network.
        batch: images per step.
        seed: of the first network; the others count on.
        folder: where networks are kept and looked for.
        progress: told how many steps were just done.

    Raises:
        LabelError: fewer than two classes.
        ShapeError: fewer than two networks.
        AnalysisError: a kept network is damaged.
    """
    if networks < 2:
        raise ShapeError(f"expected two or more networks to compare, got {networks}")
    check_rows(*train)
    classes = int(check_labels(train[1]).max()) + 1
    images, labels = test[0][:500], test[1][:500]
    graphs, grams, averaged, bit_graphs, accuracies, diverse = [], [], [], [], [], []
    for index in range(networks):
        network = trained(
            *train,
            architecture,
            classes=classes,
            steps=steps,
            batch=batch,
            seed=seed + index,
            folder=folder,
            progress=progress,
        )
        features, answers = network.features(images)
        diverse.append(_homogeneity(features, seed))
        accuracies.append(float((answers == labels).mean()))
        graphs.append(np.stack([layer_graph(_cosine(_flat(x))) for x in features]))
        grams.append(np.stack([_unit_gram(_flat(x)) for x in features]))
        averaged.append(np.stack([_unit_gram(_spatial_means(x)) for x in features]))
        bit_graphs.append(
            np.stack([layer_graph(_cosine(_flat(x > 0).astype(np.float32))) for x in features])
        )
    sparse = [np.stack([_nearest(graph) for graph in layers]) for layers in graphs]
    pairs = [(a, b) for a in range(networks) for b in range(a + 1, networks)]
    gbs = [lsim_table(graphs[a], graphs[b]) for a, b in pairs]
    cka = [_inner(grams[a], grams[b]) for a, b in pairs]
    means = [_inner(averaged[a], averaged[b]) for a, b in pairs]
    bits = [lsim_table(bit_graphs[a], bit_graphs[b]) for a, b in pairs]
    near = [lsim_table(sparse[a], sparse[b]) for a, b in pairs]
    return SeedStudy(
        architecture=architecture,
        networks=networks,
        layers=len(graphs[0]),
        accuracy=np.array(accuracies),
        pairs=np.array(pairs, np.int64),
        gbs=_matched(gbs),
        cka=_matched(cka),
        cka_averaged=_matched(means),
        gbs_bits=_matched(bits),
        gbs_near=_matched(near),
        gbs_table=np.mean(gbs, axis=0),
        cka_table=np.mean(cka, axis=0),
        homogeneity=np.stack(diverse, axis=1),
    )


def _homogeneity(features: Sequence[NDArray[np.float32]], seed: int) -> Floats:
    """Return how homogeneous the codes are at the end of each stage: (3, G)."""
    ends = stage_ends([x.shape[2:] for x in features])
    codes = narrowed([_spatial_means(features[i]) for i in ends], seed=seed)
    mean: Floats = homogeneity_of(codes, seed=seed).mean(axis=1)
    return mean


def _matched(tables: Sequence[Floats]) -> Floats:
    """Return the share of layers that find each other per pair, mean over both ways: (Q,)."""
    return np.array([(match_layers(t) + match_layers(t.T)) / 2 for t in tables])


def _flat(features: NDArray[Any]) -> NDArray[Any]:
    flat: NDArray[Any] = features.reshape(len(features), -1)
    return flat


def _spatial_means(features: NDArray[np.float32]) -> NDArray[np.float32]:
    means: NDArray[np.float32] = features.mean(axis=(2, 3))
    return means


def _cosine(features: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(norms, 1e-8)
    cosine: NDArray[np.float32] = unit @ unit.T
    return cosine


def _nearest(graph: NDArray[np.float32]) -> NDArray[np.float32]:
    return layer_graph(graph, min(_NEIGHBOURS, len(graph) - 1)).astype(np.float32)


def _unit_gram(features: NDArray[np.float32]) -> NDArray[np.float32]:
    centred = center_gram((features @ features.T).astype(np.float64))
    return (centred / max(float(np.linalg.norm(centred)), 1e-300)).astype(np.float32)


def _inner(a: NDArray[np.float32], b: NDArray[np.float32]) -> Floats:
    return (a.reshape(len(a), -1) @ b.reshape(len(b), -1).T).astype(np.float64)
