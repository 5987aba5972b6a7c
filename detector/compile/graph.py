"""A model being added to: operators, constants and outputs of the guard's own, each added once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from reluguard.detector.model import OUTPUT_PREFIX, Production
from reluguard.detector.taps.inlining import inlined
from reluguard.detector.taps.quantised import with_unsigned_pairs

__all__ = ["OURS", "Graph"]

OURS = OUTPUT_PREFIX.rstrip("_") + "/"  # what the names of our nodes and tensors begin with
_WEIGHTS_INSIDE = 4  # the IR version from which initializers need not be inputs


@dataclass(slots=True)
class Graph:
    """A copy of a production model and what is added to it.

    Methods return the name of the tensor they made. What was added before, the same operator on the
    same tensors, is not added again.
    """

    proto: onnx.ModelProto
    opset: int
    _taken: set[str] = field(default_factory=set)
    _made: set[str] = field(default_factory=set)
    _known: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _outputs: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def over(cls, production: Production) -> "Graph":
        """Return the model's graph with nothing added yet."""
        proto = onnx.ModelProto()
        proto.CopyFrom(inlined(production.proto))
        with_unsigned_pairs(proto)
        _with_weights_inside(proto)
        return cls(proto, production.opset, names_in(proto.graph))

    def _name(self, kind: str) -> str:
        number = len(self._made) + 1
        while (name := f"{OURS}{kind}_{number}") in self._taken:
            number += 1
        self._made.add(name)
        self._taken.add(name)
        return name

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
        wanted = {name for name, _ in self._outputs} & self._taken
        if wanted:
            _rename(self.proto.graph, {name: self._name(name) for name in wanted})
        names: dict[str, str] = {}
        for name, tensor in self._outputs:
            if tensor in names or tensor not in self._made:
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


def names_in(graph: onnx.GraphProto) -> set[str]:
    """Return the names of all tensors of a graph, those in the bodies of its nodes among them."""
    names = {item.name for item in graph.initializer}
    names.update(value.name for value in (*graph.input, *graph.output))
    for node in graph.node:
        names.update(node.input, node.output)
        for body in bodies(node):
            names |= names_in(body)
    return names


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs inside a node: the branches of an If, the body of a Loop."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give tensors that are no outputs of the model other names, in place."""
    for item in graph.initializer:
        item.name = names.get(item.name, item.name)
    for value in (*graph.value_info, *graph.input):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for tensors in (node.input, node.output):
            for i, tensor in enumerate(tensors):
                tensors[i] = names.get(tensor, tensor)
        for body in bodies(node):
            _rename(body, names)


def _with_weights_inside(proto: onnx.ModelProto) -> None:
    """Lift a model of IR version 3, in place: there weights must be listed as inputs.

    Nobody could feed them, and ONNX Runtime takes them for the constants that they are from IR
    version 4 on, if they are not listed.
    """
    if proto.ir_version >= _WEIGHTS_INSIDE:
        return
    proto.ir_version = _WEIGHTS_INSIDE
    weights = {item.name for item in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
