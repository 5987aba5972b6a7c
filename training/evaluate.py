"""The report card on images a guard never saw, its baselines beside it. N images.

Attackers here know nothing of the guard; who does is the red team's business. Headline figures are
on attacks that succeeded, from sources the model answers right; thresholds are the guard's own, so
from clean calibration images alone.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.artifact import Manifest, write_file
from detector.model import load_production
from detector.runtime import Guard, Reader
from detector.session import available_cores
from training.attacks import Attack, attack_named
from training.attacks.benign import BENIGN, Change, benign_named
from training.baselines import BASELINES, Baseline
from training.case import predict
from training.comparison import Group, compare, mean
from training.data import Dataset, check_labels, load_data
from training.errors import DataError
from training.evaluate_html import evaluation_page
from training.harvest import Job, Orders, Shard, Workspace, harvest, plan_jobs
from training.holdout import unseen_rows
from training.leave_out import leave_one_out, open_fit
from training.metrics import auroc_interval, rate_above, rate_interval
from training.progress import Progress
from training.report import prevalence_table

__all__ = ["DEFAULT_ATTACKS", "evaluate", "print_evaluation"]

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
    "pgd-l2-0.5",
    "deepfool-l2",
    "fmn-linf",
    "cw-l2",
    "cw-l2-k10",
    "square-linf-8",
    "hopskipjump-l2",
    "spatial",
    "patch-6",
    "art-newtonfool",
)

Scores = NDArray[np.floating[Any]]


def evaluate(
    model: Path,
    guard: Path,
    data: str,
    out: Path,
    *,
    attacks: Sequence[str] | None = None,
    benign: Sequence[str] | None = None,
    work: Path | None = None,
    fit_work: Path | None = None,
    twin: str = "auto",
    baselines: Sequence[type[Baseline]] = BASELINES,
    baseline_rows: int = 1000,
    matrix_rows: int | None = 1500,
    seed: int = 0,
    limit: int | None = None,
    threads: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge a guard; write `evaluation.json` and `evaluation.html`, and return the figures.

    Args:
        model: the production ONNX file.
        guard: the guard's folder.
        data: labelled images; of those the guard was fitted on, only its test split is used.
        out: the folder to write to.
        attacks: by name, as `attack_named` takes them; by default `DEFAULT_ATTACKS`.
        benign: harmless changes by name; by default all of `BENIGN`, severities 1 to 5 with them.
        work: keeps the shards, so that nothing is attacked twice; by default in `out`.
        fit_work: the work folder of the guard's fit, which the baselines and the matrix of seen and
            unseen are fitted from; by default beside the guard, and without it they are left out.
        twin: where gradients come from, as `load_twin` takes it.
        baselines: which to run.
        baseline_rows: rows of each group that baselines are fitted on at most.
        matrix_rows: the same for the heads of the matrix.
        seed: of every random choice.
        limit: how many unseen images at most.
        threads: of ONNX Runtime and torch in each process.
        workers: processes.
        progress: told of each step.

    Raises:
        DataError: the data don't fit, or the work folder is another evaluation's.
        AttackError: no such attack or change.
        TwinError: the twin can't be made.
        GuardError: the guard can't be read or is not the model's.
    """
    started = perf_counter()
    progress = progress or Progress()
    opened = Guard.open(model, guard, threads=threads)
    manifest = opened.artifact.manifest
    dataset = load_data(data, size=(opened.spec.height, opened.spec.width))
    production = load_production(model, output=manifest.answer)
    reader = Reader(production, opened.spec, manifest.taps, threads=threads)
    rows = np.sort(np.random.default_rng(seed).permutation(unseen_rows(dataset, manifest))[:limit])
    logits = predict(reader, dataset.images[rows])
    check_labels(dataset, logits.shape[1])
    changes = _changes(attacks or DEFAULT_ATTACKS, BENIGN if benign is None else benign, twin)
    orders = Orders(
        model=model,
        output=manifest.answer,
        spec=opened.spec,
        taps=manifest.taps,
        twin=twin,
        dataset=dataset,
        changes=changes,
        workspace=work or out / "work",
        seed=seed,
        threads=threads,
    )
    workspace = Workspace(orders.workspace, _plan(orders, manifest, limit))
    jobs = _jobs(changes, rows, logits.argmax(axis=1) == dataset.labels[rows])
    every = [job for made in jobs.values() for job in made]
    progress.stage("attack and read", sum(len(job.sources) for job in every))
    harvest(
        every,
        orders,
        workers=workers or available_cores(),
        progress=lambda job: progress.advance(len(job.sources)),
    )
    groups = {slug: _group(opened, workspace, made) for slug, made in jobs.items()}
    card = _card(groups, manifest, seed)
    card["about"] = _about(opened, dataset, rows, seed)
    fit = _fit_workspace(fit_work or guard.with_name(f"{guard.name}.work"), manifest, card)
    card["baselines"] = compare(
        groups, opened, production, reader, fit, baselines, baseline_rows, seed, progress
    )
    if fit is not None and matrix_rows != 0:
        card["matrix"] = leave_one_out(
            fit, manifest, rows=matrix_rows, seed=seed, progress=progress
        )
    card["seconds"] = perf_counter() - started
    write_file(out / "evaluation.json", json.dumps(card, indent=2).encode())
    write_file(out / "evaluation.html", evaluation_page(card, groups).encode())
    return card


def _changes(
    attacks: Sequence[str], benign: Sequence[str] | Mapping[str, Change], twin: str
) -> dict[str, Attack | Change]:
    """Return attacks and harmless changes by name; without a twin, only those that need none."""
    made = [attack_named(name) for name in attacks]
    able = [attack for attack in made if twin != "none" or not attack.needs_gradients]
    return {attack.name: attack for attack in able} | {name: benign_named(name) for name in benign}


def _plan(orders: Orders, manifest: Manifest, limit: int | None) -> dict[str, Any]:
    """Everything a shard's content depends on but the attack, which its name says."""
    return {
        "model": manifest.model_sha256,
        "data": orders.dataset.digest,
        "input": orders.spec.to_json(),
        "output": orders.output,
        "taps": [[tap.name, tap.level, tap.stride] for tap in orders.taps],
        "fitted on": manifest.provenance.get("data", {}).get("sha256"),
        "twin": orders.twin,
        "seed": orders.seed,
        "limit": limit,
    }


def _jobs(
    changes: Mapping[str, Attack | Change], rows: NDArray[np.int64], right: NDArray[np.bool_]
) -> dict[str, list[Job]]:
    jobs = {"clean": plan_jobs("clean", "clean", {"test": rows})}
    for slug, change in changes.items():
        if isinstance(change, Attack):
            jobs[slug] = plan_jobs(slug, "attack", {"test": rows[right]})
        else:
            jobs[slug] = plan_jobs(slug, "benign", {"test": rows})
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
    return Group(
        name=jobs[0].slug,
        shard=shard,
        kind=jobs[0].kind,
        score=guard.artifact.head.score(shard.rates, shard.logits).score,
        wrong=shard.logits.argmax(axis=1) != shard.labels,
    )


def _about(guard: Guard, dataset: Dataset, rows: NDArray[np.int64], seed: int) -> dict[str, Any]:
    provenance = guard.artifact.manifest.provenance
    own = provenance.get("data", {}).get("sha256") == dataset.digest
    return {
        "threat_model": "oblivious: the attacker knows the model, not the guard",
        "images": len(rows),
        "from": "test split of the data the guard was fitted on" if own else "other data",
        "model": guard.artifact.manifest.model_sha256,
        "guard": guard.artifact.digest,
        "data": dataset.digest,
        "recipe": provenance.get("recipe", {}).get("name"),
        "seed": seed,
    }


def _card(groups: Mapping[str, Group], manifest: Manifest, seed: int) -> dict[str, Any]:
    thresholds = manifest.thresholds
    clean = groups["clean"]
    recipe = manifest.provenance.get("recipe", {})
    known = {portion["slug"] for portion in recipe.get("attacks", ())}
    attacks = {
        slug: _attack_entry(clean, group, thresholds, seed) | {"fitted_on": slug in known}
        for slug, group in groups.items()
        if group.kind == "attack"
    }
    harmless = {
        slug: _flagged(group.score, thresholds)
        for slug, group in groups.items()
        if group.kind == "benign"
    }
    found = {slug: entry["auroc"]["value"] for slug, entry in attacks.items() if "auroc" in entry}
    unseen = [value for slug, value in found.items() if slug not in known]
    return {
        "clean": {
            "images": len(clean.score),
            "accuracy": rate_interval(int((~clean.wrong).sum()), len(clean.wrong)).to_json(),
            "false_positive_rate": _flagged(clean.score, thresholds),
            "misclassified_flagged": _flagged(clean.score[clean.wrong], thresholds),
        },
        "attacks": attacks,
        "benign": {slug: entry for slug, entry in harmless.items() if _severity(slug) is None},
        "severity": _severities(harmless),
        "classes": _by_class(groups, thresholds),
        "precision": _precision(clean, attacks, thresholds),
        "summary": {
            "attacks": len(found),
            "mean_auroc": mean([*found.values()]),
            "worst_auroc": min(found.values(), default=None),
            "not_fitted_on": {
                "attacks": len(unseen),
                "mean_auroc": mean(unseen),
                "worst_auroc": min(unseen, default=None),
            },
        },
    }


def _flagged(scores: Scores, thresholds: Mapping[str, float]) -> dict[str, Any]:
    if not len(scores):
        return {}
    return {rate: rate_above(scores, limit).to_json() for rate, limit in thresholds.items()}


def _attack_entry(
    clean: Group, group: Group, thresholds: Mapping[str, float], seed: int
) -> dict[str, Any]:
    hit = group.hits
    entry: dict[str, Any] = {
        "tried": len(hit),
        "succeeded": int(hit.sum()),
        "failed": {"flagged": _flagged(group.score[~hit], thresholds)},
        "all": {"flagged": _flagged(group.score, thresholds)},
        # of all tries: a wrong answer that nobody is told of
        "unnoticed": {
            rate: rate_interval(int((hit & (group.score <= limit)).sum()), len(hit)).to_json()
            for rate, limit in thresholds.items()
        },
    }
    for name, chosen in (("succeeded", hit), ("all", np.ones(len(hit), np.bool_))):
        if not chosen.any():
            continue
        area = auroc_interval(
            clean.score,
            clean.shard.sources,
            group.score[chosen],
            group.shard.sources[chosen],
            seed=seed,
        ).to_json()
        if name == "all":
            entry["all"]["auroc"] = area
        else:
            entry |= {"auroc": area, "detected": _flagged(group.score[chosen], thresholds)}
    return entry


def _severity(slug: str) -> tuple[str, str] | None:
    """Return kind and level of a change named by severity, like jpeg-c3."""
    kind, mark, level = slug.rpartition("-c")
    return (kind, level) if mark and level.isdigit() else None


def _severities(harmless: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    curves: dict[str, dict[str, Any]] = {}
    for slug, entry in harmless.items():
        place = _severity(slug)
        if place is not None:
            curves.setdefault(place[0], {})[place[1]] = entry
    return curves


def _by_class(
    groups: Mapping[str, Group], thresholds: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Return for each true class what is flagged of its clean and its attacked images."""
    clean = groups["clean"]
    attacked = [g for g in groups.values() if g.kind == "attack"]
    labels = np.concatenate([g.shard.labels[g.hits] for g in attacked])
    scores = np.concatenate([g.score[g.hits] for g in attacked])
    return {
        str(label): {
            "false_positive_rate": _flagged(clean.score[clean.shard.labels == label], thresholds),
            "detected": _flagged(scores[labels == label], thresholds),
        }
        for label in np.unique(clean.shard.labels)
    }


def _precision(
    clean: Group, attacks: Mapping[str, Any], thresholds: Mapping[str, float]
) -> dict[str, Any]:
    """Return of each threshold what share of flagged requests are attacks, by their prevalence."""
    table = {}
    for rate, limit in thresholds.items():
        detected = [e["detected"][rate]["value"] for e in attacks.values() if "detected" in e]
        if detected:
            realised = rate_above(clean.score, limit).value
            table[rate] = {
                "mean_detected": float(np.mean(detected)),
                "false_positive_rate": realised,
                "precision": prevalence_table(float(np.mean(detected)), realised),
            }
    return table


def _fit_workspace(folder: Path, manifest: Manifest, card: dict[str, Any]) -> Workspace | None:
    try:
        return open_fit(folder, manifest)
    except DataError as error:
        card["left_out"] = f"baselines that need fitting, and the seen and unseen matrix: {error}"
        return None


def print_evaluation(card: Mapping[str, Any]) -> None:
    """Print the main figures as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    about = card["about"]
    console.print(f"{about['images']} unseen images ({about['from']}); {about['threat_model']}")
    for rate, value in card["clean"]["false_positive_rate"].items():
        console.print(f"clean images flagged at the {rate} threshold: {_text(value)}")
    rate = next(reversed(card["clean"]["false_positive_rate"]))
    attacks = Table("attack", "fitted on", "succeeded", "AUROC", f"detected at {rate}")
    for slug, entry in card["attacks"].items():
        figures = (
            (_text(entry["auroc"]), _text(entry["detected"][rate])) if "auroc" in entry else ()
        )
        share = f"{entry['succeeded']} / {entry['tried']}"
        attacks.add_row(slug, "yes" if entry["fitted_on"] else "no", share, *figures)
    console.print(attacks)
    peers = Table("detector", "mean AUROC", "worst AUROC", "harmless flagged", "note")
    for name, entry in card["baselines"].items():
        keys = ("mean_auroc", "worst_auroc", "mean_benign_flagged")
        cells = [f"{entry[k]:.3f}" if entry.get(k) is not None else "-" for k in keys]
        peers.add_row(name, *cells, entry.get("note", ""))
    console.print(peers)
    if "matrix" in card:
        matrix = card["matrix"]
        console.print(
            f"one family left out of the fit: mean AUROC on it {matrix['mean_unseen']:.3f}, worst "
            f"{matrix['worst_unseen']:.3f}"
        )


def _text(value: Mapping[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
