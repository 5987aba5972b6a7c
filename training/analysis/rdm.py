"""Representational dissimilarity matrices. N images, P = N (N - 1) / 2 pairs, L layers.

Condensed form is the upper triangle row by row, as SciPy's `squareform` has it.
"""

import numpy as np
from numpy.typing import NDArray

from reluguard.training.analysis.checks import Floats, Ints, check_labels, check_square
from reluguard.training.errors import ConstantError, ShapeError

__all__ = [
    "balanced_order",
    "category_model",
    "class_order",
    "compare_rdms",
    "condense",
    "expand",
    "kendall",
    "spearman",
]


def condense(dissimilarity: NDArray[np.floating] | NDArray[np.integer]) -> NDArray[np.float32]:
    """Return the upper triangle of a symmetric (N, N) matrix: float32, (P,).

    Raises:
        ShapeError: not square, not symmetric, or not zero on the diagonal.
    """
    n = check_square(dissimilarity)
    if np.diagonal(dissimilarity).any():
        raise ShapeError("expected zeros on the diagonal: a thing differs from itself by nothing")
    if not np.array_equal(dissimilarity, dissimilarity.T):
        raise ShapeError("expected a symmetric matrix")
    return np.asarray(dissimilarity)[np.triu_indices(n, 1)].astype(np.float32)


def expand(condensed: NDArray[np.floating]) -> NDArray[np.float32]:
    """Undo `condense`: float32, (N, N).

    Raises:
        ShapeError: the length is of no triangle.
    """
    n = round((1 + np.sqrt(1 + 8 * len(condensed))) / 2)
    if condensed.ndim != 1 or n * (n - 1) // 2 != len(condensed) or n < 2:
        raise ShapeError(f"expected N (N - 1) / 2 values, got {condensed.shape}")
    square = np.zeros((n, n), np.float32)
    square[np.triu_indices(n, 1)] = condensed
    return square + square.T


def class_order(labels: Ints) -> Ints:
    """Return indices that put the images in order of class, stable within: int64, (N,)."""
    return np.argsort(labels, kind="stable").astype(np.int64)


def balanced_order(labels: Ints, per_class: int, *, seed: int = 0) -> Ints:
    """Return indices of up to `per_class` random images of each class, in order of class."""
    generator = np.random.default_rng(seed)
    chosen = [
        np.sort(generator.permutation(np.flatnonzero(labels == label))[:per_class])
        for label in np.unique(labels)
    ]
    return np.concatenate(chosen).astype(np.int64)


def category_model(labels: Ints) -> NDArray[np.float32]:
    """Return the RDM of a perfect classifier, condensed: 0 within a class, 1 between.

    Raises:
        LabelError: only one class, so the model would be constant.
    """
    check_labels(labels)
    return condense((labels[:, None] != labels[None, :]).astype(np.float32))


def _check_pair(a: NDArray[np.floating], b: NDArray[np.floating]) -> None:
    if a.shape != b.shape or a.ndim != 1:
        raise ShapeError(f"expected two condensed RDMs of one length, got {a.shape} and {b.shape}")


def _ranks(values: NDArray[np.floating]) -> NDArray[np.float32]:
    from scipy.stats import rankdata

    ranks = rankdata(values) - (len(values) + 1) / 2
    norm = np.linalg.norm(ranks)
    if norm == 0:
        raise ConstantError("the layer is constant: all its dissimilarities are equal")
    unit: NDArray[np.float32] = (ranks / norm).astype(np.float32)
    return unit


def spearman(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Return the rank correlation of two condensed RDMs, in [-1, 1].

    Raises:
        ShapeError: lengths differ.
        ConstantError: one of them is constant.
    """
    _check_pair(a, b)
    return float(np.clip(_ranks(a).astype(np.float64) @ _ranks(b).astype(np.float64), -1, 1))


def kendall(
    a: NDArray[np.floating], b: NDArray[np.floating], *, most: int = 20_000, seed: int = 0
) -> float:
    """Return Kendall's tau-b of two condensed RDMs, on at most `most` random entries.

    Raises:
        ShapeError: lengths differ.
        ConstantError: one of them is constant.
    """
    from scipy.stats import kendalltau

    _check_pair(a, b)
    if len(a) > most:
        chosen = np.random.default_rng(seed).choice(len(a), most, replace=False)
        a, b = a[chosen], b[chosen]
    if (a == a[0]).all() or (b == b[0]).all():
        raise ConstantError("the layer is constant: all its dissimilarities are equal")
    return float(kendalltau(a, b).statistic)


def compare_rdms(rdms: NDArray[np.floating]) -> Floats:
    """Return the Spearman correlation between all layers: float64, (L, L), ones on the diagonal.

    Args:
        rdms: (L, P). One condensed RDM per layer.

    Raises:
        ConstantError: a layer is constant.

    Source: Kriegeskorte et al. 2008, Front. Syst. Neurosci. 2.
    """
    ranks = np.stack([_ranks(row) for row in rdms])
    table = (ranks @ ranks.T).astype(np.float64)
    np.fill_diagonal(table, 1.0)
    return np.clip((table + table.T) / 2, -1, 1)
