"""Operators on shapes: constants, reshape, slice, join, pad."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from reluguard.training.twin.onnx_torch.node import Node, Operator, ints, meet, table, tensor_of

__all__ = ["TENSORS"]

TENSORS: dict[str, Operator] = {}


def _axes(node: Node, given: Tensor | None) -> list[int] | None:
    """Axes are an input in newer opsets, an attribute in older ones."""
    axes = ints(given)
    return list(node.attributes["axes"]) if axes is None and "axes" in node.attributes else axes


@table(TENSORS, "Constant")
def _constant(node: Node) -> Tensor:
    name, value = next(iter(node.attributes.items()))
    if name == "value":
        return tensor_of(value)
    if name not in {"value_float", "value_floats", "value_int", "value_ints"}:
        raise NotImplementedError(f"Constant with {name}")
    return torch.as_tensor(value)


@table(TENSORS, "ConstantOfShape")
def _constant_of_shape(node: Node, shape: Tensor) -> Tensor:
    value = tensor_of(node.attributes["value"]) if "value" in node.attributes else torch.zeros(1)
    return value.reshape(()).expand(ints(shape) or []).clone()


@table(TENSORS, "Shape")
def _shape(node: Node, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[node.get("start", 0) : node.get("end")], dtype=torch.int64)


@table(TENSORS, "Size")
def _size(_node: Node, x: Tensor) -> Tensor:
    return torch.tensor(x.numel())


@table(TENSORS, "Range")
def _range(_node: Node, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


@table(TENSORS, "Reshape")
def _reshape(node: Node, x: Tensor, shape: Tensor | None = None) -> Tensor:
    sizes = ints(shape) if shape is not None else node.get("shape")  # an attribute before opset 5
    if not node.get("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes or [])]
    return x.reshape(sizes or [])


@table(TENSORS, "Flatten")
def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    rows = math.prod(x.shape[: axis if axis >= 0 else axis + x.ndim])
    return x.reshape(rows, -1)


@table(TENSORS, "Squeeze")
def _squeeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = _axes(node, axes)
    return x.squeeze() if chosen is None else x.squeeze(chosen)


@table(TENSORS, "Unsqueeze")
def _unsqueeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = _axes(node, axes) or []
    rank = x.ndim + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@table(TENSORS, "Transpose")
def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.get("perm", list(reversed(range(x.ndim)))))


@table(TENSORS, "Concat")
def _concat(node: Node, *values: Tensor) -> Tensor:
    return torch.cat(meet(*values), node.get("axis"))


@table(TENSORS, "Split")
def _split(node: Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = node.get("axis", 0)
    chosen = ints(sizes) or node.get("split")
    if chosen is None:
        chosen = math.ceil(x.shape[axis] / len(node.outputs))
    return tuple(torch.split(x, chosen, axis))


@table(TENSORS, "Slice")
def _slice(node: Node, x: Tensor, *bounds: Tensor | None) -> Tensor:
    given = [ints(bound) for bound in bounds] + [None] * (4 - len(bounds))
    starts, ends, axes, steps = given
    starts = starts if starts is not None else node.get("starts")
    ends = ends if ends is not None else node.get("ends")
    axes = axes if axes is not None else node.get("axes", list(range(len(starts or []))))
    steps = steps if steps is not None else [1] * len(starts or [])
    for axis, start, end, step in zip(axes or [], starts or [], ends or [], steps, strict=True):
        if step > 0:
            places: list[slice] = [slice(None)] * x.ndim
            size = x.shape[axis]  # torch warns of the huge ends that exporters write for "all"
            first, behind = (max(-size, min(place, size)) for place in (start, end))
            places[axis] = slice(first, behind, step)
            x = x[tuple(places)]
        else:
            # ONNX reads far negative ends as "before the first"; so does Python, but for one case.
            last = None if end < -x.shape[axis] else end
            rows = range(x.shape[axis])[start:last:step]
            x = x.index_select(axis, torch.tensor(list(rows), device=x.device, dtype=torch.int64))
    return x


@table(TENSORS, "Expand")
def _expand(_node: Node, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(ints(shape) or [])))


@table(TENSORS, "Tile")
def _tile(_node: Node, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(ints(repeats) or [])


@table(TENSORS, "Pad")
def _pad(
    node: Node,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    sizes = ints(pads) or list(node.get("pads", []))
    chosen = ints(axes) or list(range(x.ndim))
    fill = float(node.get("value", 0.0) if value is None else value.item())
    sides = [(0, 0)] * x.ndim
    for i, axis in enumerate(chosen):
        sides[axis] = (sizes[i], sizes[i + len(chosen)])
    mode = node.get("mode", "constant")
    if mode == "constant":
        return F.pad(x, [side for pair in reversed(sides) for side in pair], value=fill)
    for axis, pair in enumerate(sides):
        if any(pair):
            rows = np.pad(np.arange(x.shape[axis]), [max(0, side) for side in pair], mode)
            rows = rows[max(0, -pair[0]) : len(rows) - max(0, -pair[1])]
            x = x.index_select(axis, torch.from_numpy(rows).to(x.device))
    return x
