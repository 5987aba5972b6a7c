"""Which thresholds are chosen, on one part of the streams, and what they do on another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["DISTANCES", "EXEMPT", "NEARS", "Row", "chosen", "first_raised", "rows_of"]

Weights = NDArray[np.float64]
DISTANCES = (0.0625, 0.09375, 0.125)
NEARS = (20, 30, 40, 50, 75, 100, 150)
EXEMPT = frozenset({"still camera", "still scene, something moves"})  # these want an exempt token
_MOMENT = 0.5
_MARGIN = 2 / 3  # of the number, that an honest stream of the first part stays below


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the watch did with the streams of one kind.

    Attributes:
        kind: of stream.
        streams: how many there were.
        raised: of them.
        questions: that a stream had, in the middle.
        before: asked when suspicion was raised, in the middle of those raised; None if none was.
        most_before: the most of them.
    """

    kind: str
    streams: int
    raised: int
    questions: int
    before: int | None
    most_before: int | None


def first_raised(weights: Weights, near: float) -> int | None:
    """Return how many questions were asked when weight first reached `near`, None for never."""
    reached = np.flatnonzero(weights > near - _MOMENT)
    return int(reached[0]) + 1 if len(reached) else None


def rows_of(streams: Mapping[str, Sequence[Weights]], near: int) -> list[Row]:
    """Return a row for each kind of stream."""
    rows = []
    for kind, weights in streams.items():
        told = [first_raised(one, near) for one in weights]
        raised = [one for one in told if one is not None]
        rows.append(
            Row(
                kind=kind,
                streams=len(weights),
                raised=len(raised),
                questions=int(np.median([len(one) for one in weights])),
                before=int(np.median(raised)) if raised else None,
                most_before=max(raised) if raised else None,
            )
        )
    return rows


def chosen(
    attacks: Mapping[float, Mapping[str, Sequence[Weights]]],
    honest: Mapping[float, Mapping[str, Sequence[Weights]]],
) -> tuple[float, int]:
    """Return the distance and the number that raise most attacks and no honest stream by far.

    No honest stream may reach two thirds of the number, still cameras aside, which no number tells
    from an attack. Of settings that raise as many attacks the one that raises them earliest is
    taken, then the smaller distance.

    Args:
        attacks: weights of streams by distance and kind.
        honest: the same.
    """
    best: tuple[float, float, float, int] | None = None
    found = (DISTANCES[0], NEARS[-1])
    for distance, kinds in attacks.items():
        innocent = [
            one for kind, all_ in honest[distance].items() if kind not in EXEMPT for one in all_
        ]
        for near in NEARS:
            if any(first_raised(one, _MARGIN * near) is not None for one in innocent):
                continue
            told = [first_raised(one, near) for all_ in kinds.values() for one in all_]
            raised = [one for one in told if one is not None]
            late = float(np.median(raised)) if raised else np.inf
            quality = (float(len(raised)), -late, -distance, near)
            if best is None or quality > best:
                best, found = quality, (distance, near)
    return found
