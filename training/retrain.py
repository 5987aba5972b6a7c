"""Retraining: new attacks join the old harvest, a challenger is fitted, and the gate judges it.

The challenger is the champion with a hidden unit for each new attack, or a head fitted anew on the
old harvest and the new images. Nothing on disk is attacked again. The challenger goes to a folder
of its own; putting it into service is another step, `reluguard.detector.shelf.shelf.promote`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import (
    GuardArtifact,
    check_place,
    read_guard,
)
from reluguard.detector.captures import INDEX
from reluguard.detector.looks.judging import Looks
from reluguard.detector.metrics import GateLimits, GateResult
from reluguard.detector.onnx_file.beside import kept_beside
from reluguard.detector.runtime import Reader, model_of
from reluguard.detector.shelf.shelf import current
from reluguard.detector.taps import Tap
from reluguard.training.data.case import predict
from reluguard.training.data.classes import Classes, known_classes
from reluguard.training.data.dataset import Dataset
from reluguard.training.errors import DataError
from reluguard.training.forecasts import learning_steps, retrain_steps
from reluguard.training.harvest.orders import Orders
from reluguard.training.harvest.readings import CLEAN, Readings, clean_readings
from reluguard.training.head.second import BothReadings
from reluguard.training.head.unit import Unit, without_accidents
from reluguard.training.looks.choice import Second
from reluguard.training.models.of_guard import export_of, guard_model
from reluguard.training.models.opened import ModelOrNone
from reluguard.training.progress import Progress
from reluguard.training.provenance import Added, Step, origin_of, provenance_of
from reluguard.training.retraining.additions import run_attack, with_fresh
from reluguard.training.retraining.attacked import read_attacked
from reluguard.training.retraining.calibration import kept_readings
from reluguard.training.retraining.captured import MOST_PER_SOURCE, read_captured
from reluguard.training.retraining.challenger import (
    told_of_looks,
    with_head,
    with_origin,
    write_challenger,
)
from reluguard.training.retraining.contradictions import contradicted
from reluguard.training.retraining.fresh import Fresh
from reluguard.training.retraining.gate import Both, gate
from reluguard.training.retraining.kept import Kept, hold_kept, open_kept
from reluguard.training.retraining.learned import Learned, learn
from reluguard.training.retraining.original import Original
from reluguard.training.retraining.second import Looking, is_unseen, lacking

__all__ = ["Retrained", "retrain"]

CALIBRATION = "calibration"
READ = ("rates", "logits", "sources", "labels")  # what is kept of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrained:
    """The challenger, what it learned from and what the gate says of it.

    `units` are empty where the head was fitted anew.
    """

    guard: GuardArtifact
    added: tuple[Added, ...]
    gate: GateResult
    units: tuple[Unit, ...] = ()


def retrain(
    guard: Path | str,
    model: ModelOrNone,
    new: Sequence[Path | str],
    out: Path | str,
    *,
    attacks: Sequence[str] = (),
    work: Path | str | None = None,
    data: str | None = None,
    classes: Classes | None = None,
    weights: Path | str | None = None,
    share: float = 0.2,
    sources: int = 400,
    most_per_source: int = MOST_PER_SOURCE,
    refit: bool = False,
    looks: Looks | None = None,
    second_model: Path | str | None = None,
    limits: GateLimits | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Retrained:
    """Fit a guard on the harvest of an old one and on new attacks; write it and judge it.

    Where nothing new is an attack, the head is fitted anew: there is nothing to give a unit to.
    Beside new attacks, fewer than 20 labelled clean images are only held against the labels.

    A guard that looks twice stays one: its joint head is fitted anew on what both looks read of the
    old harvest and of all that is new, and both looks are calibrated as one. Captures that came
    without their images teach the first look alone, which is said; where nearly all new attacks
    did, the new guard looks once, as with `looks="first"`.

    Args:
        guard: the champion's folder, or a shelf whose current version is the champion.
        model: its production ONNX file; None for the export that `fit` put beside the guard; or
            what `fit` was given: then that export is used, once it is clear that both answer
            alike. An export is put beside the new guard too.
        new: each an npz of attacked images, a folder of such, a folder of attacked images per true
            class, a folder of attacked pictures or a pattern, or a folder of labelled captures.
        out: the challenger's folder.
        attacks: names of attacks to run on the original data set, or module:Class.
        work: the harvest; by default the one the champion names, or GUARD.work.
        data: where the original data set lies now, if it moved.
        classes: which class each folder of images is, as `fit` takes it; by default what the guard
            knows.
        weights: of a network by name, as `fit` takes them.
        share: of the weight of all attacks that the new ones get in a head fitted anew, at most.
        sources: images per named attack, at most.
        most_per_source: captures of one caller under one label, at most.
        refit: fit the head anew. It takes longer, and chance moves every old attack: how far, a
            second fit without anything new tells the gate.
        looks: "first" makes a guard that looks once of one that looks twice; otherwise it looks as
            often as the champion.
        second_model: the network that looks again, of a guard fitted with one, as `Guard.open` has
            it.
        limits: of the gate.
        seed: of every random choice.
        threads: of ONNX Runtime.
        progress: told of the stages.

    Raises:
        DataError: nothing new, the harvest or the data set is gone or another, too few images.
        AttackError: an attack is unknown or lacks what it needs.
        ModelError: the model can't be opened, or there is no export beside the guard.
        GuardError: the champion can't be read, or is not the model's.
        SettingsError: the network that looks again is not there.
        ModelMismatchError: it is another one than at fitting.
        HeldError: another process works on the harvest.
        OSError: the disk is full; nothing half-written is left.
    """
    guard, out, places = Path(guard), Path(out), [Path(place) for place in new]
    work = None if work is None else Path(work)
    check_place(out)
    if not 0 < share < 1:
        raise DataError(f"expected a share of the weight in (0, 1), got {share}")
    if not new and not attacks:
        raise DataError("expected something new: images, labelled captures or an attack to run")
    progress = progress or Progress()
    champion = current(guard) or read_guard(guard)
    file = guard_model(model, guard, weights=weights)
    export = export_of(champion, file, out)
    if looks == "first":
        champion = told_of_looks(champion, progress)
    manifest = champion.manifest
    production = model_of(champion, file)
    looking = None if looks == "first" else _looking(champion, file, second_model, threads)
    with hold_kept(champion, work):
        reader = Reader(production, manifest.input, manifest.taps, threads=threads)
        kept = open_kept(champion, work)
        original = Original(champion, data, classes=classes)
        joint = None if looking is None else looking.joint
        progress.plan("retrain", retrain_steps(champion, kept, joint, attacks, units=not refit))
        progress.stage("new images", len(new))
        clean = _calibration(kept, original, reader, manifest.taps)
        found = _found(places, champion, reader, looking, classes, most_per_source, progress)
        if looking is not None and not attacks and is_unseen(found):
            # its joint head would rank what it has not learned, and hide what the first look has
            champion, looking = told_of_looks(champion, progress), None
        both = None if looking is None else looking.calibration(kept, original, clean)
        doubt = contradicted(
            champion.head,
            [one.readings() for one in found if one.is_captured],
            _harmless(kept, clean),
            seed=seed,
        )
        of_attacks = sum(one.kind == "attack" for one in found) + len(attacks)
        weight = share / (1 - share) * kept.weight_of("attack") / max(of_attacks, 1)
        first = len(kept.added)
        kept = with_fresh(found, kept, weight=weight, judging=bool(of_attacks))
        for name in attacks:
            orders = _orders(champion, file, original.dataset, kept, threads, looking)
            splits = _attackable(original, reader, sources, seed)
            kept = kept.with_added(
                [run_attack(name, kept, orders, splits, weight=weight, progress=progress)]
            )
        names = [added.name for added in kept.added[first:]]
        settings = kept.head if refit or not of_attacks else None
        joint = None if looking is None else looking.joint
        progress.plan("retrain", learning_steps(champion, kept, joint, units=settings is None))
        learned = learn(
            champion,
            kept.groups("fit"),
            clean,
            new=names,
            settings=settings,
            seed=seed,
            progress=progress,
        )
        units = tuple(unit.to_json() for unit in learned.units)
        draft, judged_by = _relearned(
            looking,
            both,
            with_head(champion, learned.head, reader),
            learned,
            kept,
            _golden(champion, reader, clean),
            new=names,
            seed=seed,
            progress=progress,
        )
        draft = with_origin(
            draft,
            champion,
            kept,
            clean,
            out=out,
            step=Step(parent=champion.digest, seed=seed, added=tuple(names), units=units),
        )
        progress.stage("gate", 1)
        judged = gate(
            production,
            champion,
            draft,
            kept,
            new=names,
            control=learned.control,
            both=judged_by,
            labels=doubt,
            limits=limits,
            seed=seed,
        )
        with kept_beside(export, out):
            artifact = write_challenger(draft, production, kept, judged, seed=seed, threads=threads)
        progress.advance(1)
        return Retrained(guard=artifact, added=kept.added[first:], gate=judged, units=learned.units)


def _looking(
    champion: GuardArtifact, model: Path, other: Path | str | None, threads: int | None
) -> Looking | None:
    """Return the second look of a guard, opened; None where it looks once."""
    second = Second.of_guard(champion, model, other)
    if second is None:
        return None
    reader = second.reader(champion.manifest.input, threads=threads)
    return Looking(champion=champion, second=second, reader=reader)


def _golden(champion: GuardArtifact, reader: Reader, clean: Readings) -> Readings:
    """Return what the first look reads of the golden inputs."""
    rates, logits = reader.read(champion.golden.images)
    nothing = np.zeros(len(rates), np.int64)
    return replace(clean, rates=rates, logits=logits, sources=nothing, labels=nothing)


def _found(
    new: Sequence[Path],
    champion: GuardArtifact,
    reader: Reader,
    looking: Looking | None,
    classes: Classes | None,
    most_per_source: int,
    progress: Progress,
) -> list[Fresh]:
    """Return what is new, captures last, and say what of these the second look can't read."""
    again = None if looking is None else looking.reader
    known = known_classes(champion.manifest)
    fresh: list[Fresh] = []
    labelled: list[Fresh] = []
    for path in new:
        if (path / INDEX).is_file():
            labelled += read_captured(path, champion, most_per_source=most_per_source, again=again)
        else:
            fresh += read_attacked(path, reader, known, classes, artifact=champion, again=again)
        progress.advance(1)
    for one in fresh:
        if one.is_loose:
            progress.say(
                f"the {len(one.ids)} pictures in {one.source} are in no folder of their class: all "
                "are taken to be attacks that fool the model"
            )
    for word in [] if looking is None else lacking(labelled):
        progress.say(word)
    return fresh + labelled


def _relearned(
    looking: Looking | None,
    both: BothReadings | None,
    draft: GuardArtifact,
    learned: Learned,
    kept: Kept,
    golden: Readings,
    *,
    new: Sequence[str],
    seed: int,
    progress: Progress,
) -> tuple[GuardArtifact, Both | None]:
    """Return the draft with its second look, and what the gate judges both looks by."""
    if looking is None or both is None:
        return draft, None
    found = looking.relearn(
        draft, learned, kept, both, golden=golden, new=new, seed=seed, progress=progress
    )
    judged = Both(groups=tuple(looking.groups(kept, "test")), control=found.control)
    return replace(draft, second=found.look), judged


def _harmless(kept: Kept, clean: Readings) -> list[Readings]:
    """Return clean and harmlessly changed images that the champion was not fitted on."""
    held = [group for group in kept.groups("test") if group.kind != "attack" and len(group)]
    own = {added.name for added in kept.added}  # what people labelled is what is in doubt
    return [clean, *(without_accidents(group) for group in held if group.name not in own)]


def _calibration(kept: Kept, original: Original, reader: Reader, taps: tuple[Tap, ...]) -> Readings:
    """Return the clean calibration readings, kept on disk so that the images may go after this.

    Raises:
        DataError: neither the readings nor the images are there.
    """

    def read(dataset: Dataset, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        made = clean_readings(reader, dataset, rows)
        return {name: getattr(made, name) for name in READ}

    _, values = kept_readings(
        kept,
        original,
        read,
        READ,
        name=CALIBRATION,
        told=repr(taps),
        need="a new head needs new clean scores",
    )
    return Readings(name=CLEAN, kind="clean", **values)


def _orders(
    champion: GuardArtifact,
    model: Path,
    dataset: Dataset,
    kept: Kept,
    threads: int | None,
    looking: Looking | None,
) -> Orders:
    manifest = champion.manifest
    known = provenance_of(manifest)
    return Orders(
        model=model,
        output=manifest.answer,
        spec=manifest.input,
        taps=manifest.taps,
        twin=known.twin,
        dataset=dataset,
        changes={},
        workspace=kept.workspace.folder,
        seed=origin_of(champion).seed,
        threads=threads,
        second=None if looking is None else looking.second,
    )


def _attackable(
    original: Original, reader: Reader, most: int, seed: int
) -> dict[str, NDArray[np.int64]]:
    """Return images the model answers right: so many to fit on, half as many to judge by."""
    rng = np.random.default_rng(seed)
    found = {}
    for split, limit in (("fit", most), ("test", -(-most // 2))):
        rows = rng.permutation(original.splits[split])
        dataset = original.dataset.take(rows)
        right = rows[predict(reader, dataset.images).argmax(axis=1) == dataset.labels]
        found[split] = np.sort(right[:limit])
    return found
