"""What in a graph is the same for every input: initializers and what is worked out from them."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from reluguard.detector.errors import ModelError
from reluguard.detector.session import open_session, run_session

__all__ = ["Values"]

_MOST = 4096  # numbers in all that are computed with, to learn a value: no weights
_DRAWN = {"RandomNormal", "RandomUniform", "Multinomial", "Bernoulli"}


class Values:
    """The fixed tensors of a graph by name. Lazy: each is worked out when it is asked for.

    A name is `in` it whether or not its value can be worked out.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._opsets = model.opset_import
        self._tensors = {item.name: item for item in model.graph.initializer}
        self._makers: dict[str, onnx.NodeProto] = {}
        self._known: dict[str, NDArray[Any] | None] = {}
        self._fills: dict[str, onnx.NodeProto] = {}
        self._order: dict[str, int] = {}
        for place, node in enumerate(model.graph.node):
            self._order.update(dict.fromkeys(node.output, place))
            if node.op_type in {"ConstantOfShape", "Expand"} and node.output:
                self._fills[node.output[0]] = node
            if node.op_type == "Constant":
                tensor = _constant(node)
                if tensor is not None:
                    self._tensors[node.output[0]] = tensor
            elif (
                all(name in self for name in node.input if name)
                and node.op_type not in _DRAWN
                and not any(attribute.HasField("g") for attribute in node.attribute)
            ):
                self._makers.update(dict.fromkeys(node.output, node))

    def __contains__(self, name: str) -> bool:
        return name in self._tensors or name in self._makers or self._fill(name) is not None

    def get(self, name: str) -> NDArray[Any] | None:
        """Return a tensor, None if it is not fixed or is too large to be anything but weights."""
        if name not in self._known:
            self._known[name] = self._work_out(name)
        return self._known[name]

    def uniform(self, name: str) -> NDArray[Any] | None:
        """Return the one value of a tensor that has one value everywhere, of no axes."""
        filled = self._fill(name)
        if filled is not None:
            return filled
        shape = self.shape(name) if name in self._tensors else ()
        large = shape is not None and int(np.prod(shape, dtype=np.int64)) > _MOST
        value = None if large else self.get(name)
        if value is None or value.size == 0 or value.dtype.kind not in "fiub":
            return None
        first = value.reshape(-1)[:1].reshape(())
        return first if (value == first).all() else None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of an initializer or of what copies or restores one."""
        if name in self._tensors:
            return tuple(self._tensors[name].dims)
        node = self._makers.get(name)
        if node is None:
            return None
        if node.op_type in {"Identity", "Cast", "DequantizeLinear", "QuantizeLinear"}:
            return self.shape(node.input[0])
        if node.op_type == "Transpose":
            shape = self.shape(node.input[0])
            order = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
            if shape is None:
                return None
            return tuple(shape[axis] for axis in order) if order else shape[::-1]
        value = self.get(name)
        return None if value is None else value.shape

    def _fill(self, name: str) -> NDArray[Any] | None:
        """Return the value that a tensor is filled with, whatever its shape depends on."""
        node = self._fills.get(name)
        if node is None:
            return None
        if node.op_type == "Expand":
            return self.uniform(node.input[0]) if node.input[0] in self else None
        for attribute in node.attribute:
            if attribute.name == "value":
                return np.asarray(numpy_helper.to_array(attribute.t)).reshape(())
        return np.asarray(np.float32(0))

    def _work_out(self, name: str) -> NDArray[Any] | None:
        if name in self._tensors:
            return numpy_helper.to_array(self._tensors[name])
        nodes: dict[int, onnx.NodeProto] = {}
        tensors: dict[str, onnx.TensorProto] = {}
        left, count = [name], 0
        while left:
            wanted = left.pop()
            if wanted in self._tensors:
                tensors[wanted] = self._tensors[wanted]
                count += int(np.prod(tensors[wanted].dims, dtype=np.int64))
            elif wanted in self._makers:
                node = self._makers[wanted]
                if self._order[wanted] not in nodes:
                    nodes[self._order[wanted]] = node
                    left += [name for name in node.input if name]
            else:
                return None
            if count > _MOST:
                return None
        graph = onnx.GraphProto(name="fixed")
        graph.node.extend(nodes[place] for place in sorted(nodes))
        for known, tensor in tensors.items():  # those of Constant nodes have no name of their own
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = known
        graph.output.append(onnx.ValueInfoProto(name=name))
        model = helper.make_model(graph, opset_imports=self._opsets, ir_version=10)
        try:
            return run_session(open_session(model, threads=1, optimise=False), {}, [name])[0]
        except ModelError:
            return None


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return what a Constant node holds, None if it is sparse or text."""
    for attribute in node.attribute:
        match attribute.name:
            case "value":
                return attribute.t
            case "value_float" | "value_floats":
                found = np.array(helper.get_attribute_value(attribute), np.float32)
            case "value_int" | "value_ints":
                found = np.array(helper.get_attribute_value(attribute), np.int64)
            case _:
                return None
        return numpy_helper.from_array(found)
    return None
