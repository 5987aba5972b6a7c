"""Three parts of the images, and a guard that has never seen an attack or its like.

- own: what the owner of the model had when the guard was fitted, and what retraining knows of;
- traffic: what comes in production, clean and, from images of their own, attacked;
- fresh: what nothing but the last measurement sees.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import GuardArtifact, read_guard, write_file
from reluguard.detector.runtime import Reader
from reluguard.training.attacks import Attack, Victim, open_victim
from reluguard.training.data.case import Case, open_case
from reluguard.training.data.dataset import Dataset, load_data, save_dataset
from reluguard.training.data.splits import split_sources
from reluguard.training.demo import train_and_export
from reluguard.training.evaluation.leave_out import family
from reluguard.training.fit import fit
from reluguard.training.harvest.orders import SHARD_IMAGES
from reluguard.training.harvest.workspace import work_folder
from reluguard.training.progress import Progress
from reluguard.training.recipes import Recipe
from reluguard.training.twin.twin import load_twin

__all__ = ["Parts", "attack_all", "digits_files", "fit_without", "split_data", "without"]

SHARES = {"own": 0.6, "traffic": 0.25, "fresh": 0.15}
FPR = 0.05
ATTACKED = 0.3  # of the traffic's images are the attacker's


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The three parts. `rows` are those of `own` in the file it was taken from."""

    model: Path
    own: Path
    rows: NDArray[np.int64]
    clean: Dataset
    targets: Dataset
    fresh: Dataset


def digits_files(out: Path, seed: int, progress: Progress) -> tuple[Path, Path]:
    """Return a small classifier of handwritten digits and the digits it was not trained on."""
    out.mkdir(parents=True, exist_ok=True)
    model, data = out / "digits.onnx", out / "held-out.npz"
    return (model, data) if model.is_file() else train_and_export(out, seed, progress)


def split_data(model: Path, data: str, out: Path, seed: int) -> Parts:
    """Return the parts, stratified by class."""
    dataset = load_data(data)
    rows = split_sources(dataset.labels, SHARES, seed)
    own = out / "own.npz"
    if not own.is_file():
        save_dataset(dataset.take(rows["own"]), own)
    rng = np.random.default_rng(seed)
    traffic = dataset.take(rng.permutation(rows["traffic"]))
    cut = round(ATTACKED * len(traffic))
    return Parts(
        model=model,
        own=own,
        rows=rows["own"],
        clean=traffic.take(np.arange(cut, len(traffic))),
        targets=traffic.take(np.arange(cut)),
        fresh=dataset.take(rows["fresh"]),
    )


def without(recipe: Recipe, attack: Attack) -> Recipe:
    """Return the recipe without the attack's family."""
    known = tuple(p for p in recipe.attacks if family(p.change.name) != family(attack.name))
    return replace(recipe, attacks=known)


def fit_without(
    parts: Parts,
    recipe: Recipe,
    out: Path,
    *,
    harvests: Sequence[tuple[Path, NDArray[np.int64]]] = (),
    seed: int,
    progress: Progress,
) -> tuple[GuardArtifact, Case]:
    """Fit a guard, or open the one that lies there.

    Args:
        parts: of the images.
        recipe: what to fit it on.
        out: the guard's folder.
        harvests: work folders of earlier fits, each with the rows of its images that our own are:
                what was attacked there the same way is not attacked again.
        seed: of every random choice.
        progress: told of the stages.
    """
    case, reader = open_case(
        parts.model,
        str(parts.own),
        levels=recipe.levels,
        shares=recipe.shares,
        preprocessing=None,
        output=None,
        fpr=FPR,
        seed=seed,
        threads=1,
    )
    recipe = recipe.for_images(case.spec.height, case.spec.width, case.spec.channels)
    if (out / "manifest.json").is_file():
        found = read_guard(out)
        if found.manifest.provenance["recipe"] == json.loads(json.dumps(recipe.to_json())):
            return found, case
    for folder, rows in harvests:
        _take_over(folder, rows, case, reader, recipe, work_folder(out))
    guard = fit(
        parts.model,
        parts.own,
        out=out,
        recipe=recipe,
        target_fpr=FPR,
        seed=seed,
        threads=1,
        workers=1,
        progress=progress,
    )
    return guard.artifact, case


def _take_over(
    harvest: Path,
    rows: NDArray[np.int64],
    case: Case,
    reader: Reader,
    recipe: Recipe,
    work: Path,
) -> None:
    """Write the shards that a fit would make from images that an earlier one attacked.

    Rates are read again: the levels of the taps come from our own images.
    """
    plan: dict[str, Any] = json.loads((harvest / "plan.json").read_text())
    listed = (*plan["recipe"]["attacks"], *plan["recipe"]["benign"])
    known = {entry["slug"]: entry["change"] for entry in listed}
    attacks = {portion.change.name for portion in recipe.attacks}
    for portion in (*recipe.attacks, *recipe.benign):
        slug = portion.change.name
        files = sorted((harvest / slug).glob("*.npz"))
        if not files or known.get(slug) != repr(portion.change):
            continue
        joined = _joined(files, rows)
        for split in ("fit", "test"):
            sources = case.splits[split]
            found = np.flatnonzero(np.isin(joined["sources"], sources % len(case.dataset)))
            count = len(sources[case.right[sources]]) if slug in attacks else len(sources)
            wanted = -(
                -portion.images(count, recipe.least.get(split, 1), recipe.most.get(split))
                // SHARD_IMAGES
            )
            for number, part in enumerate(np.array_split(found, wanted)):
                file = work / slug / f"{split}-{number:05d}.npz"
                if not file.is_file() and len(part):
                    arrays = {name: values[part] for name, values in joined.items()}
                    rates, logits = reader.read(arrays["images"])
                    arrays |= {"rates": rates.astype(np.float16), "logits": logits}
                    write_file(file, npz=arrays)


def _joined(files: Sequence[Path], rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Return what earlier shards hold of our images, their sources as we count them."""
    parts = []
    for file in files:
        with np.load(file, allow_pickle=False) as arrays:
            parts.append({n: arrays[n] for n in ("sources", "labels", "success", "images")})
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    at = np.searchsorted(rows, joined["sources"])
    ours = rows[np.minimum(at, len(rows) - 1)] == joined["sources"]
    return {n: v[ours] for n, v in joined.items()} | {"sources": at[ours]}


def attack_all(
    attack: Attack, data: Dataset, parts: Parts, case: Case, seed: int, kept: Path
) -> Dataset:
    """Return the attacked images that fool the model, with their true classes; kept in a file."""
    if kept.is_file():
        return load_data(str(kept))
    twin = None
    if attack.needs_gradients:
        twin = load_twin(parts.model, case.spec, images=data.images[:8])
    victim: Victim = open_victim(parts.model, case.spec, twin=twin, threads=1)
    right = victim.predict(data.images).argmax(axis=1) == data.labels
    data = data.take(right)
    result = attack(data.images, data.labels, victim, seed=seed)
    every = Dataset(images=result.images, labels=data.labels, source=attack.name)
    fooled = every.take(result.success)
    save_dataset(fooled, kept)
    return fooled
