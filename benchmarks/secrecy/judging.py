"""What secrecy buys: shares, changes and what is lost, each beside the guard without a secret.

N attacked images, G guards of one form, A attacks that know of no guard.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.metrics import Interval
from reluguard.training.harvest.readings import CLEAN
from reluguard.training.statistics.metrics import auroc

__all__ = ["Cost", "Judged", "Outcome", "cost_of", "difference", "mean_of", "times"]

DRAWS = 2000
COST_DRAWS = 500
Bits = NDArray[np.bool_]
Doubles = NDArray[np.float64]
Scored = Mapping[str, tuple[NDArray[np.float32], NDArray[np.int64]]]
Judged = tuple[Scored, float]
"""Scores and sources, (M,) each, by name of a change, and the score above which is flagged."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one attacker reaches against the guards of one form.

    Attributes:
        evades: bool, (G, N), by budget: wrong, and not flagged.
        change: float64, (G, N). The smallest change in L2 that evades, infinite where none did.
    """

    evades: Mapping[str, Bits]
    change: Doubles

    def shares(self, budget: str) -> Doubles:
        """Return the share of the guards that each image evades: (N,)."""
        found: Doubles = self.evades[budget].mean(axis=0)
        return found

    @property
    def middle(self) -> Doubles:
        """Each image's change at the middle one of the guards, the lower of two: (N,)."""
        found: Doubles = np.sort(self.change, axis=0)[(len(self.change) - 1) // 2]
        return found


def mean_of(values: Doubles, *, seed: int = 0) -> Interval:
    """Return the mean of one number per image, (N,), with its interval over images."""
    return _interval(values, lambda drawn: drawn.mean(axis=1), seed)


def difference(more: Doubles, less: Doubles, *, seed: int = 0) -> Interval:
    """Return by how much two means differ, image by image: (N,) each."""
    return mean_of(more - less, seed=seed)


def times(far: Doubles, near: Doubles, *, most: float, seed: int = 0) -> Interval:
    """Return how many times as far the median image has to go, image by image.

    Args:
        far: (N,), infinite where nothing was reached.
        near: (N,), likewise.
        most: what an infinite one counts as.
        seed: of the bootstrap.
    """
    ratios = np.minimum(far, most) / np.minimum(near, most)
    return _interval(ratios, lambda drawn: np.median(drawn, axis=1), seed)


def _interval(values: Doubles, of: Callable[[Doubles], Doubles], seed: int) -> Interval:
    drawn = np.random.default_rng(seed).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.quantile(of(values[drawn]), [0.025, 0.975])
    return Interval(float(of(values[None])[0]), float(low), float(high), len(values))


@dataclass(frozen=True, slots=True)
class Cost:
    """What a form detects of attacks that know of no guard, and by how much less than another.

    Attributes:
        auroc: mean over guards and attacks.
        detected: share flagged, mean over guards and attacks.
        lost: of `detected`, beside the other form.
    """

    auroc: float
    detected: float
    lost: Interval


def cost_of(guards: Sequence[Judged], beside: Sequence[Judged], *, seed: int = 0) -> Cost:
    """Return what guards detect, beside those of another form, resampled by source image.

    Args:
        guards: all judged on the same images, clean ones among them.
        beside: the guards without a secret, on the same images.
        seed: of the bootstrap.
    """
    names = [name for name in guards[0][0] if name != CLEAN]
    found = [auroc(scored[CLEAN][0], scored[name][0]) for scored, _ in guards for name in names]
    mine, theirs = _by_source(guards, names), _by_source(beside, names)
    known = np.unique(np.concatenate([sources for sources, _ in mine.values()]))

    def lost(counts: Doubles) -> float:
        return _weighed(theirs, known, counts) - _weighed(mine, known, counts)

    once, rng = np.ones(len(known)), np.random.default_rng(seed)
    drawn = [
        lost(np.bincount(rng.integers(len(known), size=len(known)), minlength=len(known)) * once)
        for _ in range(COST_DRAWS)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    interval = Interval(lost(once), float(low), float(high), len(known))
    return Cost(float(np.mean(found)), _weighed(mine, known, once), interval)


def _by_source(
    guards: Sequence[Judged], names: Sequence[str]
) -> dict[str, tuple[NDArray[np.int64], Doubles]]:
    """Return of each attack the sources, and the share of guards that flag each image."""
    return {
        name: (
            guards[0][0][name][1],
            np.mean([scored[name][0] > np.float32(limit) for scored, limit in guards], axis=0),
        )
        for name in names
    }


def _weighed(
    flagged: Mapping[str, tuple[NDArray[np.int64], Doubles]],
    known: NDArray[np.int64],
    counts: Doubles,
) -> float:
    """Return the mean over attacks of the share flagged, sources counted so often."""
    shares = []
    for sources, flags in flagged.values():
        weights = counts[np.searchsorted(known, sources)]
        if weights.sum():
            shares.append(float((weights * flags).sum() / weights.sum()))
    return float(np.mean(shares))
