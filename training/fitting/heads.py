"""The heads of a guard: which taps they read, the first look's, and the second's."""

from dataclasses import dataclass, replace

from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.errors import SettingsError
from reluguard.detector.head import Head
from reluguard.detector.looks.joint import Joint
from reluguard.detector.looks.second import SecondLook
from reluguard.detector.runtime import Reader
from reluguard.training.data.case import predict, read_rates
from reluguard.training.fitting.harvested import Harvested
from reluguard.training.forecasts import fit_steps
from reluguard.training.harvest.readings import Readings
from reluguard.training.head.by_class import ClassGroups
from reluguard.training.head.economy import Economy, choose_taps
from reluguard.training.head.fit import Fitted, Reading, calibrate, fit_judged
from reluguard.training.head.second import (
    BothReadings,
    calibrate_second,
    fit_second,
    suspicious_from,
    suspicious_rows,
)
from reluguard.training.looks.choice import Second
from reluguard.training.progress import Progress

__all__ = ["Promise", "calibrated", "cheaper", "first_look", "second_look"]

CHOICE = "taps.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What verdicts promise of clean images, and what likelihoods assume.

    Attributes:
        fpr: the share of clean images that may be flagged.
        per_class: whether of each class that the model answers, where its images suffice.
        prevalence: the share of attacks among requests, in (0, 1).
    """

    fpr: float
    per_class: bool
    prevalence: float

    def __post_init__(self) -> None:
        if not 0 < self.prevalence < 1:
            raise SettingsError(f"expected a prevalence between 0 and 1, got {self.prevalence}")


def cheaper(
    harvested: Harvested, max_overhead: float | None, progress: Progress
) -> tuple[Harvested, list[str]]:
    """Return the harvest read at the taps that are worth their time, and words on the choice.

    What was chosen is kept in the workspace, so that a fit that goes on chooses the same.

    Args:
        harvested: read at all taps; its workspace gives the chosen ones afterwards.
        max_overhead: most guarded / plain time, None for as few taps as lose next to nothing.
        progress: told of it, and the words.
    """
    progress.stage("choose taps", 1)
    case, workspace = harvested.case, harvested.workspace
    file = workspace.folder / CHOICE
    economy = Economy.read(file, case.taps, max_overhead)
    if economy is None:
        economy = choose_taps(
            case.production,
            case.spec,
            case.taps,
            harvested.groups(),
            max_overhead=max_overhead,
            settings=harvested.recipe.head,
            seed=harvested.orders.seed,
        )
        economy.save(file)
    workspace.columns = economy.columns(case.taps)
    said = [economy.words] if max_overhead is not None or economy.overhead else []
    for word in said:
        progress.say(word)
    progress.advance(1)
    return replace(harvested, case=replace(case, taps=economy.taps(case.taps))), said


def first_look(harvested: Harvested, progress: Progress) -> Fitted:
    """Return the first look's head as fitted, uncalibrated, told to progress."""
    case, settings = harvested.case, harvested.recipe.head
    groups = harvested.groups()
    rows, second = sum(map(len, groups)), harvested.orders.second
    progress.plan("fit", fit_steps(case, settings, rows, len(groups), second, choosing=None))
    progress.stage("head", 100)
    return fit_judged(
        groups,
        reading=Reading(taps=case.taps),
        settings=settings,
        seed=harvested.orders.seed,
        progress=progress.so_far(100),
    )


def calibrated(head: Head, clean: Readings, promise: Promise) -> tuple[Head, str | None]:
    """Return the head with its clean scores, and words on thresholds by class, None without.

    Args:
        head: as fitted.
        clean: readings of clean images that no step of fitting saw.
        promise: what it must be able to keep.

    Raises:
        DataError: too few clean images for the rate; says how many are needed.
    """
    fpr, prevalence = promise.fpr, promise.prevalence
    if not promise.per_class:
        return calibrate(head, clean, rates=[fpr], prevalence=prevalence), None
    found = ClassGroups.of(clean.predictions, clean.logits.shape[1], fpr)
    made = calibrate(head, clean, rates=[fpr], prevalence=prevalence, class_groups=found.groups)
    return made, found.words


def second_look(
    second: Second,
    draft: GuardArtifact,
    first: Fitted,
    clean: Readings,
    harvested: Harvested,
    promise: Promise,
    progress: Progress,
) -> SecondLook:
    """Return the second look of a guard, fitted on what both looks read and calibrated.

    Args:
        second: who looks again, at the taps that are read.
        draft: the guard that looks once.
        first: its head as fitted.
        clean: what its head was calibrated on.
        harvested: what it was fitted on.
        promise: what its verdicts must keep too.
        progress: told of it.
    """
    case = harvested.case
    joint = Joint(case.taps, second.taps)
    groups = harvested.joint_groups(joint, is_other=second.look.is_other)
    progress.stage("second head", 100)
    head = fit_second(
        groups,
        joint,
        settings=harvested.recipe.head,
        seed=harvested.orders.seed,
        progress=progress.so_far(100),
    )
    reader = second.reader(case.spec, threads=None)
    again = read_rates(reader, case.dataset.images, case.splits["calibrate"])
    golden = draft.golden
    logits = predict(Reader(case.production, case.spec, case.taps), golden.images)
    read = replace(clean, rates=golden.rates, logits=logits)
    bound = suspicious_from(first)
    return calibrate_second(
        draft.head,
        bound,
        head,
        suspicious_rows(first, head, bound),
        BothReadings(clean, *again),
        BothReadings(read, *read_rates(reader, golden.images)),
        second,
        joint,
        rates=[promise.fpr],
        prevalence=promise.prevalence,
    )
