"""Graph-based similarity of layers. N images as nodes, L layers.

A layer is the graph of how alike it finds the images; two layers are alike if every image has the
same neighbourhood in both.

Source: Chen et al., arXiv 2111.11165, and the authors' code.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reluguard.training.analysis.checks import Floats, Ints, check_rows, check_square
from reluguard.training.analysis.spectra import nearest
from reluguard.training.errors import ConstantError, ShapeError

__all__ = ["Motifs", "layer_graph", "lsim", "lsim_rows", "lsim_table", "match_layers", "motifs"]

Graph = NDArray[np.floating]
_EQUAL = 1e-6  # similarities closer than that differ by rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Motifs:
    """Triangles of a graph by how many classes meet in them."""

    same: int
    two: int
    different: int

    @property
    def same_share(self) -> float:
        """The share of triangles within one class; NaN without a triangle."""
        total = self.same + self.two + self.different
        return self.same / total if total else float("nan")


def layer_graph(similarity: NDArray[np.floating], neighbours: int | None = None) -> Graph:
    """Return a layer's weighted graph: float32, (N, N), zero diagonal.

    Args:
        similarity: (N, N), symmetric. The paper takes cosines.
        neighbours: keep each node's k largest, and whatever equals the last of them, and average
            with the transpose; by default keep all, which is what the authors' later code does.

    Raises:
        ShapeError: not square, or fewer nodes than neighbours.
    """
    n = check_square(similarity)
    graph = np.array(similarity, np.float32)
    np.fill_diagonal(graph, 0)
    if neighbours is None:
        return graph
    if not 1 <= neighbours < n:
        raise ShapeError(f"expected 1 to {n - 1} neighbours among {n} images, got {neighbours}")
    np.fill_diagonal(graph, -np.inf)
    sparse = np.where(nearest(graph, neighbours), graph, np.float32(0))
    averaged: Graph = (sparse + sparse.T) / 2
    return averaged


def lsim_rows(a: Graph, b: Graph) -> Floats:
    """Return for every image how alike its neighbourhoods are in two graphs: float64, (N,)."""
    if check_square(a) != check_square(b):
        raise ShapeError(f"expected graphs on the same images, got {a.shape} and {b.shape}")
    cosine: Floats = np.einsum("ij,ij->i", _unit(a), _unit(b), dtype=np.float64)
    return np.clip(cosine, -1, 1)


def _unit(graph: Graph) -> Graph:
    norms = np.linalg.norm(graph, axis=1, keepdims=True)
    if not norms.any():
        raise ConstantError("the layer is constant: its graph has no edge")
    unit: Graph = np.divide(graph, norms, out=np.zeros_like(graph), where=norms > 0)
    return unit


def lsim(a: Graph, b: Graph) -> float:
    """Return how alike two graphs on the same images are, in [0, 1]; one means equal up to scale.

    The mean over nodes of the cosine between adjacency rows.

    Raises:
        ShapeError: other sizes.
        ConstantError: a graph without edges.
    """
    return float(lsim_rows(a, b).mean())


def lsim_table(first: NDArray[np.float32], second: NDArray[np.float32] | None = None) -> Floats:
    """Return LSim between all layers of one network and all of another: float64, (L, L2).

    Args:
        first: float32, (L, N, N).
        second: float32, (L2, N, N), on the same images; by default `first`.
    """
    left = np.stack([_unit(graph) for graph in first])
    right = left if second is None else np.stack([_unit(graph) for graph in second])
    if left.shape[1:] != right.shape[1:]:
        raise ShapeError(f"expected the same images, got {left.shape} and {right.shape}")
    n = left.shape[1]
    table: Floats = (left.reshape(len(left), -1) @ right.reshape(len(right), -1).T) / np.float64(n)
    return np.clip(table, -1, 1)


def match_layers(table: Floats) -> float:
    """Return the share of layers whose most similar layer in a twin network is their own.

    Where several are as similar, the own one counts for its share of them.

    Args:
        table: (L, L). Rows are layers of one network, columns of another of the same architecture.
    """
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        raise ShapeError(f"expected as many layers in both networks, got {table.shape}")
    best = table >= table.max(axis=1, keepdims=True) - _EQUAL
    return float((np.diagonal(best) / best.sum(axis=1)).mean())


def motifs(graph: Graph, labels: Ints) -> Motifs:
    """Return how many triangles hold one, two or three classes.

    Args:
        graph: (N, N); an edge is any non-zero weight, either way.
        labels: int64, (N,).
    """
    check_rows(graph, labels)
    edge = ((graph != 0) | (graph.T != 0)).astype(np.float32)
    np.fill_diagonal(edge, 0)
    within = edge * (labels[:, None] == labels[None, :])
    between = edge - within
    every = _triangles(edge)
    same = _triangles(within)
    different = _triangles(between)
    return Motifs(same=same, two=every - same - different, different=different)


def _triangles(edge: NDArray[np.float32]) -> int:
    return round(float(((edge @ edge) * edge).sum(dtype=np.float64)) / 6)
