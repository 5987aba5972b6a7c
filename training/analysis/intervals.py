"""Uncertainty of a measured number. n trials, R resamples."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.analysis.checks import Floats, Ints
from training.analysis.errors import ShapeError

__all__ = ["Estimate", "auroc", "bootstrap", "class_pair_mean", "mean_of", "wilson"]

_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval, `low` to `high`, measured on `n` things."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(successes: int, trials: int) -> Estimate:
    """Return a share with its 95 % Wilson interval.

    Raises:
        ShapeError: no trial, or more successes than trials.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ShapeError(f"expected 0 to {trials} successes of 1 or more trials, got {successes}")
    share = successes / trials
    z2 = _Z95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z95 * np.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    # clipped, since at 0 and 1 the arithmetic leaves the interval by a rounding error
    low, high = max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
    return Estimate(value=share, low=float(low), high=float(high), n=trials)


def bootstrap(
    statistic: Callable[[Ints], float], n: int, *, seed: int = 0, resamples: int = 1000
) -> Estimate:
    """Return a statistic of n things with its 95 % percentile bootstrap interval.

    Args:
        statistic: takes indices into the things, int64 (n,), gives the number; NaN is left out.
        n: how many things.
        seed: of the resampling.
        resamples: R.
    """
    if n < 1:
        raise ShapeError(f"expected one or more things to resample, got {n}")
    generator = np.random.default_rng(seed)
    value = statistic(np.arange(n))
    drawn = np.array([statistic(generator.integers(0, n, n)) for _ in range(resamples)])
    kept = drawn[np.isfinite(drawn)]
    low, high = np.quantile(kept, [0.025, 0.975]) if len(kept) else (value, value)
    return Estimate(value=float(value), low=float(low), high=float(high), n=n)


def mean_of(values: Floats, *, seed: int = 0) -> Estimate:
    """Return the mean with its bootstrap interval over the values, NaN left out."""
    kept = np.asarray(values, np.float64)
    kept = kept[np.isfinite(kept)]
    if len(kept) == 0:
        raise ShapeError("expected one or more finite values, got none")
    return bootstrap(lambda rows: float(kept[rows].mean()), len(kept), seed=seed)


def class_pair_mean(matrix: Floats, *, seed: int = 0) -> Estimate:
    """Return the mean over class pairs with a bootstrap over **classes**.

    Pairs that share a class are not independent, so whole classes are drawn; a pair of a class
    with itself is left out.

    Args:
        matrix: (K, K), symmetric; the diagonal is not read.
        seed: of the resampling.
    """
    matrix = np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix)

    def statistic(rows: Ints) -> float:
        part = matrix[np.ix_(rows, rows)]
        finite = np.isfinite(part)
        return float(part[finite].mean()) if finite.any() else float("nan")

    return bootstrap(statistic, len(matrix), seed=seed)


def auroc(positive: NDArray[np.floating], negative: NDArray[np.floating]) -> float:
    """Return the chance that a positive scores above a negative, ties half.

    Raises:
        ShapeError: one side is empty.

    Source: Mann and Whitney 1947.
    """
    if len(positive) == 0 or len(negative) == 0:
        raise ShapeError(f"expected scores on both sides, got {len(positive)} and {len(negative)}")
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left")
    equal = np.searchsorted(ordered, positive, side="right") - below
    return float((below + equal / 2).mean() / len(negative))
