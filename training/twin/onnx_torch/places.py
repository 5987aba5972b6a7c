"""Operators that pick, place and order values: gather, scatter, top, sum along."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from reluguard.training.twin.onnx_torch.node import Node, Operator, ints, meet, straight, table

__all__ = ["PLACES"]

PLACES: dict[str, Operator] = {}


def _rows(places: Tensor, size: int, x: Tensor) -> Tensor:
    """Return places counted from the front, on the tensor's device."""
    rows = places.to(x.device, torch.int64)
    return torch.where(rows < 0, rows + size, rows)


@table(PLACES, "Gather")
def _gather(node: Node, x: Tensor, places: Tensor) -> Tensor:
    axis = node.get("axis", 0) % x.ndim
    rows = _rows(places, x.shape[axis], x)
    picked = x.index_select(axis, rows.reshape(-1))
    picked = picked.reshape(x.shape[:axis] + rows.shape + x.shape[axis + 1 :])
    if x.ndim == 1 and places.requires_grad:
        return straight(picked, _looked_up(x, places, rows))
    return picked


def _looked_up(values: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    """Return what a table looked up by pixels has for a slope: that of an eighth to either side.

    Between next neighbours a table of few levels has none almost everywhere.
    """
    last, reach = len(values) - 1, max(1, len(values) // 8)
    above, below = (rows + reach).clamp(max=last), (rows - reach).clamp(min=0)
    slope = (values[above] - values[below]) / (above - below).clamp(min=1)
    return slope.detach() * places


@table(PLACES, "GatherElements")
def _gather_elements(node: Node, x: Tensor, places: Tensor) -> Tensor:
    axis = node.get("axis", 0)
    return x.gather(axis, _rows(places, x.shape[axis], x))


@table(PLACES, "GatherND")
def _gather_nd(node: Node, x: Tensor, places: Tensor) -> Tensor:
    batch = node.get("batch_dims", 0)
    rows = places.to(x.device, torch.int64)
    if not batch:
        return x[tuple(rows.movedim(-1, 0))]
    lead = x.shape[:batch]
    flat, where = x.reshape(-1, *x.shape[batch:]), rows.reshape(-1, *rows.shape[batch:])
    parts = [one[tuple(at.movedim(-1, 0))] for one, at in zip(flat, where, strict=True)]
    return torch.stack(parts).reshape(*lead, *parts[0].shape)


_REDUCED = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@table(PLACES, "ScatterElements", "Scatter")
def _scatter_elements(node: Node, x: Tensor, places: Tensor, updates: Tensor) -> Tensor:
    axis, how = node.get("axis", 0), node.get("reduction", "none")
    x, updates = meet(x, updates)
    rows = _rows(places, x.shape[axis], x)
    if how == "none":
        return x.scatter(axis, rows, updates)
    return x.scatter_reduce(axis, rows, updates, _REDUCED[how], include_self=True)


@table(PLACES, "ScatterND")
def _scatter_nd(node: Node, x: Tensor, places: Tensor, updates: Tensor) -> Tensor:
    x, updates = meet(x, updates)
    how, depth = node.get("reduction", "none"), places.shape[-1]
    rows = places.to(x.device, torch.int64).movedim(-1, 0)
    at = tuple(_rows(row, x.shape[i], x) for i, row in enumerate(rows))
    if how in {"none", "add"}:
        return x.index_put(at, updates, accumulate=how == "add")
    # one flat place for each of the leading axes, the rest side by side
    strides = [math.prod(x.shape[i + 1 : depth]) for i in range(depth)]
    flat = torch.stack([row * step for row, step in zip(at, strides, strict=True)]).sum(0)
    tail = math.prod(x.shape[depth:])
    wide = flat.reshape(-1, 1).expand(-1, tail)
    table_of = x.reshape(-1, tail)
    placed = table_of.scatter_reduce(0, wide, updates.reshape(-1, tail), _REDUCED[how])
    return placed.reshape(x.shape)


@table(PLACES, "TopK")
def _top(node: Node, x: Tensor, count: Tensor | None = None) -> tuple[Tensor, Tensor]:
    k = node.get("k") if count is None else int(count)
    axis, largest = node.get("axis", -1), bool(node.get("largest", 1))
    order = x.argsort(dim=axis, descending=largest, stable=True).narrow(axis, 0, k)
    return x.gather(axis, order), order


@table(PLACES, "ArgMax", "ArgMin")
def _arg_extreme(node: Node, x: Tensor) -> Tensor:
    axis, keep = node.get("axis", 0), bool(node.get("keepdims", 1))
    function = torch.argmax if node.op == "ArgMax" else torch.argmin
    if not node.get("select_last_index", 0):
        return function(x, axis, keepdim=keep)
    from_behind = function(x.flip(axis), axis, keepdim=keep)
    return torch.sub(x.shape[axis] - 1, from_behind)


@table(PLACES, "OneHot")
def _one_hot(node: Node, places: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    count, axis = int(depth), node.get("axis", -1)
    rows = places.to(values.device, torch.int64)
    rows = torch.where(rows < 0, rows + count, rows)
    behind = rows.ndim - axis % (rows.ndim + 1)
    known = torch.arange(count, device=values.device).reshape(-1, *[1] * behind)
    return torch.where(rows.unsqueeze(axis) == known, values[1], values[0])


@table(PLACES, "CumSum")
def _cumulated(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    along, back = int(axis), bool(node.get("reverse", 0))
    x = x.flip(along) if back else x
    total = torch.cumsum(x, along, dtype=x.dtype)
    if node.get("exclusive", 0):
        total = total - x
    return total.flip(along) if back else total


@table(PLACES, "Trilu")
def _triangle(node: Node, x: Tensor, k: Tensor | None = None) -> Tensor:
    offset = 0 if k is None else int(k)
    return torch.triu(x, offset) if node.get("upper", 1) else torch.tril(x, offset)


@table(PLACES, "NonZero")
def _non_zero(_node: Node, x: Tensor) -> Tensor:
    return x.nonzero().T.contiguous()


@table(PLACES, "Compress")
def _compress(node: Node, x: Tensor, condition: Tensor) -> Tensor:
    rows = condition.to(x.device).bool().nonzero().reshape(-1)
    axis = node.get("axis")
    return x.reshape(-1)[rows] if axis is None else x.index_select(axis, rows)


@table(PLACES, "EyeLike")
def _eye(node: Node, x: Tensor) -> Tensor:
    ones = torch.ones(max(x.shape), device=x.device)
    return torch.diag(ones, node.get("k", 0))[: x.shape[0], : x.shape[1]].contiguous()


_REDUCE: dict[str, Any] = {
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}


def _axes(node: Node, given: Tensor | None) -> list[int] | None:
    axes = ints(given)
    return list(node.attributes["axes"]) if axes is None and "axes" in node.attributes else axes


@table(PLACES, *_REDUCE)
def _reduce(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = _axes(node, axes)
    if not chosen and node.get("noop_with_empty_axes", 0):
        return x
    dims = tuple(chosen) if chosen else tuple(range(x.ndim))
    return torch.as_tensor(_REDUCE[node.op](x, dims, bool(node.get("keepdims", 1))))


@table(PLACES, "ReduceProd")
def _reduce_prod(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    keep, chosen = bool(node.get("keepdims", 1)), _axes(node, axes)
    if not chosen and node.get("noop_with_empty_axes", 0):
        return x
    for axis in sorted((axis % x.ndim for axis in chosen or range(x.ndim)), reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


@table(PLACES, "Hardmax")
def _hardmax(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", -1 if node.opset >= 13 else 1)
    if node.opset < 13:
        rows = math.prod(x.shape[: axis % x.ndim])
        flat = x.reshape(rows, -1)
        return F.one_hot(flat.argmax(1), flat.shape[1]).to(x.dtype).reshape(x.shape)
    return F.one_hot(x.argmax(axis), x.shape[axis]).to(x.dtype).movedim(-1, axis)
