"""The red team: attacks on the user's own guard by someone who knows all of it. N images.

An image evades where the real guard, hard bits on whole 8-bit pixels, gives a wrong answer and does
not flag it. The figures are published with the guard, whatever they are. A guard is a tripwire, not
a wall: an attacker with enough budget always gets through, and here it shows how much is enough.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import write_file
from reluguard.detector.lock import hold
from reluguard.detector.looks.judging import Looks
from reluguard.training.attacks import Attack, HopSkipJump, Passes, Square
from reluguard.training.attacks.budget import Norm
from reluguard.training.data.classes import Classes
from reluguard.training.data.given import Data
from reluguard.training.errors import AttackError
from reluguard.training.models.of_guard import guard_model
from reluguard.training.models.opened import ModelOrNone
from reluguard.training.pages.publication import publish as write_into
from reluguard.training.pages.red_team import red_team_page
from reluguard.training.progress import HowTold, Planned, Progress, progress_of
from reluguard.training.red_team.aware import Aware
from reluguard.training.red_team.aware_attacks import (
    CombinedLogit,
    Lagrangian,
    Mimicry,
    Orthogonal,
    Selective,
)
from reluguard.training.red_team.convergence import Ladder, by_steps, checks, climb, step_counts
from reluguard.training.red_team.forecast import costs_of
from reluguard.training.red_team.pairs import asking_only, smallest
from reluguard.training.red_team.procedure import Procedure
from reluguard.training.red_team.report import BEST, Pair, RedTeamReport, Row
from reluguard.training.red_team.score_search import ScoreSearch
from reluguard.training.red_team.target import Ask, Scores, Target, open_target
from reluguard.training.red_team.tries import Tries
from reluguard.training.statistics.metrics import rate_interval

__all__ = ["BUDGETS", "IN_PROCESS", "LADDERS", "STANDARD", "Effort", "redteam"]

BUDGETS = (2.55, 4.0, 8.0)  # 0.01, 4/255 and 8/255; in whole pixels the first is 2/255
# whole 8-bit steps are too coarse to tell how much farther evasion lies than a wrong answer: L2 is
# for that, and Linf up to no bound at all for whether the attacks can do what they must
LADDERS: Mapping[Norm, tuple[float, ...]] = MappingProxyType(
    {
        "linf": (1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 255.0),
        "l2": (0.03, 0.05, 0.07, 0.09, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0, 2.0, 4.0),
    }
)
IN_PROCESS = "the guard in process"
WHITE = "white box: model, guard and thresholds known"
GREY = "model and method known, the guard's weights not: made on a guard of the attacker's own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How hard to try.

    Attributes:
        steps: of each run of a gradient attack.
        restarts: runs of each gradient attack on an image that does not evade.
        queries: most questions of the black box for one image.
        ladder_steps: of each run up a ladder of budgets, which is many runs.
        asking: most images of those who see answers and flags only, who ask more than a thousand
            questions each; 0 leaves them out.
        everyone: whether each attack tries all images, so that attacks can be compared; otherwise
            all but the first of a budget try those that are left, which finds the same evasions.
    """

    steps: int = 100
    restarts: int = 2
    queries: int = 1000
    ladder_steps: int = 100
    asking: int = 20
    everyone: bool = True

    def __post_init__(self) -> None:
        if min(self.steps, self.restarts, self.queries, self.ladder_steps) < 1:
            raise AttackError(f"expected steps, restarts and queries of 1 or more, got {self}")
        if self.asking < 0:
            raise AttackError(f"expected 0 or more images to ask about, got {self.asking}")


# the least that counts as an honest try. Source: Carlini et al. 2019, arXiv 1902.06705
STANDARD = Effort(steps=1000, restarts=5, everyone=False)


def redteam(
    model: ModelOrNone,
    guard: Path | str,
    data: Data,
    *,
    out: Path | str,
    budgets: Sequence[float] = BUDGETS,
    standard: bool = False,
    steps: int | None = None,
    restarts: int | None = None,
    queries: int = 1000,
    everyone: bool | None = None,
    limit: int = 100,
    ladders: bool | Mapping[Norm, Sequence[float]] = True,
    ladder_steps: int = 100,
    asking: int = 20,
    attacker_guard: Path | str | None = None,
    looks: Looks | None = None,
    second_model: Path | str | None = None,
    ask: Ask | None = None,
    told: str = IN_PROCESS,
    publish: bool = False,
    key: Path | str | None = None,
    classes: Classes | None = None,
    weights: Path | str | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: HowTold = None,
) -> RedTeamReport:
    """Attack a guard with full knowledge of it; write `red_team.json`, a page and `evasions.npz`.

    Every finished batch of images is kept in `out/work`: the same command goes on from there.

    Args:
        model: the production ONNX file; None for the export that `fit` put beside the guard; or
            what `fit` was given: then that export is used, once it is clear that both answer alike.
        guard: the guard's folder; only read, unless figures are published.
        data: labelled images, as `fit` takes them; of those the guard was fitted on, only its test
            split is used.
        out: the folder to write to.
        budgets: Linf, in 8-bit steps, at which every attack attacks.
        standard: the least that counts as an honest try: 1,000 steps and 5 restarts, later attacks
            on the images that are left. Takes hours, and goes on where it was stopped.
        steps: of each run of a gradient attack, instead of 100.
        restarts: runs of each gradient attack on an image that does not evade, instead of 2.
        queries: most questions of the black box for one image.
        everyone: whether each attack tries all images, so that attacks can be compared; otherwise
            all but the first of a budget try those that are left, which finds the same evasions.
            By default unless it is `standard`.
        limit: how many images, of those the model answers right.
        ladders: whether to climb to each image's smallest budget, or by norm the budgets to climb.
        ladder_steps: of each run up a ladder of budgets, which is many runs.
        asking: most images of attackers who see answers and flags only; 0 leaves them out.
        attacker_guard: a guard of the same model that someone fitted who knows how guards are made
            but does not have this one: attacks are made on that one and tried on yours.
        looks: the procedure attacked: "first", "suspicious" or "always"; by default as the guard is
            served. Gradients of two looks go through both, and the real guard judges with both.
        second_model: the network that looks again, of a guard fitted with one.
        ask: what the black box asks, by default the guard in this process.
        told: what that is, in words.
        publish: whether to write the figures into the guard's manifest and report.
        key: PEM, an Ed25519 private key: signs what was published.
        classes: which class each folder of images is, as `fit` takes it; by default what the guard
            knows.
        weights: of a network by name, as `fit` takes them.
        seed: of every random choice.
        threads: of ONNX Runtime.
        progress: told of each image: a `Progress`, or a function that takes a `Step`.

    Raises:
        AttackError: no step, restart or question.
        DataError: no image is left that the guard has not seen and the model answers right,
            `out/work` holds tries at another guard, or a signed guard can't be published without a
            key.
        TwinError: the model can't be run in torch.
        GuardError: the guard can't be read or is not the model's.
        SettingsError: there is no second look, or no network for it.
        HeldError: another process works in `out/work`.
    """
    started = perf_counter()
    progress = progress_of(progress)
    guard, out = Path(guard), Path(out)
    file = guard_model(model, guard, weights=weights)
    least = STANDARD if standard else Effort()
    effort = Effort(
        steps=least.steps if steps is None else steps,
        restarts=least.restarts if restarts is None else restarts,
        queries=queries,
        ladder_steps=ladder_steps,
        asking=asking,
        everyone=least.everyone if everyone is None else everyone,
    )
    if isinstance(ladders, bool):
        ladders = LADDERS if ladders else {}
    target = open_target(
        file,
        guard,
        data,
        classes=classes,
        seed=seed,
        limit=limit,
        threads=threads,
        ask=ask,
        attacker_guard=None if attacker_guard is None else Path(attacker_guard),
        looks=looks,
        second_model=None if second_model is None else Path(second_model),
    )
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    with hold(work):
        tries = Tries(target, work, told, progress)
        report = _attacked(target, tries, out, budgets, effort, ladders, told, progress, started)
    if publish:
        signing = None if key is None else Path(key)
        write_into(guard, report.summary, digest=report.guard, key=signing)
    return report


def _attacked(
    target: Target,
    tries: Tries,
    out: Path,
    budgets: Sequence[float],
    effort: Effort,
    ladders: Mapping[Norm, Sequence[float]],
    told: str,
    progress: Progress,
    started: float,
) -> RedTeamReport:
    """Make all tries, write what came of them and return it."""
    progress.plan("redteam", _ahead(target, budgets, effort, ladders))
    hunt = _Hunt(target, tries, effort, progress)
    found = {f"{size:g}": hunt.at(size) for size in sorted(budgets)}
    climbed = {
        norm: climb(
            target, tries, Ladder(norm, tuple(sorted(rungs)), effort.ladder_steps), progress
        )
        for norm, rungs in ladders.items()
    }
    nearest: dict[str, Pair] = {
        norm: smallest(
            target,
            tries,
            norm,
            steps=effort.ladder_steps,
            restarts=effort.restarts,
            progress=progress,
        )
        for norm in ladders
    }
    asking = (
        asking_only(target, tries, images=effort.asking, queries=effort.queries, progress=progress)
        if effort.asking
        else {}
    )
    report = RedTeamReport(
        budgets=found,
        ladders={norm: one.shares for norm, one in climbed.items()},
        median_budget={norm: one.medians for norm, one in climbed.items()},
        steps=by_steps(target, tries, min(budgets), effort.steps, progress),
        threat_model=f"{WHITE if not target.known else GREY}; attacked is "
        f"{Procedure.told(target.procedure.looks)}; Linf; untargeted; success is a wrong "
        "answer that the guard, hard bits on whole 8-bit pixels, does not flag",
        looks=target.procedure.looks,
        black_box=f"score-search sees answers and scores, as {told} gives them to a client that "
        "may see scores",
        images=len(target),
        settings={**asdict(effort), "seed": target.seed},
        guard=target.guard.artifact.digest,
        thresholds=dict(target.thresholds),
        seconds=perf_counter() - started,
        checks={},
        smallest=nearest,
        asking_only=asking,
    )
    report = replace(report, checks=checks(report))
    arrays: dict[str, NDArray[Any]] = {
        "images": hunt.found,
        "labels": target.labels,
        "score": hunt.lowest,
        "budget": hunt.used,
    }
    write_file(out / "evasions.npz", npz=arrays)
    write_file(out / "red_team.json", json.dumps(report.to_json(), indent=2).encode())
    page = red_team_page(report, target.images, hunt.found, hunt.lowest)
    write_file(out / "red_team.html", page.encode())
    return report


def _ahead(
    target: Target,
    budgets: Sequence[float],
    effort: Effort,
    ladders: Mapping[Norm, Sequence[float]],
) -> list[Planned]:
    """Return what is to come, in its order, and how long it takes where no image evades early."""
    n = len(target)
    by_budget = [_attacks(target, size, effort) for size in sorted(budgets)]
    first = next(one for one in by_budget[0] if isinstance(one, Aware))
    costs = costs_of(target, first)
    steps = [
        Planned(attack.name, costs.of(attack.passes, n * _restarts(attack, effort)))
        for attacks in by_budget
        for attack in attacks
    ]
    climb_once = Passes(exact=effort.ladder_steps)
    for norm, rungs in ladders.items():
        # an image climbs half of the rungs: the bare model once, the guard by two attacks twice
        tries = n * len(rungs) * 5 // 2
        steps.append(Planned(f"ladder of {norm}", costs.of(climb_once, tries)))
    for norm in ladders:  # one gradient on the bare model, two on the guard
        tries = 3 * n * effort.restarts
        steps.append(Planned(f"smallest change in {norm}", costs.of(climb_once, tries)))
    if effort.asking:
        asked = Square(most_queries=effort.queries).passes.asked + HopSkipJump().passes.asked
        some = 2 * min(n, effort.asking)
        steps.append(Planned("answers and flags only", costs.of(Passes(asked=asked), some)))
    again = sum(step_counts(effort.steps))
    return [*steps, Planned("more steps", costs.of(Passes(exact=again), n))]


def _restarts(attack: Attack, effort: Effort) -> int:
    """Return how often an attack is run on an image; a grid of weights is restarts enough."""
    return max(1, effort.restarts // attack.grid) if isinstance(attack, Aware) else 1


class _Hunt:
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
        for place, attack in enumerate(_attacks(self._target, size, self._effort)):
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
        restarts = _restarts(attack, self._effort)
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

    def _keep(self, rows: NDArray[np.int64], scores: Scores, images: Any, size: float) -> None:
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


def _attacks(target: Target, size: float, effort: Effort) -> list[Attack]:
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


def _entry(scores: Scores, thresholds: Mapping[str, float]) -> Row:
    n = len(scores)
    return Row(
        misclassified=rate_interval(int(np.isfinite(scores).sum()), n),
        evaded={
            rate: rate_interval(int((scores <= np.float32(limit)).sum()), n)
            for rate, limit in thresholds.items()
        },
    )
