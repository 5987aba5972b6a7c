"""The main job: from a production model and images to a guard on disk."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from reluguard.detector.allowance import available_workers
from reluguard.detector.artifact import GuardArtifact, check_place, write_guard
from reluguard.detector.errors import SettingsError
from reluguard.detector.lock import hold
from reluguard.detector.model import load_production
from reluguard.detector.onnx_file.beside import kept_beside
from reluguard.detector.runtime import Guard, Reader
from reluguard.training.data.case import open_case
from reluguard.training.data.classes import Classes
from reluguard.training.data.given import Data
from reluguard.training.data.mapped import give_back
from reluguard.training.data.preprocessing import HowPixels
from reluguard.training.evaluation.report_card import report_card
from reluguard.training.fitting.draft import drafted
from reluguard.training.fitting.harvested import Harvested
from reluguard.training.fitting.heads import Promise, calibrated, cheaper, first_look, second_look
from reluguard.training.fitting.ordered import jobs_of, orders_of, plan_of
from reluguard.training.forecasts import choosing_seconds, fit_steps, rows_expected
from reluguard.training.harvest.engine import check_engine
from reluguard.training.harvest.harvest import harvest_told
from reluguard.training.harvest.orders import composed_jobs
from reluguard.training.harvest.readings import clean_readings
from reluguard.training.harvest.workspace import Workspace, work_folder
from reluguard.training.head.economy import check_overhead
from reluguard.training.looks.choice import check_second, choose_second
from reluguard.training.models.given import Given, ready_model
from reluguard.training.models.opened import Model
from reluguard.training.pages.report_card import report_page
from reluguard.training.progress import HowTold, Planned, Progress, progress_of
from reluguard.training.provenance import ExportedFrom
from reluguard.training.recipes import Recipe, recipe_named
from reluguard.training.recipes.both import with_both
from reluguard.training.twin.twin import check_twin

__all__ = ["fit"]


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
        AttackError: the recipe has no attack that works without a twin.
        WorkerError: a worker process died.
        ModelError: the model can't be read, run or guarded.
        GuardError: the place holds something else than a guard.
        HeldError: another process works in the work folder.
        OSError: the disk is full; nothing half-written is left.
    """
    check_engine(engine)
    _check(seed, workers)
    check_second(second)
    check_twin(twin)
    max_overhead = check_overhead(max_overhead)
    promise = Promise(fpr=target_fpr, prevalence=prevalence, per_class=per_class)
    out = Path(out)
    check_place(out)
    progress = progress_of(progress)
    progress.plan("fit", [Planned("model and data", None), Planned("attack and read", None)])
    progress.stage("model and data", 1)
    started = perf_counter()
    recipe = recipe_named(recipe) if isinstance(recipe, str) else recipe
    folder = Path(work) if work else work_folder(out)
    given = Given(
        model=model,
        data=data,
        output=output,
        preprocessing=preprocessing,
        classes=classes,
        weights=weights,
        input_shape=input_shape,
    )
    ready = ready_model(given, folder=folder, out=out)
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
    words = [*ready.words, *case.words]  # what people should know, on the report card too
    for word in words:
        progress.say(word)
    again, word = choose_second(second, case, reader, levels=recipe.levels, threads=threads)
    words += [word] if word else []
    progress.say(word or "no second look: none was asked for")
    recipe = recipe.for_images(case.spec.height, case.spec.width, case.spec.channels)
    if again is not None and twin != "none":
        recipe = with_both(recipe)
    orders = orders_of(
        case, recipe, twin=twin, workspace=folder, seed=seed, threads=threads, second=again
    )
    progress.advance(1)
    folder.mkdir(parents=True, exist_ok=True)
    del reader  # its memory is wanted while others work
    give_back()
    with hold(folder):
        workspace = Workspace(folder, plan_of(case, recipe, orders))
        resumed = any(folder.glob("*/*.npz"))
        is_choosing = max_overhead != 0
        harvested = _harvested(
            Harvested(
                case=case,
                recipe=recipe,
                orders=orders,
                workspace=workspace,
                jobs=jobs_of(case, recipe, orders),
            ),
            workers or available_workers(),
            engine,
            is_choosing=is_choosing,
            progress=progress,
        )
        if is_choosing:
            harvested, said = cheaper(harvested, max_overhead, progress)
            words += said
        draft, said = _drafted(out, harvested, promise, ready.exported, threads, progress)
        words += said
        progress.stage("report card", 1)
        card = report_card(
            Guard(case.production, draft, threads=threads, looks="first"),
            workspace,
            harvested.split("test"),
            thresholds=draft.manifest.thresholds,
            seed=seed,
        )
        card = replace(
            card,
            gates=case.gates.counts,
            seconds=perf_counter() - started,
            resumed=resumed,
            words=tuple(words),
        )
        with kept_beside(ready.file if ready.exported else None, out):
            written = write_guard(
                out,
                manifest=replace(draft.manifest, metrics=card.to_json()),
                head=draft.head,
                golden=draft.golden,
                second=draft.second,
                reports={
                    "report.json": json.dumps(card.to_json(), indent=2).encode(),
                    "report.html": report_page(card, draft.manifest).encode(),
                },
            )
        progress.advance(1)
    other = None
    if again is not None and again.look.is_other:
        other = load_production(again.file, output=again.output)
    return Guard(case.production, written, threads=threads, second=other)


def _harvested(
    ordered: Harvested, workers: int, engine: str, *, is_choosing: bool, progress: Progress
) -> Harvested:
    """Make every shard, and say before what follows; return them with the composed ones."""
    every = [job for made in ordered.jobs.values() for job in made]
    harvested = replace(ordered, jobs={**ordered.jobs, **composed_jobs(every)})
    case, settings, second = ordered.case, ordered.recipe.head, ordered.orders.second
    rows, kinds = rows_expected(every, "fit"), len(harvested.jobs)
    choosing = choosing_seconds(case, rows, settings) if is_choosing else None
    after = fit_steps(case, settings, rows, kinds, second, choosing=choosing)
    progress.plan("fit", [Planned("attack and read", None), *after])
    harvest_told(every, ordered.orders, workers=workers, engine=engine, progress=progress)
    return harvested


def _drafted(
    out: Path,
    harvested: Harvested,
    promise: Promise,
    exported: ExportedFrom | None,
    threads: int | None,
    progress: Progress,
) -> tuple[GuardArtifact, list[str]]:
    """Return the guard as fitted and calibrated, without its figures, and words on it."""
    case, again = harvested.case, harvested.orders.second
    first = first_look(harvested, progress)
    reader = Reader(case.production, case.spec, case.taps, threads=threads)
    clean = clean_readings(reader, case.dataset, case.splits["calibrate"])
    head, by_class = calibrated(first.head, clean, promise)
    if by_class:
        progress.say(by_class)
    draft = drafted(out, head, clean, reader, harvested, promise, exported)
    if again is not None:
        looking = again.read_of(case.taps)
        both = second_look(looking, draft, first, clean, harvested, promise, progress)
        draft = replace(draft, second=both)
    return draft, [by_class] if by_class else []


def _check(seed: int, workers: int | None) -> None:
    """Raise SettingsError where a value has no meaning."""
    if seed < 0:
        raise SettingsError(f"expected a seed of 0 or more, got {seed}")
    if workers is not None and workers < 1:
        raise SettingsError(f"expected 1 or more workers, got {workers}")
