"""The demo: the whole main job on handwritten digits, from training a network to asking a server.

The digits are scikit-learn's, real handwriting of 8 x 8 pixels (Alpaydin & Kaynak 1998).
"""

import contextlib
import io
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reluguard.detector.artifact import GuardArtifact, write_file
from reluguard.detector.head import threshold_at
from reluguard.detector.images import Images
from reluguard.detector.model import load_production
from reluguard.detector.runtime import Guard
from reluguard.detector.session import open_session
from reluguard.detector.verdict import Verdicts
from reluguard.training.data.dataset import Dataset, save_dataset
from reluguard.training.fit import fit
from reluguard.training.harvest.readings import CLEAN
from reluguard.training.harvest.workspace import read_shard, work_folder
from reluguard.training.progress import Progress
from reluguard.training.provenance import provenance_of
from reluguard.training.statistics.metrics import Interval, auroc_interval, rate_above

__all__ = ["DemoResult", "digits", "print_demo", "run_demo", "train_classifier"]

TRAIN_IMAGES = 600
SHOWN = 8
SCORE_TOLERANCE = 1e-3  # log-odds: batches of other sizes add up in another order
METRICS = ("grpc_server_handled_total", "reluguard_verdicts_total", "reluguard_guard_info")


Ask = Callable[[Guard, Sequence[Images]], tuple[list[Verdicts], str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What came out, for print and for tests.

    Attributes:
        summary: the figures, plain values.
        auroc: on attacked against clean images as the server scored them.
        detected: share of attacked images above the 1 % threshold.
        verdicts: of a few clean and attacked images, as the server gave them.
        truth: "clean" or the attack's slug of each of those.
        metrics: the scraped lines that matter.
        picture: the PNG.
    """

    summary: Mapping[str, Any]
    auroc: Interval
    detected: Interval
    verdicts: Verdicts
    truth: Sequence[str]
    labels: NDArray[np.int64]
    metrics: Sequence[str]
    picture: Path
    guard: Path


def digits() -> Dataset:
    """Return scikit-learn's 1,797 digits as uint8 images (N, 8, 8, 1)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    return Dataset(images=images, labels=bunch.target.astype(np.int64), source="sklearn digits")


def train_classifier(data: Dataset, *, seed: int, epochs: int = 25) -> torch.nn.Module:
    """Return a small convolutional network with four ReLUs, trained on these digits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(1, 24, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(24, 32, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(32, 48, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(48 * 16, 64),
            torch.nn.ReLU(),
            torch.nn.Linear(64, 10),
        )
        x = torch.from_numpy(data.images).permute(0, 3, 1, 2).float() / 255
        y = torch.from_numpy(data.labels)
        optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
        for _ in range(epochs):
            for batch in torch.randperm(len(x)).split(32):
                loss = torch.nn.functional.cross_entropy(network(x[batch]), y[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return network.eval()


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
    out.mkdir(parents=True, exist_ok=True)
    model, held_out = train_and_export(out, seed, progress)
    place = out / "guard"
    _forget(work_folder(place))
    guard = fit(
        model,
        held_out,
        out=place,
        recipe="digits",
        second="none",  # what it shows is the first look, in a minute
        seed=seed,
        workers=1,
        progress=progress,
    )
    clean, attacked = _unseen(guard.artifact)
    unseen = {"clean": clean.images, "attacked": attacked.images}
    write_file(out / "unseen.npz", npz=unseen)  # what deploy/compose sends to a server
    progress.stage("serve and ask", 1)
    served, page = ask(guard, [clean.images, attacked.images])
    metrics = _telling(page)
    progress.advance(1)
    offline = [guard.inspect(images) for images in (clean.images, attacked.images)]
    limit = threshold_at(0.01, guard.artifact.head.clean_scores)
    area = auroc_interval(
        served[0].score, clean.sources, served[1].score, attacked.sources, seed=seed
    )
    detected = rate_above(served[1].score, limit)
    shown = np.arange(SHOWN // 2)
    picture = out / "verdicts.png"
    both = np.concatenate([clean.images[shown], attacked.images[shown]])
    truth = ["clean"] * len(shown) + list(attacked.names[: len(shown)])
    labels = np.concatenate([clean.labels[shown], attacked.labels[shown]])
    verdicts = guard.inspect(both)
    _draw(picture, both, labels, truth, verdicts)
    summary = {
        "auroc": area.value,
        "auroc_interval": [area.low, area.high],
        "tpr_at_1pct_fpr": detected.value,
        "clean_accuracy": float((served[0].prediction == clean.labels).mean()),
        "false_positive_rate": float(served[0].is_adversarial.mean()),
        "clean_images": len(clean.images),
        "attacked_images": len(attacked.images),
        "logits_identical": _logits_identical(model, guard, clean.images),
        "served_equals_offline": all(
            np.array_equal(a.prediction, b.prediction)
            and np.array_equal(a.is_adversarial, b.is_adversarial)
            and np.allclose(a.score, b.score, atol=SCORE_TOLERANCE)
            for a, b in zip(served, offline, strict=True)
        ),
        "picture": str(picture),
        "guard": str(place),
        "seconds": perf_counter() - started,
    }
    return DemoResult(
        summary=summary,
        auroc=area,
        detected=detected,
        verdicts=verdicts,
        truth=truth,
        labels=labels,
        metrics=metrics,
        picture=picture,
        guard=place,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Images:
    """Unseen images with their sources, true classes and what was done to them."""

    images: Images
    sources: NDArray[np.int64]
    labels: NDArray[np.int64]
    names: Sequence[str]


def train_and_export(out: Path, seed: int, progress: Progress) -> tuple[Path, Path]:
    """Return the exported classifier and the file of digits it was not trained on."""
    progress.stage("train and export", 1)
    data = digits()
    order = np.random.default_rng(seed).permutation(len(data))
    parts = [
        Dataset(images=data.images[rows], labels=data.labels[rows], source=data.source)
        for rows in (order[:TRAIN_IMAGES], order[TRAIN_IMAGES:])
    ]
    network = train_classifier(parts[0], seed=seed)
    model, held_out = out / "digits.onnx", out / "held-out.npz"
    # some exporters print, and standard output is ours
    with contextlib.redirect_stdout(sys.stderr):
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 1, 8, 8),),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("images")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    write_file(model, program.model_proto.SerializeToString())
    save_dataset(parts[1], held_out)
    progress.advance(1)
    return model, held_out


def _forget(work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)


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


def _draw(
    file: Path,
    images: Images,
    labels: NDArray[np.int64],
    truth: Sequence[str],
    verdicts: Verdicts,
) -> None:
    """Draw a few images with their verdicts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = len(images) // 2
    figure = Figure(figsize=(2.4 * columns, 6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, image, label, name, verdict in zip(
        figure.subplots(2, columns).flat, images, labels, truth, verdicts, strict=True
    ):
        axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        word = "ADVERSARIAL" if verdict.is_adversarial else "clean"
        axes.set_title(f"{name}, a {label}\nread as {verdict.prediction}", fontsize=10)
        color = "#d55e00" if verdict.is_adversarial else "#0072b2"
        axes.set_xlabel(f"{word}\nlikelihood {verdict.likelihood:.2f}", color=color, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(color=color, linewidth=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_file(file, buffer.getvalue())


def print_demo(result: DemoResult) -> None:
    """Print the verdicts, the metrics and the figures."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("image", "truth", "model says", "likelihood", "p-value", "verdict")
    for i, verdict in enumerate(result.verdicts):
        table.add_row(
            result.truth[i],
            str(result.labels[i]),
            str(verdict.prediction),
            f"{verdict.likelihood:.3f}",
            f"{verdict.p_value:.4f}",
            "adversarial" if verdict.is_adversarial else "clean",
        )
    console.print(table)
    console.print("\nFrom the server's /metrics:")
    for line in result.metrics:
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    s = result.summary
    console.print(
        f"\nAUROC {result.auroc} on {s['attacked_images']} attacked and {s['clean_images']} clean "
        f"images that no step of fitting saw\ndetected at 1 % false positives: {result.detected}\n"
        f"clean accuracy {s['clean_accuracy']:.3f}, logits identical: {s['logits_identical']}, "
        f"served equals offline: {s['served_equals_offline']}\n"
        f"guard: {s['guard']}\npicture: {s['picture']}\n{s['seconds']:.0f} s in all"
    )
