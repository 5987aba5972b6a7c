"""Every family of torchvision's classifiers: all its gates are read, and its answers stay its own.

Random weights; the smallest member of each family, as both of torch's exporters write it.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from reluguard.detector.compile.guarded import LOGITS, RATES, compile_reader
from reluguard.detector.model import infer_spec, load_production
from reluguard.detector.session import open_session, run_session
from reluguard.detector.taps import survey

PIXELS = {"alexnet": 224, "vgg11": 224, "maxvit_t": 224, "inception_v3": 96}  # of the others 64
PLAIN: dict[str, Any] = {"weights": None}
OPTIONS: dict[str, dict[str, Any]] = {
    "vit_b_16": {"image_size": 64},
    "inception_v3": {"init_weights": False},
    "googlenet": {"init_weights": False, "aux_logits": False},
}
FAMILIES = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet",
    "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small",
    "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5",
    "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vit_b_16", "wide_resnet50_2",
)  # fmt: skip
# axes after the batch that hold the channels, where that is not the first
TOKENS = {
    "convnext_tiny": {(3, 2)},
    "maxvit_t": {(3, 0), (3, 2)},
    "swin_t": {(3, 2)},
    "swin_v2_t": {(3, 2)},
    "vit_b_16": {(2, 1)},
}
ACTIVATIONS = {"relu", "relu_", "hardtanh", "hardtanh_", "silu", "silu_", "gelu", "hardswish",
               "hardswish_"}  # fmt: skip
BATCH = 2


def network(name: str) -> Any:
    """Return the network with random weights and BatchNorm statistics."""
    import torch
    from torchvision import models

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = getattr(models, name)(**PLAIN, **OPTIONS.get(name, {}))
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(module.get_buffer("running_mean"), 0, 0.3)
                torch.nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
    return made.eval()


def activations_called(module: Any, x: Any) -> int:
    """Return how many activations a pass calls on a tensor of one row per image."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            if func.overloadpacket.__name__ in ACTIVATIONS and args[0].shape[0] == BATCH:
                self.count += 1
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Counting() as seen:  # type: ignore[no-untyped-call] # torch left it bare
        module(x)
    return int(seen.count)


def export(module: Any, x: Any, path: Path, *, current: bool) -> None:
    """Write the ONNX file by torch's current exporter at opset 20, or the older one at 17."""
    import torch

    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn of their own future
        if current:
            free: Any = ({0: torch.export.Dim("N")},)
            torch.onnx.export(
                module, (x,), path, dynamo=True, dynamic_shapes=free, verbose=False,
                external_data=False, opset_version=20, **names,
            )  # fmt: skip
        else:
            axes = {"image": {0: "N"}, "logits": {0: "N"}}
            torch.onnx.export(
                module, (x,), path, dynamo=False, opset_version=17, dynamic_axes=axes, **names
            )


@pytest.mark.slow
@pytest.mark.parametrize("current", [False, True], ids=["opset 17", "current"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_gate_of_every_family_is_read(name: str, current: bool, tmp_path: Path) -> None:
    """As many taps as activations called, rates that NumPy counts, and not one bit changed."""
    import torch

    pixels, module, path = PIXELS.get(name, 64), network(name), tmp_path / "model.onnx"
    x = torch.rand(BATCH, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    export(module, x, path, current=current)
    production = load_production(path)
    found = survey(production, infer_spec(production, (pixels, pixels, 3)))
    assert found.unread == ()
    assert len(found.taps) == activations_called(module, x)
    axes = {(len(tap.shape), tap.channel_axis) for tap in found.taps if len(tap.shape) > 1}
    assert axes == TOKENS.get(name, {(3, 0)})

    feeds = {"image": x.numpy()}
    (plain,) = run_session(open_session(production.proto, threads=1), feeds, ["logits"])
    session = open_session(compile_reader(production, found.taps), threads=1)
    answer, rates, logits = run_session(session, feeds, ["logits", RATES, LOGITS])
    assert plain.tobytes() == answer.tobytes() == logits.tobytes()

    probe = onnx.ModelProto()
    probe.CopyFrom(production.proto)
    probe.graph.output.extend(onnx.ValueInfoProto(name=tap.name) for tap in found.taps)
    values = run_session(open_session(probe, threads=1), feeds, [tap.name for tap in found.taps])
    wanted = []
    for tap, value in zip(found.taps, values, strict=True):
        others = tuple(i + 1 for i in range(len(tap.shape)) if i != tap.channel_axis)
        wanted.append((value > 0).mean(axis=others))
    np.testing.assert_allclose(rates, np.concatenate(wanted, axis=1), atol=1e-6)
    assert 0.02 < rates.mean() < 0.98
