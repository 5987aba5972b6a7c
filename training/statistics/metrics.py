"""Detection quality with intervals. N clean and M attacked images, B bootstrap draws.

Scores are higher for more adversarial images. Resampling goes by source image, so that a clean
image and its attacked twin are drawn together.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from reluguard.detector.metrics import Interval
from reluguard.training.errors import DataError

__all__ = [
    "Interval",
    "auroc",
    "auroc_interval",
    "detected_below",
    "rate_above",
    "rate_interval",
]

Floats = NDArray[np.floating[Any]]


def auroc(clean: Floats, attacked: Floats) -> float:
    """Return the chance that an attacked image scores above a clean one, ties counted half.

    Args:
        clean: (N,).
        attacked: (M,).

    Raises:
        DataError: one of the two is empty.
    """
    if not len(clean) or not len(attacked):
        raise DataError(f"AUROC needs images on both sides, got {len(clean)} and {len(attacked)}")
    ranks = stats.rankdata(np.concatenate([clean, attacked]))
    above = ranks[len(clean) :].sum() - len(attacked) * (len(attacked) + 1) / 2
    return float(above / (len(clean) * len(attacked)))


def detected_below(clean: Floats, attacked: Floats, *, rate: float) -> float:
    """Return the mean share of attacked images found over false-positive rates from 0 to `rate`.

    The partial AUROC divided by its width, in [0, 1]: what the score's tail is worth, where AUROC
    is about rates that nobody would act on. Ties are counted half.

    Args:
        clean: (N,).
        attacked: (M,).
        rate: the highest false-positive rate, in (0, 1].

    Raises:
        DataError: one of the two is empty, or no such rate.
    """
    if not 0 < rate <= 1:
        raise DataError(f"expected a false-positive rate in (0, 1], got {rate}")
    if not len(clean) or not len(attacked):
        raise DataError(f"expected images on both sides, got {len(clean)} and {len(attacked)}")
    ordered, own = np.sort(clean)[::-1], np.sort(attacked)
    high = len(own) - np.searchsorted(own, ordered, side="right")
    low = len(own) - np.searchsorted(own, ordered, side="left")
    found = (high + low) / 2 / len(own)  # at each clean image, the strictest first
    width = rate * len(ordered)
    share = np.clip(width - np.arange(len(ordered)), 0, 1)
    return float((found * share).sum() / width)


def auroc_interval(
    clean: Floats,
    clean_sources: NDArray[np.int64],
    attacked: Floats,
    attacked_sources: NDArray[np.int64],
    *,
    seed: int,
    draws: int = 1000,
) -> Interval:
    """Return AUROC with a 95 % bootstrap interval over source images.

    Args:
        clean: (N,).
        clean_sources: (N,). Which source image each score belongs to.
        attacked: (M,).
        attacked_sources: (M,).
        seed: of the resampling.
        draws: B.

    Raises:
        DataError: one of the two is empty.
    """
    value = auroc(clean, attacked)
    rng = np.random.default_rng(seed)
    sources, index = np.unique(
        np.concatenate([clean_sources, attacked_sources]), return_inverse=True
    )
    scores = np.concatenate([clean, attacked])
    is_attack = np.arange(len(scores)) >= len(clean)
    # ties share a level: within it, half of the clean weight lies below
    levels = np.unique(scores, return_inverse=True)[1]
    drawn = []
    for _ in range(draws):
        weight = np.bincount(rng.integers(len(sources), size=len(sources)), minlength=len(sources))
        w = weight[index].astype(np.float64)
        positive = np.bincount(levels, w * is_attack)
        negative = np.bincount(levels, w * ~is_attack)
        total = positive.sum() * negative.sum()
        if total:
            below = np.cumsum(negative) - negative / 2
            drawn.append(float((positive * below).sum() / total))
    low, high = np.quantile(drawn, [0.025, 0.975]) if drawn else (value, value)
    return Interval(value, float(low), float(high), len(attacked))


def rate_above(scores: Floats, threshold: float) -> Interval:
    """Return the share of scores above a threshold, with its Wilson interval."""
    return rate_interval(int((scores > np.float32(threshold)).sum()), len(scores))


def rate_interval(hits: int, n: int) -> Interval:
    """Return hits / n with its 95 % Wilson interval.

    Raises:
        DataError: n is zero.
    """
    if n == 0:
        raise DataError("expected at least one image to count a rate on, got none")
    interval = stats.binomtest(hits, n).proportion_ci(method="wilson")
    return Interval(hits / n, float(interval.low), float(interval.high), n)
