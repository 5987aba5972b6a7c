"""What answers: one verified pair of model and guard, opened. N images."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.looks.thresholds import Thresholds, thresholds_at
from reluguard.detector.runtime import Guard
from reluguard.detector.verdict import Readings, Verdicts
from reluguard.service.monitoring.hour import SCORES
from reluguard.service.monitoring.shadow import Shadow

__all__ = ["Version"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Version:
    """One verified pair of model and guard, ready to run.

    Attributes:
        guard: the model with its guard, and its challenger if there is one.
        shadow: the challenger's tally since this version went live.
        refused: why there is no challenger though there should be one; else empty.
        since: when it went live, seconds since the epoch.
        thresholds: that it would flag by at each rate its manifest names.
    """

    guard: Guard
    shadow: Shadow | None = None
    refused: str = ""
    since: float = 0.0
    thresholds: tuple[Thresholds, ...] = ()

    @classmethod
    def of(cls, guard: Guard, *, refused: str = "") -> "Version":
        """Return a version that begins now."""
        rival = guard.challenger
        shadow = None if rival is None else Shadow(digest=rival.digest, bounds=SCORES)
        artifact = guard.artifact
        return cls(
            guard=guard,
            shadow=shadow,
            refused=refused,
            since=time.time(),
            # of many classes that takes a while, and callers ask on the event loop
            thresholds=thresholds_at(
                artifact.head,
                artifact.second,
                map(float, artifact.manifest.thresholds),
                guard.looks,
            ),
        )

    @property
    def digest(self) -> str:
        """The guard's digest."""
        return self.guard.artifact.digest

    def run(self, tensor: NDArray[Any]) -> Verdicts:
        """Return the first look's verdicts on this checked tensor. Called from a worker thread."""
        return self.guard.verdicts(self.guard.run_checked(tensor))

    def wanted(self, first: Verdicts) -> NDArray[np.bool_]:
        """Return which rows are to be looked at again: bool, (N,)."""
        again = self.guard.again
        return np.zeros(len(first), np.bool_) if again is None else again.is_wanted(first)

    def again(self, tensor: NDArray[Any], first: Readings) -> NDArray[np.float32]:
        """Return second scores of these rows. Called from a worker thread."""
        again = self.guard.again
        assert again is not None  # otherwise no row is wanted
        return again.scores(tensor, first)

    def judged(
        self, first: Verdicts, rows: NDArray[np.int64], scores: NDArray[np.float32]
    ) -> Verdicts:
        """Return the verdicts of both looks, those of the first where there is no second."""
        return self.guard.judged(first, rows, scores)
