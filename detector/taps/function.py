"""What an element-wise function does to the sign of its one number, seen from its values.

Exporters spell an activation in a dozen ways; its values are always the same. So a piece of graph
between one tensor and another is run on a grid of numbers, and its values say whether it is a gate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from reluguard.detector.errors import ModelError
from reluguard.detector.session import open_session, run_session

__all__ = ["Functions", "Shape"]

_SIDE = np.concatenate([np.geomspace(1e-2, 1, 30)[:-1], np.linspace(1, 20, 96)[:-1], [50.0, 1e3]])
_GRID = np.concatenate([-_SIDE[::-1], [0.0], _SIDE])
_NEAR = np.abs(_GRID) <= 20
_KINDS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_CUT = 0.8  # the closed side of a gate lets through less than this much of what the open one does


class Shape(Enum):
    """What a function is as a gate."""

    OTHER = "no gate"
    OPENS = "above zero on one side only, where it lets more through"
    SOFT = "always above zero, and falls to it on one side: a softplus"


@dataclass(slots=True)
class Functions:
    """Runs pieces of a graph on numbers; equal pieces once.

    Attributes:
        opsets: what the model imports.
    """

    opsets: Sequence[onnx.OperatorSetIdProto]
    _known: dict[bytes, tuple[Shape, str]] = field(default_factory=dict)

    def look(
        self,
        nodes: Sequence[onnx.NodeProto],
        values: dict[str, NDArray[np.generic]],
        source: str,
        target: str,
    ) -> tuple[Shape, str]:
        """Return what the function from `source` to `target` is, and its name in words.

        Args:
            nodes: all between them, in order; roundings to integers are taken for none.
            values: the constants that these read.
            source: the tensor that stands for the number.
            target: an output of the last node.
        """
        names = {source: "x"}
        graph = onnx.GraphProto(name="function")
        for node in nodes:
            copy = graph.node.add()
            copy.CopyFrom(node)
            if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
                copy.CopyFrom(helper.make_node("Identity", node.input[:1], node.output))
            copy.name = copy.doc_string = ""
            for tensors in (copy.input, copy.output):
                for i, name in enumerate(tensors):
                    if name:
                        tensors[i] = names.setdefault(name, f"t{len(names)}")
        graph.initializer.extend(
            numpy_helper.from_array(value, names[name])
            for name, value in values.items()
            if name in names
        )
        graph.output.append(onnx.ValueInfoProto(name=names[target]))
        key = graph.SerializeToString(deterministic=True)
        if key not in self._known:
            y = self._run(graph)
            self._known[key] = (Shape.OTHER, "") if y is None else (_shape(y), _word(y))
        return self._known[key]

    def _run(self, graph: onnx.GraphProto) -> NDArray[np.float64] | None:
        for kind in _KINDS:
            model = helper.make_model(
                onnx.GraphProto.FromString(graph.SerializeToString()),
                opset_imports=self.opsets,
                ir_version=10,
            )
            model.graph.input.append(helper.make_tensor_value_info("x", kind, [len(_GRID)]))
            x = _GRID.astype(helper.tensor_dtype_to_np_dtype(kind))
            try:
                session = open_session(model, threads=1, optimise=False)
                (y,) = run_session(session, {"x": x}, [graph.output[0].name])
            except ModelError:  # of another number type, or no function of one number after all
                continue
            if y.shape == x.shape and y.dtype.kind == "f":
                return y.astype(np.float64)
        return None


def _shape(y: NDArray[np.float64]) -> Shape:
    if np.isnan(y[_NEAR]).any():
        return Shape.OTHER
    if (y[np.abs(_GRID) <= 4] > 0).all():  # further out, half precision is zero before it should be
        return Shape.SOFT if _is_soft(y) or _is_soft(y[::-1]) else Shape.OTHER
    return Shape.OPENS if _opens(y) or _opens(y[::-1]) else Shape.OTHER


def _opens(y: NDArray[np.float64]) -> bool:
    """Whether it is above zero exactly from some point on, and by more than it was below it."""
    known = np.isfinite(y)
    above = y[known] > 0
    first = int(np.argmax(above))
    if not above[-1] or first == 0 or not above[first:].all():
        return False
    near, x = y[_NEAR], _GRID[_NEAR]
    if np.ptp(near + near[::-1]) <= 4e-3 * np.ptp(near):
        return False  # odd about some point: a line, a sigmoid, hard or not
    passed, cut = (np.abs(near[side]).mean() for side in (x > 0, x < 0))
    return bool(cut < _CUT * passed) and len(np.unique(near[near > 0])) > 1


def _is_soft(y: NDArray[np.float64]) -> bool:
    left, middle, right = (y[np.argmin(np.abs(_GRID - x))] for x in (-20, 10, 20))
    return bool(left < 1e-2 * right and 1.5 * middle < right < 2.5 * middle)


def _word(y: NDArray[np.float64]) -> str:
    """Return the name of a function as people know it, "gate" if they don't."""
    x, last = _GRID, y[_NEAR][-1]
    if not np.isfinite(last):
        return "gate"
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-x))
        inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
        known = {
            "Relu": np.maximum(x, 0),
            "Relu6": np.clip(x, 0, 6),
            "Silu": x * sigmoid,
            "Gelu": 0.5 * x * (1 + np.tanh(inner)),
            "QuickGelu": x / (1 + np.exp(-1.702 * x)),
            "HardSwish": x * np.clip(x / 6 + 0.5, 0, 1),
            "Mish": x * np.tanh(np.logaddexp(0, x)),
            "Elu": np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
            "Softplus": np.logaddexp(0, x),
        }
    scale = last / x[_NEAR][-1]
    near = _NEAR & np.isfinite(y)
    for word, wanted in known.items():
        factor = scale if word != "Relu6" else last / 6
        there = factor * wanted[near]
        if (np.abs(y[near] - there) <= 4e-3 * (abs(factor) + np.abs(there))).all():
            return word
    return "gate"
