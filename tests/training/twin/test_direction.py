"""A twin whose gradient leads nowhere is found out when it opens."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from reluguard.detector.images import Images, InputSpec
from reluguard.training.attacks import FGSM, open_victim
from reluguard.training.errors import TwinError
from reluguard.training.twin.direction import lead_slope
from reluguard.training.twin.twin import load_twin

SPEC = InputSpec(name="image", height=6, width=6, channels=1)


def pictures(count: int = 24) -> Images:
    return np.random.default_rng(5).integers(0, 256, (count, 6, 6, 1)).astype(np.uint8)


def fronted(path: Path, *nodes: onnx.NodeProto, **values: Any) -> Path:
    """Write a small network behind nodes that make `pixels` of `image`."""
    rng = np.random.default_rng(6)
    weights: dict[str, Any] = {
        "w1": rng.normal(0, 0.3, (36, 20)).astype(np.float32),
        "w2": rng.normal(0, 0.5, (20, 4)).astype(np.float32),
        **values,
    }
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            *nodes,
            helper.make_node("Flatten", ["pixels"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w1"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "w2"], ["logits"]),
        ],
        "net",
        [info("image", TensorProto.FLOAT, ["N", 1, 6, 6])],
        [info("logits", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def stepped(kind: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Mul", ["image", "size"], ["scaled"]),
        helper.make_node(kind, ["scaled"], ["whole"]),
        helper.make_node("Div", ["whole", "size"], ["pixels"]),
    ]


LOOKED_UP = [
    helper.make_node("Mul", ["image", "size"], ["scaled"]),
    helper.make_node("Cast", ["scaled"], ["whole"], to=TensorProto.INT64),
    helper.make_node("Gather", ["levels", "whole"], ["pixels"], axis=0),
]
SIGNED = [
    helper.make_node("Sub", ["image", "size"], ["scaled"]),
    helper.make_node("Sign", ["scaled"], ["pixels"]),
]
FRONTS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "round": (stepped("Round"), {"size": np.float32(255)}),
    "floor": (stepped("Floor"), {"size": np.float32(32)}),
    "ceil": (stepped("Ceil"), {"size": np.float32(16)}),
    "sign": (SIGNED, {"size": np.float32(0.5)}),
    "look-up": (
        LOOKED_UP,
        {"size": np.float32(255), "levels": np.linspace(0, 1, 256, dtype=np.float32) ** 2},
    ),
}


@pytest.mark.parametrize("front", FRONTS)
def test_attacks_succeed_behind_what_rounds(tmp_path: Path, front: str) -> None:
    """A model that rounds its pixels has a twin, and FGSM by its gradient fools the model."""
    nodes, values = FRONTS[front]
    path = fronted(tmp_path / "m.onnx", *nodes, **values)
    images = pictures()
    twin = load_twin(path, SPEC, images=images, device="cpu")
    victim = open_victim(path, SPEC, twin=twin, threads=1)
    labels = victim.predict(images).argmax(axis=1).astype(np.int64)
    assert FGSM(size=40)(images, labels, victim, seed=0).success.mean() > 0.5


def test_a_gradient_of_nothing_is_refused(tmp_path: Path) -> None:
    """Pixels that only decide by being above a limit give none: refused with what to do."""
    nodes = [
        helper.make_node("Greater", ["image", "half"], ["above"]),
        helper.make_node("Cast", ["above"], ["pixels"], to=TensorProto.FLOAT),
    ]
    path = fronted(tmp_path / "m.onnx", *nodes, half=np.float32(0.5))
    with pytest.raises(TwinError, match=r"no gradient that attacks can follow.*--twin none"):
        load_twin(path, SPEC, images=pictures(), device="cpu")


def test_a_gradient_that_leads_nowhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lent twin with the right scores and the gradient turned over is found out by steps."""
    path = fronted(tmp_path / "m.onnx", helper.make_node("Identity", ["image"], ["pixels"]))
    (tmp_path / "turned_twin.py").write_text(
        "import onnx, torch\nfrom reluguard.training.twin.onnx_torch import OnnxModule\n"
        "class Turned(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        f"        self.inner = OnnxModule(onnx.load({str(path)!r}), 'logits')\n"
        "    def forward(self, x):\n"
        "        return self.inner(2 * x.detach() - x)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TwinError, match=r"steps along it lower the model's confidence on 0 of 16"):
        load_twin(path, SPEC, "turned_twin:Turned", images=pictures(), device="cpu")


def test_large_images_are_differentiated_a_few_at_a_time() -> None:
    seen: list[int] = []

    def scores(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        return torch.stack([pixels.square().sum((1, 2, 3)), pixels.sum((1, 2, 3))], dim=1)

    large = torch.rand(9, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    slope = lead_slope(scores, large)
    assert seen == [4, 4, 1]
    torch.testing.assert_close(slope[4:5], lead_slope(scores, large[4:5]))
    seen.clear()
    lead_slope(scores, large[:, :, :32, :32])
    assert seen == [9]
