"""The report card on images a guard never saw, its baselines beside it. N images.

Attackers here know nothing of the guard; who does is the red team's business. Headline figures are
on attacks that succeeded, from sources the model answers right; thresholds are the guard's own, so
from clean calibration images alone.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.allowance import available_workers
from reluguard.detector.artifact import Manifest, write_file
from reluguard.detector.images import InputSpec
from reluguard.detector.lock import hold
from reluguard.detector.metrics import red_team_of
from reluguard.detector.model import load_production
from reluguard.detector.runtime import Guard, Reader
from reluguard.training.attacks import PGD, Attack, attack_named, open_victim
from reluguard.training.changes import Change, benign_named, controls
from reluguard.training.composed import SEPARATOR, composed_name, is_composed
from reluguard.training.data.case import predict
from reluguard.training.data.classes import Classes, guard_data
from reluguard.training.data.dataset import Dataset, check_labels
from reluguard.training.data.given import Data, given_data
from reluguard.training.data.holdout import check_untrained, unseen_rows
from reluguard.training.data.reading import Reading
from reluguard.training.errors import AttackError, DataError
from reluguard.training.evaluation.baselines import BASELINES, Baseline
from reluguard.training.evaluation.comparison import Group, compare
from reluguard.training.evaluation.leave_out import LeftOut, Matrix, leave_one_out, open_fit
from reluguard.training.evaluation.result import About, Evaluation
from reluguard.training.evaluation.scorecard import scorecard
from reluguard.training.evaluation.threats import threat_of
from reluguard.training.evaluation.two_looks import two_looks
from reluguard.training.expected.speed import busy_seconds
from reluguard.training.forecasts import evaluate_steps
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
from reluguard.training.harvest.workspace import Shard, Workspace, work_folder
from reluguard.training.looks.both import AtBoth
from reluguard.training.looks.choice import Second
from reluguard.training.models.of_guard import guard_model
from reluguard.training.models.opened import ModelOrNone
from reluguard.training.pages.evaluation import evaluation_page
from reluguard.training.progress import HowTold, progress_of
from reluguard.training.provenance import Provenance, provenance_of
from reluguard.training.recipes.afterwards import COMPOSED, judged_afterwards

__all__ = ["DEFAULT_ATTACKS", "evaluate"]

# whatever a guard was fitted on: several of each kind, and some that no recipe here holds
DEFAULT_ATTACKS = (
    "fgsm-linf-2",
    "fgsm-linf-8",
    "mifgsm-linf-4",
    "pgd-linf-1",
    "pgd-linf-2",
    "pgd-linf-4",
    "pgd-linf-8",
    "pgd-linf-4-40",
    "pgd-linf-4-early",
    "apgd-ce-linf-4",
    "apgd-dlr-linf-4",
    "pgd-linf-4-through",
    "pgd-l2-0.5",
    "deepfool-l2",
    "deepfool-l2-o0.5",
    "deepfool-l2-o1",
    "fmn-linf",
    "fmn-l2",
    "fab-l2",
    "fab-linf",
    "cw-l2",
    "cw-l2-k5",
    "cw-l2-k10",
    "cw-l2-k20",
    "square-linf-8",
    "hopskipjump-l2",
    "spatial",
    "patch-6",
    "art-newtonfool",
)
FEW = 32  # images that are timed
BOTH_SIZES = (2.0, 4.0, 8.0)  # of PGD led by both looks, of a guard that looks again
TRANSFERS = ("transfer-mifgsm-linf-8",)  # tried where there is another model to come from


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
    changes: dict[str, Attack | Change] = {
        **_attacks(attacks, opened.spec, twin, with_transfer=bool(surrogates)),
        **_benign(benign, opened.spec, manifest),
    }
    if again is not None and twin != "none":
        led = (AtBoth(attack=PGD(size=size)) for size in BOTH_SIZES)
        changes |= {one.name: one for one in led}
    shape = (opened.spec.height, opened.spec.width, opened.spec.channels)
    then = judged_afterwards(*shape) if composed else {}
    orders = Orders(
        model=file,
        output=manifest.answer,
        spec=opened.spec,
        taps=manifest.taps,
        twin=twin,
        dataset=dataset,
        changes={
            **changes,
            **{
                composed_name(slug, name): change
                for slug, attack in changes.items()
                for name, change in then.items()
                if isinstance(attack, Attack)
            },
        },
        workspace=Path(work) if work else out / "work",
        seed=seed,
        threads=threads,
        surrogates=tuple(map(Path, surrogates)),
        second=again,
    )
    size = shard_images(dataset.images.shape[1:])
    right = logits.argmax(axis=1) == dataset.labels[rows]
    jobs = _jobs(changes, rows, right, size, dict.fromkeys(then, 1.0), seed)
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
        groups = {slug: _group(opened, workspace, made) for slug, made in jobs.items()}
        looks = two_looks(opened.artifact, workspace, jobs, rates=[*manifest.thresholds], seed=seed)
    threats = {slug: threat_of(c) for slug, c in changes.items() if isinstance(c, Attack)}
    provenance = provenance_of(manifest)
    known = (
        frozenset(one.slug for one in provenance.recipe.attacks)
        if provenance.recipe
        else frozenset()
    )
    scored = scorecard(groups, manifest, known, threats, seed, COMPOSED)
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


def _attacks(
    named: Sequence[str] | None, spec: InputSpec, twin: str, *, with_transfer: bool
) -> dict[str, Attack]:
    """Return the attacks by name; without a twin, only those that need none."""
    default = (*DEFAULT_ATTACKS, *(TRANSFERS if with_transfer else ()))
    made = (
        [attack_named(name) for name in named]
        if named
        else [attack_named(name).for_images(spec.height, spec.width) for name in default]
    )
    joined = [one.name for one in made if is_composed(one.name)]
    if joined:
        raise AttackError(f"expected names of attacks without a {SEPARATOR}, got {joined[0]}")
    return {one.name: one for one in made if twin != "none" or not one.needs_gradients}


def _benign(named: Sequence[str] | None, spec: InputSpec, manifest: Manifest) -> dict[str, Change]:
    """Return the harmless changes by name."""
    if named is not None:
        return {name: benign_named(name) for name in named}
    recipe = provenance_of(manifest).recipe
    seen = [one.change for one in recipe.benign] if recipe else []
    return controls(spec.height, spec.width, spec.channels, seen)


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


def _jobs(
    changes: Mapping[str, Attack | Change],
    rows: NDArray[np.int64],
    right: NDArray[np.bool_],
    size: int,
    then: Mapping[str, float],
    seed: int,
) -> dict[str, list[Job]]:
    jobs = {"clean": plan_jobs("clean", "clean", {"test": rows}, size=size)}
    for slug, change in changes.items():
        if isinstance(change, Attack):
            made = plan_jobs(slug, "attack", {"test": rows[right]}, size=size)
            jobs[slug] = with_changes(made, then, seed=seed)
        else:
            jobs[slug] = plan_jobs(slug, "benign", {"test": rows}, size=size)
    if not right.any():
        raise DataError("expected unseen images that the model answers right, got none")
    return jobs


def _group(guard: Guard, workspace: Workspace, jobs: Sequence[Job]) -> Group:
    shards = [workspace.read(job) for job in jobs]
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(shard, name) for shard in shards])
        for name in ("sources", "labels", "success", "rates", "logits")
    }
    images = [shard.images for shard in shards if shard.images is not None]
    shard = Shard(images=np.concatenate(images) if len(images) == len(shards) else None, **joined)
    head, rates = guard.artifact.head, map(float, guard.artifact.manifest.thresholds)
    scores = head.score(shard.rates, shard.logits)
    return Group(
        name=jobs[0].slug,
        shard=shard,
        kind=jobs[0].kind,
        score=head.levelled(scores.score, shard.logits.argmax(axis=1), rates),
        evidence=scores.evidence,
        wrong=shard.logits.argmax(axis=1) != shard.labels,
    )


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
