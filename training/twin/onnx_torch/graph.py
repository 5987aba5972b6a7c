"""A whole ONNX graph as a torch module, node after node."""

import math
from collections.abc import Mapping
from typing import Any

import onnx
import onnx.inliner
import torch
from onnx import helper
from torch import Tensor, nn

from reluguard.training.errors import TwinError
from reluguard.training.twin.onnx_torch.layers import LAYERS
from reluguard.training.twin.onnx_torch.node import Node, Operator
from reluguard.training.twin.onnx_torch.pointwise import POINTWISE
from reluguard.training.twin.onnx_torch.tensors import TENSORS, tensor_of

__all__ = ["OnnxModule", "supported_operators"]

_OPERATORS: Mapping[str, Operator] = {**POINTWISE, **LAYERS, **TENSORS}
_DOMAINS = {"", "ai.onnx", "com.microsoft", "pkg.onnxscript.torch_lib"}
_WAY_OUT = (
    "lend the model's own code with a twin of module:function, or use attacks without gradients"
)


def supported_operators() -> frozenset[str]:
    """Return the names of the ONNX operators a twin can be made of."""
    return frozenset(_OPERATORS)


class OnnxModule(nn.Module):
    """An ONNX graph in torch, differentiable in its input: `module(tensor) -> output`.

    Weights are float32 buffers without gradient. Whatever does not depend on the input is computed
    once, here. Whole-number tensors (shapes, indices) stay on the host.

    Args:
        model: with its weights inside.
        output: the tensor to return, an output or any inner one.
        operators: by name, used instead of or beside those of this package.

    Raises:
        TwinError: an operator has no torch counterpart here, or the tensor is not in the graph.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        output: str,
        *,
        operators: Mapping[str, Operator] | None = None,
    ) -> None:
        super().__init__()
        self._operators = {**_OPERATORS, **(operators or {})}
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        opset = next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), 1)
        nodes = _needed([_read(node, opset) for node in model.graph.node], output)
        _check(nodes, self._operators)
        self._host: dict[str, Tensor] = {}
        self._weights: dict[str, str] = {}
        wanted = {name for node in nodes for name in node.inputs}
        for item in model.graph.initializer:
            if item.name in wanted:
                self._keep(item.name, tensor_of(item))
        inputs = [v.name for v in model.graph.input if v.name in wanted and not self._has(v.name)]
        if len(inputs) != 1:
            raise TwinError(f"expected {output!r} to depend on one input, got {inputs or 'none'}")
        self._input, self._output = inputs[0], output
        self._nodes: list[Node] = []
        with torch.no_grad():
            for node in nodes:
                if all(not name or self._has(name) for name in node.inputs):
                    for name, value in self._run(node, {}).items():
                        self._keep(name, value)
                else:
                    self._nodes.append(node)
        self._last = {name: i for i, node in enumerate(self._nodes) for name in node.inputs}

    def forward(self, tensor: Tensor) -> Tensor:
        """Return the output for the model's own input tensor, as float32 of any range."""
        values = {self._input: tensor}
        for i, node in enumerate(self._nodes):
            values |= self._run(node, values)
            for name in node.inputs:
                if self._last[name] == i and name != self._output:
                    values.pop(name, None)
        return values[self._output]

    def _has(self, name: str) -> bool:
        return name in self._host or name in self._weights

    def _keep(self, name: str, value: Tensor) -> None:
        if not value.is_floating_point() or value.numel() == 0:
            self._host[name] = value
            return
        self._weights[name] = f"tensor_{len(self._weights)}"
        self.register_buffer(self._weights[name], _weight_layout(value))

    def _value(self, name: str, values: Mapping[str, Tensor]) -> Tensor | None:
        if not name:
            return None
        if name in values:
            return values[name]
        if name in self._host:
            return self._host[name]
        return self.get_buffer(self._weights[name])

    def _run(self, node: Node, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        inputs = [self._value(name, values) for name in node.inputs]
        try:
            result = self._operators[node.op](node, *inputs)
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
            raise TwinError(
                f"operator {node.op} (node {node.name!r}) can't run in torch: {error}; {_WAY_OUT}"
            ) from error
        results = result if isinstance(result, tuple) else (result,)
        return {name: v for name, v in zip(node.outputs, results, strict=False) if name}


def _weight_layout(value: Tensor) -> Tensor:
    # Channels-last kernels are 1.6 times as fast on CPU, there and back (ResNet-20, batch 64).
    is_kernel = value.ndim == 4 and math.prod(value.shape[1:]) > 1
    return value.contiguous(memory_format=torch.channels_last) if is_kernel else value.contiguous()


def _read(node: onnx.NodeProto, opset: int) -> Node:
    known = node.domain in _DOMAINS
    return Node(
        op=node.op_type if known else f"{node.domain}.{node.op_type}",
        name=node.name,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attributes={a.name: _plain(helper.get_attribute_value(a)) for a in node.attribute},
        opset=opset,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _needed(nodes: list[Node], output: str) -> list[Node]:
    """Return the nodes the output depends on, in the file's order, which ONNX keeps sorted."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if wanted & set(node.outputs):
            wanted |= set(node.inputs)
            kept.append(node)
    return kept[::-1]


def _check(nodes: list[Node], known: Mapping[str, Operator]) -> None:
    missing = sorted({node.op for node in nodes} - set(known))
    if missing:
        raise TwinError(f"no torch counterpart of operator {', '.join(missing)}; {_WAY_OUT}")
