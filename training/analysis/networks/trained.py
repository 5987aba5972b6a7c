"""Small networks of two architectures, trained here and kept on disk. N images, K classes.

A network that is on disk is not trained again, so a run that was cut goes on where it stood. Its
file is named for all that made it: architecture, seed, steps, batch and the images' digest.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.arrays import read_arrays, write_arrays
from reluguard.detector.images import Images
from reluguard.training.analysis.checks import Ints
from reluguard.training.errors import AnalysisError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["ARCHITECTURES", "Architecture", "Trained", "trained"]

Architecture = Literal["plain", "residual"]
ARCHITECTURES: tuple[Architecture, ...] = ("plain", "residual")

_PLAIN = (16, 16, 32, 32, 32, 64, 64, 64)
_HALVED = (2, 5)  # layers of the plain one that halve the picture
_RESIDUAL = (12, 12, 24, 24, 48, 48)  # blocks of two convolutions each, after a first one
_SIDE = 32


@dataclass(frozen=True, slots=True)
class Trained:
    """A network, ready to say what its layers make of images."""

    network: Any

    def features(self, images: Images) -> tuple[list[NDArray[np.float32]], Ints]:
        """Return each layer's outputs, float32 (N, C, H, W), and the answers, int64 (N,).

        A layer of the residual network is its first convolution or a block, after its gate.
        """
        import torch

        parts: list[list[NDArray[np.float32]]] = [[] for _ in self.network.layers]
        answers = []
        with torch.no_grad():
            for x in _tensor(images).split(100):
                for part, layer in zip(parts, self.network.layers, strict=True):
                    x = layer(x)  # noqa: PLW2901 - the picture goes from layer to layer
                    part.append(x.numpy())
                answers.append(self.network.head(x).argmax(dim=1).numpy())
        return [np.concatenate(part) for part in parts], np.concatenate(answers)


def trained(
    images: Images,
    labels: Ints,
    architecture: Architecture,
    *,
    classes: int,
    steps: int,
    batch: int = 64,
    seed: int = 0,
    folder: Path | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Trained:
    """Return a network: from the folder where it is there, trained and put there otherwise.

    Args:
        images: uint8, (N, H, W, C).
        labels: int64, (N,).
        architecture: which.
        classes: K.
        steps: of training.
        batch: images per step.
        seed: of weights and order.
        folder: where networks are kept; none are without one.
        progress: told how many steps were just done, or need not be.

    Raises:
        AnalysisError: a kept network is damaged.
    """
    network = _network(architecture, images.shape[3], classes, seed)
    file = None
    if folder is not None:
        digest = _digest(images, labels, f"{architecture} {steps} {batch} {seed}")
        file = folder / f"{architecture}-{seed}-{digest}.npz"
    if file is not None and file.exists():
        _load(network, file)
        progress(steps)
        return Trained(network.eval())
    _train(network, images, labels, steps, batch, seed, progress)
    if file is not None:
        _keep(network, file)
    return Trained(network.eval())


def _digest(images: Images, labels: Ints, settings: str) -> str:
    content = hashlib.sha256(f"{settings} {images.shape}".encode())
    content.update(np.ascontiguousarray(images).data)
    content.update(np.ascontiguousarray(labels).data)
    return content.hexdigest()[:12]


def _keep(network: "nn.Module", file: Path) -> None:
    """Write the weights aside and put them in their place once they are whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    try:
        with part.open("wb") as stream:
            write_arrays(stream, {k: v.numpy() for k, v in network.state_dict().items()})
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _load(network: "nn.Module", file: Path) -> None:
    import torch

    own = {name: value.numpy() for name, value in network.state_dict().items()}
    found = read_arrays(
        file,
        *own,
        error=AnalysisError,
        like={name: (value.dtype, value.shape) for name, value in own.items()},
        what="weights of a network that was trained here",
        remedy="delete it to have it trained again",
    )
    network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in found.items()})


def _network(architecture: Architecture, channels: int, classes: int, seed: int) -> Any:
    import torch
    from torch import nn

    class Block(nn.Module):
        """Two convolutions, and the picture as it came added before the last gate."""

        def __init__(self, before: int, width: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(before, width, 3, stride, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, 1, 1, bias=False),
                nn.BatchNorm2d(width),
            )
            same = before == width and stride == 1
            self.past: nn.Module = (
                nn.Identity()
                if same
                else nn.Sequential(
                    nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)
                )
            )

        def forward(self, x: "Tensor") -> "Tensor":
            return torch.relu(self.body(x) + self.past(x))

    class Network(nn.Module):
        """Layers one after the other, and what they come to."""

        def __init__(self, layers: list[nn.Module], width: int) -> None:
            super().__init__()
            self.layers = nn.ModuleList(layers)
            self.head = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)
            )

        def forward(self, x: "Tensor") -> "Tensor":
            for layer in self.layers:
                x = layer(x)
            logits: Tensor = self.head(x)
            return logits

    def gated(before: int, width: int, stride: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module]
        widths: tuple[int, ...]
        if architecture == "plain":
            widths = _PLAIN
            layers = [
                gated(before, width, 2 if i in _HALVED else 1)
                for i, (before, width) in enumerate(zip((channels, *widths), widths, strict=False))
            ]
        else:
            widths = _RESIDUAL
            layers = [gated(channels, widths[0], 1)]
            layers += [
                Block(before, width, 1 if before == width else 2)
                for before, width in zip((widths[0], *widths), widths, strict=False)
            ]
        return Network(layers, widths[-1]).to(memory_format=torch.channels_last)


def _tensor(images: Images) -> "Tensor":
    import torch

    x = torch.tensor(images).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
    if max(images.shape[1:3]) > _SIDE:
        x = torch.nn.functional.adaptive_avg_pool2d(x, _SIDE)
    return x.contiguous(memory_format=torch.channels_last)


def _train(
    network: Any,
    images: Images,
    labels: Ints,
    steps: int,
    batch: int,
    seed: int,
    progress: Callable[[int], None],
) -> None:
    import torch

    generator = np.random.default_rng(seed)
    x, y = _tensor(images), torch.tensor(labels)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=steps)
    network.train()
    for _ in range(steps):
        rows = torch.from_numpy(generator.integers(0, len(x), batch))
        flip = generator.random() < 0.5
        part = x[rows].flip(3) if flip else x[rows]
        loss = torch.nn.functional.cross_entropy(network(part), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        progress(1)
