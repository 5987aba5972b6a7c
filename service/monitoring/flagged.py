"""The last images that were flagged, and why: for an admin who wants to know what is going on."""

import dataclasses
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reluguard.service.monitoring.decisions import Decision

__all__ = ["Flag", "Flagged", "read_flags", "write_flags"]

_MOST = 100
_LAYERS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One image that was called adversarial.

    Attributes:
        time: of the answer, seconds since the epoch.
        model: that was asked.
        guard: digest of the guard that judged.
        caller: name of its token or, without tokens, its address.
        request: what the caller calls its request, or we do.
        row: in that request.
        capture: under which the request was captured; empty if it was not.
        prediction: the model's own.
        score: log-odds.
        p_value: against clean images.
        withheld: whether the policy kept the answer back.
        evidence: layers that spoke loudest for an attack, with their log-odds, loudest first.
    """

    time: float
    model: str
    guard: str
    caller: str
    request: str
    row: int
    capture: str
    prediction: int
    score: float
    p_value: float
    withheld: bool
    evidence: Sequence[tuple[str, float]]


class Flagged:
    """The newest flags of one server. Written on the loop, read by any thread."""

    def __init__(self, most: int = _MOST) -> None:
        self._flags: deque[Flag] = deque(maxlen=most)
        self._lock = threading.Lock()

    def add(self, decision: Decision, layers: Sequence[str]) -> None:
        """Keep what was flagged of one request.

        Args:
            decision: on the request.
            layers: names of the guard's taps.
        """
        verdicts = decision.verdicts
        rows = np.flatnonzero(verdicts.is_adversarial & ~verdicts.unscored)
        flags = [
            Flag(
                time=decision.time,
                model=decision.model,
                guard=decision.guard,
                caller=decision.caller,
                request=decision.request,
                row=row,
                capture=decision.capture,
                prediction=int(verdicts.prediction[row]),
                score=float(verdicts.score[row]),
                p_value=float(verdicts.p_value[row]),
                withheld=decision.policy == "reject",
                evidence=_loudest(verdicts.evidence[row].tolist(), layers),
            )
            for row in rows[-_MOST:].tolist()
        ]
        with self._lock:
            self._flags.extend(flags)

    def newest(self) -> list[Flag]:
        """Return them, newest first."""
        with self._lock:
            return list(reversed(self._flags))


def _loudest(values: Sequence[float], layers: Sequence[str]) -> tuple[tuple[str, float], ...]:
    named = zip(layers, values, strict=False)
    return tuple(sorted(named, key=lambda pair: -pair[1])[:_LAYERS])


def write_flags(flags: Iterable[Flag]) -> list[dict[str, Any]]:
    """Return plain values, from which `read_flags` makes the same again."""
    return [dataclasses.asdict(flag) for flag in flags]


def read_flags(documents: Iterable[Mapping[str, Any]]) -> list[Flag]:
    """Return what `write_flags` was given."""
    return [
        Flag(**{**document, "evidence": tuple((n, v) for n, v in document["evidence"])})
        for document in documents
    ]
