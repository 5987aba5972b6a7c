"""Operators on shapes and places: reshape, slice, pad, reduce, resize."""

import math
from typing import Any

import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from reluguard.training.twin.onnx_torch.node import Node, Operator, ints, meet, table

__all__ = ["TENSORS", "tensor_of"]

TENSORS: dict[str, Operator] = {}


def tensor_of(proto: Any) -> Tensor:
    """Return an ONNX tensor as torch's: every float as float32, whole numbers as they are."""
    value = torch.from_numpy(numpy_helper.to_array(proto).copy())
    return value.float() if value.is_floating_point() else value


def _axes(node: Node, given: Tensor | None) -> list[int] | None:
    """Axes are an input in newer opsets, an attribute in older ones."""
    axes = ints(given)
    return list(node.attributes["axes"]) if axes is None and "axes" in node.attributes else axes


@table(TENSORS, "Constant")
def _constant(node: Node) -> Tensor:
    name, value = next(iter(node.attributes.items()))
    return tensor_of(value) if name == "value" else torch.as_tensor(value)


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
def _reshape(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    sizes = ints(shape) or []
    if not node.get("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


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
        # ONNX reads far negative ends as "before the first"; so does Python, but for one case.
        last = None if step < 0 and end < -x.shape[axis] else end
        if step > 0:
            places: list[slice] = [slice(None)] * x.ndim
            places[axis] = slice(start, last, step)
            x = x[tuple(places)]
        else:
            rows = range(x.shape[axis])[start:last:step]
            x = x.index_select(axis, torch.tensor(list(rows), device=x.device, dtype=torch.int64))
    return x


@table(TENSORS, "Gather")
def _gather(node: Node, x: Tensor, places: Tensor) -> Tensor:
    axis = node.get("axis", 0) % x.ndim
    rows = places.to(x.device, torch.int64)
    rows = torch.where(rows < 0, rows + x.shape[axis], rows)
    picked = x.index_select(axis, rows.reshape(-1))
    return picked.reshape(x.shape[:axis] + rows.shape + x.shape[axis + 1 :])


@table(TENSORS, "GatherElements")
def _gather_elements(node: Node, x: Tensor, places: Tensor) -> Tensor:
    axis = node.get("axis", 0)
    rows = places.to(x.device)
    return x.gather(axis, torch.where(rows < 0, rows + x.shape[axis], rows))


@table(TENSORS, "GatherND")
def _gather_nd(node: Node, x: Tensor, places: Tensor) -> Tensor:
    if node.get("batch_dims", 0):
        raise NotImplementedError("GatherND with batch_dims")
    rows = places.to(x.device, torch.int64)
    return x[tuple(rows.movedim(-1, 0))]


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
    flat = [side for pair in reversed(sides) for side in pair]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[
        node.get("mode", "constant")
    ]
    if mode == "constant":
        return F.pad(x, flat, value=fill)
    return F.pad(x, flat[: 2 * (x.ndim - 2)], mode=mode)


_REDUCE: dict[str, Any] = {
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}


@table(TENSORS, *_REDUCE)
def _reduce(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = _axes(node, axes)
    if not chosen and node.get("noop_with_empty_axes", 0):
        return x
    dims = tuple(chosen) if chosen else tuple(range(x.ndim))
    return torch.as_tensor(_REDUCE[node.op](x, dims, bool(node.get("keepdims", 1))))


@table(TENSORS, "ReduceProd")
def _reduce_prod(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    keep = bool(node.get("keepdims", 1))
    for axis in sorted(
        (axis % x.ndim for axis in _axes(node, axes) or range(x.ndim)), reverse=True
    ):
        x = x.prod(axis, keepdim=keep)
    return x


@table(TENSORS, "ArgMax", "ArgMin")
def _arg_extreme(node: Node, x: Tensor) -> Tensor:
    function = torch.argmax if node.op == "ArgMax" else torch.argmin
    return function(x, node.get("axis", 0), keepdim=bool(node.get("keepdims", 1)))


@table(TENSORS, "DepthToSpace")
def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, node.get("blocksize"))
    n, c, h, w = x.shape
    b = node.get("blocksize")
    y = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(n, c // b**2, h * b, w * b)


@table(TENSORS, "Resize", "Upsample")
def _resize(node: Node, x: Tensor, *rest: Tensor | None) -> Tensor:
    """Nearest by index and linear by torch; antialiasing, cropping and cubic are not here."""
    mode = node.get("mode", "nearest")
    where = node.get("coordinate_transformation_mode", "half_pixel")
    where = "asymmetric" if node.op == "Upsample" else where
    scales = rest[0] if node.op == "Upsample" else rest[1] if len(rest) > 1 else None
    sizes = ints(rest[2]) if len(rest) > 2 else None
    if sizes is None:
        factors = scales.tolist() if scales is not None else []
        sizes = [math.floor(a * b) for a, b in zip(x.shape, factors, strict=True)]
    if tuple(sizes) == tuple(x.shape):
        return x
    if mode == "linear" and where in {"half_pixel", "pytorch_half_pixel", "align_corners"}:
        how = {1: "linear", 2: "bilinear", 3: "trilinear"}[x.ndim - 2]
        return F.interpolate(x, sizes[2:], mode=how, align_corners=where == "align_corners")
    if mode != "nearest":
        raise NotImplementedError(f"{node.op} with mode {mode} and coordinates {where}")
    for axis in range(2, x.ndim):
        rows = _nearest(sizes[axis], x.shape[axis], where, node.get("nearest_mode"))
        x = x.index_select(axis, rows.to(x.device))
    return x


def _nearest(new: int, old: int, where: str, rounding: str | None) -> Tensor:
    place = torch.arange(new, dtype=torch.float64)
    match where:
        case "asymmetric":
            place = place * old / new
        case "align_corners":
            place = place * (old - 1) / max(new - 1, 1)
        case _:
            place = (place + 0.5) * old / new - 0.5
    match rounding or ("floor" if where == "asymmetric" else "round_prefer_floor"):
        case "floor":
            rows = place.floor()
        case "ceil":
            rows = place.ceil()
        case "round_prefer_ceil":
            rows = (place + 0.5).floor()
        case _:
            rows = (place - 0.5).ceil()
    return rows.long().clamp(0, old - 1)
