"""A line of the papers' table, and a line of the table beside it.

A claim holds if its whole interval lies on the claimed side and fails if none of it does. Where the
interval holds both sides, or the figure can't be had on this network and these images, it can't be
told here, and the line says why.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from reluguard.training.statistics.metrics import Interval

__all__ = ["HOLDS", "Aside", "Claim", "Holds", "claim", "judge", "untold"]

Holds = Literal["holds", "fails", "can't be told here"]
HOLDS: tuple[Holds, ...] = ("holds", "fails", "can't be told here")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One line of the papers' table.

    Attributes:
        paper: who says so.
        claim: what they say, in our words.
        theirs: their figure, or what is known of it.
        setup: what they measured it on, as far as it is known.
        measure: what was measured here to test it.
        ours: the figure with its interval; None where it was not measured.
        target: the claim holds above this.
        holds: see the module.
        why: what settles it, or what is missing.
    """

    paper: str
    claim: str
    theirs: str
    setup: str
    measure: str
    ours: Interval | None
    target: float
    holds: Holds
    why: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aside:
    """A figure beside the papers: nobody claimed it, so nothing can hold or fail.

    Attributes:
        near: the paper whose claim it stands beside.
        measure: what was measured.
        ours: the figure with its interval; None where it can't be had.
    """

    near: str
    measure: str
    ours: Interval | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def judge(ours: Interval | None, target: float, *, level: bool = False) -> tuple[Holds, str]:
    """Return whether a figure lies above the target with its whole interval, and why so.

    Args:
        ours: the figure.
        target: what it has to lie above.
        level: whether the target itself is enough, as for "at least as well".
    """
    if ours is None or not np.isfinite([ours.value, ours.low, ours.high]).all():
        return "can't be told here", "not measured"
    if ours.low > target or (level and ours.low >= target):
        return "holds", f"the whole interval lies {'at or ' * level}above {target:g}"
    if ours.high < target or (ours.high == target and not level):
        return "fails", f"the whole interval lies {'' if level else 'at or '}below {target:g}"
    return "can't be told here", f"the interval holds both sides of {target:g}"


def claim(
    paper: str,
    what: str,
    *,
    theirs: str,
    setup: str,
    measure: str,
    ours: Interval | None,
    target: float = 0.0,
    level: bool = False,
    note: str = "",
) -> Claim:
    """Return a line that is judged by its figure.

    Args:
        paper: who says so.
        what: what they say.
        theirs: their figure.
        setup: what they measured it on.
        measure: what was measured here.
        ours: the figure.
        target: see `judge`.
        level: see `judge`.
        note: what else has to be known beside the verdict.
    """
    holds, why = judge(ours, target, level=level)
    return Claim(
        paper=paper,
        claim=what,
        theirs=theirs,
        setup=setup,
        measure=measure,
        ours=ours,
        target=target,
        holds=holds,
        why=f"{why}; {note}" if note else why,
    )


def untold(paper: str, what: str, *, theirs: str, setup: str, measure: str, why: str) -> Claim:
    """Return a line for what was not measured: `why` says what is missing."""
    return Claim(
        paper=paper,
        claim=what,
        theirs=theirs,
        setup=setup,
        measure=measure,
        ours=None,
        target=0.0,
        holds="can't be told here",
        why=why,
    )
