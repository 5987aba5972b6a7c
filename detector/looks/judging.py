"""Two looks calibrated as one procedure. N images, n clean calibration images.

An image is suspicious where its first score is above a bound that no calibration image had a part
in. All images then stand in one order: the others by their first score, and above them the
suspicious ones by their second. Where an image stands among the calibration images is a conformal
p-value: the order is one fixed function of an image, so among clean images P(p <= a) <= a holds
exactly, wherever the bound is and however good the heads are. A knowing attacker who stays below
the bound is never looked at again; who always looks twice orders all images by their second score.

Source: split conformal prediction, Vovk et al. 2005, chapter 4.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.errors import SettingsError

__all__ = ["LOOKS", "Looks", "Order", "looks_named"]

Looks = Literal["first", "suspicious", "always"]
LOOKS: tuple[Looks, ...] = get_args(Looks)
Floats = NDArray[np.float32]


def looks_named(text: str) -> Looks:
    """Return when a second look is taken.

    Raises:
        SettingsError: none of `LOOKS`.
    """
    known = {str(name): name for name in LOOKS}
    if text not in known:
        raise SettingsError(f"expected looks of {', '.join(LOOKS)}, got {text!r}")
    return known[text]


@dataclass(frozen=True, slots=True)
class Order:
    """The order of images by two looks, and where the calibration images stand in it.

    Attributes:
        first: float32, (n,). First scores of the calibration images.
        second: float32, (n,). Their second scores, in the same order.
        bound: images of a higher first score are suspicious; minus infinity: all are.
        groups: int64, (n,). An image is compared with calibration images of its own group only;
            without, with all.
    """

    first: Floats
    second: Floats
    bound: float
    groups: NDArray[np.int64] | None = None

    def is_suspicious(self, first: Floats) -> NDArray[np.bool_]:
        """Return which images a second look is taken at: bool, (N,)."""
        suspicious: NDArray[np.bool_] = first > np.float32(self.bound)
        return suspicious

    @property
    def share(self) -> float:
        """Of the calibration images, those that are suspicious."""
        return float(self.is_suspicious(self.first).mean())

    def of_group(self, group: int) -> "Order":
        """Return the order among the calibration images of a group."""
        if self.groups is None:
            return self
        mine = self.groups == group
        return Order(self.first[mine], self.second[mine], self.bound)

    def p_values(
        self,
        first: Floats,
        second: Floats,
        looked: NDArray[np.bool_],
        groups: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float64]:
        """Return the share of clean images that stand as high: float64, (N,), in (0, 1].

        Args:
            first: (N,). First scores.
            second: (N,). Second scores; those of images not looked at are not read.
            looked: bool, (N,). Which were looked at again: the suspicious ones.
            groups: int64, (N,). Of an order by groups, the group of each.
        """
        if self.groups is not None and groups is not None:
            found = np.ones(len(first))
            for group in np.unique(groups):
                mine = groups == group
                own = self.of_group(int(group))
                found[mine] = own.p_values(first[mine], second[mine], looked[mine])
            return found
        above = self.is_suspicious(self.first)
        high, calm = np.sort(self.second[above]), np.sort(self.first[~above])
        among_high = len(high) - np.searchsorted(high, second, side="left")
        among_calm = len(high) + len(calm) - np.searchsorted(calm, first, side="left")
        count = np.where(looked, among_high, among_calm).astype(np.float64)
        p_values: NDArray[np.float64] = (1 + count) / (len(self.first) + 1)
        return p_values

    def flags(
        self,
        p_values: NDArray[np.float64],
        fpr: float,
        groups: NDArray[np.int64] | None = None,
    ) -> NDArray[np.bool_]:
        """Return which images are called adversarial at a false-positive rate: bool, (N,)."""
        count: NDArray[np.int64] = np.full(len(p_values), len(self.first) + 1)
        if self.groups is not None and groups is not None:
            count = np.bincount(self.groups, minlength=int(groups.max(initial=0)) + 1)[groups] + 1
        # in whole ranks: a rate and a share that are equal may differ in the last bit
        ranks = np.rint(p_values * count)
        flagged: NDArray[np.bool_] = ranks <= np.floor(fpr * count + 1e-9)
        return flagged

    def cut(self, fpr: float) -> tuple[float, float]:
        """Return the first and the second score above which images are called adversarial.

        Of images that are not suspicious, and of those that are. Infinity: none is, minus
        infinity: all are.
        """
        above = self.is_suspicious(self.first)
        high, calm = np.sort(self.second[above]), np.sort(self.first[~above])
        rank = int(np.floor(fpr * (len(self.first) + 1) + 1e-9))
        if rank < 1:
            return np.inf, np.inf
        if rank <= len(high):
            return np.inf, float(high[len(high) - rank])
        left = rank - len(high)
        return (float(calm[len(calm) - left]) if left <= len(calm) else -np.inf), -np.inf
