"""Resize and Upsample: each axis by itself, as a choice of rows or a product with weights."""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from reluguard.training.twin.onnx_torch.node import Node, Operator, ints, table

__all__ = ["RESIZE"]

RESIZE: dict[str, Operator] = {}

_INTERPOLATED = {1: "linear", 2: "bilinear", 3: "trilinear"}


@table(RESIZE, "Resize", "Upsample")
def _resize(node: Node, x: Tensor, *rest: Tensor | None) -> Tensor:
    old_form = node.op == "Upsample" or node.opset < 11
    given = [None, rest[0] if rest else None, None] if old_form else [*rest, None, None, None][:3]
    roi, scales, sizes = given
    where = node.get("coordinate_transformation_mode", "half_pixel")
    where = "asymmetric" if old_form else where
    axes = [axis % x.ndim for axis in node.get("axes", range(x.ndim))]
    factors, new = _sizes(node, x, axes, scales, sizes)
    mode = node.get("mode", "nearest")
    corners = [] if roi is None else roi.tolist()
    fast = where in {"half_pixel", "align_corners"} and not node.get("antialias", 0)
    if mode == "linear" and fast and _plain(x, axes, factors, new):
        how = _INTERPOLATED[x.ndim - 2]
        return F.interpolate(x, new[2:], mode=how, align_corners=where == "align_corners")
    outside = torch.zeros((), dtype=torch.bool, device=x.device)
    for i, axis in enumerate(axes):
        if new[axis] == x.shape[axis] and factors[axis] == 1 and where != "tf_crop_and_resize":
            continue
        span = (corners[i], corners[i + len(axes)]) if where == "tf_crop_and_resize" else (0.0, 1.0)
        places = _coordinates(new[axis], x.shape[axis], factors[axis], where, span)
        if where == "tf_crop_and_resize":
            beyond = (places < 0) | (places > x.shape[axis] - 1)
            shape = [1] * x.ndim
            shape[axis] = -1
            outside = outside | beyond.reshape(shape).to(x.device)
        x = _along(node, x, axis, places, factors[axis], mode)
    if bool(outside.any()):
        x = torch.where(outside, node.get("extrapolation_value", 0.0), x)
    return x


def _sizes(
    node: Node, x: Tensor, axes: list[int], scales: Tensor | None, sizes: Tensor | None
) -> tuple[list[float], list[int]]:
    """Return by how much each axis grows, and its new size."""
    factors, new = [1.0] * x.ndim, list(x.shape)
    wanted = ints(sizes)
    if wanted:
        ratios = [size / x.shape[axis] for size, axis in zip(wanted, axes, strict=True)]
        policy = node.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            ratio = min(ratios) if policy == "not_larger" else max(ratios)
            ratios = [ratio] * len(axes)
            wanted = [math.floor(ratio * x.shape[axis] + 0.5) for axis in axes]
        for axis, ratio, size in zip(axes, ratios, wanted, strict=True):
            factors[axis], new[axis] = ratio, size
        return factors, new
    known = node.get("scales", []) if scales is None else scales.tolist()
    for axis, factor in zip(axes, known, strict=True):
        # a float32 like .6 is a little more than it says
        factors[axis], new[axis] = factor, math.floor(x.shape[axis] * factor + 1e-6)
    return factors, new


def _plain(x: Tensor, axes: list[int], factors: list[float], new: list[int]) -> bool:
    """Return whether torch's own interpolation means the same."""
    same = all(new[axis] == factors[axis] * x.shape[axis] for axis in axes)
    return x.ndim in {3, 4, 5} and same and tuple(new[:2]) == tuple(x.shape[:2])


def _coordinates(
    new: int, old: int, factor: float, where: str, span: tuple[float, float]
) -> Tensor:
    """Return where each new place lies on the old axis, (new,)."""
    place = torch.arange(new, dtype=torch.float64)
    centred = (place + 0.5) / factor
    match where:
        case "half_pixel":
            places = centred - 0.5
        case "pytorch_half_pixel":
            places = centred - 0.5 if new > 1 else place
        case "half_pixel_symmetric":
            places = old / 2 * (1 - new / (factor * old)) + centred - 0.5
        case "tf_half_pixel_for_nn":
            places = centred
        case "asymmetric":
            places = place / factor
        case "align_corners":
            places = place * (old - 1) / max(factor * old - 1, 1e-9)
        case "tf_crop_and_resize":
            start, end = (old - 1) * span[0], (old - 1) * span[1]
            places = (
                start + place * (end - start) / (new - 1) if new > 1 else (start + end) / 2 + place
            )
        case _:
            raise NotImplementedError(f"Resize with coordinates {where}")
    return places


def _along(node: Node, x: Tensor, axis: int, places: Tensor, factor: float, mode: str) -> Tensor:
    old = x.shape[axis]
    if mode == "nearest":
        where = node.get("coordinate_transformation_mode", "half_pixel")
        older = node.op == "Upsample" or node.opset < 11 or where == "asymmetric"
        rows = _nearest(
            places, node.get("nearest_mode", "floor" if node.opset < 11 else None), older
        )
        return x.index_select(axis, rows.clamp(0, old - 1).to(x.device))
    if mode not in {"linear", "cubic"}:
        raise NotImplementedError(f"{node.op} with mode {mode}")
    shrink = min(1.0, factor) if node.get("antialias", 0) else 1.0
    sharp = node.get("cubic_coeff_a", -0.75)
    weights = _weights(
        tuple(places.tolist()), old, shrink, mode, sharp, bool(node.get("exclude_outside", 0))
    )
    return (x.movedim(axis, -1) @ weights.to(x.device, x.dtype).T).movedim(-1, axis)


def _nearest(place: Tensor, rounding: str | None, older: bool) -> Tensor:
    match rounding or ("floor" if older and rounding is not None else "round_prefer_floor"):
        case "floor":
            rows = place.floor()
        case "ceil":
            rows = place.ceil()
        case "round_prefer_ceil":
            rows = (place + 0.5).floor()
        case _:
            rows = (place - 0.5).ceil()
    return rows.long()


@lru_cache(maxsize=64)
def _weights(
    places: tuple[float, ...], old: int, shrink: float, mode: str, sharp: float, exclude: bool
) -> Tensor:
    """Return how much of each old place goes into each new one, (new, old)."""
    reach = math.ceil((1 if mode == "linear" else 2) / shrink)
    place = torch.tensor(places, dtype=torch.float64)[:, None]
    near = place.floor() + torch.arange(1 - reach, reach + 1, dtype=torch.float64)
    distance = ((near - place) * shrink).abs()
    if mode == "linear":
        weight = (1 - distance).clamp_min(0)
    else:
        inner = ((sharp + 2) * distance - (sharp + 3)) * distance**2 + 1
        outer = ((distance - 5) * distance + 8) * distance * sharp - 4 * sharp
        weight = torch.where(distance <= 1, inner, torch.where(distance < 2, outer, 0.0))
    if exclude or shrink < 1:
        # beyond the edge nothing counts where antialiasing, as PIL does
        weight = torch.where((near < 0) | (near >= old), 0.0, weight) if exclude else weight
        weight = weight / weight.sum(1, keepdim=True)
    matrix = torch.zeros(len(places), old, dtype=torch.float64)
    return matrix.scatter_add_(1, near.long().clamp(0, old - 1), weight).float()
