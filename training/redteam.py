"""The red team: attacks on the user's own guard by someone who knows all of it. N images.

An image evades where the real guard, hard bits on whole 8-bit pixels, gives a wrong answer and does
not flag it. The figures are published with the guard, whatever they are. A guard is a tripwire, not
a wall: an attacker with enough budget always gets through, and here it shows how much is enough.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from reluguard.detector.artifact import write_file
from reluguard.detector.lock import hold
from reluguard.detector.looks.judging import Looks
from reluguard.training.attacks.budget import Norm
from reluguard.training.data.classes import Classes
from reluguard.training.data.given import Data
from reluguard.training.models.of_guard import guard_model
from reluguard.training.models.opened import ModelOrNone
from reluguard.training.pages.publication import publish as write_into
from reluguard.training.pages.red_team import red_team_page
from reluguard.training.progress import HowTold, Progress, progress_of
from reluguard.training.red_team.convergence import Ladder, by_steps, checks, climb
from reluguard.training.red_team.effort import STANDARD, Effort
from reluguard.training.red_team.forecast import redteam_steps
from reluguard.training.red_team.hunt import Hunt
from reluguard.training.red_team.pairs import asking_only, smallest
from reluguard.training.red_team.procedure import Procedure
from reluguard.training.red_team.report import Pair, RedTeamReport
from reluguard.training.red_team.target import Ask, Target, open_target
from reluguard.training.red_team.tries import Tries

__all__ = ["BUDGETS", "IN_PROCESS", "LADDERS", "redteam"]

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
        ModelError: the model can't be opened, or there is no export beside the guard.
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
    progress.plan("redteam", redteam_steps(target, budgets, effort, ladders))
    hunt = Hunt(target, tries, effort, progress)
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
