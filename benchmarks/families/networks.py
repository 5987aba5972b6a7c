"""Classifiers of torchvision with random weights and a fitted last layer. N images, K classes."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

__all__ = ["FAMILIES", "Family", "export", "fitted"]

NORMALISED = 128  # images that batch norms see
PASS_VALUES = 64 * 3 * 64 * 64  # numbers of an input that go through at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A classifier of torchvision: the least side of its images, and what its maker is told.

    Attributes:
        least: pixels a side below which it can't be made smaller.
        options: for its maker.
        sided: whether the maker is told the side as `image_size`.
    """

    least: int = 32
    options: Mapping[str, Any] = field(default_factory=dict)
    sided: bool = False


_PLAIN = {"init_weights": False, "aux_logits": False}
FAMILIES: dict[str, Family] = {
    "efficientnet_b0": Family(),
    "efficientnet_v2_s": Family(),
    "convnext_tiny": Family(),
    "vit_b_16": Family(sided=True),
    "mobilenet_v2": Family(),
    "mobilenet_v3_small": Family(),
    "mobilenet_v3_large": Family(),
    "swin_t": Family(),
    "swin_v2_t": Family(),
    "regnet_x_400mf": Family(),
    "regnet_y_400mf": Family(),
    "shufflenet_v2_x0_5": Family(),
    "densenet121": Family(),
    "googlenet": Family(options=_PLAIN),
    "inception_v3": Family(least=96, options=_PLAIN),
    "squeezenet1_1": Family(),
    "mnasnet0_5": Family(),
    "resnet18": Family(),
    "resnet50": Family(),
    "resnext50_32x4d": Family(),
    "maxvit_t": Family(),
}


def fitted(
    name: str, pixels: NDArray[np.float32], labels: NDArray[np.int64], *, ridge: float = 1e-2
) -> nn.Module:
    """Return a network of random weights whose last layer is fitted: (N, 3, H, W) to (N, K).

    Args:
        name: of `FAMILIES`.
        pixels: float32, (N, 3, H, W), what to fit it on as it goes into the network.
        labels: int64, (N,).
        ridge: how strongly the fit is held back, as a share of what the features vary.
    """
    classes = int(labels.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _made(name, pixels.shape[2], classes)
    tensor = torch.from_numpy(pixels)
    step = max(1, PASS_VALUES // pixels[0].size)
    _normalise(network, tensor[:NORMALISED])
    _fit_last(network, tensor.split(step), labels, classes, ridge)
    return network


def _made(name: str, side: int, classes: int) -> nn.Module:
    from torchvision import models

    family = FAMILIES[name]
    if name == "maxvit_t" and side % 7:  # its maker fixes windows of 7, so images of 224
        small: nn.Module = models.MaxVit(
            input_size=(side, side), stem_channels=64, block_channels=[64, 128, 256, 512],
            block_layers=[2, 2, 5, 2], head_dim=32, stochastic_depth_prob=0.2,
            partition_size=2, num_classes=classes,
        )  # fmt: skip
        return small
    more = {"image_size": side} if family.sided else {}
    made: nn.Module = getattr(models, name)(
        weights=None, num_classes=classes, **family.options, **more
    )
    return made


def _normalise(network: nn.Module, pixels: torch.Tensor) -> None:
    """Let batch norms see the images once, without dropping any layer."""
    network.eval()
    norms = [one for one in network.modules() if isinstance(one, nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        network(pixels)
    network.eval()


def _fit_last(
    network: nn.Module,
    parts: tuple[torch.Tensor, ...],
    labels: NDArray[np.int64],
    classes: int,
    ridge: float,
) -> None:
    """Fit the last layer by ridge regression on what enters it."""
    last = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    layer = next(m for m in reversed(last) if m.weight.shape[0] == classes)
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        for part in parts:
            network(part)
    hook.remove()
    entered = torch.cat([x.mean(dim=(2, 3)) if x.ndim == 4 else x for x in seen])
    x = entered.double()
    centre = x.mean(dim=0)
    x = x - centre
    wanted = torch.nn.functional.one_hot(torch.from_numpy(labels), classes).double() * 10 - 1
    strength = ridge * x.square().sum(dim=0).mean() * torch.eye(x.shape[1], dtype=torch.float64)
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
    blank = torch.zeros(2, 3, side, side)
    write = partial(
        torch.onnx.export, network, (blank,), path, input_names=["image"], output_names=["logits"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn of their own future
        if current:
            free: Any = ({0: torch.export.Dim("N")},)
            write(dynamo=True, dynamic_shapes=free, verbose=False, external_data=False)
        else:
            axes = {"image": {0: "N"}, "logits": {0: "N"}}
            write(dynamo=False, opset_version=17, dynamic_axes=axes)
    return path
