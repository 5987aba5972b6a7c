"""Which axis of a tensor holds the channels, from the layers before it and behind it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx

from reluguard.detector.taps.values import Values

__all__ = ["Channels"]

_CONVOLUTIONS = {
    "Conv",
    "ConvTranspose",
    "FusedConv",
    "NhwcFusedConv",
    "QLinearConv",
    "ConvInteger",
}
_NORMS = {"BatchNormalization", "InstanceNormalization", "GroupNormalization"}
_DENSE = {"MatMul", "Gemm", "FusedGemm", "FusedMatMul", "QLinearMatMul", "QGemm", "MatMulInteger"}
_LAST_NORMS = {
    "LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization",
    "SkipSimplifiedLayerNormalization", "RMSNormalization",
}  # fmt: skip
_RESHAPES = {"Reshape", "Flatten"}
# after these a tensor has other axes
_BREAKS = {"Squeeze", "Unsqueeze", "Gather", "Einsum", "Shape", "Size", "ArgMax", "TopK"}
# as many channels go in as come out of all but these
_RECOUNT = {"Concat", "Slice", "Split", "Pad", "Tile", "DepthToSpace", "SpaceToDepth"}
# the weights of a layer, by its operator; the second input of all others
_WEIGHTS = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}


@dataclass(frozen=True, slots=True)
class _Axis:
    """An axis counted from the front, batch included, or from the end if below zero; its size."""

    axis: int
    size: int | None = None


class Channels:
    """The channel axes of a graph's tensors, as its layers have them."""

    def __init__(self, model: onnx.ModelProto, values: Values | None = None) -> None:
        self._values = values or Values(model)
        self._nodes = list(model.graph.node)
        self._before = self._spread(self._nodes, self._after_layer, forwards=True)
        self._behind = self._spread(reversed(self._nodes), self._before_layer, forwards=False)

    def axis(self, name: str, shape: tuple[int, ...]) -> int:
        """Return the axis of a tensor's channels among those after the batch.

        Args:
            name: the tensor.
            shape: its sizes, without the batch.
        """
        rank = len(shape)
        if rank == 1:
            return 0
        for found in (self._before.get(name), self._behind.get(name)):
            if found is None:
                continue
            axis = found.axis - 1 if found.axis > 0 else rank + found.axis
            if 0 <= axis < rank and found.size in {None, shape[axis]}:
                return axis
        return rank - 1 if rank == 2 else 0

    def _spread(
        self,
        nodes: Iterable[onnx.NodeProto],
        layer: Callable[[onnx.NodeProto], _Axis | None],
        *,
        forwards: bool,
    ) -> dict[str, _Axis]:
        """Return the axis per tensor: what the nearest layer says, carried on to the others."""
        known: dict[str, _Axis] = {}
        for node in nodes:
            start, end = (node.input, node.output) if forwards else (node.output, node.input)
            found = layer(node)
            if found is not None:
                targets = end if forwards else node.input[:1]
            else:
                carried = next((known[name] for name in start if name in known), None)
                found = None if carried is None else _carry(node, carried, forwards=forwards)
                targets = [name for name in end if name not in self._values]
            if found is not None:
                for name in targets:
                    known.setdefault(name, found)
        return known

    def _weights(self, node: onnx.NodeProto) -> tuple[int, ...] | None:
        if node.op_type == "NhwcFusedConv":
            return None
        position = _WEIGHTS.get(node.op_type, 1)
        name = node.input[position] if len(node.input) > position else ""
        return self._values.shape(name)

    def _after_layer(self, node: onnx.NodeProto) -> _Axis | None:
        """Return where a layer puts its channels, None if the node is no such layer."""
        found = _by_kind(node)
        if found is None:
            return None
        shape, attributes = self._weights(node), _attributes(node)
        if node.op_type in _CONVOLUTIONS and shape is not None:
            turned = node.op_type == "ConvTranspose"
            found = _Axis(1, shape[1] * attributes.get("group", 1) if turned else shape[0])
        elif node.op_type in _DENSE:
            first = self._values.shape(node.input[0])
            if shape is None and first is not None and len(first) == 2:
                return _Axis(-2, first[0])  # weights from the left
            if shape is not None and len(shape) == 2:
                found = _Axis(-1, shape[0] if attributes.get("transB", 0) else shape[1])
        return found

    def _before_layer(self, node: onnx.NodeProto) -> _Axis | None:
        """Return where a layer expects its channels, None if the node is no such layer."""
        if node.op_type in {"GlobalAveragePool", "GlobalMaxPool"}:
            return _Axis(1)
        found, shape = _by_kind(node), self._weights(node)
        if found is None or shape is None:
            return found if node.op_type not in _DENSE else None
        attributes = _attributes(node)
        if node.op_type in _CONVOLUTIONS:
            turned = node.op_type == "ConvTranspose"
            return _Axis(1, shape[0] if turned else shape[1] * attributes.get("group", 1))
        if node.op_type in _DENSE:
            known = len(shape) == 2
            return _Axis(-1, shape[attributes.get("transB", 0)]) if known else None
        return found


def _by_kind(node: onnx.NodeProto) -> _Axis | None:
    if node.op_type in _CONVOLUTIONS | _NORMS:
        return _Axis(1)
    return _Axis(-1) if node.op_type in _DENSE | _LAST_NORMS else None


def _attributes(node: onnx.NodeProto) -> Mapping[str, Any]:
    wanted = ("group", "transB", "perm")
    return {
        item.name: onnx.helper.get_attribute_value(item)
        for item in node.attribute
        if item.name in wanted
    }


def _carry(node: onnx.NodeProto, found: _Axis, *, forwards: bool) -> _Axis | None:
    if node.op_type == "Transpose":
        order = _attributes(node).get("perm")
        if order is None:
            return None
        axis = found.axis % len(order)
        moved = order.index(axis) if forwards else order[axis]
        if moved == 0:
            return None
        return replace(found, axis=-1 if moved == len(order) - 1 else moved)
    if node.op_type in _RESHAPES:
        # the first and the last axis may stay what they are; at the end their size proves it
        return found if found.size is not None and found.axis in {1, -1} else None
    if node.op_type in _BREAKS or node.op_type.startswith("Reduce"):
        return None
    return _Axis(found.axis) if node.op_type in _RECOUNT else found
