"""A whole ONNX graph as a torch module, node after node."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from reluguard.training.errors import TwinError
from reluguard.training.twin.onnx_torch.control import CONTROL
from reluguard.training.twin.onnx_torch.fused import FUSED
from reluguard.training.twin.onnx_torch.joined import with_pads_joined
from reluguard.training.twin.onnx_torch.layers import LAYERS
from reluguard.training.twin.onnx_torch.node import Node, Operator, tensor_of
from reluguard.training.twin.onnx_torch.norms import NORMS
from reluguard.training.twin.onnx_torch.places import PLACES
from reluguard.training.twin.onnx_torch.pointwise import POINTWISE
from reluguard.training.twin.onnx_torch.quantised import QUANTISED
from reluguard.training.twin.onnx_torch.reader import WAY_OUT, Reading
from reluguard.training.twin.onnx_torch.resize import RESIZE
from reluguard.training.twin.onnx_torch.tensors import TENSORS

__all__ = ["OnnxModule", "supported_operators"]

_OPERATORS: Mapping[str, Operator] = {
    **POINTWISE,
    **LAYERS,
    **NORMS,
    **TENSORS,
    **PLACES,
    **RESIZE,
    **QUANTISED,
    **FUSED,
    **CONTROL,
}
_FAILURES = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
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
        reading = Reading(model, lambda reading, graph: _Body(reading, graph, self._operators))
        graph = reading.model.graph
        nodes = reading.nodes(graph, [output])
        _check(nodes, self._operators)
        self._host: dict[str, Tensor] = {}
        self._weights: dict[str, str] = {}
        wanted = {name for node in nodes for name in node.inputs}
        for item in graph.initializer:
            if item.name in wanted:
                self._keep(item.name, _tensor(item))
        inputs = [v.name for v in graph.input if v.name in wanted and not self._has(v.name)]
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
        known = functools.partial(self._value, values={})
        self._nodes = with_pads_joined(self._nodes, known, [output])
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
        return self._buffers[self._weights[name]] if name in self._weights else None

    def _run(self, node: Node, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        inputs = [self._value(name, values) for name in node.inputs]
        return _results(self._operators[node.op], node, inputs)


class _Body:
    """The graph of a branch or of one turn of a loop, as `control` calls it."""

    def __init__(
        self, reading: Reading, graph: onnx.GraphProto, operators: Mapping[str, Operator]
    ) -> None:
        self._inputs = [value.name for value in graph.input]
        self._outputs = [value.name for value in graph.output]
        self._nodes = reading.nodes(graph, self._outputs)
        self._constants = {item.name: _tensor(item) for item in graph.initializer}
        self._operators = operators

    def __call__(
        self, around: Mapping[str, Tensor], given: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        own = dict(zip(self._inputs, given, strict=True))
        values: dict[str, Any] = {**around, **self._constants, **own, "": None}
        _check(self._nodes, self._operators)  # of a branch that is never taken nothing is asked
        for node in self._nodes:
            inputs = [values[name] for name in node.inputs]
            values |= _results(self._operators[node.op], node, inputs)
        return tuple(values[name] for name in self._outputs)


def _results(operator: Operator, node: Node, inputs: Sequence[Tensor | None]) -> dict[str, Tensor]:
    try:
        result = operator(node, *inputs)
    except _FAILURES as error:
        raise TwinError(
            f"operator {node.op} (node {node.name!r}) can't run in torch: {error}; {WAY_OUT}"
        ) from error
    results = result if isinstance(result, tuple) else (result,)
    return {name: v for name, v in zip(node.outputs, results, strict=False) if name}


def _tensor(item: onnx.TensorProto) -> Tensor:
    try:
        return tensor_of(item)
    except _FAILURES as error:
        raise TwinError(f"the weights {item.name!r} can't be held in torch: {error}") from error


def _weight_layout(value: Tensor) -> Tensor:
    # Channels-last kernels are 1.6 times as fast on CPU, there and back (ResNet-20, batch 64).
    is_kernel = value.ndim == 4 and math.prod(value.shape[1:]) > 1
    return value.contiguous(memory_format=torch.channels_last) if is_kernel else value.contiguous()


def _check(nodes: list[Node], known: Mapping[str, Operator]) -> None:
    missing = sorted({node.op for node in nodes} - set(known))
    if missing:
        raise TwinError(f"no torch counterpart of operator {', '.join(missing)}; {WAY_OUT}")
