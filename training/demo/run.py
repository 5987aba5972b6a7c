"""The whole main job: train, export, attack, fit, serve, ask. N images."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import MANIFEST, GuardArtifact, write_file
from reluguard.detector.head import threshold_at
from reluguard.detector.images import Images
from reluguard.detector.model import load_production
from reluguard.detector.runtime import Guard
from reluguard.detector.session import open_session
from reluguard.detector.verdict import Verdicts
from reluguard.training.demo.painted import painted_recipe, train_and_export_painted
from reluguard.training.demo.picture import Pair, Scale, draw_pairs
from reluguard.training.expected.speed import here
from reluguard.training.fit import fit
from reluguard.training.harvest.readings import CLEAN
from reluguard.training.harvest.workspace import read_shard, work_folder
from reluguard.training.progress import Planned, Progress
from reluguard.training.provenance import provenance_of
from reluguard.training.statistics.metrics import Interval, auroc_interval, rate_above

__all__ = ["Demo", "DemoResult", "made_guard", "run_demo"]

SHOWN = 3
UNSEEN_BY_PEOPLE = 5  # 8-bit steps: what is shown is no larger
SCORE_TOLERANCE = 1e-3  # log-odds: batches of other sizes add up in another order
METRICS = ("grpc_server_handled_total", "reluguard_verdicts_total", "reluguard_guard_info")

# of one core of the reference machine
TRAIN_S = 13.0
FIT_S = 22.0
SERVE_S = 1.5

Ask = Callable[[Guard, Sequence[Images]], tuple[list[Verdicts], str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """Where the demo's files are."""

    model: Path
    held_out: Path
    guard: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What came out, for print and for tests.

    Attributes:
        summary: the figures, plain values.
        auroc: on attacked against clean images as the server scored them.
        detected: share of attacked images that are flagged.
        alarms: share of clean images that are flagged.
        pairs: a few images before and after an attack, with verdicts.
        metrics: the scraped lines that matter.
        files: where model, data and guard are.
        picture: the PNG.
    """

    summary: Mapping[str, Any]
    auroc: Interval
    detected: Interval
    alarms: Interval
    pairs: Sequence[Pair]
    metrics: Sequence[str]
    files: Demo
    picture: Path


def made_guard(out: Path, *, seed: int = 0, progress: Progress | None = None) -> Demo:
    """Return the demo's guard, made in `out` where it does not lie there yet.

    Args:
        out: a folder.
        seed: of every random choice.
        progress: told of the stages.
    """
    found = Demo(model=out / "digits.onnx", held_out=out / "held-out.npz", guard=out / "guard")
    ready = (found.model, found.held_out, found.guard / MANIFEST)
    if all(file.is_file() for file in ready):
        return found
    return _made(out, seed, progress or Progress())


def _made(out: Path, seed: int, progress: Progress, then: Sequence[Planned] = ()) -> Demo:
    """Make the guard, which is all of the work but what comes then."""
    expected = [Planned("train a small network", here(TRAIN_S)), Planned("fit", here(FIT_S))]
    progress.plan("demo", [*expected, *then])
    out.mkdir(parents=True, exist_ok=True)
    model, held_out = train_and_export_painted(out, seed, progress)
    place = out / "guard"
    shutil.rmtree(work_folder(place), ignore_errors=True)
    recipe = painted_recipe()
    fit(
        model,
        held_out,
        out=place,
        recipe=recipe,
        second="none",  # what it shows is the first look, in a minute
        seed=seed,
        workers=1,
        progress=progress,
    )
    return Demo(model=model, held_out=held_out, guard=place)


def run_demo(out: Path, ask: Ask, *, seed: int = 0, progress: Progress | None = None) -> DemoResult:
    """Train, export, attack, fit, serve, ask; return what came out.

    Everything is made anew in `out`. Attacked images come from source images that no step of
    fitting saw.

    Args:
        out: a folder for model, data, guard and picture.
        ask: serves a guard and asks it about batches of images: the verdicts and /metrics.
        seed: of every random choice.
        progress: told of the stages.
    """
    started = perf_counter()
    progress = progress or Progress()
    files = _made(out, seed, progress, [Planned("serve and ask", here(SERVE_S))])
    guard = Guard.open(files.model, files.guard)
    clean, attacked = _unseen(guard.artifact)
    unseen = {"clean": clean.images, "attacked": attacked.images}
    write_file(out / "unseen.npz", npz=unseen)  # what deploy/compose sends to a server
    progress.stage("serve and ask", 1)
    served, page = ask(guard, [clean.images, attacked.images])
    offline = [guard.inspect(images) for images in (clean.images, attacked.images)]
    strict = threshold_at(0.01, guard.artifact.head.clean_scores)
    area = auroc_interval(
        served[0].score, clean.sources, served[1].score, attacked.sources, seed=seed
    )
    detected = rate_above(served[1].score, guard.threshold)
    alarms = rate_above(served[0].score, guard.threshold)
    pairs = _pairs(clean, attacked, offline[0], offline[1])
    picture = out / "verdicts.png"
    scale = Scale(clean_scores=guard.artifact.head.clean_scores, threshold=guard.threshold)
    draw_pairs(picture, pairs, scale, detected, alarms)
    summary = {
        "auroc": area.value,
        "auroc_interval": [area.low, area.high],
        "detected": detected.value,
        "tpr_at_1pct_fpr": rate_above(served[1].score, strict).value,
        "clean_accuracy": float((served[0].prediction == clean.labels).mean()),
        "false_positive_rate": float(served[0].is_adversarial.mean()),
        "clean_images": len(clean.images),
        "attacked_images": len(attacked.images),
        "logits_identical": _logits_identical(files.model, guard, clean.images),
        "served_equals_offline": all(
            np.array_equal(a.prediction, b.prediction)
            and np.array_equal(a.is_adversarial, b.is_adversarial)
            and np.allclose(a.score, b.score, atol=SCORE_TOLERANCE)
            for a, b in zip(served, offline, strict=True)
        ),
        "picture": str(picture),
        "guard": str(files.guard),
        "seconds": perf_counter() - started,
    }
    progress.advance(1)
    return DemoResult(
        summary=summary,
        auroc=area,
        detected=detected,
        alarms=alarms,
        pairs=pairs,
        metrics=_telling(page),
        files=files,
        picture=picture,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Images:
    """Unseen images with their sources, true classes and what was done to them."""

    images: Images
    sources: NDArray[np.int64]
    labels: NDArray[np.int64]
    names: Sequence[str]


def _pairs(clean: _Images, attacked: _Images, calm: Verdicts, loud: Verdicts) -> list[Pair]:
    """Return some images before and after: attacks in turn, each that changes no value by much.

    Shown are attacks that the guard caught on images that it passed before: what it is for. How
    often it does stands below the picture.
    """
    place = {int(source): row for row, source in enumerate(clean.sources)}
    pairs: list[Pair] = []
    told: set[str] = set()
    sources: set[int] = set()
    for row in range(len(attacked.sources)):
        source, name = int(attacked.sources[row]), attacked.names[row]
        before = place[source]
        change = attacked.images[row].astype(int) - clean.images[before].astype(int)
        largest = int(np.abs(change).max())
        small = largest <= UNSEEN_BY_PEOPLE
        caught = bool(loud.is_adversarial[row] and not calm.is_adversarial[before])
        if small and caught and name not in told and source not in sources:
            told.add(name)
            sources.add(source)
            pairs.append(
                Pair(
                    before=clean.images[before],
                    after=attacked.images[row],
                    attack=name,
                    label=int(clean.labels[before]),
                    calm=calm[before],
                    loud=loud[row],
                    largest=largest,
                )
            )
    return pairs[:SHOWN]


def _unseen(artifact: GuardArtifact) -> tuple[_Images, _Images]:
    """Return the clean and the attacked images of the test split, attacks in turn."""
    clean: list[_Images] = []
    attacked: list[_Images] = []
    recipe = provenance_of(artifact.manifest).recipe
    assert recipe is not None  # it was just fitted
    slugs = {one.slug for one in recipe.attacks}
    for folder in sorted(work_folder(artifact.path).iterdir()):
        for file in sorted(folder.glob("test-*.npz")) if folder.is_dir() else ():
            if folder.name == CLEAN or folder.name in slugs:
                shard = read_shard(file, "success", "images", "sources", "labels")
                kept = shard["success"]
                found = _Images(
                    images=shard["images"][kept],
                    sources=shard["sources"][kept],
                    labels=shard["labels"][kept],
                    names=[folder.name] * int(kept.sum()),
                )
                (clean if folder.name == CLEAN else attacked).append(found)
    return _join(clean), _join(attacked)


def _join(parts: Sequence[_Images]) -> _Images:
    """Return all parts as one, image by image in turn from each part."""
    turns = np.argsort(np.concatenate([np.arange(len(p.sources)) for p in parts]), kind="stable")
    names = [name for part in parts for name in part.names]
    return _Images(
        images=np.concatenate([p.images for p in parts])[turns],
        sources=np.concatenate([p.sources for p in parts])[turns],
        labels=np.concatenate([p.labels for p in parts])[turns],
        names=[names[i] for i in turns],
    )


def _telling(page: str) -> list[str]:
    """Return the lines of the Prometheus page that tell the story."""
    return [
        line
        for line in page.splitlines()
        if line.startswith(METRICS) and not line.endswith(" 0.0") and "_created" not in line
    ]


def _logits_identical(model: Path, guard: Guard, images: Images) -> bool:
    """Whether the guarded model's own outputs are the plain model's, bit for bit."""
    production = load_production(model)
    tensor = guard.spec.to_tensor(images)
    session = open_session(production.proto)
    plain = session.run([production.answer], {production.input.name: tensor})[0]
    return bool(np.array_equal(plain, guard.run(tensor).outputs[production.answer]))
