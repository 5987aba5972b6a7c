"""Channel axes: found from the layers around a tensor, through what moves the axes between."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from reluguard.detector.taps.channels import Channels

Nodes = list[onnx.NodeProto]


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)


def channels(nodes: Nodes, **weights: tuple[int, ...]) -> Channels:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones(s, np.float32), name) for name, s in weights.items()]
        + [numpy_helper.from_array(np.array([0, -1, 6]), "shape")],
    )
    return Channels(helper.make_model(graph))


CASES: dict[str, tuple[Nodes, dict[str, tuple[int, ...]], tuple[int, ...], int]] = {
    "a convolution before": ([node("Conv", "x w", "c"), node("Relu", "c", "r")],
                             {"w": (6, 3, 1, 1)}, (6, 5, 5), 0),
    "a convolution in one dimension": ([node("Conv", "x w", "c"), node("Relu", "c", "r")],
                                       {"w": (6, 3, 1)}, (6, 5), 0),
    "a dense layer before": ([node("MatMul", "x w", "c"), node("Relu", "c", "r")],
                             {"w": (3, 6)}, (5, 5, 6), 2),
    "a dense layer behind": ([node("Relu", "x", "r"), node("MatMul", "r w", "y")],
                             {"w": (6, 3)}, (6, 6, 6), 2),
    "a convolution behind": ([node("Relu", "x", "r"), node("Conv", "r w", "y")],
                             {"w": (3, 6, 1)}, (6, 5), 0),
    "a norm behind": ([node("Relu", "x", "r"), node("LayerNormalization", "r w", "y")],
                      {"w": (6,)}, (5, 6, 7), 2),
    "axes moved": ([node("Conv", "x w", "c"), node("Transpose", "c", "t", perm=[0, 2, 3, 1]),
                    node("Relu", "t", "r")], {"w": (6, 3, 1, 1)}, (6, 6, 6), 2),
    "axes moved back behind": ([node("Relu", "x", "r"),
                                node("Transpose", "r", "t", perm=[0, 3, 1, 2]),
                                node("Conv", "t w", "y")], {"w": (3, 6, 1, 1)}, (6, 6, 6), 2),
    "rows put together": ([node("MatMul", "x w", "c"), node("Reshape", "c shape", "s"),
                           node("Relu", "s", "r")], {"w": (3, 6)}, (5, 6), 1),
    "weights from the left": ([node("MatMul", "w x", "c"), node("Relu", "c", "r")],
                              {"w": (6, 3)}, (6, 5), 0),
    "a turned layer": ([node("Gemm", "x w", "c", transB=1), node("Relu", "c", "r")],
                       {"w": (6, 3)}, (6,), 0),
    "scaled by others": ([node("Conv", "x w", "c"), node("Sigmoid", "x", "s"),
                          node("Mul", "s c", "m"), node("Relu", "m", "r")],
                         {"w": (6, 3, 1, 1)}, (6, 5, 5), 0),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "weights", "shape", "axis"), CASES.values(), ids=CASES)
def test_the_layers_around_a_gate_tell_its_channels(
    nodes: Nodes, weights: dict[str, tuple[int, ...]], shape: tuple[int, ...], axis: int
) -> None:
    """What comes before goes first, then what follows; sizes alone decide nothing."""
    assert channels(nodes, **weights).axis("r", shape) == axis


@pytest.mark.parametrize(("shape", "axis"), [((4,), 0), ((4, 9), 1), ((4, 9, 9), 0)])
def test_without_a_layer_the_usual_layout_holds(shape: tuple[int, ...], axis: int) -> None:
    """Tokens have their channels last, maps first."""
    assert channels([node("Relu", "x", "r")]).axis("r", shape) == axis
