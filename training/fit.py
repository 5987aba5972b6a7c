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

from reluguard.detector.artifact import Golden, GuardArtifact, Manifest, check_place, write_guard
from reluguard.detector.errors import SettingsError
from reluguard.detector.head import Head
from reluguard.detector.lock import hold
from reluguard.detector.reference import KEY as REFERENCE
from reluguard.detector.reference import reference_of
from reluguard.detector.runtime import Guard, Reader
from reluguard.detector.session import available_cores
from reluguard.training.data.case import Case, Preprocessing, open_case
from reluguard.training.errors import AttackError, DataError
from reluguard.training.evaluation.report_card import promised_rates, report_card
from reluguard.training.harvest.engine import check_engine
from reluguard.training.harvest.harvest import harvest
from reluguard.training.harvest.orders import Job, Orders, plan_jobs
from reluguard.training.harvest.readings import CLEAN, Readings, clean_readings
from reluguard.training.harvest.workspace import COLUMNS, Workspace, column_runs
from reluguard.training.head.economy import choose_taps
from reluguard.training.head.fit import calibrate, fit_head
from reluguard.training.head.probes import column_taps
from reluguard.training.pages.report_card import report_page
from reluguard.training.progress import Progress
from reluguard.training.recipes import Portion, Recipe, recipe_named

__all__ = ["FitSettings", "fit_guard", "work_folder"]

GOLDEN_BYTES = 200_000
GOLDEN_IMAGES = 8
ATTACK_SEEDS = 1000  # apart from those of the benign changes


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """What a fit is asked for. `work` keeps the shards; by default it lies beside the guard."""

    model: Path
    data: str
    out: Path
    recipe: str | Recipe = "default"
    twin: str = "auto"
    output: str | None = None
    preprocessing: Preprocessing = Preprocessing()
    fpr: float = 0.05
    prevalence: float = 0.5
    seed: int = 0
    threads: int | None = None
    workers: int | None = None
    max_overhead: float | None = None
    work: Path | None = None
    engine: str = "local"

    def __post_init__(self) -> None:
        check_engine(self.engine)
        if not 0 < self.prevalence < 1:
            raise SettingsError(f"expected a prevalence between 0 and 1, got {self.prevalence}")
        if self.seed < 0:
            raise SettingsError(f"expected a seed of 0 or more, got {self.seed}")
        if self.workers is not None and self.workers < 1:
            raise SettingsError(f"expected 1 or more workers, got {self.workers}")


def work_folder(settings: FitSettings) -> Path:
    """Return where the shards lie."""
    return settings.work or settings.out.with_name(f"{settings.out.name}.work")


def fit_guard(settings: FitSettings, progress: Progress | None = None) -> GuardArtifact:
    """Fit a guard, write it to `settings.out` and return it.

    What the work folder holds already is not made again, so a fit that was killed goes on.

    Raises:
        DataError: the data don't fit the model, or are too few for the rate asked for.
        TwinError: the twin can't be made, or does not match the model.
        ModelError: the model can't be read, run or guarded.
        GuardError: the place holds something else than a guard.
        HeldError: another process works in the work folder.
        OSError: the disk is full; nothing half-written is left.
    """
    check_place(settings.out)
    progress = progress or Progress()
    started = perf_counter()
    recipe = settings.recipe
    recipe = recipe_named(recipe) if isinstance(recipe, str) else recipe
    progress.stage("model and data", 1)
    case, reader = open_case(
        settings.model,
        settings.data,
        levels=recipe.levels,
        shares=recipe.shares,
        preprocessing=settings.preprocessing,
        output=settings.output,
        fpr=settings.fpr,
        seed=settings.seed,
        threads=settings.threads,
    )
    recipe = recipe.for_images(case.spec.height, case.spec.width)
    orders = _orders(case, recipe, settings)
    progress.advance(1)
    orders.workspace.mkdir(parents=True, exist_ok=True)
    with hold(orders.workspace):
        return _fit_in(case, reader, recipe, orders, settings, progress, started)


def _fit_in(
    case: Case,
    reader: Reader,
    recipe: Recipe,
    orders: Orders,
    settings: FitSettings,
    progress: Progress,
    started: float,
) -> GuardArtifact:
    """Harvest, fit, judge and write, in a work folder that is ours alone."""
    workspace = Workspace(orders.workspace, _plan(case, recipe, settings))
    resumed = any(workspace.folder.glob("*/*.npz"))
    jobs = _harvest(case, recipe, orders, settings, progress)
    head = _fit(case, recipe, jobs, workspace, settings, progress)
    if settings.max_overhead is not None:
        case, reader = _cheaper(case, head, workspace, settings)
        head = _fit(case, recipe, jobs, workspace, settings, progress)
    clean = clean_readings(reader, case.dataset, case.splits["calibrate"])
    head = calibrate(head, clean, rates=[settings.fpr], prevalence=settings.prevalence)
    manifest = _manifest(case, head, clean, recipe, settings)
    if workspace.columns is not None:
        provenance = {**manifest.provenance, COLUMNS: column_runs(workspace.columns)}
        manifest = replace(manifest, provenance=provenance)
    golden = _golden(case, head, reader, jobs, workspace)
    progress.stage("report card", 1)
    draft = GuardArtifact(path=settings.out, digest="", manifest=manifest, head=head, golden=golden)
    guard = Guard(case.production, draft, threads=settings.threads)
    card = report_card(
        guard,
        workspace,
        {slug: _of_split(made, "test") for slug, made in jobs.items()},
        thresholds=manifest.thresholds,
        seed=settings.seed,
    )
    card |= {"seconds": perf_counter() - started, "resumed": resumed}
    progress.advance(1)
    return write_guard(
        settings.out,
        manifest=replace(manifest, metrics=card),
        head=head,
        golden=golden,
        reports={
            "report.json": json.dumps(card, indent=2).encode(),
            "report.html": report_page(card, manifest).encode(),
        },
    )


def _plan(case: Case, recipe: Recipe, settings: FitSettings) -> dict[str, Any]:
    """Everything that a shard's content depends on."""
    strided = {tap.name: [*tap.strides, tap.pooled] for tap in case.taps if tap.is_strided}
    return {
        **({"strides": strided} if strided else {}),
        "model": case.production.sha256,
        "data": case.dataset.digest,
        "input": case.spec.to_json(),
        "output": case.production.answer,
        "twin": settings.twin,
        "recipe": {
            k: v for k, v in recipe.to_json().items() if k not in {"name", "head", "weights"}
        },
        "seed": settings.seed,
    }


def _orders(case: Case, recipe: Recipe, settings: FitSettings) -> Orders:
    return Orders(
        model=settings.model,
        output=case.production.answer,
        spec=case.spec,
        taps=case.taps,
        twin=settings.twin,
        dataset=case.dataset,
        changes={
            portion.change.name: portion.change for portion in (*recipe.attacks, *recipe.benign)
        },
        workspace=work_folder(settings),
        seed=settings.seed,
        threads=settings.threads,
    )


def _of_split(jobs: Sequence[Job], split: str) -> list[Job]:
    return [job for job in jobs if job.split == split]


def _harvest(
    case: Case, recipe: Recipe, orders: Orders, settings: FitSettings, progress: Progress
) -> dict[str, list[Job]]:
    """Make every shard of the recipe; return the jobs by slug, clean first."""
    fitted = {split: case.splits[split] for split in ("fit", "test")}
    jobs = {CLEAN: plan_jobs(CLEAN, "clean", fitted)}
    for index, portion in enumerate(recipe.benign):
        some = _portion(fitted, portion, settings.seed + index)
        jobs[portion.change.name] = plan_jobs(portion.change.name, "benign", some)
    # an attack has nothing to do where the model is wrong already
    right = {split: sources[case.right[sources]] for split, sources in fitted.items()}
    for split, sources in right.items():
        if not len(sources):
            raise DataError(
                f"the model answers none of the {len(fitted[split])} images of the {split} part "
                "right: give more images"
            )
    for index, portion in enumerate(recipe.attacks):
        if settings.twin == "none" and getattr(portion.change, "needs_gradients", False):
            continue
        some = _portion(right, portion, settings.seed + ATTACK_SEEDS + index)
        jobs[portion.change.name] = plan_jobs(portion.change.name, "attack", some)
    if all(made[0].kind != "attack" for made in jobs.values()):
        raise AttackError(f"recipe {recipe.name} has no attack that works without a twin")
    every = [job for made in jobs.values() for job in made]
    progress.stage("attack and read", sum(len(job.sources) for job in every))
    harvest(
        every,
        orders,
        workers=settings.workers or available_cores(),
        engine=settings.engine,
        progress=lambda job: progress.advance(len(job.sources)),
    )
    return jobs


def _portion(
    splits: Mapping[str, NDArray[np.int64]], portion: Portion, seed: int
) -> dict[str, NDArray[np.int64]]:
    """Return a share of each split's sources, other ones for each attack."""
    rng = np.random.default_rng(seed)
    return {
        split: np.sort(rng.permutation(sources)[: max(1, round(portion.share * len(sources)))])
        for split, sources in splits.items()
    }


def _fit(
    case: Case,
    recipe: Recipe,
    jobs: Mapping[str, Sequence[Job]],
    workspace: Workspace,
    settings: FitSettings,
    progress: Progress,
) -> Head:
    weights = {p.change.name: p.weight for p in (*recipe.attacks, *recipe.benign)}
    groups = [
        replace(workspace.readings(_of_split(made, "fit")), weight=weights.get(slug, 1.0))
        for slug, made in jobs.items()
    ]
    progress.stage("head", 100)
    done = 0

    def advance(share: float) -> None:
        nonlocal done
        progress.advance(round(100 * share) - done)
        done = round(100 * share)

    return fit_head(
        groups, taps=case.taps, settings=recipe.head, seed=settings.seed, progress=advance
    )


def _cheaper(
    case: Case, head: Head, workspace: Workspace, settings: FitSettings
) -> tuple[Case, Reader]:
    """Return the case with the taps that fit the budget; the workspace gives their rates alone."""
    assert settings.max_overhead is not None
    chosen = choose_taps(
        case.production, case.spec, case.taps, head, max_overhead=settings.max_overhead
    )
    workspace.columns = np.flatnonzero(np.isin(column_taps(case.taps), chosen))
    taps = tuple(case.taps[i] for i in chosen)
    reader = Reader(case.production, case.spec, taps, threads=settings.threads)
    return replace(case, taps=taps), reader


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
    chosen = np.concatenate(images)
    rates, logits = reader.read(chosen)
    return Golden(
        images=chosen,
        rates=rates,
        score=head.score(rates, logits).score,
        prediction=logits.argmax(axis=1),
    )


def _manifest(
    case: Case, head: Head, clean: Readings, recipe: Recipe, settings: FitSettings
) -> Manifest:
    packages = ("numpy", "onnxruntime", "torch", "adversarial-robustness-toolbox")
    return Manifest(
        model_sha256=case.production.sha256,
        input=case.spec,
        answer=case.production.answer,
        taps=case.taps,
        fpr=settings.fpr,
        thresholds=promised_rates(head.clean_scores, settings.fpr),
        calibration_images=len(head.clean_scores),
        created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        provenance={
            "recipe": recipe.to_json(),
            "seed": settings.seed,
            "twin": settings.twin,
            "prevalence": settings.prevalence,
            "data": {"source": case.dataset.source, "sha256": case.dataset.digest},
            "images": {split: len(sources) for split, sources in case.splits.items()},
            "work": str(work_folder(settings).resolve()),
            REFERENCE: reference_of(clean.rates, clean.logits, case.taps).to_json(),
            "versions": {name: importlib.metadata.version(name) for name in packages},
        },
    )
