"""The main job: from a production model and images to a guard on disk."""

import datetime as dt
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.allowance import available_workers
from reluguard.detector.artifact import Golden, GuardArtifact, Manifest, check_place, write_guard
from reluguard.detector.errors import SettingsError
from reluguard.detector.head import Head
from reluguard.detector.lock import hold
from reluguard.detector.looks.joint import Joint
from reluguard.detector.looks.second import SecondLook
from reluguard.detector.model import Production, load_production
from reluguard.detector.onnx_file.beside import kept_beside
from reluguard.detector.reference import reference_of
from reluguard.detector.runtime import Guard, Reader
from reluguard.training.composed import composed_name
from reluguard.training.data.case import Case, open_case, predict, read_rates
from reluguard.training.data.classes import Classes
from reluguard.training.data.given import Data
from reluguard.training.data.mapped import give_back
from reluguard.training.data.preprocessing import HowPixels
from reluguard.training.errors import AttackError, DataError
from reluguard.training.evaluation.report_card import promised_rates, report_card
from reluguard.training.forecasts import choosing_seconds, fit_steps, rows_expected
from reluguard.training.harvest.engine import check_engine
from reluguard.training.harvest.harvest import harvest_told
from reluguard.training.harvest.orders import (
    SHARD_IMAGES,
    Job,
    Orders,
    composed_jobs,
    plan_jobs,
    shard_images,
    with_changes,
)
from reluguard.training.harvest.readings import CLEAN, Readings, clean_readings
from reluguard.training.harvest.workspace import Workspace, column_runs, work_folder
from reluguard.training.head.by_class import ClassGroups
from reluguard.training.head.economy import Economy, check_overhead, choose_taps
from reluguard.training.head.fit import Fitted, Reading, calibrate, fit_judged
from reluguard.training.head.second import (
    BothReadings,
    calibrate_second,
    fit_second,
    joint_readings,
    suspicious_from,
    suspicious_rows,
)
from reluguard.training.looks.both import AtBoth
from reluguard.training.looks.choice import Second, check_second, choose_second
from reluguard.training.models.given import ready_model
from reluguard.training.models.opened import Model
from reluguard.training.pages.report_card import report_page
from reluguard.training.progress import HowTold, Planned, Progress, progress_of
from reluguard.training.provenance import ExportedFrom, FittedOn, FittedWith, Provenance
from reluguard.training.recipes import Portion, Recipe, recipe_named
from reluguard.training.recipes.both import with_both
from reluguard.training.twin.twin import check_twin

__all__ = ["fit"]

GOLDEN_BYTES = 1_250_000
GOLDEN_IMAGES = 8
CHOICE = "taps.json"
ATTACK_SEEDS = 1000  # apart from those of the benign changes


def fit(
    model: Model,
    data: Data,
    *,
    out: Path | str,
    recipe: str | Recipe = "default",
    twin: str = "auto",
    second: str = "auto",
    output: str | None = None,
    preprocessing: HowPixels | None = None,
    preprocessing_as_given: bool = False,
    classes: Classes | None = None,
    weights: Path | str | None = None,
    input_shape: Sequence[int] | None = None,
    target_fpr: float = 0.05,
    per_class: bool = False,
    prevalence: float = 0.5,
    seed: int = 0,
    threads: int | None = None,
    workers: int | None = None,
    max_overhead: float | None = None,
    work: Path | str | None = None,
    engine: str = "local",
    progress: HowTold = None,
) -> Guard:
    """Fit a guard to a classifier, write it to a folder and return it, ready to inspect images.

    Attacks clean images, reads which ReLUs fire, fits a head on that and calibrates it on clean
    images that nothing else saw. What the work folder holds already is not made again, so a fit
    that was killed goes on.

    Args:
        model: the production ONNX file; or a torch module in evaluation mode, what `torch.export`
            made of one, a `.pt2` or TorchScript file, or a network by name, "torchvision:NAME" or
            "timm:NAME": it is exported, checked, and lies beside the guard in the end, as
            `OUT.onnx`.
        data: labelled images the model was not trained on: a place as `load_data` takes it, or a
            pair of images uint8 (N, H, W, C) and labels (N,).
        out: the guard's folder. Another guard there is replaced, anything else is left alone.
        recipe: what to attack with: "default", "quick", "digits", "module:name" of
            yours, or a `Recipe`.
        twin: where gradients come from: "auto" converts the ONNX file, "package.module:function"
            gives your torch module, "none" leaves only black-box attacks.
        second: who looks again at what the first look finds suspicious: "auto" the model itself, at
            the first of the views "mirror", "shift", "smaller" and "blur" on which it agrees with
            itself; a view by its name; the ONNX file of another network of the same classes and
            the same input; "none" nobody.
        output: the model's output with the class scores, where it has several.
        preprocessing: from files to pixels to the model's input; the guard keeps it, so that it is
            said once. The name of a preset ("torchvision", "timm", "keras-tf", "keras-caffe",
            "opencv") or of a file that timm or Hugging Face keeps, a torchvision transform, or a
            `Preprocessing`; by default files are stretched, and pixels go to [0, 1].
        preprocessing_as_given: go on where the model answers clearly more images right with
            another preprocessing.
        classes: which of the model's classes each folder of images is: names in their order, a file
            of them, "alphabetical" or "numbers".
        weights: a file of the weights of a network by name; by default what its library keeps on
            this machine. Nothing is downloaded.
        input_shape: of one image in a torch model's input, (C, H, W); by default what the model,
            its library or the images say.
        target_fpr: the share of clean images that may be flagged.
        per_class: whether that holds for each class that the model answers, where its calibration
            images suffice (99 for .05), and for the others together. P-values then compare an image
            with clean ones of its own class.
        prevalence: the share of attacks that the likelihood assumes.
        seed: of every random choice.
        threads: of ONNX Runtime and torch in each process; by default the usable cores.
        workers: processes; by default as many as the usable cores and memory allow.
        max_overhead: read only as many taps and levels as keep guarded / plain time under this,
            like 1.05; 0 reads all. By default as few as lose next to nothing, by small heads on
            images kept from them.
        work: where harvested shards are kept; by default `out` with `.work` behind it.
        engine: who attacks and reads: "local", processes of this machine, or "ray".
        progress: told of each stage: a `Progress`, or a function that takes a `Step`.

    Raises:
        SettingsError: a value has no meaning.
        DataError: the data don't fit the model, or are too few for the rate asked for.
        TwinError: the twin can't be made, or does not match the model.
        ModelError: the model can't be read, run or guarded.
        GuardError: the place holds something else than a guard.
        HeldError: another process works in the work folder.
        OSError: the disk is full; nothing half-written is left.
    """
    _check(prevalence, seed, workers, engine)
    _check_words(second, twin)
    max_overhead = check_overhead(max_overhead)
    out = Path(out)
    check_place(out)
    progress = _begun(progress)
    started = perf_counter()
    recipe = recipe_named(recipe) if isinstance(recipe, str) else recipe
    folder = Path(work) if work else work_folder(out)
    ready = ready_model(
        model,
        data,
        folder=folder,
        out=out,
        output=output,
        preprocessing=preprocessing,
        weights=weights,
        input_shape=input_shape,
    )
    case, reader = open_case(
        ready.file,
        ready.data,
        levels=recipe.levels,
        shares=recipe.shares,
        preprocessing=ready.preprocessing,
        classes=classes,
        as_given=preprocessing_as_given,
        output=output,
        fpr=target_fpr,
        seed=seed,
        threads=threads,
    )
    for word in (*ready.words, *case.words):
        progress.say(word)
    again, word = choose_second(second, case, reader, levels=recipe.levels, threads=threads)
    case = replace(case, words=(*ready.words, *case.words, *([word] if word else [])))
    progress.say(word or "no second look: none was asked for")
    recipe = recipe.for_images(case.spec.height, case.spec.width, case.spec.channels)
    if again is not None and twin != "none":
        recipe = with_both(recipe)
    orders = _orders(case, recipe, twin, folder, seed, threads, again)
    progress.advance(1)
    orders.workspace.mkdir(parents=True, exist_ok=True)
    del reader  # its memory is wanted while others work
    give_back()
    with hold(orders.workspace):
        workspace = Workspace(orders.workspace, _plan(case, recipe, orders))
        resumed = any(workspace.folder.glob("*/*.npz"))
        jobs = _harvest(
            case,
            recipe,
            orders,
            workers or available_workers(),
            engine,
            choosing=max_overhead != 0,
            progress=progress,
        )
        if max_overhead != 0:
            progress.stage("choose taps", 1)
            case, said = _cheaper(case, recipe, jobs, workspace, max_overhead, seed)
            for one in said:
                progress.say(one)
            case = replace(case, words=(*case.words, *said))
            progress.advance(1)
        fitted = _head(case, recipe, jobs, workspace, seed, again, progress)
        reader = Reader(case.production, case.spec, case.taps, threads=threads)
        clean = clean_readings(reader, case.dataset, case.splits["calibrate"])
        head, case = _calibrated(
            fitted, clean, case, target_fpr, prevalence, per_class=per_class, progress=progress
        )
        draft = GuardArtifact(
            path=out,
            digest="",
            manifest=_manifest(
                case, head, clean, recipe, orders, workspace, target_fpr, prevalence, ready.exported
            ),
            head=head,
            golden=_golden(case, head, reader, jobs, workspace),
        )
        if again is not None:
            looked = _second_look(
                again.read_of(case.taps),
                draft,
                fitted,
                clean,
                _Harvested(case, recipe, jobs, workspace, seed),
                prevalence,
                progress,
            )
            draft = replace(draft, second=looked)
        progress.stage("report card", 1)
        card = report_card(
            Guard(case.production, draft, threads=threads, looks="first"),
            workspace,
            {slug: _of_split(made, "test") for slug, made in jobs.items()},
            thresholds=draft.manifest.thresholds,
            seed=seed,
        )
        seconds = perf_counter() - started
        card = replace(
            card,
            gates=case.gates.counts,
            seconds=seconds,
            resumed=resumed,
            words=case.words,
        )
        with kept_beside(ready.file if ready.exported else None, out):
            written = write_guard(
                out,
                manifest=replace(draft.manifest, metrics=card.to_json()),
                head=head,
                golden=draft.golden,
                second=draft.second,
                reports={
                    "report.json": json.dumps(card.to_json(), indent=2).encode(),
                    "report.html": report_page(card, draft.manifest).encode(),
                },
            )
        progress.advance(1)
    return Guard(case.production, written, threads=threads, second=_other_network(again))


def _begun(how: HowTold) -> Progress:
    """Return what to tell of progress, told that a fit begins."""
    progress = progress_of(how)
    progress.plan("fit", [Planned("model and data", None), Planned("attack and read", None)])
    progress.stage("model and data", 1)
    return progress


def _other_network(again: Second | None) -> Production | None:
    """Return the other network that looks again, None where none does."""
    if again is None or not again.look.is_other:
        return None
    return load_production(again.file, output=again.output)


def _calibrated(
    fitted: Fitted,
    clean: Readings,
    case: Case,
    fpr: float,
    prevalence: float,
    *,
    per_class: bool,
    progress: Progress,
) -> tuple[Head, Case]:
    """Return the calibrated head, and the case with words on thresholds by class."""
    if not per_class:
        return calibrate(fitted.head, clean, rates=[fpr], prevalence=prevalence), case
    found = ClassGroups.of(clean.predictions, clean.logits.shape[1], fpr)
    progress.say(found.words)
    head = calibrate(
        fitted.head, clean, rates=[fpr], prevalence=prevalence, class_groups=found.groups
    )
    return head, replace(case, words=(*case.words, found.words))


@dataclass(frozen=True, slots=True)
class _Harvested:
    """What was harvested, and from what."""

    case: Case
    recipe: Recipe
    jobs: Mapping[str, Sequence[Job]]
    workspace: Workspace
    seed: int


def _second_look(
    second: Second,
    draft: GuardArtifact,
    fitted: Fitted,
    clean: Readings,
    harvested: _Harvested,
    prevalence: float,
    progress: Progress,
) -> SecondLook:
    """Return the second look of a guard, fitted on what both looks read and calibrated."""
    case, workspace, recipe = harvested.case, harvested.workspace, harvested.recipe
    joint = Joint(case.taps, second.taps)
    columns = None if second.look.is_other else workspace.columns
    groups = [
        replace(
            joint_readings(workspace, _of_split(made, "fit"), joint, columns),
            weight=recipe.weights.get(slug, 1.0),
        )
        for slug, made in harvested.jobs.items()
    ]
    progress.stage("second head", 100)
    head = fit_second(
        groups,
        joint,
        settings=recipe.head,
        seed=harvested.seed,
        progress=progress.so_far(100),
    )
    reader = second.reader(case.spec, threads=None)
    again = read_rates(reader, case.dataset.images, case.splits["calibrate"])
    golden = draft.golden
    logits = predict(Reader(case.production, case.spec, case.taps), golden.images)
    read = replace(clean, rates=golden.rates, logits=logits)
    bound = suspicious_from(fitted)
    return calibrate_second(
        draft.head,
        bound,
        head,
        suspicious_rows(fitted, head, bound),
        BothReadings(clean, *again),
        BothReadings(read, *read_rates(reader, golden.images)),
        second,
        joint,
        rates=[draft.manifest.fpr],
        prevalence=prevalence,
    )


def _check(prevalence: float, seed: int, workers: int | None, engine: str) -> None:
    """Raise SettingsError where a value has no meaning."""
    check_engine(engine)
    if not 0 < prevalence < 1:
        raise SettingsError(f"expected a prevalence between 0 and 1, got {prevalence}")
    if seed < 0:
        raise SettingsError(f"expected a seed of 0 or more, got {seed}")
    if workers is not None and workers < 1:
        raise SettingsError(f"expected 1 or more workers, got {workers}")


def _check_words(second: str, twin: str) -> None:
    """Raise where a word means nothing, or nothing is where it points: before images are read."""
    check_second(second)
    check_twin(twin)


def _plan(case: Case, recipe: Recipe, orders: Orders) -> dict[str, Any]:
    """Everything that a shard's content depends on."""
    size = shard_images(case.dataset.images.shape[1:])
    strided = {tap.name: [*tap.strides, tap.pooled] for tap in case.taps if tap.is_strided}
    return {
        **({"strides": strided} if strided else {}),
        **({"shard": size} if size != SHARD_IMAGES else {}),
        **({} if orders.second is None else {"second look": orders.second.look.to_json()}),
        "model": case.production.sha256,
        "data": case.dataset.digest,
        "input": case.spec.to_json(),
        "output": case.production.answer,
        "twin": orders.twin,
        "recipe": {
            k: v for k, v in recipe.to_json().items() if k not in {"name", "head", "weights"}
        },
        "seed": orders.seed,
    }


def _orders(
    case: Case,
    recipe: Recipe,
    twin: str,
    folder: Path,
    seed: int,
    threads: int | None,
    second: Second | None,
) -> Orders:
    return Orders(
        model=case.path,
        output=case.production.answer,
        spec=case.spec,
        taps=case.taps,
        twin=twin,
        dataset=case.dataset,
        changes={
            portion.change.name: portion.change for portion in (*recipe.attacks, *recipe.benign)
        }
        | {
            composed_name(attack.change.name, later.change.name): later.change
            for attack in recipe.attacks
            for later in recipe.then
        },
        workspace=folder,
        seed=seed,
        threads=threads,
        second=second,
    )


def _of_split(jobs: Sequence[Job], split: str) -> list[Job]:
    return [job for job in jobs if job.split == split]


def _jobs(case: Case, recipe: Recipe, orders: Orders) -> dict[str, list[Job]]:
    """Return the shards of the recipe by slug, clean first; those of composed ones are in them."""
    fitted = {split: case.splits[split] for split in ("fit", "test")}
    size = shard_images(case.dataset.images.shape[1:])
    jobs = {CLEAN: plan_jobs(CLEAN, "clean", fitted, size=size)}
    for index, portion in enumerate(recipe.benign):
        some = _portion(fitted, portion, recipe, orders.seed + index)
        jobs[portion.change.name] = plan_jobs(portion.change.name, "benign", some, size=size)
    # an attack has nothing to do where the model is wrong already
    right = {split: sources[case.right[sources]] for split, sources in fitted.items()}
    for split, sources in right.items():
        if not len(sources):
            raise DataError(
                f"the model answers none of the {len(fitted[split])} images of the {split} part "
                "right: give more images"
            )
    then = {portion.change.name: portion.share for portion in recipe.then}
    for index, portion in enumerate(recipe.attacks):
        if orders.twin == "none" and getattr(portion.change, "needs_gradients", False):
            continue
        some = _portion(right, portion, recipe, orders.seed + ATTACK_SEEDS + index)
        made = plan_jobs(portion.change.name, "attack", some, size=size)
        alone = isinstance(portion.change, AtBoth)  # the same attack is composed without it
        jobs[portion.change.name] = (
            made if alone else with_changes(made, then, seed=orders.seed, caused=True)
        )
    if all(made[0].kind != "attack" for made in jobs.values()):
        raise AttackError(f"recipe {recipe.name} has no attack that works without a twin")
    return jobs


def _harvest(
    case: Case,
    recipe: Recipe,
    orders: Orders,
    workers: int,
    engine: str,
    *,
    choosing: bool,
    progress: Progress,
) -> dict[str, list[Job]]:
    """Make every shard of the recipe, and say what follows; return the jobs by slug."""
    jobs = _jobs(case, recipe, orders)
    every = [job for made in jobs.values() for job in made]
    jobs |= composed_jobs(every)
    rows = rows_expected(every, "fit")
    after = fit_steps(
        case,
        recipe.head,
        rows,
        len(jobs),
        orders.second,
        choosing=choosing_seconds(case, rows, recipe.head) if choosing else None,
    )
    progress.plan("fit", [Planned("attack and read", None), *after])
    harvest_told(every, orders, workers=workers, engine=engine, progress=progress)
    return jobs


def _portion(
    splits: Mapping[str, NDArray[np.int64]],
    portion: Portion,
    recipe: Recipe,
    seed: int,
) -> dict[str, NDArray[np.int64]]:
    """Return a share of each split's sources, other ones for each attack."""
    rng = np.random.default_rng(seed)
    counts = {
        split: portion.images(len(sources), recipe.least.get(split, 1), recipe.most.get(split))
        for split, sources in splits.items()
    }
    return {
        split: np.sort(rng.permutation(sources)[: counts[split]])
        for split, sources in splits.items()
    }


def _head(
    case: Case,
    recipe: Recipe,
    jobs: Mapping[str, Sequence[Job]],
    workspace: Workspace,
    seed: int,
    second: Second | None,
    progress: Progress,
) -> Fitted:
    groups = _groups(recipe, jobs, workspace)
    rows = sum(map(len, groups))
    progress.plan("fit", fit_steps(case, recipe.head, rows, len(jobs), second, choosing=None))
    progress.stage("head", 100)
    return fit_judged(
        groups,
        reading=Reading(taps=case.taps),
        settings=recipe.head,
        seed=seed,
        progress=progress.so_far(100),
    )


def _groups(
    recipe: Recipe, jobs: Mapping[str, Sequence[Job]], workspace: Workspace
) -> list[Readings]:
    """Return what was read of the fitting sources, weighted as the recipe says."""
    return [
        replace(workspace.readings(_of_split(made, "fit")), weight=recipe.weights.get(slug, 1.0))
        for slug, made in jobs.items()
    ]


def _cheaper(
    case: Case,
    recipe: Recipe,
    jobs: Mapping[str, Sequence[Job]],
    workspace: Workspace,
    max_overhead: float | None,
    seed: int,
) -> tuple[Case, tuple[str, ...]]:
    """Return the case with the taps that are read, and words; the workspace gives those rates.

    What was chosen is kept there, so that a fit that goes on chooses the same.
    """
    file = workspace.folder / CHOICE
    economy = Economy.read(file, case.taps, max_overhead)
    if economy is None:
        economy = choose_taps(
            case.production,
            case.spec,
            case.taps,
            _groups(recipe, jobs, workspace),
            max_overhead=max_overhead,
            settings=recipe.head,
            seed=seed,
        )
        economy.save(file)
    workspace.columns = economy.columns(case.taps)
    said = (economy.words,) if max_overhead is not None or economy.overhead else ()
    return replace(case, taps=economy.taps(case.taps)), said


def _golden(
    case: Case,
    head: Head,
    reader: Reader,
    jobs: Mapping[str, Sequence[Job]],
    workspace: Workspace,
) -> Golden:
    """Return a few clean and attacked images with what the guard must say of them."""
    room = max(1, min(GOLDEN_IMAGES, GOLDEN_BYTES // case.dataset.images[0].nbytes))
    images = [case.dataset.images[case.splits["calibrate"][: -(-room // 2)]]]
    attacked = next(made for made in jobs.values() if made[0].kind == "attack")
    shard = workspace.read(attacked[0])
    if shard.images is not None:
        images.append(shard.images[shard.success][: room // 2])
    elif shard.sample is not None:
        images.append(shard.sample[: room // 2])
    chosen = np.concatenate(images)
    rates, logits = reader.read(chosen)
    return Golden(
        images=chosen,
        rates=rates,
        score=head.score(rates, logits).score,
        prediction=logits.argmax(axis=1),
    )


def _manifest(
    case: Case,
    head: Head,
    clean: Readings,
    recipe: Recipe,
    orders: Orders,
    workspace: Workspace,
    fpr: float,
    prevalence: float,
    exported: ExportedFrom | None,
) -> Manifest:
    packages = ("numpy", "onnxruntime", "pillow", "torch", "adversarial-robustness-toolbox")
    return Manifest(
        model_sha256=case.production.sha256,
        input=case.spec,
        answer=case.production.answer,
        taps=case.taps,
        fpr=fpr,
        thresholds=promised_rates(head.clean_scores, fpr, fewest=head.fewest_clean),
        calibration_images=len(head.clean_scores),
        created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        provenance=Provenance(
            recipe=FittedWith.from_json(recipe.to_json()),
            seed=orders.seed,
            twin=orders.twin,
            prevalence=prevalence,
            data=FittedOn(
                source=case.dataset.source,
                sha256=case.dataset.digest,
                copies=tuple(map(tuple, case.copies)),
                classes=case.dataset.folders,
                names=case.names,
            ),
            exported=exported,
            images={split: len(sources) for split, sources in case.splits.items()},
            work=str(orders.workspace.resolve()),
            reference=reference_of(clean.rates, clean.logits, case.taps).to_json(),
            versions={name: importlib.metadata.version(name) for name in packages},
            columns=None if workspace.columns is None else column_runs(workspace.columns),
        ).to_json(),
    )
