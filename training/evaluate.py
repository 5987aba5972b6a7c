"""The report card on images a guard never saw, its baselines beside it. N images.

Attackers here know nothing of the guard; who does is the red team's business. Headline figures are
on attacks that succeeded, from sources the model answers right; thresholds are the guard's own, so
from clean calibration images alone.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.allowance import available_workers
from reluguard.detector.artifact import Manifest, write_file
from reluguard.detector.lock import hold
from reluguard.detector.metrics import red_team_of
from reluguard.detector.model import load_production
from reluguard.detector.runtime import Guard, Reader
from reluguard.training.attacks import open_victim
from reluguard.training.composed import is_composed
from reluguard.training.data.case import predict
from reluguard.training.data.classes import Classes, guard_data
from reluguard.training.data.dataset import Dataset, check_labels
from reluguard.training.data.given import Data, given_data
from reluguard.training.data.holdout import check_untrained, unseen_rows
from reluguard.training.data.reading import Reading
from reluguard.training.errors import DataError
from reluguard.training.evaluation.baselines import BASELINES, Baseline
from reluguard.training.evaluation.comparison import Group, compare
from reluguard.training.evaluation.leave_out import LeftOut, Matrix, leave_one_out, open_fit
from reluguard.training.evaluation.result import About, Evaluation
from reluguard.training.evaluation.scorecard import scorecard
from reluguard.training.evaluation.tried import Tried
from reluguard.training.evaluation.two_looks import two_looks
from reluguard.training.expected.speed import busy_seconds
from reluguard.training.forecasts import evaluate_steps
from reluguard.training.harvest.harvest import harvest_told
from reluguard.training.harvest.orders import SHARD_IMAGES, Orders, composed_jobs, shard_images
from reluguard.training.harvest.workspace import Workspace, work_folder
from reluguard.training.looks.choice import Second
from reluguard.training.models.of_guard import guard_model
from reluguard.training.models.opened import ModelOrNone
from reluguard.training.pages.evaluation import evaluation_page
from reluguard.training.progress import HowTold, progress_of
from reluguard.training.provenance import Provenance, provenance_of
from reluguard.training.recipes.afterwards import COMPOSED

__all__ = ["evaluate"]

FEW = 32  # images that are timed


def evaluate(
    model: ModelOrNone,
    guard: Path | str,
    data: Data,
    *,
    out: Path | str,
    attacks: Sequence[str] | None = None,
    benign: Sequence[str] | None = None,
    work: Path | str | None = None,
    fit_work: Path | str | None = None,
    twin: str = "auto",
    baselines: Sequence[type[Baseline]] = BASELINES,
    baseline_rows: int = 1000,
    matrix_rows: int | None = 1500,
    leave_out: LeftOut = "family",
    composed: bool = True,
    surrogates: Sequence[Path | str] = (),
    second_model: Path | str | None = None,
    trained_on: Data | None = None,
    classes: Classes | None = None,
    weights: Path | str | None = None,
    seed: int = 0,
    limit: int | None = None,
    threads: int | None = None,
    workers: int | None = None,
    progress: HowTold = None,
) -> Evaluation:
    """Judge a guard; write `evaluation.json` and `evaluation.html`, and return what was found.

    Args:
        model: the production ONNX file; None for the export that `fit` put beside the guard; or
            what `fit` was given: then that export is used, once it is clear that both answer alike.
        guard: the guard's folder.
        data: labelled images, as `fit` takes them; of those the guard was fitted on, only its test
            split is used.
        out: the folder to write to.
        attacks: by name, as `attack_named` takes them; by default `DEFAULT_ATTACKS`, with budgets
            that suit the size of the images.
        benign: harmless changes by name; by default those of `BENIGN` that suit the size of the
            images, severities 1 to 5 with them, but none at just the strength it was fitted on.
        work: keeps the shards, so that nothing is attacked twice; by default in `out`.
        fit_work: the work folder of the guard's fit, which the baselines and the matrix of seen and
            unseen are fitted from; by default beside the guard, and without it they are left out.
        twin: where gradients come from, as `load_twin` takes it.
        baselines: which to run.
        baseline_rows: rows of each group that baselines are fitted on at most.
        matrix_rows: the same for the heads of the matrix, None for all, 0 for no matrix.
        leave_out: what the matrix leaves out of the fit at a time.
        composed: whether attacked images are judged after a harmless change too.
        surrogates: ONNX files of other models of the same task, whose attacks are tried on this;
            the first is the other network that a baseline asks.
        second_model: the network that looks again, of a guard fitted with one, as `Guard.open` has
            it. Of a guard that looks again both looks are judged, attacks on both at once, and
            heads of both looks fitted without some attacks.
        trained_on: images the model was trained on, to make sure that none of them is judged.
        classes: which class each folder of images is, as `fit` takes it; by default what the guard
            knows.
        weights: of a network by name, as `fit` takes them.
        seed: of every random choice.
        limit: how many unseen images at most.
        threads: of ONNX Runtime and torch in each process.
        workers: processes.
        progress: told of each step: a `Progress`, or a function that takes a `Step`.

    Raises:
        DataError: the data don't fit, the model was trained on some of them, or the work folder is
            another evaluation's.
        AttackError: no such attack or change.
        ModelError: the model can't be opened, or there is no export beside the guard.
        WorkerError: a worker process died.
        TwinError: the twin can't be made.
        GuardError: the guard can't be read or is not the model's.
        HeldError: another process works in the work folder.
    """
    started = perf_counter()
    progress = progress_of(progress)
    guard, out = Path(guard), Path(out)
    file = guard_model(model, guard, weights=weights)
    opened = Guard.open(file, guard, threads=threads, second_model=second_model)
    again = Second.of_guard(opened.artifact, file, second_model)
    manifest = opened.artifact.manifest
    dataset = guard_data(data, opened, classes)
    for word in dataset.words:
        progress.say(word)
    if trained_on is not None:
        check_untrained(dataset, given_data(trained_on, Reading.of_guard(manifest)))
    production = load_production(file, output=manifest.answer)
    reader = Reader(production, opened.spec, manifest.taps, threads=threads)
    rows = np.sort(np.random.default_rng(seed).permutation(unseen_rows(dataset, manifest))[:limit])
    logits = predict(reader, dataset.images[rows])
    check_labels(dataset, logits.shape[1])
    tried = Tried.of(
        opened.spec,
        manifest,
        attacks=attacks,
        benign=benign,
        twin=twin,
        is_transferred=bool(surrogates),
        is_twice=again is not None,
        is_changed_after=composed,
    )
    orders = Orders(
        model=file,
        output=manifest.answer,
        spec=opened.spec,
        taps=manifest.taps,
        twin=twin,
        dataset=dataset,
        changes=tried.every,
        workspace=Path(work) if work else out / "work",
        seed=seed,
        threads=threads,
        surrogates=tuple(map(Path, surrogates)),
        second=again,
    )
    right = logits.argmax(axis=1) == dataset.labels[rows]
    jobs = tried.jobs(rows, right, size=shard_images(dataset.images.shape[1:]), seed=seed)
    every = [job for made in jobs.values() for job in made]
    fit, missing = _fit_workspace(Path(fit_work) if fit_work else work_folder(guard), manifest)
    progress.plan(
        "evaluate",
        evaluate_steps(
            manifest,
            fit,
            jobs,
            busy_seconds(lambda: predict(reader, dataset.images[rows[:FEW]]), threads) / FEW,
            baseline_rows=baseline_rows,
            matrix_rows=matrix_rows,
            leave_out=None if fit is None or matrix_rows == 0 else leave_out,
            second=opened.artifact.second,
        ),
    )
    orders.workspace.mkdir(parents=True, exist_ok=True)
    with hold(orders.workspace):
        workspace = Workspace(orders.workspace, _plan(orders, manifest, limit))
        harvest_told(every, orders, workers=workers or available_workers(), progress=progress)
        jobs |= composed_jobs(every)
        groups = {slug: Group.of(opened, workspace, made) for slug, made in jobs.items()}
        looks = two_looks(opened.artifact, workspace, jobs, rates=[*manifest.thresholds], seed=seed)
    provenance = provenance_of(manifest)
    recipe = provenance.recipe
    known = frozenset(one.slug for one in recipe.attacks) if recipe else frozenset()
    scored = scorecard(groups, manifest, known, tried.threats, seed, COMPOSED)
    figures = compare(
        groups,
        opened,
        production,
        reader,
        fit,
        baselines,
        baseline_rows,
        seed,
        progress,
        others=[
            open_victim(other, opened.spec, threads=threads).predict for other in orders.surrogates
        ],
    )
    judge = partial(leave_one_out, by=leave_out, rows=matrix_rows, seed=seed, progress=progress)
    matrix, matrix_both = (None, None) if matrix_rows == 0 else _matrices(judge, fit, opened)
    found = Evaluation.of(
        scored,
        about=_about(opened, provenance, dataset, rows, seed),
        left_out=missing,
        baselines=figures,
        matrix=matrix,
        matrix_both=matrix_both,
        looks=looks,
        red_team=red_team_of(manifest),
        seconds=perf_counter() - started,
    )
    write_file(out / "evaluation.json", json.dumps(found.to_json(), indent=2).encode())
    alone = {slug: group for slug, group in groups.items() if not is_composed(slug)}
    page = evaluation_page(found, alone, manifest.thresholds)
    write_file(out / "evaluation.html", page.encode())
    return found


def _matrices(
    judge: Callable[..., Matrix], fit: Workspace | None, opened: Guard
) -> tuple[Matrix | None, Matrix | None]:
    """Return seen and unseen by the first look and by both; None of what there isn't."""
    if fit is None:
        return None, None
    manifest, second = opened.artifact.manifest, opened.artifact.second
    once = judge(fit, manifest)
    return once, None if second is None else judge(fit, manifest, second=second)


def _plan(orders: Orders, manifest: Manifest, limit: int | None) -> dict[str, Any]:
    """Everything a shard's content depends on but the attack, which its name says."""
    fitted_on = provenance_of(manifest).data
    size = shard_images(orders.dataset.images.shape[1:])
    return {
        **({"shard": size} if size != SHARD_IMAGES else {}),
        "model": manifest.model_sha256,
        "data": orders.dataset.digest,
        "input": orders.spec.to_json(),
        "output": orders.output,
        "taps": [[tap.name, *tap.levels, *tap.strides, tap.pooled] for tap in orders.taps],
        "fitted on": None if fitted_on is None else fitted_on.sha256,
        "twin": orders.twin,
        "seed": orders.seed,
        "limit": limit,
        **({} if orders.second is None else {"second look": orders.second.look.to_json()}),
    } | ({"surrogates": [_hash(path) for path in orders.surrogates]} if orders.surrogates else {})


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _about(
    guard: Guard, provenance: Provenance, dataset: Dataset, rows: NDArray[np.int64], seed: int
) -> About:
    own = provenance.is_fitted_on(dataset.digest)
    return About(
        threat_model="oblivious: the attacker knows the model, not the guard",
        images=len(rows),
        origin="test split of the data the guard was fitted on" if own else "other data",
        model=guard.artifact.manifest.model_sha256,
        guard=guard.artifact.digest,
        data=dataset.digest,
        recipe=provenance.recipe.name if provenance.recipe else None,
        seed=seed,
        calibration_images=guard.artifact.manifest.calibration_images,
        words=dataset.words,
    )


def _fit_workspace(folder: Path, manifest: Manifest) -> tuple[Workspace | None, str | None]:
    """Return the fit's harvest, or what can't be judged without it and why."""
    try:
        return open_fit(folder, manifest), None
    except DataError as error:
        return None, f"baselines that need fitting, and the seen and unseen matrix: {error}"
