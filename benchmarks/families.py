"""Families of networks on the whole way: export, fit, evaluate, serve, ask. One row each.

    python benchmarks/families.py --out families [--family convnext_tiny] [--form "int8 QDQ"]
    python benchmarks/families.py --out flowers --model M.onnx --data PHOTOGRAPHS --recipe quick

Without `--model`, networks of torchvision with random weights see scikit-learn's digits at 64
pixels, tinted; only the last layer is fitted, on what the frozen rest says of other digits, so they
answer well above chance. With `--model`, a trained network of yours and its number forms see your
photographs. What is printed of each: how many of its gates are read, how far the twin is from it
(root mean square, as a share of the distance between classes) and on how many images both answer
alike, how many attacks succeeded of those tried, how well they are told in fitting and in
evaluation, whether a server gives the very bits that bare ONNX Runtime gives, and the seconds of
each step.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from benchmarks.faults.pair import Pair
from benchmarks.faults.process import served
from benchmarks.forms import FORMS
from reluguard.detector.images import Images
from reluguard.detector.model import load_production
from reluguard.detector.session import open_session, run_session
from reluguard.service.client.client import Client
from reluguard.training.attacks import FGSM, PGD
from reluguard.training.changes import JPEG, GaussianNoise
from reluguard.training.data.dataset import Dataset, load_data
from reluguard.training.data.reading import Reading
from reluguard.training.evaluate import evaluate
from reluguard.training.fit import fit
from reluguard.training.head.fit import HeadSettings
from reluguard.training.progress import Lines
from reluguard.training.recipes import Portion, Recipe, recipe_named
from reluguard.training.twin.twin import load_twin

__all__ = ["FAMILIES", "FORMED", "Row", "digits", "export", "fitted", "tiny", "whole_way"]

SIDE = 64
TRAINING, CALIBRATING = 700, 48
FITTING, JUDGING, ASKED = 320, 80, 8
RIDGE = 1e-2
EVALUATED = ("fgsm-linf-4", "pgd-linf-2")
HARMLESS = ("gaussian-c1", "jpeg-c1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A classifier of torchvision: its size of image, and what its maker is told."""

    side: int = SIDE
    options: Mapping[str, Any] = field(default_factory=dict)


FAMILIES: dict[str, Family] = {
    "efficientnet_b0": Family(),
    "efficientnet_v2_s": Family(),
    "convnext_tiny": Family(),
    "vit_b_16": Family(options={"image_size": SIDE}),
    "mobilenet_v2": Family(),
    "mobilenet_v3_small": Family(),
    "mobilenet_v3_large": Family(),
    "swin_t": Family(),
    "swin_v2_t": Family(),
    "regnet_x_400mf": Family(),
    "regnet_y_400mf": Family(),
    "shufflenet_v2_x0_5": Family(),
    "densenet121": Family(),
    "googlenet": Family(options={"init_weights": False, "aux_logits": False}),
    "inception_v3": Family(side=96, options={"init_weights": False, "aux_logits": False}),
    "squeezenet1_1": Family(),
    "mnasnet0_5": Family(),
    "resnet18": Family(),
    "resnext50_32x4d": Family(),
    "maxvit_t": Family(),
}
FORMED = ("resnet18", "mobilenet_v3_small", "efficientnet_b0")  # shown in every form of numbers


def tiny() -> Recipe:
    """Return a recipe of a few attacks and harmless changes: whether all works, not how well."""
    return Recipe(
        name="tiny",
        attacks=(
            Portion(FGSM(size=4.0)),
            Portion(PGD(size=2.0, steps=5), 0.5),
            Portion(PGD(size=8.0, steps=5), 0.3),
        ),
        benign=(Portion(GaussianNoise(sigma=4.0), 0.5), Portion(JPEG(quality=75), 0.5)),
        head=HeadSettings(epochs=20, batch=64),
    )


def digits(side: int) -> Dataset:
    """Return scikit-learn's digits in colour: uint8 (1797, side, side, 3)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    grey = np.round(found.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(grey))
    tints = np.random.default_rng(1).uniform(0.4, 1, (len(grey), 1, 1, 3))
    images = np.empty((len(grey), side, side, 3), np.uint8)
    for row, image in enumerate(grey):
        large = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
        images[row] = np.round(np.asarray(large)[..., None] * tints[row])
    return Dataset(
        images=images[order], labels=found.target[order].astype(np.int64), source="sklearn digits"
    )


def fitted(name: str, data: Dataset) -> nn.Module:
    """Return a network of random weights whose last layer is fitted: (N, 3, H, W) to (N, 10).

    Args:
        name: of `FAMILIES`.
        data: N images to fit it on.
    """
    from torchvision import models

    family = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "maxvit_t":  # its maker fixes windows of 7, so images of 224
            network: nn.Module = models.MaxVit(
                input_size=(SIDE, SIDE), stem_channels=64, block_channels=[64, 128, 256, 512],
                block_layers=[2, 2, 5, 2], head_dim=32, stochastic_depth_prob=0.2,
                partition_size=2, num_classes=10,
            )  # fmt: skip
        else:
            network = getattr(models, name)(weights=None, num_classes=10, **family.options)
    pixels = torch.from_numpy(data.images).permute(0, 3, 1, 2).float() / 255
    _normalise(network, pixels[:128])
    _fit_last(network, pixels, data.labels)
    return network


def _normalise(network: nn.Module, pixels: torch.Tensor) -> None:
    """Let batch norms see the images once, without dropping any layer."""
    network.eval()
    norms = [one for one in network.modules() if isinstance(one, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        network(pixels)
    network.eval()


def _fit_last(network: nn.Module, pixels: torch.Tensor, labels: NDArray[np.int64]) -> None:
    """Fit the last layer by ridge regression on what enters it."""
    last = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    layer = next(m for m in reversed(last) if m.weight.shape[0] == 10)
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        for part in pixels.split(64):
            network(part)
    hook.remove()
    entered = torch.cat(seen)
    if entered.ndim == 4:
        entered = entered.mean(dim=(2, 3))
    x = entered.double()
    centre = x.mean(dim=0)
    x = x - centre
    wanted = torch.nn.functional.one_hot(torch.from_numpy(labels), 10).double() * 10 - 1
    strength = RIDGE * x.square().sum(dim=0).mean() * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(x.T @ x + strength, x.T @ (wanted - wanted.mean(dim=0)))
    # SqueezeNet has a ReLU and a mean behind its last layer: what it says must stay above zero
    shift = wanted.mean(dim=0) + (10 if isinstance(layer, nn.Conv2d) else 0)
    bias = shift - centre @ weights
    with torch.no_grad():
        layer.weight.copy_(weights.T.reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(bias)


def export(network: nn.Module, side: int, path: Path, *, current: bool = False) -> Path:
    """Write the ONNX file, by torch's older exporter at opset 17 or by its current one."""
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
    blank = torch.zeros(2, 3, side, side)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn of their own future
        if current:
            free: Any = ({0: torch.export.Dim("N")},)
            torch.onnx.export(
                network, (blank,), path, dynamo=True, dynamic_shapes=free, verbose=False,
                external_data=False, **names,
            )  # fmt: skip
        else:
            axes = {"image": {0: "N"}, "logits": {0: "N"}}
            torch.onnx.export(
                network, (blank,), path, dynamo=False, opset_version=17, dynamic_axes=axes, **names
            )
    return path


@dataclass(slots=True)
class Row:
    """What came of one network. `trouble` is what ended its way."""

    name: str
    gates: str = ""
    twin: str = ""
    accuracy: str = ""
    fooled: str = ""
    auroc: str = ""
    judged: str = ""
    same: str = ""
    seconds: str = ""
    trouble: str = ""


def whole_way(
    name: str,
    model: Path,
    data: Dataset,
    unseen: Dataset,
    folder: Path,
    *,
    recipe: Recipe,
    preprocessing: str | None = None,
    current: Callable[[str], None] = lambda _: None,
) -> Row:
    """Fit a guard, judge it, serve it and ask; return what came of it.

    Args:
        name: of the row.
        model: the ONNX file.
        data: labelled images to fit on.
        unseen: others to judge and ask with.
        folder: for the guard and the evaluation.
        recipe: what to attack with.
        preprocessing: as `fit` takes it.
        current: told of each step.
    """
    row, times = Row(name), _Times(current)
    try:
        with times("fit"), Lines(sys.stderr) as progress:
            guard = fit(
                model, data, out=folder / "guard", recipe=recipe, preprocessing=preprocessing,
                threads=1, workers=1, progress=progress,
            )  # fmt: skip
        card = guard.artifact.manifest.metrics
        gates = card["gates"]
        row.gates = f"{gates['read']}/{gates['found']}"
        row.accuracy = f"{card['clean']['accuracy']['value']:.2f}"
        tried = sum(one["tried"] for one in card["attacks"].values())
        row.fooled = f"{sum(one['succeeded'] for one in card['attacks'].values())}/{tried}"
        mean = card["summary"]["mean_auroc"]
        row.auroc = "-" if mean is None else f"{mean:.3f}"
        row.twin = _agreement(model, guard.spec, unseen.images)
        with times("evaluate"):
            found = evaluate(
                model, folder / "guard", unseen, out=folder / "evaluation", attacks=EVALUATED,
                benign=HARMLESS, matrix_rows=0, baseline_rows=200, threads=1, workers=1,
            )  # fmt: skip
        shown = [one.auroc.value for one in found.attacks.values() if one.auroc is not None]
        row.judged = f"{np.mean(shown):.3f}" if shown else "-"
        with times("serve"):
            row.same = _asked(model, folder / "guard", unseen.images[:ASKED])
    except Exception as error:  # noqa: BLE001 # a row of its own is what this is for
        row.trouble = f"{type(error).__name__}: {' '.join(str(error).split())}"
    row.seconds = times.text
    return row


class _Times:
    """The seconds of each step."""

    def __init__(self, current: Callable[[str], None]) -> None:
        self._current = current
        self._parts: list[str] = []

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        self._current(step)
        start = perf_counter()
        try:
            yield
        finally:
            self._parts.append(f"{step} {perf_counter() - start:.0f}")

    @property
    def text(self) -> str:
        return ", ".join(self._parts)


def _agreement(model: Path, spec: Any, images: Images) -> str:
    """Return how far the twin's scores are from the model's, and on how many images they agree."""
    production = load_production(model)
    twin = load_twin(model, spec, images=images)
    assert twin is not None
    proto = onnx.ModelProto()
    proto.CopyFrom(production.proto)
    if production.logits not in {value.name for value in proto.graph.output}:
        proto.graph.output.append(onnx.ValueInfoProto(name=production.logits))
    session = open_session(proto, threads=1)
    some = images[:32]
    rows = spec.batch or len(some)
    parts = [
        run_session(session, {spec.name: spec.to_tensor(some[i : i + rows])}, [production.logits])
        for i in range(0, len(some) - rows + 1, rows)
    ]
    wanted = np.concatenate([part[0] for part in parts]).astype(np.float32)
    got = twin.predict(some[: len(wanted)])
    spread = float(np.median(wanted.max(axis=1) - wanted.mean(axis=1)))
    apart = float(np.sqrt(np.square(got - wanted).mean())) / spread
    same = int((got.argmax(axis=1) == wanted.argmax(axis=1)).sum())
    return f"{apart:.1e}, {same}/{len(wanted)}"


def _asked(model: Path, guard: Path, images: Images) -> str:
    """Return on how many images a server's outputs are those of bare ONNX Runtime, bit by bit."""
    with (
        served(Pair(model=model, guard=guard), settings={"threads": 1}, patience_s=300) as server,
        Client(server.address, deadline_s=120) as client,
    ):
        spec = client.describe().input
        verdicts = [client.inspect(images[i : i + 1], outputs=True) for i in range(len(images))]
    session = open_session(onnx.load(model), threads=1)
    names = [value.name for value in session.get_outputs()]
    same = 0
    for image, verdict in zip(images, verdicts, strict=True):
        tensor = spec.to_tensor(image[None])
        plain = run_session(session, {spec.name: tensor}, names)
        given = [verdict.outputs[name] for name in names]
        same += all(map(_same, plain, given))
    return f"{same}/{len(images)}"


def _same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _print(rows: Sequence[Row]) -> None:
    heads = {"name": "network", "twin": "twin: off by, answers",
             "accuracy": "right", "fooled": "succeeded", "auroc": "AUROC at fit",
             "judged": "AUROC judged", "same": "same bits"}  # fmt: skip
    names = [one.name for one in fields(Row)]
    table = [[heads.get(name, name) for name in names]]
    table += [[getattr(row, name) or "-" for name in names] for row in rows]
    print("| " + " | ".join(table[0]) + " |")
    print("|" + "---|" * len(names))
    for line in table[1:]:
        print("| " + " | ".join(line) + " |", flush=True)


def _cases(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Path], int]]:
    """Yield a name, what writes the model, and its images' side."""
    forms = options.form or ["float32"]
    if options.model is not None:
        for form in options.form or FORMS:
            yield form, lambda: options.model, 0
        return
    for name in options.family or FAMILIES:
        for form in forms if options.form or name not in FORMED else FORMS:
            yield f"{name} {form}", partial(_built, name, options), FAMILIES[name].side


def _built(name: str, options: argparse.Namespace) -> Path:
    folder: Path = options.out / "models"
    path = folder / f"{name}{'-current' if options.current else ''}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        side = FAMILIES[name].side
        network = fitted(name, digits(side).take(np.arange(TRAINING)))
        export(network, side, path, current=options.current)
    return path


def main() -> None:
    """Print a row per network and form; exit code 1 if one of them did not come to its end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of models and guards")
    parser.add_argument("--family", action="append", choices=list(FAMILIES))
    parser.add_argument("--form", action="append", choices=list(FORMS))
    parser.add_argument("--current", action="store_true", help="by torch's current exporter")
    parser.add_argument("--model", type=Path, help="a trained network instead, in all forms")
    parser.add_argument("--data", help="its labelled images")
    parser.add_argument("--images", type=int, default=120, help="of --data, to fit on")
    parser.add_argument("--preprocessing", help="from files to its input")
    parser.add_argument("--recipe", default="benchmarks.families:tiny")
    options = parser.parse_args()
    if options.model is not None and options.data is None:
        parser.error("expected --data beside --model")
    recipe = recipe_named(options.recipe)
    rows = []
    for name, build, side in _cases(options):
        plain = build()
        data, unseen, seen = _images(options, side)
        form = name.removeprefix(f"{plain.stem.removesuffix('-current')} ")
        folder = options.out / name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        model = folder / "model.onnx"
        spec_images = seen.images[:CALIBRATING]
        FORMS[form](plain, spec_images, model)
        row = whole_way(
            name, model, data, unseen, folder, recipe=recipe, preprocessing=options.preprocessing,
            current=partial(_tell, name),
        )  # fmt: skip
        rows.append(row)
        print(row.trouble or row.seconds, file=sys.stderr, flush=True)
    _print(rows)
    sys.exit(any(row.trouble for row in rows))


def _tell(name: str, step: str) -> None:
    print(f"{name}: {step}", file=sys.stderr, flush=True)


def _images(options: argparse.Namespace, side: int) -> tuple[Dataset, Dataset, Dataset]:
    """Return images to fit on, others to judge, and yet others to quantise with."""
    if options.model is None:
        data = digits(side)
        parts = np.split(np.arange(len(data)), [TRAINING, TRAINING + FITTING])
        return data.take(parts[1]), data.take(parts[2][:JUDGING]), data.take(parts[0])
    size = load_production(options.model).image_size
    data = load_data(options.data, Reading(size=size, channels=3))
    order = np.random.default_rng(0).permutation(len(data))
    parts = np.split(order, [options.images, options.images + JUDGING])
    return data.take(parts[0]), data.take(parts[1]), data.take(parts[2][:CALIBRATING])


if __name__ == "__main__":
    main()
