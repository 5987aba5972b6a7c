"""What the guard says of a batch. N images, L taps, D rates, K classes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.head import is_scored
from reluguard.detector.showing.axes import BLUE, GREY, RED, axes_for
from reluguard.detector.showing.frames import data_frame

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Challenge", "FirstLook", "Readings", "Verdict", "Verdicts", "columns_of"]

_FROM_SCORES = np.zeros(0, np.bool_)
_ALL_FIRST = np.zeros(0, np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the guard says of one image.

    `score` is log-odds, higher is more adversarial. `likelihood` is the calibrated probability at
    the guard's stated prevalence. `p_value` is the share of clean images that look at least as
    adversarial: among clean inputs, P(p_value <= a) <= a. `evidence` is each tap's own log-odds,
    first tap first. `is_unscored` says that the pass overflowed: then the numbers mean nothing.
    `look` is 2 where a second look decided, then score and likelihood are its own; evidence is
    always the first one's.
    """

    prediction: int
    score: float
    likelihood: float
    p_value: float
    is_adversarial: bool
    evidence: tuple[float, ...]
    is_unscored: bool = False
    look: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """What the head read: rates float32 (N, D) and logits float32 (N, K)."""

    rates: NDArray[np.float32]
    logits: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """What a challenger says of the same images, to be counted and shown to no caller.

    `score` is float32, (N,), `is_adversarial` bool, (N,), at the challenger's own threshold.
    """

    score: NDArray[np.float32]
    is_adversarial: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstLook:
    """What the first look alone said, where a second one may have decided.

    `score` and `likelihood` are float32, `p_value` float64, `is_adversarial` bool, each (N,).
    """

    score: NDArray[np.float32]
    likelihood: NDArray[np.float32]
    p_value: NDArray[np.float64]
    is_adversarial: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """Verdicts on a batch as arrays, one row per image in the order they came.

    Attributes:
        prediction: int64, (N,). The model's own answer.
        score: float32, (N,).
        likelihood: float32, (N,), in [0, 1].
        p_value: float64, (N,), in (0, 1].
        is_adversarial: bool, (N,).
        evidence: float32, (N, L).
        outputs: the production model's own outputs, untouched, by name.
        readings: what the head read, if the guard was opened for it.
        challenge: what the challenger says, if there is one.
        unscored: bool, (N,). Rows whose pass overflowed: their numbers mean nothing. Read from the
            scores if it isn't given.
        look: uint8, (N,). Which look decided: 2 where a second one did. All 1 if it isn't given.
        first: what the first look alone said, of a guard that may look again.
    """

    prediction: NDArray[np.int64]
    score: NDArray[np.float32]
    likelihood: NDArray[np.float32]
    p_value: NDArray[np.float64]
    is_adversarial: NDArray[np.bool_]
    evidence: NDArray[np.float32]
    outputs: Mapping[str, NDArray[Any]]
    readings: Readings | None = None
    challenge: Challenge | None = None
    unscored: NDArray[np.bool_] = field(default_factory=lambda: _FROM_SCORES)
    look: NDArray[np.uint8] = field(default_factory=lambda: _ALL_FIRST)
    first: FirstLook | None = None

    def __post_init__(self) -> None:
        if self.unscored is _FROM_SCORES:
            object.__setattr__(self, "unscored", ~is_scored(self.score))
        if self.look is _ALL_FIRST:
            object.__setattr__(self, "look", np.ones(len(self.score), np.uint8))

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, index: int) -> Verdict:
        """Return one image's verdict."""
        return Verdict(
            prediction=int(self.prediction[index]),
            score=float(self.score[index]),
            likelihood=float(self.likelihood[index]),
            p_value=float(self.p_value[index]),
            is_adversarial=bool(self.is_adversarial[index]),
            evidence=tuple(map(float, self.evidence[index])),
            is_unscored=bool(self.unscored[index]),
            look=int(self.look[index]),
        )

    def __iter__(self) -> Iterator[Verdict]:
        return (self[i] for i in range(len(self)))

    def to_pandas(self) -> "pd.DataFrame":
        """Return a pandas data frame, one row an image, `evidence` as a column of lists.

        Raises:
            SettingsError: pandas is not installed: `pip install 'reluguard[tables]'`.
        """
        columns = columns_of(self).items()
        return data_frame({name: list(a) if a.ndim > 1 else a for name, a in columns})

    def plot(self, axes: Any = None) -> Any:
        """Draw the p-value of every image, lowest first, flagged ones apart.

        Among clean images p-values are spread evenly, so they lie along the dotted line; attacks
        lie far below it. Images that could not be scored are left out.

        Args:
            axes: matplotlib's, to draw on; new ones by default.

        Returns:
            The axes.

        Raises:
            SettingsError: matplotlib is not installed: `pip install 'reluguard[training]'`.
        """
        axes = axes_for(axes)
        rows = np.flatnonzero(~self.unscored)
        rows = rows[np.argsort(self.p_value[rows], kind="stable")]
        place = np.arange(1, len(rows) + 1)
        flagged = self.is_adversarial[rows]
        for mask, color, marker, name in (
            (~flagged, BLUE, "s", "not flagged"),
            (flagged, RED, "o", "flagged"),
        ):
            label = f"{name}: {mask.sum()} of {len(self)}"
            axes.scatter(
                place[mask], self.p_value[rows][mask], s=16, c=color, marker=marker, label=label
            )
        if len(rows):
            even = place / (len(rows) + 1)
            axes.plot(place, even, ":", color=GREY, label="if all were clean, about here")
        axes.set_yscale("log")
        axes.set_xlabel("images, lowest p-value first")
        axes.set_ylabel("p-value")
        axes.legend(loc="best", framealpha=0.8, fontsize=9)
        return axes


def columns_of(verdicts: Verdicts) -> dict[str, NDArray[Any]]:
    """Return verdicts as columns, (N,) or (N, L), in the order people read them.

    `prediction`, `score`, `likelihood`, `p_value`, `is_adversarial`, `unscored` and `evidence`; of
    a guard that may look again also `look`, `first_score` and `first_p_value`.
    """
    names = ("prediction", "score", "likelihood", "p_value", "is_adversarial", "unscored")
    columns = {name: getattr(verdicts, name) for name in names}
    if verdicts.first is not None:
        columns |= {
            "look": verdicts.look,
            "first_score": verdicts.first.score,
            "first_p_value": verdicts.first.p_value,
        }
    return columns | {"evidence": verdicts.evidence}
