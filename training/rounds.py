"""Rounds: attack the guard knowing it, refit its head on what got past, again.

The head is small, so a round is cheap. What it buys is measured by the red team on unseen images,
before and after, and what it costs by the gate; it makes the attack dearer and never impossible.
What got past joins the harvest, so that later retraining keeps it. N images.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import (
    GuardArtifact,
    check_place,
    read_guard,
)
from reluguard.detector.images import Images
from reluguard.detector.metrics import GateLimits, GateResult
from reluguard.detector.model import Production
from reluguard.detector.onnx_file.beside import kept_beside
from reluguard.detector.runtime import Reader, model_of
from reluguard.training.attacks import Victim
from reluguard.training.data.case import predict
from reluguard.training.data.dataset import Dataset
from reluguard.training.data.given import Data
from reluguard.training.errors import DataError
from reluguard.training.expected.speed import here
from reluguard.training.harvest.readings import Readings, clean_readings
from reluguard.training.harvest.workspace import ADDED
from reluguard.training.models.of_guard import export_of, guard_model
from reluguard.training.models.opened import ModelOrNone
from reluguard.training.progress import Planned, Progress
from reluguard.training.provenance import Added, Refits, Step
from reluguard.training.red_team.aware import Aware
from reluguard.training.red_team.aware_attacks import Orthogonal, Selective
from reluguard.training.red_team.relaxed import RelaxedGuard
from reluguard.training.retraining.challenger import (
    told_of_looks,
    with_head,
    with_origin,
    write_challenger,
)
from reluguard.training.retraining.gate import gate
from reluguard.training.retraining.kept import Kept, hold_kept, open_kept
from reluguard.training.retraining.learned import refit
from reluguard.training.retraining.original import Original
from reluguard.training.twin.twin import load_twin

__all__ = ["SIZES", "Refitted", "refit_in_rounds"]

SIZES = (1.0, 2.0, 4.0, 8.0)
NAME = "aware"
GATE_S = 8.0  # of one core of the reference machine: a control, the gate and the guard's page
WEIGHT = 4.0  # of a round's examples, where an attack of the recipe counts 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Refitted:
    """The refitted guard, what each round added to its harvest, and what the gate says of it."""

    guard: GuardArtifact
    added: tuple[Added, ...]
    gate: GateResult


def refit_in_rounds(
    model: ModelOrNone,
    guard: Path | str,
    data: Data | None,
    *,
    out: Path | str,
    rounds: int = 2,
    images: int = 600,
    sizes: Sequence[float] = SIZES,
    steps: int = 30,
    fit_work: Path | str | None = None,
    weights: Path | str | None = None,
    limits: GateLimits | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Refitted:
    """Write a refitted guard to `out`, judged against the one it came from, which stays as it is.

    Args:
        model: the production ONNX file; None for the export that `fit` put beside the guard; or
            what `fit` was given. An export is put beside the new guard too.
        guard: the guard's folder.
        data: the images the guard was fitted on, None if they lie where they lay.
        out: the folder of the new guard.
        rounds: of attack and refit, 1 or more.
        images: of the fitting split, attacked in each round.
        sizes: Linf budgets of the attacks, in 8-bit steps; each has its share of the images.
        steps: of each attack.
        fit_work: the guard's harvest; by default the one it names, or GUARD.work.
        weights: of a network by name, as `fit` takes them.
        limits: of the gate.
        seed: of every random choice.
        threads: of ONNX Runtime.
        progress: told of each round.

    Raises:
        DataError: other images than the guard was fitted on, its harvest is not there, or nothing
            got past it.
        TwinError: the model can't be run in torch.
        GuardError: the guard can't be read or is not the model's, or `out` holds something else.
        HeldError: another process works in the harvest.
    """
    guard, out = Path(guard), Path(out)
    fit_work = None if fit_work is None else Path(fit_work)
    check_place(out)
    if min(rounds, images, steps) < 1:
        raise DataError(
            f"expected rounds, images and steps of 1 or more, got {rounds}, {images}, {steps}"
        )
    progress = progress or Progress()
    champion = told_of_looks(read_guard(guard), progress)
    file = guard_model(model, guard, weights=weights)
    export = export_of(champion, file, out)
    manifest = champion.manifest
    original = Original(champion, data)
    dataset, splits = original.dataset, original.splits
    production = model_of(champion, file)
    reader = Reader(production, manifest.input, manifest.taps, threads=threads)
    twin = load_twin(file, manifest.input, images=dataset.images, output=manifest.answer)
    victim = Victim(predict=lambda x: predict(reader, x), twin=twin)
    calibration = clean_readings(reader, dataset, splits["calibrate"])
    with hold_kept(champion, fit_work):
        kept = open_kept(champion, fit_work)
        progress.plan("refit", [Planned("rounds", None), Planned("gate", here(GATE_S))])
        progress.stage("rounds", rounds)
        draft, first = champion, len(kept.added)
        for turn in range(rounds):
            rng = np.random.default_rng([seed, turn])
            chosen = rng.permutation(splits["fit"])[:images]
            attacks = _attacks(production, draft, dataset.images[chosen], sizes, steps)
            found = _examples(attacks, dataset, chosen, reader, victim, seed + turn)
            found = replace(found, name=f"{NAME}-{champion.digest[:8]}-{turn + 1}")
            kept = kept.with_added([_store(found, kept, len(chosen))])
            head, _ = refit(champion, kept.groups("fit"), kept.head, calibration, seed=seed)
            draft = with_head(champion, head, reader)
            progress.advance(1)
        added = kept.added[first:]
        draft = with_origin(
            draft,
            champion,
            kept,
            calibration,
            out=out,
            step=Step(parent=champion.digest, seed=seed, added=tuple(one.name for one in added)),
            refits=Refits(origin=champion.digest, rounds=added, steps=steps, seed=seed),
        )
        progress.stage("gate", 1)
        names = {one.name for one in added}
        old = [group for group in kept.groups("fit") if group.name not in names]
        control, _ = refit(champion, old, kept.head, calibration, seed=seed + 1)
        judged = gate(production, champion, draft, kept, control=control, limits=limits, seed=seed)
        with kept_beside(export, out):
            written = write_challenger(draft, production, kept, judged, seed=seed, threads=threads)
        progress.advance(1)
    return Refitted(guard=written, added=added, gate=judged)


def _attacks(
    production: Production,
    artifact: GuardArtifact,
    images: Images,
    sizes: Sequence[float],
    steps: int,
) -> list[Aware]:
    """Return attacks that know this guard."""
    relaxed = RelaxedGuard(production, artifact, images)
    threshold = min(artifact.manifest.thresholds.values())
    return [
        kind(guard=relaxed, threshold=threshold, size=size, steps=steps)
        for kind in (Selective, Orthogonal)
        for size in sizes
    ]


def _examples(
    attacks: Sequence[Aware],
    dataset: Dataset,
    chosen: NDArray[np.int64],
    reader: Reader,
    victim: Victim,
    seed: int,
) -> Readings:
    """Return readings of images that fool the model under the eyes of the guard."""
    parts = []
    for attack, some in zip(attacks, np.array_split(chosen, len(attacks)), strict=True):
        labels = dataset.labels[some]
        result = attack(dataset.images[some], labels, victim, seed=seed)
        fooled = result.success & (result.prediction != labels)
        if fooled.any():
            rates, logits = reader.read(result.images[fooled])
            parts.append((rates.astype(np.float16), logits, some[fooled]))
    if not parts:
        raise DataError("no image fooled the model: larger budgets or more steps are needed")
    sources = np.concatenate([rows for _, _, rows in parts])
    return Readings(
        name=NAME,
        kind="attack",
        rates=np.concatenate([rates for rates, _, _ in parts]),
        logits=np.concatenate([logits for _, logits, _ in parts]),
        sources=sources,
        labels=dataset.labels[sources],
        weight=WEIGHT,
    )


def _store(found: Readings, kept: Kept, attacked: int) -> Added:
    """Write a round's examples into the harvest; all are fitted on, the red team judges."""
    content = hashlib.sha256()
    for array in (found.sources, found.rates, found.logits):
        content.update(np.ascontiguousarray(array).tobytes())
    slug = f"{ADDED}{found.name}-{content.hexdigest()[:8]}"
    kept.workspace.add(slug, "fit", found)
    return Added(
        name=found.name,
        kind="attack",
        slug=slug,
        weight=WEIGHT,
        fit=len(found),
        test=0,
        source="reluguard redteam --rounds",
        dropped={"did not fool the model": attacked - len(found)},
    )
