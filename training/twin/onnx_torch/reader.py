"""From an ONNX graph to the nodes a result depends on, in an order that can be run."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import onnx
import onnx.inliner
from onnx import AttributeProto, helper, shape_inference

from reluguard.training.errors import TwinError
from reluguard.training.twin.onnx_torch.node import Node

__all__ = ["WAY_OUT", "Reading", "free_names", "needed"]

WAY_OUT = (
    "lend the model's own code with a twin of module:function, or use attacks without gradients"
)
_DOMAINS = {"", "ai.onnx", "com.microsoft", "pkg.onnxscript.torch_lib"}
_OF_ONE_MACHINE = {"com.microsoft.nchwc", "com.ms.internal.nhwc"}
_TYPED = {"CastLike", "Div", "Pow", "QuantizeLinear"}  # what they do hangs on the type


class Reading:
    """What the nodes of one file have in common: its opset, its types, and how bodies are read.

    Args:
        model: with its weights inside.
        body: makes something that can be called of the graph of a branch or a loop.
    """

    def __init__(
        self, model: onnx.ModelProto, body: Callable[["Reading", onnx.GraphProto], Any]
    ) -> None:
        self.model = onnx.inliner.inline_local_functions(model) if model.functions else model
        opsets = self.model.opset_import
        self._opset = next((o.version for o in opsets if o.domain in {"", "ai.onnx"}), 1)
        self._kinds = _kinds(self.model)
        self._body = body

    def nodes(self, graph: onnx.GraphProto, outputs: Iterable[str]) -> list[Node]:
        """Return the nodes that these outputs of the graph depend on, sorted."""
        return needed([self._node(node) for node in graph.node], outputs)

    def _node(self, node: onnx.NodeProto) -> Node:
        if node.domain in _OF_ONE_MACHINE:
            raise TwinError(
                f"the file was optimised by ONNX Runtime for one kind of machine (it holds "
                f"{node.domain}.{node.op_type}): give the file from before, or {WAY_OUT}"
            )
        bodies = [a.g for a in node.attribute if a.type == AttributeProto.GRAPH]
        around = dict.fromkeys(name for graph in bodies for name in free_names(graph))
        attributes = {a.name: self._plain(helper.get_attribute_value(a)) for a in node.attribute}
        if bodies:
            attributes["inputs_of_body"] = len(bodies[0].input)
        known = node.domain in _DOMAINS
        return Node(
            op=node.op_type if known else f"{node.domain}.{node.op_type}",
            name=node.name,
            inputs=(*node.input, *(name for name in around if name not in node.input)),
            outputs=tuple(node.output),
            attributes=attributes,
            opset=self._opset,
            kind=self._kinds.get(node.output[0], 0) if node.output else 0,
        )

    def _plain(self, value: Any) -> Any:
        if isinstance(value, bytes):
            return value.decode(errors="replace")
        if isinstance(value, onnx.GraphProto):
            return self._body(self, value)
        if isinstance(value, onnx.TensorProto):  # a part of a message keeps the whole in memory
            return onnx.TensorProto.FromString(value.SerializeToString())
        return [self._plain(item) for item in value] if isinstance(value, list) else value


def needed(nodes: list[Node], outputs: Iterable[str]) -> list[Node]:
    """Return the nodes that the outputs depend on, each behind what it reads.

    Converters don't all keep a file sorted, and ONNX Runtime doesn't mind.
    """
    makers = {name: i for i, node in enumerate(nodes) for name in node.outputs if name}
    order: dict[int, None] = {}
    waiting = [(makers[name], False) for name in reversed(list(outputs)) if name in makers]
    entered = set()
    while waiting:
        i, is_ready = waiting.pop()
        if is_ready:
            order[i] = None
        elif i not in entered:
            entered.add(i)
            waiting.append((i, True))
            waiting.extend((makers[n], False) for n in reversed(nodes[i].inputs) if n in makers)
    return [nodes[i] for i in order]


def free_names(graph: onnx.GraphProto) -> list[str]:
    """Return the tensors a body reads from around it, in order."""
    made = {value.name for value in graph.input} | {item.name for item in graph.initializer}
    made |= {name for node in graph.node for name in node.output}
    read = [name for node in graph.node for name in node.input]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                read += free_names(attribute.g)
    read += [value.name for value in graph.output]
    return [name for name in dict.fromkeys(read) if name and name not in made]


def _kinds(model: onnx.ModelProto) -> Mapping[str, int]:
    """Return the ONNX type of each tensor, as far as it can be inferred."""
    if not any(node.op_type in _TYPED for node in model.graph.node):
        return {}
    graph = model.graph
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    bare.graph.name = "types"
    bare.graph.node.extend(graph.node)
    bare.graph.output.extend(graph.output)
    listed = {value.name for value in graph.input}
    bare.graph.input.extend(graph.input)
    bare.graph.input.extend(
        helper.make_tensor_value_info(item.name, item.data_type, list(item.dims))
        for item in graph.initializer
        if item.name not in listed
    )
    try:
        typed = shape_inference.infer_shapes(bare).graph
    except (shape_inference.InferenceError, ValueError, RuntimeError):
        return {}
    known = (*typed.value_info, *typed.output)
    return {value.name: value.type.tensor_type.elem_type for value in known}
