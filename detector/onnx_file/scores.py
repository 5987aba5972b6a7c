"""Where a classifier's class scores are: what enters its last softmax, one column per class."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from reluguard.detector.onnx_file.constants import constants

__all__ = ["Ending", "class_scores", "find_scores", "with_columns"]

Ending = Literal["", "softmax", "log_softmax", "sigmoid"]
"""What the model makes of its class scores before it gives them out."""

_COLUMNS = "reluguard_class_scores"
_SHAPING = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}
_PASSING = {"Identity", "Cast", "CastLike", "Dropout", "QuantizeLinear", "DequantizeLinear"}
_ENDINGS: Mapping[str, Ending] = {
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
    "Sigmoid": "sigmoid",
}
_NEAR = 0.01  # a Clip that keeps probabilities from 0 and 1 cuts no more than this

Nodes = Mapping[str, onnx.NodeProto]
Values = Mapping[str, NDArray[Any]]


def find_scores(graph: onnx.GraphProto, answer: str) -> tuple[str, Ending, bool]:
    """Return the tensor of class scores before any softmax, the ending, whether it was reshaped.

    Looks through what comes behind a softmax and changes no order: copies, casts, shapes, bounds
    near 0 and 1, a logarithm, quantisation. Where there is no softmax it is the answer itself.

    Args:
        graph: the classifier's.
        answer: the output that holds the class scores.
    """
    makers = {name: node for node in graph.node for name in node.output if name}
    values = constants(graph)
    name, is_log, is_shaped = answer, False, False
    while name in makers:
        node = makers[name]
        if node.op_type in _ENDINGS:
            ending = _ENDINGS[node.op_type]
            if is_log:
                ending = "log_softmax" if ending == "softmax" else ""
            return (node.input[0], ending, is_shaped) if ending else (answer, "", False)
        spelt = _spelt_out(node, makers)
        if spelt is not None:
            return spelt, "log_softmax" if is_log else "softmax", is_shaped
        if node.op_type == "Log" and not is_log:
            is_log = True
        elif node.op_type in _SHAPING:
            is_shaped = True
        elif node.op_type == "Clip":
            if not _is_near(node, values):
                break
        elif node.op_type not in _PASSING:
            break
        name = node.input[0]
    return answer, "", False


def _spelt_out(node: onnx.NodeProto, makers: Nodes) -> str | None:
    """Return what enters a softmax written as exp(x - max(x)) / sum(exp(x - max(x)))."""
    if node.op_type != "Div":
        return None
    above, below = (makers.get(name) for name in node.input)
    if above is None or below is None or (above.op_type, below.op_type) != ("Exp", "ReduceSum"):
        return None
    if below.input[0] != above.output[0]:
        return None
    power = str(above.input[0])
    shifted = makers.get(power)
    if shifted is not None and shifted.op_type == "Sub":
        largest = makers.get(shifted.input[1])
        if largest is not None and largest.op_type == "ReduceMax":
            return str(shifted.input[0])
    return power


def _is_near(node: onnx.NodeProto, values: Values) -> bool:
    """Return whether a Clip only keeps probabilities from their ends."""
    bounds = {a.name: a.f for a in node.attribute}
    for name, given in zip(("min", "max"), node.input[1:], strict=False):
        if given:
            if given not in values:
                return False
            bounds[name] = float(values[given])
    return bounds.get("min", 0.0) <= _NEAR and bounds.get("max", 1.0) >= 1 - _NEAR


def with_columns(proto: onnx.ModelProto, logits: str, *, single: bool) -> str:
    """Add the class scores with a column per class, (N, K), to a model and return their name.

    One score z of two classes becomes (-z / 2, z / 2): the second class is the answer where z is
    above 0, and a softmax of the two is the sigmoid of z. No other tensor is touched.

    Args:
        proto: gets the nodes at its end.
        logits: a tensor of one value per class and image, of any rank.
        single: whether that is one value.
    """
    graph = proto.graph
    taken = {name for node in graph.node for name in node.output}
    name = _COLUMNS
    while name in taken:
        name += "_"
    rows = f"{name}/rows" if single else name
    if not single:
        graph.node.append(helper.make_node("Flatten", [logits], [name], name=name, axis=1))
        return name
    target = numpy_helper.from_array(np.array([-1, 1], np.int64), f"{name}/shape")
    sides = numpy_helper.from_array(np.array([[-0.5, 0.5]], np.float32), f"{name}/sides")
    graph.initializer.extend([target, sides])
    real = f"{name}/float"
    graph.node.extend(
        [
            helper.make_node("Cast", [logits], [real], name=real, to=onnx.TensorProto.FLOAT),
            helper.make_node("Reshape", [real, target.name], [rows], name=rows),
            helper.make_node("Mul", [rows, sides.name], [name], name=name),
        ]
    )
    return name


def class_scores(answer: NDArray[Any], ending: Ending) -> NDArray[Any]:
    """Return what a classifier gave out with a column per class: (N, K), K at least 2.

    Args:
        answer: (N, K), or of further axes of size 1; one value per image stands for two classes.
        ending: what the classifier did to them last.
    """
    flat = answer.reshape(len(answer), -1)
    if flat.shape[1] != 1:
        return flat
    if ending in {"sigmoid", "softmax"}:
        return np.concatenate([1 - flat, flat], axis=1)
    return np.concatenate([-flat / 2, flat / 2], axis=1)
