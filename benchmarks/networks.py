"""The networks whose speed is measured, each with a guard whose weights are drawn, not fitted.

How long a guarded run takes depends on shapes alone, so no data and no training are needed. N
images, L taps, D rates, K classes, X features.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from detector.artifact import Golden, Manifest, write_file, write_guard
from detector.features import FeatureMap, feature_width
from detector.head import Head, threshold_at
from detector.images import Images
from detector.model import infer_spec, load_production
from detector.runtime import Reader
from detector.taps import find_taps

__all__ = ["NETWORKS", "Network", "make"]

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
FPR = 0.05
_CALIBRATION = 40
_MAX_COLUMNS = 1400  # as training.probes has it
_MAX_CLASSES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A production model and a guard that belong together."""

    name: str
    model: Path
    guard: Path


def make(name: str, folder: Path, *, seed: int = 0) -> Network:
    """Return one of `NETWORKS` with a guard; what lies in the folder from before is taken.

    Args:
        name: a key of `NETWORKS`.
        folder: holds `NAME.onnx` and `NAME.guard`.
        seed: of all weights drawn.
    """
    size, build = NETWORKS[name]
    network = Network(name=name, model=folder / f"{name}.onnx", guard=folder / f"{name}.guard")
    given = SHARED / f"{name}-cifar10.onnx"
    if not network.model.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_file(
            network.model, given.read_bytes() if given.exists() else _export(build, size, seed)
        )
    if not (network.guard / "manifest.json").exists():
        _write_guard(network, size, seed)
    return network


def _export(build: Callable[[], nn.Module], size: int, seed: int) -> bytes:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build().eval()
    program = torch.onnx.export(
        network,
        (torch.zeros(2, 3, size, size),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("images")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut padded with zeros: option A of He et al. 2015."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride, self.more = (1, 0) if inputs == outputs else (2, outputs - inputs)
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        short = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(self.body(x) + nn.functional.pad(short, (0, 0, 0, 0, 0, self.more)))


def _resnet20() -> nn.Module:
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    first = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [_Block(a, b) for a, b in itertools.pairwise(widths)]
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*first, *blocks, *last)


def _resnet50() -> nn.Module:
    from torchvision.models import resnet50

    network: nn.Module = resnet50(weights=None)
    return network


def _mobilenet_v2() -> nn.Module:
    from torchvision.models import mobilenet_v2

    network: nn.Module = mobilenet_v2(weights=None)
    return network


NETWORKS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "resnet20": (32, _resnet20),
    "resnet50": (224, _resnet50),
    "mobilenet_v2": (224, _mobilenet_v2),
}


def _images(count: int, size: int, seed: int) -> Images:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def _write_guard(network: Network, size: int, seed: int) -> None:
    """Write a guard of every tap with a head of random weights, of the width a fit would give."""
    production = load_production(network.model)
    spec = infer_spec(production, (size, size, 3))
    taps = find_taps(production, spec)
    reader = Reader(production, spec, taps)
    rates, logits = reader.read(_images(_CALIBRATION, size, seed + 1))
    of_column = np.repeat(np.arange(len(taps)), [tap.rates for tap in taps])
    head = _head(of_column, rates, logits, seed)
    golden = _images(2, size, seed + 2)
    golden_rates, golden_logits = reader.read(golden)
    write_guard(
        network.guard,
        manifest=Manifest(
            model_sha256=production.sha256,
            input=spec,
            answer=production.answer,
            taps=taps,
            fpr=FPR,
            thresholds={str(FPR): threshold_at(FPR, head.clean_scores)},
            calibration_images=len(head.clean_scores),
            created_at="2026-01-01T00:00:00+00:00",
            provenance={"recipe": "random weights, for speed alone", "seed": seed},
        ),
        head=head,
        golden=Golden(
            images=golden,
            rates=golden_rates,
            score=head.score(golden_rates, golden_logits).score,
            prediction=golden_logits.argmax(axis=1),
        ),
    )


def _head(
    of_column: NDArray[np.int64],
    rates: NDArray[np.float32],
    logits: NDArray[np.float32],
    seed: int,
) -> Head:
    """Return a head over evenly chosen columns. of_column: (D,), the tap of each rate."""
    rng = np.random.default_rng(seed)
    count = min(len(of_column), _MAX_COLUMNS)
    columns = np.linspace(0, len(of_column) - 1, count).astype(np.int64)
    classes = logits.shape[1] if logits.shape[1] <= _MAX_CLASSES else 0
    probes = 2 if classes else 0
    width = feature_width(count, classes, probes)

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.normal(0, 1 / np.sqrt(max(shape[0], 1)), shape).astype(np.float32)

    features = FeatureMap(
        columns=columns,
        column_taps=of_column[columns],
        taps=int(of_column.max()) + 1,
        classes=classes,
        probe_weights=normal(count, probes * classes),
        probe_bias=normal(probes * classes),
        center=np.zeros(width, np.float32),
        spread=np.ones(width, np.float32),
        limit=1e30,
    )
    raw = features.transform(rates, logits)
    features = replace(
        features,
        center=raw.mean(axis=0),
        spread=np.maximum(raw.std(axis=0), np.float32(0.05)),
        limit=8.0,
    )
    units = 16
    head = Head(
        features=features,
        weights=(normal(width, units), normal(units, 1)),
        biases=(normal(units), normal(1)),
        slope=1.0,
        intercept=0.0,
        evidence_weights=normal(width),
        evidence_bias=normal(features.taps),
        clean_scores=np.zeros(0, np.float32),
    )
    return replace(head, clean_scores=np.sort(head.score(rates, logits).score))
