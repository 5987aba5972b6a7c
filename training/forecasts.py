"""What commands expect of their steps, so that people hear of the whole from the first minute.

Each forecast is of free cores; progress corrects it by what becomes of it.
"""

from collections.abc import Iterable, Mapping, Sequence

from reluguard.detector.artifact import GuardArtifact, Manifest
from reluguard.detector.bench import plain_seconds
from reluguard.detector.looks.joint import Joint
from reluguard.detector.looks.second import SecondLook
from reluguard.training.attacks import Passes
from reluguard.training.data.case import Case
from reluguard.training.evaluation.leave_out import LeftOut, family, matrix_step, shards_of
from reluguard.training.expected.speed import here
from reluguard.training.hardening.forecast import steps_of
from reluguard.training.hardening.settings import HardenSettings
from reluguard.training.harvest.orders import Job
from reluguard.training.harvest.workspace import Workspace
from reluguard.training.head.economy import choice_seconds
from reluguard.training.head.fit import HeadSettings
from reluguard.training.head.forecast import head_seconds
from reluguard.training.head.probes import Read
from reluguard.training.looks.choice import Second
from reluguard.training.progress import Planned
from reluguard.training.provenance import provenance_of
from reluguard.training.retraining.kept import Kept

__all__ = [
    "analyze_steps",
    "choosing_seconds",
    "evaluate_steps",
    "fit_steps",
    "learning_steps",
    "retrain_steps",
    "rows_expected",
]

SUCCESSES = 0.7  # of attacked images, before anybody knows
_KIND_S = 0.085  # of one core of the reference machine: what a report card says of one change
_PAGE_S = 1.0  # likewise: its page, and the guard
_BASELINES = 9.0  # passes of the model, which all baselines of an image come to
_FEW_CLASSES = 10  # of many a head reads fewer rates
# of an analysis, likewise: what does not depend on how much is analysed, what a pair of images at a
# tap takes, a step of a network of the papers' own, and what a step of an attack takes, in passes
_STUDIES_S = 7.0
_PAIR_S = 4.5e-6
_DISTANCE_S = 5e-7
_PAGES_S = 7.0
_SEED_STEP_S = 0.075
_CLIMB = 1.5
_UNITS_S = 2.0  # likewise: the hidden units of new attacks
_GATE_S = 6.0  # likewise: the gate, its timed runs and the challenger's page


def rows_expected(jobs: Iterable[Job], split: str) -> int:
    """Return about how many readings of a split shards come to: successes, of attacks."""
    rows = 0.0
    for job in jobs:
        if job.split == split:
            rows += len(job.sources) * (SUCCESSES if job.kind == "attack" else 1)
            rows += SUCCESSES**2 * sum(len(later.sources) for later in job.then)
    return round(rows)


def choosing_seconds(case: Case, rows: int, settings: HeadSettings) -> float:
    """Return about how long choosing what to read takes.

    Args:
        case: the model and its images.
        rows: to fit on.
        settings: of the head.
    """
    plain = plain_seconds(case.production, case.spec, batch=case.spec.batch or 1, rounds=3)
    return choice_seconds(
        plain,
        len(case.taps),
        len(case.splits["fit"]),
        rows,
        _rates(case),
        _classes(case),
        settings,
    )


def fit_steps(
    case: Case,
    settings: HeadSettings,
    rows: int,
    kinds: int,
    second: Second | None,
    *,
    choosing: float | None,
) -> list[Planned]:
    """Return the steps of a fit that follow its harvest.

    Args:
        case: the model and its images, with the taps that are read as far as that is known.
        settings: of the head.
        rows: to fit on.
        kinds: how many changes there are.
        second: who looks again, None where nobody does.
        choosing: seconds that choosing what to read takes, None where that is not to come.
    """
    classes = _classes(case)
    steps = [] if choosing is None else [Planned("choose taps", choosing)]
    steps.append(Planned("head", head_seconds(rows, _rates(case), classes, settings)))
    if second is not None:
        runs = Joint(case.taps, second.read_of(case.taps).taps).runs
        both = sum(run.rates for run in runs)
        steps.append(Planned("second head", head_seconds(rows, both, classes, settings)))
    steps.append(Planned("report card", here(_KIND_S * kinds + _PAGE_S)))
    return steps


def retrain_steps(
    champion: GuardArtifact, kept: Kept, joint: Joint | None, attacks: Sequence[str], *, units: bool
) -> list[Planned]:
    """Return the steps of a retraining; what an attack takes is known when it begins.

    Args:
        champion: the guard in use.
        kept: its harvest.
        joint: what both looks read together, None of a guard that looks once.
        attacks: that are run, in their order.
        units: whether new attacks get a unit each instead of a new head.
    """
    first = [Planned("new images", None), *(Planned(name, None) for name in attacks)]
    return [*first, *learning_steps(champion, kept, joint, units=units)]


def learning_steps(
    champion: GuardArtifact, kept: Kept, joint: Joint | None, *, units: bool
) -> list[Planned]:
    """Return the steps that follow once the new images are there; for arguments see above."""
    every = [job for made in kept.jobs.values() for job in made]
    rows, classes = rows_expected(every, "fit"), champion.head.features.classes
    steps = [Planned("units", here(_UNITS_S))]
    if not units:  # the head, and one by another seed on nothing new that it is held against
        own = sum(tap.rates for tap in champion.manifest.taps)
        steps = [Planned("head", 2 * head_seconds(rows, own, classes, kept.head))]
    if joint is not None:
        both = sum(run.rates for run in joint.runs)
        steps.append(Planned("second head", 2 * head_seconds(rows, both, classes, kept.head)))
    return [*steps, Planned("gate", here(_GATE_S))]


def evaluate_steps(
    manifest: Manifest,
    fit: Workspace | None,
    jobs: Mapping[str, Sequence[Job]],
    asked_s: float,
    *,
    baseline_rows: int,
    matrix_rows: int | None,
    leave_out: LeftOut | None,
    second: SecondLook | None = None,
) -> list[Planned]:
    """Return the steps of an evaluation.

    Args:
        manifest: of the guard.
        fit: the work folder of its fit, None where that is not there.
        jobs: the shards that are judged, by slug.
        asked_s: what it takes to read an image.
        baseline_rows: rows of each group that baselines are fitted on at most.
        matrix_rows: the same for the heads of the matrix, None for all.
        leave_out: what the matrix leaves out at a time, None where there is none.
        second: the guard's second look.
    """
    judged = rows_expected((job for made in jobs.values() for job in made), "test")
    counts: list[int] = []
    if fit is not None:
        counts = [fit.count(made) for made in shards_of(fit, manifest, "fit").values()]
    seen = judged + sum(min(count, baseline_rows) for count in counts)
    steps = [Planned("attack and read", None), Planned("baselines", seen * _BASELINES * asked_s)]
    recipe = provenance_of(manifest).recipe
    if leave_out is not None and recipe is not None:
        slugs = {one.slug for one in recipe.attacks}
        kinds = {family(slug) if leave_out == "family" else slug for slug in slugs}
        rows = sum(count if matrix_rows is None else min(count, matrix_rows) for count in counts)
        taps = manifest.taps
        runs: list[Sequence[Read]] = [taps, *([second.joint(taps).runs] if second else [])]
        for read in runs:
            rates = sum(one.rates for one in read)
            one = head_seconds(rows, rates, _FEW_CLASSES, HeadSettings(**recipe.head))
            step = matrix_step(leave_out, both=read is not taps)
            steps.append(Planned(step, (1 + len(kinds)) * one))
    return steps


def analyze_steps(
    passes: Mapping[str, Passes],
    asked_s: float,
    *,
    taps: int,
    images: int,
    pairwise: int,
    seed_steps: int,
    hardening: HardenSettings | None,
) -> list[Planned]:
    """Return the steps of an analysis.

    Args:
        passes: that each attack takes, by name, in their order.
        asked_s: what it takes to record an image.
        taps: of the network.
        images: all that are read.
        pairwise: those that are attacked and compared pair by pair.
        seed_steps: of training the papers' networks.
        hardening: the papers' hardening, None where it is not to come.
    """
    pairs = taps * pairwise**2
    steps = [Planned("read bits", images * asked_s)]
    for name, one in passes.items():
        each = 2 + one.asked + _CLIMB * (one.climbed + one.exact)
        steps.append(Planned(name, pairwise * each * asked_s))
    steps.append(Planned("distances", here(_DISTANCE_S * pairs)))
    steps.append(Planned("studies", here(_STUDIES_S + _PAIR_S * pairs)))
    if hardening is not None:
        steps.append(Planned("seeds", here(_SEED_STEP_S * seed_steps)))
        learned, judged = steps_of(hardening, images - pairwise, pairwise)
        # once with the loss as published, once with the one by the codes' length
        steps += [Planned("harden", (learned + judged) * _CLIMB * asked_s)] * 2
    return [*steps, Planned("pages", here(_PAGES_S))]


def _rates(case: Case) -> int:
    return sum(tap.rates for tap in case.taps)


def _classes(case: Case) -> int:
    return int(case.dataset.labels.max()) + 1
