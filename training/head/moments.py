"""Sums over tables that come in blocks. N rows, D columns."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Moments", "row_blocks"]

BLOCK_VALUES = 2**22  # 16 MiB of float32; what comes of a block takes some eight times that


def row_blocks(rows: int, width: int) -> Iterator[slice]:
    """Yield runs of rows, in order, each of about 16 MiB at `width` floats a row."""
    step = max(1, BLOCK_VALUES // max(width, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


class Moments:
    """Mean and variance of each column. One block gives to the bit what NumPy gives.

    Args:
        dtype: that sums are kept in; by default the table's.

    Source: Chan, Golub & LeVeque 1979, Updating formulae and a pairwise algorithm.
    """

    def __init__(self, dtype: Any = None) -> None:
        self._dtype = dtype
        self._rows = 0
        self._mean: NDArray[Any] = np.zeros(0)
        self._variance: NDArray[Any] = np.zeros(0)

    def add(self, x: NDArray[Any]) -> None:
        """Count these rows, (N, D)."""
        mean, variance = x.mean(axis=0, dtype=self._dtype), x.var(axis=0, dtype=self._dtype)
        rows = len(x)
        if not self._rows:
            self._mean, self._variance, self._rows = mean, variance, rows
            return
        total = self._rows + rows
        apart = mean.astype(np.float64) - self._mean
        within = self._rows * self._variance.astype(np.float64) + rows * variance
        self._variance = (within + apart**2 * (self._rows * rows / total)) / total
        self._mean = self._mean + apart * (rows / total)
        self._rows = total

    @property
    def mean(self) -> NDArray[Any]:
        """(D,)."""
        return self._mean

    @property
    def spread(self) -> NDArray[Any]:
        """Standard deviation, (D,)."""
        deviation: NDArray[Any] = np.sqrt(self._variance)
        return deviation
