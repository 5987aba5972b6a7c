"""A small network with a guard of random weights: what the exercises serve when given no model.

Speed and size matter here, detection doesn't.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.drawn import Drawing, write_drawn_guard
from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard

__all__ = ["Pair", "draw_images", "make_guard", "make_pair"]

_CLASSES = 5
_FPR = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A model file and a guard folder that belong together."""

    model: Path
    guard: Path

    def open(self) -> Guard:
        """Return the guarded model in this process."""
        return Guard.open(self.model, self.guard, threads=1)


def draw_images(count: int, *, size: int, seed: int) -> Images:
    """Return images with some structure: uint8, (count, size, size, 3)."""
    rng = np.random.default_rng(seed)
    axis = np.linspace(0, 1, size)
    a, b, phase = rng.uniform(-4, 4, (3, count, 1, 1, 3))
    wave = np.sin(a * axis[None, :, None, None] + b * axis[None, None, :, None] + phase)
    noise = rng.integers(-30, 31, wave.shape)
    return np.asarray(np.clip(127 + 90 * wave + noise, 0, 255), np.uint8)


def make_pair(folder: Path, *, size: int = 12, width: int = 8, seed: int = 0) -> Pair:
    """Write a CNN of three convolutions and a guard for it.

    Args:
        folder: made if it is not there.
        size: of the square input images.
        width: channels of the first convolution; time per image grows with its square.
        seed: of every weight.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model.onnx"
    model.write_bytes(_network(size, width, seed).SerializeToString())
    return Pair(model=model, guard=make_guard(model, folder / "guard", size=size, seed=seed))


def make_guard(model: Path, folder: Path, *, size: int, seed: int) -> Path:
    """Write a guard of random weights for this model; another seed gives other scores."""
    return write_drawn_guard(
        model,
        folder,
        clean=draw_images(200, size=size, seed=1),
        golden=draw_images(4, size=size, seed=2),
        rates=(_FPR,),
        provenance={"seed": seed},
        drawing=Drawing(seed=seed, units=()),
    )


def _network(size: int, width: int, seed: int) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.2
        return numpy_helper.from_array(rng.normal(0, scale, shape).astype(np.float32), name)

    channels = [3, width, 2 * width, 2 * width]
    nodes, weights, last = [], [], "image"
    for i in range(3):
        weights += [weight(f"w{i}", channels[i + 1], channels[i], 3, 3),
                    weight(f"b{i}", channels[i + 1])]  # fmt: skip
        nodes += [
            helper.make_node("Conv", [last, f"w{i}", f"b{i}"], [f"c{i}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{i}"], [f"r{i}"]),
        ]
        last = f"r{i}"
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"], transB=1),
    ]
    weights += [weight("w", _CLASSES, channels[-1]), weight("b", _CLASSES)]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", _CLASSES])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model
