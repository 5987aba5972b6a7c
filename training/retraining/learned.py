"""What a challenger learns: a unit per new attack on the champion's head, or a head fitted anew."""

from collections.abc import Sequence
from dataclasses import dataclass

from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.head import Head
from reluguard.training.harvest.readings import Readings
from reluguard.training.head.fit import HeadSettings, Reading, calibrate, fit_judged
from reluguard.training.head.second import suspicious_from
from reluguard.training.head.unit import Unit, add_unit
from reluguard.training.progress import Progress
from reluguard.training.provenance import provenance_of

__all__ = ["Learned", "learn", "refit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """The challenger's head, calibrated.

    Attributes:
        head: what it is.
        units: that were added to the champion's; none where the head was fitted anew.
        control: where it was, a head fitted by another seed on nothing new.
        bound: where it was, of first scores for a second look, as `suspicious_from` has it.
    """

    head: Head
    units: tuple[Unit, ...] = ()
    control: Head | None = None
    bound: float | None = None


def learn(
    champion: GuardArtifact,
    groups: Sequence[Readings],
    clean: Readings,
    *,
    new: Sequence[str],
    settings: HeadSettings | None,
    seed: int,
    progress: Progress,
) -> Learned:
    """Return what is learned from the groups that the champion has not seen.

    Args:
        champion: the guard in use.
        groups: the fitting split of the harvest, the new ones among them.
        clean: calibration readings.
        new: names of the groups the champion has not seen.
        settings: to fit the head anew by; None gives each new attack a unit.
        seed: of every random choice.
        progress: told of the stages.

    Raises:
        DataError: too few new images, or too few clean ones.
    """
    old = [group for group in groups if group.name not in new]
    if settings is None:
        return _with_units(champion, groups, old, clean, seed, progress)
    progress.stage("head", 200)
    (head, bound), (control, _) = (
        refit(champion, these, settings, clean, seed=own, progress=progress)
        for these, own in ((groups, seed), (old, seed + 1))
    )
    return Learned(head=head, control=control, bound=bound)


def _with_units(
    champion: GuardArtifact,
    groups: Sequence[Readings],
    old: Sequence[Readings],
    clean: Readings,
    seed: int,
    progress: Progress,
) -> Learned:
    known = {group.name for group in old}
    fresh = [group for group in groups if group.name not in known]
    labelled = [group for group in fresh if group.kind != "attack"]
    attacks = [group for group in fresh if group.kind == "attack"]
    progress.stage("units", len(attacks))
    head, units = champion.head, []
    for group in attacks:
        head, unit = add_unit(
            head, group, old, clean=clean, labelled=labelled, fpr=champion.manifest.fpr, seed=seed
        )
        units.append(unit)
        progress.advance(1)
    scores = head.score(clean.rates, clean.logits).score
    calibrated = head.calibrated(scores, clean.predictions, champion.head.class_groups)
    return Learned(head=calibrated, units=tuple(units))


def refit(
    champion: GuardArtifact,
    groups: Sequence[Readings],
    settings: HeadSettings,
    clean: Readings,
    *,
    seed: int,
    progress: Progress | None = None,
) -> tuple[Head, float]:
    """Return a head fitted anew as the champion's was, calibrated, and its bound for a second look.

    Args:
        champion: whose taps, rate and prevalence it takes.
        groups: to fit on.
        settings: of the head.
        clean: calibration readings.
        seed: of every random choice.
        progress: of a stage of which this head is 100 units.

    Raises:
        DataError: too few images.
    """
    progress = progress or Progress()
    manifest = champion.manifest
    fitted = fit_judged(
        groups,
        reading=Reading(taps=manifest.taps),
        settings=settings,
        seed=seed,
        progress=progress.so_far(100),
    )
    prevalence = provenance_of(manifest).prevalence
    head = calibrate(
        fitted.head,
        clean,
        rates=[manifest.fpr],
        prevalence=prevalence,
        class_groups=champion.head.class_groups,
    )
    return head, suspicious_from(fitted)
