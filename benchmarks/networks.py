"""The networks whose speed is measured, each with a guard whose weights are drawn, not fitted.

How long a guarded run takes depends on shapes alone, so no data and no training are needed.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.drawn import Drawing, write_drawn_guard
from reluguard.detector.artifact import write_file
from reluguard.detector.images import Images

__all__ = ["NETWORKS", "Network", "make"]

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
FPR = 0.05
_CALIBRATION = 40
_MAX_COLUMNS = 1400  # as reluguard.training.head.probes has it
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


def _efficientnet_b0() -> nn.Module:
    from torchvision.models import efficientnet_b0

    network: nn.Module = efficientnet_b0(weights=None)
    return network


def _convnext_tiny() -> nn.Module:
    from torchvision.models import convnext_tiny

    network: nn.Module = convnext_tiny(weights=None)
    return network


def _vit_b_16() -> nn.Module:
    from torchvision.models import vit_b_16

    network: nn.Module = vit_b_16(weights=None)
    return network


NETWORKS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "resnet20": (32, _resnet20),
    "resnet50": (224, _resnet50),
    "mobilenet_v2": (224, _mobilenet_v2),
    "efficientnet_b0": (224, _efficientnet_b0),
    "convnext_tiny": (224, _convnext_tiny),
    "vit_b_16": (224, _vit_b_16),
}


def _images(count: int, size: int, seed: int) -> Images:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def _write_guard(network: Network, size: int, seed: int) -> None:
    """Write a guard of every tap with a head of random weights, of the width a fit would give."""
    write_drawn_guard(
        network.model,
        network.guard,
        clean=_images(_CALIBRATION, size, seed + 1),
        golden=_images(2, size, seed + 2),
        rates=(FPR,),
        provenance={"recipe": "random weights, for speed alone", "seed": seed},
        drawing=Drawing(seed=seed, most_columns=_MAX_COLUMNS, most_classes=_MAX_CLASSES),
        threads=None,
    )
