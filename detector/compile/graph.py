"""A model being added to: operators, constants and outputs of the guard's own, each added once."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from reluguard.detector.compile.quantised import with_unsigned_pairs
from reluguard.detector.model import OUTPUT_PREFIX, Production

__all__ = ["OURS", "Graph"]

OURS = OUTPUT_PREFIX.rstrip("_") + "/"  # what the names of our nodes and tensors begin with


@dataclass(slots=True)
class Graph:
    """A copy of a production model and what is added to it.

    Methods return the name of the tensor they made. What was added before, the same operator on the
    same tensors, is not added again.
    """

    proto: onnx.ModelProto
    opset: int
    _made: int = field(default=0)
    _known: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _outputs: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def over(cls, production: Production) -> "Graph":
        """Return the model's graph with nothing added yet."""
        proto = onnx.ModelProto()
        proto.CopyFrom(production.proto)
        with_unsigned_pairs(proto)
        return cls(proto, production.opset)

    def _name(self, kind: str) -> str:
        self._made += 1
        return f"{OURS}{kind}_{self._made}"

    def constant(self, value: NDArray[Any] | np.float32) -> str:
        """Add a tensor of fixed values."""
        array = np.asarray(value)
        key = ("constant", array.dtype.str, array.shape, array.tobytes())
        if key in self._known:
            return self._known[key]
        name = self._known[key] = self._name("constant")
        self.proto.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add an operator; of its outputs, the first is returned."""
        key = (op, inputs, repr(sorted(attributes.items())))
        if key in self._known:
            return self._known[key]
        name = self._known[key] = self._name(op)
        names = [name, *(f"{name}_{i}" for i in range(1, outputs))]
        self.proto.graph.node.append(
            helper.make_node(op, list(inputs), names, name=name, **attributes)
        )
        return name

    def concat(self, *parts: str, axis: int = 1) -> str:
        """Add these side by side; one alone is itself."""
        return self.add("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]

    def gemm(self, x: str, weights: NDArray[np.float32], bias: NDArray[np.float32]) -> str:
        """Add x @ weights + bias."""
        return self.add("Gemm", x, self.constant(weights), self.constant(bias))

    def reshape(self, x: str, *shape: int) -> str:
        """Add the same numbers in another shape, with one -1 for what is left."""
        return self.add("Reshape", x, self.constant(np.array(shape)))

    def slice(self, x: str, start: int, stop: int, *, axis: int) -> str:
        """Add x[start:stop] along an axis."""
        ends = [self.constant(np.array([value])) for value in (start, stop, axis)]
        return self.add("Slice", x, *ends)

    def instead_of_nan(self, x: str, value: NDArray[np.float32] | np.float32) -> str:
        """Add x with another value wherever it is not a number."""
        return self.add("Where", self.add("IsNaN", x), self.constant(value), x)

    def reduce(self, op: str, x: str, axes: list[int], *, keepdims: int) -> str:
        """Add a reduction over these axes."""
        # ONNX moved the axes from attribute to input, ReduceSum five versions before the others.
        if self.opset >= (13 if op == "ReduceSum" else 18):
            return self.add(op, x, self.constant(np.array(axes)), keepdims=keepdims)
        return self.add(op, x, axes=axes, keepdims=keepdims)

    def output(self, name: str, tensor: str, kind: int, shape: list[Any]) -> None:
        """Give a tensor to the caller under this name."""
        self._outputs.append((name, tensor))
        self.proto.graph.output.append(helper.make_tensor_value_info(name, kind, shape))

    def logits(self, production: Production) -> str:
        """Add the class scores in float32: (N, K)."""
        return self.add("Cast", production.logits, to=TensorProto.FLOAT)

    def finish(self) -> onnx.ModelProto:
        """Return the model. A tensor of ours that is given out bears the output's name itself."""
        names: dict[str, str] = {}
        for name, tensor in self._outputs:
            if tensor in names or not tensor.startswith(OURS):
                node = helper.make_node("Identity", [tensor], [name], name=name)
                self.proto.graph.node.append(node)
            else:
                names[tensor] = name
        for node in self.proto.graph.node:
            for tensors in (node.input, node.output):
                for i, tensor in enumerate(tensors):
                    if tensor in names:
                        tensors[i] = names[tensor]
        return self.proto
