"""Evidence that the red team's attacks work: they must gain by budget, steps and restarts.

An attack that fails for want of gradients looks like a good defence. N images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.metrics import Interval, Rates
from reluguard.training.attacks.budget import Norm
from reluguard.training.progress import Progress
from reluguard.training.red_team.aware import Aware
from reluguard.training.red_team.aware_attacks import Orthogonal, Selective
from reluguard.training.red_team.report import BEST, SEARCH, RedTeamReport, Steps
from reluguard.training.red_team.smallest import NO_GUARD
from reluguard.training.red_team.target import Target
from reluguard.training.red_team.tries import Tries
from reluguard.training.statistics.metrics import rate_interval

__all__ = [
    "BARE",
    "ENOUGH",
    "Climbed",
    "Ladder",
    "by_steps",
    "checks",
    "climb",
    "middle",
    "step_counts",
]

BARE = "bare model"
NOISE = 0.02  # a share of images that chance may take away
ALL = 0.95
ENOUGH = 10  # evasions


@dataclass(frozen=True, slots=True)
class Ladder:
    """Rising budgets of one norm, and the steps of each run on a rung."""

    norm: Norm
    rungs: Sequence[float]
    steps: int


@dataclass(frozen=True, slots=True)
class Climbed:
    """Who evades within a budget, by rate and for the bare model.

    Attributes:
        shares: the share of images by budget, with intervals.
        medians: the median image's budget, None where half of the images never evaded.
    """

    shares: Mapping[str, Rates]
    medians: Mapping[str, float | None]


def climb(target: Target, tries: Tries, ladder: Ladder, progress: Progress) -> Climbed:
    """Return the smallest budget each image evades within, for the guard and for the bare model.

    Each image goes on from rung to rung until it evades at every rate.
    """
    smallest = {name: np.full(len(target), np.inf) for name in (*target.thresholds, BARE)}
    climbed: dict[str, dict[str, Interval]] = {name: {} for name in smallest}
    progress.stage(f"ladder of {ladder.norm}", 3 * len(ladder.rungs) * len(target))
    for size in ladder.rungs:
        common: dict[str, Any] = {
            "guard": target.relaxed,
            "norm": ladder.norm,
            "size": size,
            "steps": ladder.steps,
            "restarts": 2,
        }
        left = np.flatnonzero(np.isinf(smallest[BARE]))
        bare = Selective(**common | {"restarts": 1}, threshold=NO_GUARD)
        _rung(target, tries, [bare], left, smallest, progress)
        guarded = np.max([smallest[rate] for rate in target.thresholds], axis=0)
        pair = [kind(**common, threshold=target.believed) for kind in (Selective, Orthogonal)]
        _rung(target, tries, pair, np.flatnonzero(np.isinf(guarded)), smallest, progress)
        for name, budgets in smallest.items():
            reached = rate_interval(int(np.isfinite(budgets).sum()), len(budgets))
            climbed[name][f"{size:g}"] = reached
    return Climbed(climbed, {name: middle(budgets) for name, budgets in smallest.items()})


def _rung(
    target: Target,
    tries: Tries,
    attacks: Sequence[Aware],
    left: NDArray[np.int64],
    smallest: Mapping[str, NDArray[np.float64]],
    progress: Progress,
) -> None:
    for attack in attacks:
        progress.advance(len(target) - len(left))  # those that are through already
        if len(left) == 0:
            continue
        scores, _, _ = tries.fool(attack, left)
        bare = attack.threshold == NO_GUARD
        limits = {BARE: NO_GUARD} if bare else dict(target.thresholds)
        for name, limit in limits.items():
            reached = left[np.isfinite(scores) & (scores <= np.float32(limit))]
            smallest[name][reached] = np.minimum(smallest[name][reached], attack.size)
        if not bare:
            left = left[~(scores <= np.float32(target.strictest))]


def middle(budgets: NDArray[np.float64]) -> float | None:
    """Return the middle image's budget of (N,), None where half of them never evaded."""
    found = float(np.sort(budgets)[(len(budgets) - 1) // 2])
    return found if np.isfinite(found) else None


def step_counts(steps: int) -> list[int]:
    """Return the numbers of steps that are compared, up to all."""
    return sorted({max(1, steps // share) for share in (16, 4, 2, 1)})


def by_steps(target: Target, tries: Tries, size: float, steps: int, progress: Progress) -> Steps:
    """Return what more steps bring, at one budget: nothing for an attack that has converged."""
    counts = step_counts(steps)
    everyone = np.arange(len(target))
    progress.stage("more steps", len(counts) * len(everyone))
    curve = {}
    for count in counts:
        attack = Selective(guard=target.relaxed, threshold=target.believed, size=size, steps=count)
        scores, _, _ = tries.fool(attack, everyone)
        curve[f"{count}"] = {
            rate: rate_interval(int((scores <= np.float32(limit)).sum()), len(scores))
            for rate, limit in target.thresholds.items()
        }
    return Steps(budget=size, attack="selective, one start", evaded=curve)


def checks(report: RedTeamReport) -> dict[str, bool | None]:
    """Return the signs of a red team that is not blinded, each held, not held, or open.

    A sign that holds because next to nothing evaded says nothing: it is open, None, where fewer
    than ten evasions stand behind it.

    Args:
        report: the figures, by budget, steps and ladder.

    Source: Carlini et al. 2019, arXiv 1902.06705, section 3; Athalye et al. 2018, arXiv 1802.00420.
    """
    rate = max(report.thresholds, key=float)
    best = [row.evaded[rate] for row in report.best.values()]
    steps = [rates[rate] for rates in report.steps.evaded.values()]
    shares = [one.value for one in best]
    grows: bool | None = _backed(shares == sorted(shares), best)
    found = {
        "a larger budget evades more often": grows if len(best) > 1 else None,
        "more steps don't evade less often": _backed(
            steps[-1].value >= max(one.value for one in steps) - NOISE, steps
        ),
    }
    black = [
        (rows[BEST].evaded[rate], rows[SEARCH].evaded[rate])
        for rows in report.budgets.values()
        if SEARCH in rows and rows[SEARCH].images == report.images
    ]
    if black:
        found["gradients do better than questions"] = _backed(
            all(white.value >= asked.value for white, asked in black),
            [one for pair in black for one in pair],
        )
    linf = report.ladders.get("linf", {}).get(rate)
    if linf and max(map(float, linf)) >= 255:
        reached = linf[max(linf, key=float)].value
        found[f"without a bound, {ALL:.0%} of images or more evade"] = reached >= ALL
    return found


def _backed(held: bool, shares: Sequence[Interval]) -> bool | None:
    """Return whether a sign holds, None where it does for want of evasions."""
    evasions = max((round(one.value * one.n) for one in shares), default=0)
    return None if held and evasions < ENOUGH else held
