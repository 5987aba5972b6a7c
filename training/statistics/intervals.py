"""Intervals for means and other statistics. n things, R resamples.

Rates and AUROC have theirs in `metrics`; this file adds the bootstrap for the rest.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.training.errors import ShapeError
from reluguard.training.statistics.metrics import Interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

__all__ = ["bootstrap", "class_pair_mean", "mean_of", "network_pair_mean", "rank_trend"]


def bootstrap(
    statistic: Callable[[Ints], float], n: int, *, seed: int = 0, resamples: int = 1000
) -> Interval:
    """Return a statistic of n things with its 95 % percentile bootstrap interval.

    Args:
        statistic: takes indices into the things, int64 (n,), gives the number; NaN is left out.
        n: how many things.
        seed: of the resampling.
        resamples: R.

    Raises:
        ShapeError: nothing to resample.
    """
    if n < 1:
        raise ShapeError(f"expected one or more things to resample, got {n}")
    generator = np.random.default_rng(seed)
    value = statistic(np.arange(n))
    drawn = np.array([statistic(generator.integers(0, n, n)) for _ in range(resamples)])
    kept = drawn[np.isfinite(drawn)]
    low, high = np.quantile(kept, [0.025, 0.975]) if len(kept) else (value, value)
    return Interval(float(value), float(low), float(high), n)


def mean_of(values: NDArray[Any], *, seed: int = 0) -> Interval:
    """Return the mean with its bootstrap interval over the values, NaN left out."""
    kept = np.asarray(values, np.float64)
    kept = kept[np.isfinite(kept)]
    if len(kept) == 0:
        raise ShapeError("expected one or more finite values, got none")
    return bootstrap(lambda rows: float(kept[rows].mean()), len(kept), seed=seed)


def class_pair_mean(matrix: Floats, *, seed: int = 0) -> Interval:
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


def network_pair_mean(values: Floats, pairs: Ints, *, seed: int = 0) -> Interval:
    """Return the mean over unordered pairs of networks with a bootstrap over **networks**.

    Pairs that share a network are not independent, so whole networks are drawn; a pair counts as
    often as both of its networks were drawn together, and a network with itself is left out.

    Args:
        values: (Q,). One figure per pair.
        pairs: int64, (Q, 2). Which networks.
        seed: of the resampling.

    Raises:
        ShapeError: not one pair per value.
    """
    if pairs.shape != (len(values), 2):
        raise ShapeError(f"expected pairs of shape ({len(values)}, 2), got {pairs.shape}")
    size = int(pairs.max(initial=0)) + 1
    matrix = np.full((size, size), np.nan)
    matrix[pairs[:, 0], pairs[:, 1]] = matrix[pairs[:, 1], pairs[:, 0]] = values
    return class_pair_mean(matrix, seed=seed)


def rank_trend(per_thing: Floats, *, seed: int = 0) -> Interval:
    """Return how steadily the mean over things rises with depth: Spearman's rho, with interval.

    Args:
        per_thing: (n, L). One profile over L layers per thing (class, image); things are resampled.
        seed: of the resampling.

    Raises:
        ShapeError: fewer than three layers.
    """
    from scipy.stats import rankdata

    if per_thing.ndim != 2 or per_thing.shape[1] < 3:
        raise ShapeError(f"expected profiles over three or more layers, got {per_thing.shape}")
    depth = np.arange(per_thing.shape[1]) - (per_thing.shape[1] - 1) / 2

    def statistic(rows: Ints) -> float:
        ranks = rankdata(per_thing[rows].mean(axis=0))
        ranks -= ranks.mean()
        norm = float(np.linalg.norm(ranks) * np.linalg.norm(depth))
        return float(ranks @ depth) / norm if norm else 0.0

    return bootstrap(statistic, len(per_thing), seed=seed)
