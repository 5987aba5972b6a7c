"""What other images would have given: AUROC over draws of the same source images.

B draws, S sources, N clean and M attacked images. Detectors that share one `Resampling` are
compared draw by draw: what is luck of the images falls out of their difference.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reluguard.training.statistics.metrics import Interval

__all__ = ["Drawn", "Resampling", "Word", "interval", "word"]

Floats = NDArray[np.floating[Any]]
Drawn = NDArray[np.float64]
Word = Literal["ahead", "behind", "level"]
_AT_ONCE = 2**22  # values of draws times images


class Resampling:
    """B draws of S source images with replacement.

    Args:
        sources: int64, every source there is, each at least once.
        seed: of the draws.
        draws: B.
    """

    def __init__(self, sources: NDArray[np.int64], *, seed: int, draws: int = 1000) -> None:
        self._sources = np.unique(sources)
        count = len(self._sources)
        rng = np.random.default_rng(seed)
        self._times = rng.multinomial(count, np.full(count, 1 / count), size=draws)

    def auroc(
        self,
        clean: Floats,
        clean_sources: NDArray[np.int64],
        attacked: Floats,
        attacked_sources: NDArray[np.int64],
    ) -> Drawn:
        """Return AUROC in each draw: (B,), ties counted half, NaN where a side was not drawn.

        Args:
            clean: (N,).
            clean_sources: (N,). Which source image each score belongs to.
            attacked: (M,).
            attacked_sources: (M,).
        """
        order = np.argsort(clean, kind="stable")
        low, high = (np.searchsorted(clean[order], attacked, side=s) for s in ("left", "right"))
        columns = np.searchsorted(self._sources, clean_sources[order])
        rows = np.searchsorted(self._sources, attacked_sources)
        found = []
        step = max(1, _AT_ONCE // (len(clean) + len(attacked)))
        for start in range(0, len(self._times), step):
            times = self._times[start : start + step]
            below = np.zeros((len(times), len(clean) + 1))
            np.cumsum(times[:, columns], axis=1, out=below[:, 1:])
            positive = times[:, rows]
            won = ((below[:, low] + below[:, high]) / 2 * positive).sum(axis=1)
            with np.errstate(invalid="ignore"):
                found.append(won / (below[:, -1] * positive.sum(axis=1)))
        return np.concatenate(found)


def interval(value: float, drawn: Drawn, n: int) -> Interval:
    """Return a value with the middle 95 % of its draws, (B,)."""
    kept = drawn[~np.isnan(drawn)]
    low, high = np.quantile(kept, [0.025, 0.975]) if len(kept) else (value, value)
    return Interval(float(value), float(low), float(high), n)


def word(difference: Interval) -> Word:
    """Return who is ahead by the interval of a difference, ours minus theirs."""
    if difference.low > 0:
        return "ahead"
    return "behind" if difference.high < 0 else "level"
