"""Above which scores a guard flags. K classes.

Most guards have one number. One that goes by class has a number for each class the model answers;
of one that looks twice, the look that decides has its own. Whoever shows a guard to people or
machines shows this, so that nobody is told of a single threshold where there is none.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.errors import SettingsError
from reluguard.detector.head import Head
from reluguard.detector.looks.judging import Looks
from reluguard.detector.looks.second import SecondLook

__all__ = ["Thresholds", "thresholds_at", "thresholds_of"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What scores are compared with at one rate.

    Attributes:
        fpr: the share of clean images that may be flagged, of each class where it goes by class.
        first: float32, (K,) by the class answered, or (1,). Images that the first look decides are
            flagged above it. Infinity: none of them is.
        second: likewise of images that the second look decides; minus infinity: all of them are.
            None where no second look is taken.
        bound: the second look decides images of a higher first score.
        is_by_class: whether the numbers go by class.
    """

    fpr: float
    first: Floats
    second: Floats | None = None
    bound: float = np.inf
    is_by_class: bool = False

    @property
    def lowest(self) -> float:
        """No image of this first score or a lower one is flagged; minus infinity: any may be."""
        return float(np.minimum(self.first, np.float32(self.bound)).min())

    @property
    def highest(self) -> float:
        """Every image of a higher first score is flagged; infinity: a second look may clear it."""
        if self.second is None:
            return float(self.first.max())
        all_above = np.isneginf(self.second)
        above_bound = np.where(all_above, np.minimum(self.first, np.float32(self.bound)), np.inf)
        return float(above_bound.max())

    @property
    def single(self) -> float:
        """The one first score above which images are flagged; NaN where there is no such number."""
        return self.lowest if self.lowest == self.highest else float("nan")

    @property
    def words(self) -> str:
        """One line on it for people."""
        if self.second is None:
            return _words(self.first, "score", is_by_class=self.is_by_class)
        parts = [_words(self.second, "second score", is_by_class=self.is_by_class)]
        if np.isfinite(self.first).any():
            parts.insert(0, _words(self.first, "first score", is_by_class=self.is_by_class))
        if np.isneginf(self.bound):
            parts.append("every image is looked at twice")
        else:
            parts.append(f"a second look is taken where the first score is above {self.bound:.3f}")
        return "; ".join(parts)


def _words(limits: Floats, what: str, *, is_by_class: bool) -> str:
    low, high = float(limits.min()), float(limits.max())
    if not is_by_class:
        return f"{what} above {low:.3f}"
    count = len(np.unique(limits))
    return f"{what} above {low:.3f} to {high:.3f}, by the class answered ({count} thresholds)"


def thresholds_of(
    head: Head, again: SecondLook | None, fpr: float, looks: Looks = "first"
) -> Thresholds:
    """Return what a guard compares scores with.

    Args:
        head: of its first look.
        again: its second look, if it has one.
        fpr: the rate.
        looks: when the second look is taken; "first" for never.

    Raises:
        SettingsError: it has too few calibration images for this rate.
    """
    if again is None or looks == "first":
        return Thresholds(fpr=fpr, first=head.limits(fpr), is_by_class=head.is_by_class)
    calm, high = again.cuts(looks, fpr)
    return Thresholds(
        fpr=fpr,
        first=calm,
        second=high,
        bound=again.order(looks).bound,
        is_by_class=again.head.is_by_class,
    )


def thresholds_at(
    head: Head, again: SecondLook | None, rates: Iterable[float], looks: Looks = "first"
) -> tuple[Thresholds, ...]:
    """Return the same for each of these rates that the calibration images suffice for."""
    found = []
    for rate in rates:
        try:
            found.append(thresholds_of(head, again, rate, looks))
        except SettingsError:
            continue
    return tuple(found)
