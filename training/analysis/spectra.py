"""Eigenvectors and nearest ones without a free choice. N rows, M vectors, K columns.

An eigenvector has no sign of its own, and vectors of equal eigenvalues turn into each other at
will: which ones come back is the solver's choice, and with it that of BLAS's kernel and of the
processor. The space they span is not; whatever is shown of a vector is read from that space here.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.training.analysis.checks import Floats, Ints

__all__ = ["ROUNDING", "first_least", "largest_axes", "nearest", "settle"]

ROUNDING = (
    1e-12  # of the largest: eigenvalues closer than that are equal, as far as anyone can tell
)
_EQUAL = 1e-6  # of the largest: rows that reach as far as each other
_NOISE = 1e-9  # of the largest: a component that is zero but for rounding


def settle(space: NDArray[np.floating]) -> Floats:
    """Return the one basis of this space that no turn of the given basis changes: float64, (N, M).

    The first vector reaches furthest into a single row, which it is positive in; the next does so
    among what is left. Of rows that are reached equally far the first is taken. A single vector
    comes back with its largest component positive. What rounding alone made differ from zero is
    zero, so that a sign is never a matter of rounding.

    Args:
        space: (N, M), orthonormal columns.
    """
    rest = np.array(space, np.float64)
    basis = np.empty_like(rest)
    for m in range(rest.shape[1]):
        reach = (rest**2).sum(axis=1)
        row = int(np.argmax(reach >= (1 - _EQUAL) * reach.max()))
        direction = rest[row] / np.linalg.norm(rest[row])
        basis[:, m] = rest @ direction
        rest -= np.outer(basis[:, m], direction)
    basis[np.abs(basis) <= _NOISE * np.abs(basis).max(axis=0)] = 0
    return basis


def largest_axes(symmetric: Floats, count: int) -> tuple[Floats, Floats]:
    """Return the largest eigenvalues and their settled vectors: float64, (count,), (N, count).

    Args:
        symmetric: (N, N).
        count: N at most.
    """
    values, vectors = np.linalg.eigh(symmetric)
    values, vectors = values[::-1], vectors[:, ::-1].copy()
    start = 0
    while start < count:
        alike = values >= values[start] - ROUNDING * np.abs(values).max()
        stop = int(alike.sum())
        vectors[:, start:stop] = settle(vectors[:, start:stop])
        start = stop
    return values[:count], vectors[:, :count]


def nearest(similarity: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Return which columns are among each row's most similar: bool, (N, K).

    Patterns of bits are often equally alike. All that tie with the last one count too: a choice
    among them would be the sort's, and another after every shuffle of the images.

    Args:
        similarity: (N, K).
        count: how many per row, K at most.
    """
    last = np.partition(similarity, -count, axis=1)[:, -count, None]
    return np.asarray(similarity >= last)


def first_least(distances: Floats, scale: float) -> Ints:
    """Return the first column that is least in its row but for rounding: int64, (N,).

    Args:
        distances: (N, K).
        scale: of the numbers they were computed from; a billionth of it is rounding.
    """
    limit = distances.min(axis=1, keepdims=True) + _NOISE * scale
    least: Ints = np.argmax(distances <= limit, axis=1).astype(np.int64)
    return least
