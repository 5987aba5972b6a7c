"""The second look of a guard: who looks at what, and the head that judges both readings.

N images, n clean calibration images, G golden inputs.

On disk it is `second.npz` beside the guard's other files, and `second` in its manifest. A reader
that knows nothing of it opens the guard with its first look alone, as it always did.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.errors import GuardError
from reluguard.detector.head import Head
from reluguard.detector.looks.joint import Joint
from reluguard.detector.looks.judging import Looks, Order
from reluguard.detector.looks.views import SAME, VIEWS
from reluguard.detector.plain import UNSAID, Plain
from reluguard.detector.taps import Tap

__all__ = ["FILE", "Look", "SecondLook"]

FILE = "second.npz"
Floats = NDArray[np.float32]
_OWN = ("first_scores", "golden_score")
_NUMBERS = ("bound", "suspicious_slope", "suspicious_intercept")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look(Plain):
    """Who looks a second time, and at what.

    Attributes:
        view: of the picture: one of `VIEWS`, or "same", which only another network looks at.
        model_sha256: of another network; empty where it is the model itself.
        file: the name of its file when the guard was fitted.
        answer: its output with the class scores.
        taps: that are read of it, as `Tap.to_json` writes them.
        agreement: the share of clean images on which both looks gave one answer.
    """

    view: str
    model_sha256: str = field(default="", metadata=UNSAID)
    file: str = field(default="", metadata=UNSAID)
    answer: str = field(default="", metadata=UNSAID)
    taps: tuple[Mapping[str, Any], ...] = field(default=(), metadata=UNSAID)
    agreement: float = 1.0

    @property
    def is_other(self) -> bool:
        """Whether another network looks."""
        return bool(self.model_sha256)

    @property
    def name(self) -> str:
        """What people call it."""
        if not self.is_other:
            return self.view
        return self.file if self.view == SAME else f"{self.file}, {self.view}"

    def check(self) -> None:
        """Raise GuardError unless somebody looks at something."""
        if self.view not in {SAME, *VIEWS} or (self.view == SAME and not self.is_other):
            raise GuardError(
                f"expected a second look at {', '.join(VIEWS)}, or another network's, "
                f"got {self.view!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondLook:
    """A second look as a guard holds it.

    Attributes:
        look: who looks at what.
        taps: that are read of it.
        head: over joint readings. Its clean scores are what is counted on where every image is
            looked at twice.
        first_scores: float32, (n,). The first score of each calibration image whose second score
            stands at its place among the head's clean scores.
        bound: images of a higher first score are suspicious.
        suspicious_slope, suspicious_intercept: likelihood of a suspicious image by its second
            score; the head's own are for where every image is looked at twice.
        golden_score: float32, (G,). Second scores of the golden inputs.
    """

    look: Look
    taps: tuple[Tap, ...]
    head: Head
    first_scores: Floats
    bound: float
    suspicious_slope: float
    suspicious_intercept: float
    golden_score: Floats

    def joint(self, first: tuple[Tap, ...]) -> Joint:
        """Return how its readings join those of a first look at these taps."""
        return Joint(first, self.taps)

    def order(self, looks: Looks) -> Order:
        """Return the order that p-values are counted in."""
        bound = self.bound if looks == "suspicious" else -np.inf
        groups = self.head.clean_groups if self.head.is_by_class else None
        return Order(self.first_scores, self.head.clean_scores, bound, groups)

    def cuts(self, looks: Looks, fpr: float) -> tuple[Floats, Floats]:
        """Return what `Order.cut` does by the class answered: float32, (K,) twice, or (1,)."""
        order = self.order(looks)
        groups = self.head.class_groups if self.head.is_by_class else np.zeros(1, np.int64)
        of_group = {g: order.of_group(g).cut(fpr) for g in np.unique(groups).tolist()}
        calm, high = np.array([of_group[g] for g in groups.tolist()], np.float32).T
        return calm, high

    def likelihood(self, scores: Floats, looks: Looks) -> Floats:
        """Return the likelihood of images by their second scores: float32, (N,)."""
        slope, intercept = self.logistic(looks)
        likely = 1 / (1 + np.exp(-(slope * scores.astype(np.float64) + intercept)))
        return likely.astype(np.float32)

    def logistic(self, looks: Looks) -> tuple[float, float]:
        """Return slope and intercept of the likelihood's log-odds."""
        if looks == "suspicious":
            return self.suspicious_slope, self.suspicious_intercept
        return self.head.slope, self.head.intercept

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return all of it but the look as named arrays, for `from_arrays`."""
        own: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in _OWN}
        numbers = {name: np.asarray(getattr(self, name), np.float64) for name in _NUMBERS}
        return {**self.head.to_arrays(), **own, **numbers}

    @classmethod
    def from_arrays(
        cls, look: Look, arrays: Mapping[str, NDArray[Any]], first: tuple[Tap, ...], golden: int
    ) -> "SecondLook":
        """Undo `to_arrays`.

        Args:
            look: who looks at what.
            arrays: of `to_arrays`.
            first: taps of the first look.
            golden: G.

        Raises:
            GuardError: an array is missing, unknown, of a wrong shape, not finite, or the look is
                none.
        """
        look.check()
        taps = tuple(map(Tap.from_json, look.taps)) if look.taps else first
        left = dict(arrays)
        try:
            own: dict[str, Any] = {name: left.pop(name) for name in _OWN}
            numbers: dict[str, Any] = {name: float(left.pop(name).item()) for name in _NUMBERS}
        except (KeyError, ValueError) as error:
            raise GuardError(f"the arrays of the second look are incomplete: {error}") from error
        if not np.isfinite(list(numbers.values())).all():
            raise GuardError("expected a finite bound and calibration of the second look")
        head = Head.from_arrays(left)
        for name, count in (("first_scores", len(head.clean_scores)), ("golden_score", golden)):
            value = own[name]
            if value.dtype != np.float32 or value.shape != (count,) or not np.isfinite(value).all():
                raise GuardError(
                    f"expected {name} of the second look as {count} finite float32 numbers, "
                    f"got {value.dtype} {value.shape}"
                )
        second = cls(look=look, taps=taps, head=head, **own, **numbers)
        second.check(first)
        return second

    def check(self, first: tuple[Tap, ...]) -> None:
        """Raise GuardError unless the head reads what the two looks give."""
        runs, f = self.joint(first).runs, self.head.features
        of_column = np.repeat(np.arange(len(runs)), [run.rates for run in runs])
        inside = f.columns.dtype == np.int64 and bool(
            ((f.columns >= 0) & (f.columns < len(of_column))).all()
        )
        if f.taps != len(runs) or not inside:
            raise GuardError(
                f"expected a second head for {len(runs)} runs of {len(of_column)} numbers, "
                f"got one for {f.taps}"
            )
        if not np.array_equal(f.column_taps, of_column[f.columns]):
            raise GuardError("expected each column of the second head in the run it is read from")
