"""Rounds of hardening: attack the guard knowing it, refit its head on what got past, again.

The head is small, so a round is cheap. What it buys is measured by the red team on unseen images,
before and after; it makes the attack dearer and never impossible. N images.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.artifact import Golden, GuardArtifact, read_guard, write_guard
from detector.head import Head
from detector.model import Production, load_production
from detector.runtime import Reader
from training.attacks import Victim
from training.aware import Aware
from training.aware_attacks import Orthogonal, Selective
from training.case import predict
from training.data import Dataset, load_data, split_sources
from training.errors import DataError
from training.fit import HeadSettings, Readings, calibrate, fit_head
from training.harvest import Workspace
from training.leave_out import open_fit, shards_of
from training.progress import Progress
from training.relaxed import RelaxedGuard
from training.report import promised_rates
from training.twin import load_twin

__all__ = ["harden_guard"]

SIZES = (1.0, 2.0, 4.0, 8.0)
WEIGHT = 4.0  # of a round's examples, where an attack of the recipe counts 1


def harden_guard(
    model: Path,
    guard: Path,
    data: str,
    out: Path,
    *,
    rounds: int = 2,
    images: int = 600,
    steps: int = 30,
    rows: int | None = None,
    fit_work: Path | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> GuardArtifact:
    """Write a hardened guard to `out` and return it; the one it came from stays as it is.

    Args:
        model: the production ONNX file.
        guard: the guard's folder.
        data: the images it was fitted on.
        out: the folder of the new guard.
        rounds: of attack and refit.
        images: of the fitting split, attacked in each round.
        steps: of each attack.
        rows: of each group of the fit that heads are fitted on, None for all.
        fit_work: the work folder of the guard's fit; by default beside it.
        seed: of every random choice.
        threads: of ONNX Runtime.
        progress: told of each round.

    Raises:
        DataError: other data than the guard was fitted on, or its work folder is not there.
        TwinError: the model can't be run in torch.
    """
    progress = progress or Progress()
    artifact = read_guard(guard)
    manifest = artifact.manifest
    dataset = load_data(data, size=(manifest.input.height, manifest.input.width))
    provenance = manifest.provenance
    if provenance.get("data", {}).get("sha256") != dataset.digest:
        raise DataError(f"expected the images the guard was fitted on, {data} holds others")
    splits = split_sources(dataset.labels, provenance["recipe"]["splits"], provenance["seed"])
    production = load_production(model, output=manifest.answer)
    reader = Reader(production, manifest.input, manifest.taps, threads=threads)
    workspace = open_fit(fit_work or guard.with_name(f"{guard.name}.work"), manifest)
    groups = _fit_groups(workspace, artifact, rows, seed)
    twin = load_twin(model, manifest.input, images=dataset.images, output=manifest.answer)
    victim = Victim(predict=lambda x: predict(reader, x), twin=twin)
    calibration = _clean(reader, dataset, splits["calibrate"])
    progress.stage("harden", rounds)
    told = []
    for turn in range(rounds):
        rng = np.random.default_rng([seed, turn])
        chosen = rng.permutation(splits["fit"])[:images]
        found = _aware_examples(
            production, artifact, dataset, chosen, reader, victim, steps, turn, seed
        )
        told.append({"images": len(chosen), "fooled": len(found)})
        groups.append(found)
        head = fit_head(
            groups,
            taps=manifest.taps,
            settings=HeadSettings(**provenance["recipe"]["head"]),
            seed=seed,
        )
        head = calibrate(
            head,
            calibration,
            rates=[manifest.fpr],
            prevalence=float(provenance.get("prevalence", 0.5)),
        )
        artifact = _with_head(artifact, head, reader)
        progress.advance(1)
    hardened = {"from": read_guard(guard).digest, "rounds": told, "steps": steps, "seed": seed}
    return write_guard(
        out,
        manifest=replace(
            artifact.manifest,
            created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            provenance={**provenance, "hardened": hardened},
            metrics={},
        ),
        head=artifact.head,
        golden=artifact.golden,
    )


def _fit_groups(
    workspace: Workspace, artifact: GuardArtifact, rows: int | None, seed: int
) -> list[Readings]:
    manifest = artifact.manifest
    weights: Mapping[str, float] = manifest.provenance["recipe"].get("weights", {})
    groups = []
    for slug, jobs in shards_of(workspace, manifest, "fit").items():
        group = replace(workspace.readings(jobs), weight=weights.get(slug, 1.0))
        limit = len(group) if rows is None else (4 * rows if slug == "clean" else rows)
        chosen = np.random.default_rng(seed).permutation(len(group))[:limit]
        groups.append(group.rows(np.sort(chosen)))
    return groups


def _aware_examples(
    production: Production,
    artifact: GuardArtifact,
    dataset: Dataset,
    chosen: NDArray[np.int64],
    reader: Reader,
    victim: Victim,
    steps: int,
    turn: int,
    seed: int,
) -> Readings:
    """Return readings of images that fool the model under the eyes of this guard."""
    relaxed = RelaxedGuard(production, artifact, dataset.images[chosen])
    threshold = min(artifact.manifest.thresholds.values())
    attacks: Sequence[Aware] = [
        kind(guard=relaxed, threshold=threshold, size=size, steps=steps)
        for kind in (Selective, Orthogonal)
        for size in SIZES
    ]
    parts = []
    for attack, some in zip(attacks, np.array_split(chosen, len(attacks)), strict=True):
        labels = dataset.labels[some]
        result = attack(dataset.images[some], labels, victim, seed=seed + turn)
        fooled = result.success & (result.prediction != labels)
        if fooled.any():
            rates, logits = reader.read(result.images[fooled])
            parts.append((rates.astype(np.float16), logits, some[fooled]))
    if not parts:
        raise DataError("no image fooled the model: more steps are needed")
    sources = np.concatenate([rows for _, _, rows in parts])
    return Readings(
        name=f"aware-{turn + 1}",
        kind="attack",
        rates=np.concatenate([rates for rates, _, _ in parts]),
        logits=np.concatenate([logits for _, logits, _ in parts]),
        sources=sources,
        labels=dataset.labels[sources],
        weight=WEIGHT,
    )


def _clean(reader: Reader, dataset: Dataset, rows: NDArray[np.int64]) -> Readings:
    """Return clean readings in full precision, as serving sees them."""
    parts = [reader.read(dataset.images[rows[i : i + 256]]) for i in range(0, len(rows), 256)]
    arrays: dict[str, Any] = {
        "rates": np.concatenate([rates for rates, _ in parts]),
        "logits": np.concatenate([logits for _, logits in parts]),
    }
    return Readings(name="clean", kind="clean", sources=rows, labels=dataset.labels[rows], **arrays)


def _with_head(artifact: GuardArtifact, head: Head, reader: Reader) -> GuardArtifact:
    golden = artifact.golden
    rates, logits = reader.read(golden.images)
    return replace(
        artifact,
        digest="",
        head=head,
        manifest=replace(
            artifact.manifest,
            thresholds=promised_rates(head.clean_scores, artifact.manifest.fpr),
            calibration_images=len(head.clean_scores),
        ),
        golden=Golden(
            images=golden.images,
            rates=rates,
            score=head.score(rates, logits).score,
            prediction=logits.argmax(axis=1),
        ),
    )
