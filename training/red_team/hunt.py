"""The search for the images that evade, by each attack and one budget after another. N images."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.images import Images
from reluguard.training.attacks import Attack
from reluguard.training.progress import Progress
from reluguard.training.red_team.aware import Aware
from reluguard.training.red_team.aware_attacks import (
    CombinedLogit,
    Lagrangian,
    Mimicry,
    Orthogonal,
    Selective,
)
from reluguard.training.red_team.effort import Effort
from reluguard.training.red_team.report import BEST, Row
from reluguard.training.red_team.score_search import ScoreSearch
from reluguard.training.red_team.target import Scores, Target
from reluguard.training.red_team.tries import Tries
from reluguard.training.statistics.metrics import rate_interval

__all__ = ["Hunt", "attacks_on", "restarts_of"]


def attacks_on(target: Target, size: float, effort: Effort) -> list[Attack]:
    """Return the attacks on a guard within a budget: gradients of it, then questions to it.

    Args:
        target: what is attacked.
        size: the budget, Linf in 8-bit steps.
        effort: how hard they try.
    """
    common: dict[str, Any] = {
        "guard": target.relaxed,
        "threshold": target.believed,
        "size": size,
        "steps": effort.steps,
    }
    searched = ScoreSearch(
        ask=target.ask,
        answer=target.guard.artifact.manifest.answer,
        columns=target.guard.class_scores,
        heights=target.procedure.heights,
        threshold=target.strictest,
        size=size,
        most_queries=effort.queries,
    )
    return [
        Selective(**common),
        Orthogonal(**common),
        CombinedLogit(**common),
        Lagrangian(**common),
        Mimicry(**common, bank=target.bank),
        searched,
    ]


def restarts_of(attack: Attack, effort: Effort) -> int:
    """Return how often an attack is run on an image; a grid of weights is restarts enough."""
    return max(1, effort.restarts // attack.grid) if isinstance(attack, Aware) else 1


class Hunt:
    """The search for each image's lowest score behind the boundary, budget after budget.

    Attributes:
        found: uint8, (N, H, W, C). The image of the lowest score so far.
        lowest: float32, (N,). That score, infinite where the answer was never wrong.
        used: float64, (N,). The budget it was found within.
    """

    def __init__(self, target: Target, tries: Tries, effort: Effort, progress: Progress) -> None:
        self._target, self._tries, self._effort = target, tries, effort
        self._progress = progress
        self.found = target.images.copy()
        self.lowest = np.full(len(target), np.inf, np.float32)
        self.used = np.zeros(len(target))

    def at(self, size: float) -> dict[str, Row]:
        """Return each attack's figures within a budget, and those of the best per image."""
        rows: dict[str, Row] = {}
        everyone = np.arange(len(self._target))
        for place, attack in enumerate(attacks_on(self._target, size, self._effort)):
            left = everyone
            if place and not self._effort.everyone:
                left = np.flatnonzero(self.lowest > self._target.strictest)
            name = attack.name.removesuffix(f"-{attack.budget}")
            rows[name] = self._try(attack, left, size)
        # what evades within a smaller budget evades within this one
        rows[BEST] = _entry(self.lowest, self._target.thresholds)
        return rows

    def _try(self, attack: Attack, rows: NDArray[np.int64], size: float) -> Row:
        """Return an attack's figures, one restart after another on the images that are left."""
        strictest = self._target.strictest
        restarts = restarts_of(attack, self._effort)
        self._progress.stage(attack.name, restarts * len(rows))
        best = np.full(len(rows), np.inf, np.float32)
        after: list[float] = []
        queries: list[NDArray[np.int64]] = []
        for turn in range(restarts):
            once = replace(attack, restarts=1, first=turn) if isinstance(attack, Aware) else attack
            left = np.flatnonzero(best > strictest)
            scores, images, asked = self._tries.fool(once, rows[left])
            self._progress.advance(len(rows) - len(left))
            self._keep(rows[left], scores, images, size)
            best[left] = np.minimum(best[left], scores)
            after.append(float((best <= np.float32(strictest)).mean()) if len(rows) else 0.0)
            queries += [] if asked is None else [asked]
        if not len(rows):
            return Row(images=0)
        row = replace(
            _entry(best, self._target.thresholds),
            images=len(rows),
            evaded_after_restarts=tuple(after) if restarts > 1 else None,
        )
        return _with_questions(row, np.concatenate(queries), best, strictest) if queries else row

    def _keep(self, rows: NDArray[np.int64], scores: Scores, images: Images, size: float) -> None:
        better = scores < self.lowest[rows]
        kept = rows[better]
        self.found[kept], self.lowest[kept], self.used[kept] = images[better], scores[better], size


def _with_questions(row: Row, asked: NDArray[np.int64], best: Scores, strictest: float) -> Row:
    evaded = best <= np.float32(strictest)
    return replace(
        row,
        mean_queries=float(asked.mean()),
        median_queries_of_evasions=float(np.median(asked[evaded])) if evaded.any() else None,
    )


def _entry(scores: Scores, thresholds: Mapping[str, float]) -> Row:
    n = len(scores)
    return Row(
        misclassified=rate_interval(int(np.isfinite(scores).sum()), n),
        evaded={
            rate: rate_interval(int((scores <= np.float32(limit)).sum()), n)
            for rate, limit in thresholds.items()
        },
    )
