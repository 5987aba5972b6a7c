"""Convolutions, pools and products. S spatial axes."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from reluguard.training.twin.onnx_torch.node import Node, Operator, meet, table

__all__ = ["LAYERS", "activated"]

LAYERS: dict[str, Operator] = {}

_ACTIVATIONS: dict[str, Callable[[Tensor, list[float]], Tensor]] = {
    "": lambda y, _: y,
    "Relu": lambda y, _: torch.relu(y),
    "LeakyRelu": lambda y, values: F.leaky_relu(y, values[0]),
    "Clip": lambda y, values: torch.clamp(y, values[0], values[1]),
    "Sigmoid": lambda y, _: torch.sigmoid(y),
    "Tanh": lambda y, _: torch.tanh(y),
    "HardSigmoid": lambda y, values: torch.clamp(values[0] * y + values[1], 0, 1),
}
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOL: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _pads(node: Node, x: Tensor, kernel: list[int]) -> tuple[list[int], list[int]]:
    """Return padding before and after each spatial axis, whichever way the file says it."""
    s = len(kernel)
    how = node.get("auto_pad", "NOTSET")
    if how == "VALID":
        return [0] * s, [0] * s
    if how in {"NOTSET", ""}:
        pads = list(node.get("pads", [0] * (2 * s)))
        return pads[:s], pads[s:]
    before, after = [], []
    strides = node.get("strides", [1] * s)
    dilations = node.get("dilations", [1] * s)
    for size, k, step, gap in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(size / step) - 1) * step + (k - 1) * gap + 1 - size)
        small, large = total // 2, total - total // 2
        before.append(small if how == "SAME_UPPER" else large)
        after.append(large if how == "SAME_UPPER" else small)
    return before, after


def _pad(x: Tensor, before: list[int], after: list[int], value: float = 0.0) -> Tensor:
    """Pad the spatial axes; torch wants the last axis first."""
    if not any(before) and not any(after):
        return x
    pairs = zip(reversed(before), reversed(after), strict=True)
    return F.pad(x, [side for pair in pairs for side in pair], value=value)


@table(LAYERS, "Conv")
def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    s = x.ndim - 2
    before, after = _pads(node, x, list(weight.shape[2:]))
    if before != after:
        x, before = _pad(x, before, after), [0] * s
    strides, dilations = node.get("strides", [1] * s), node.get("dilations", [1] * s)
    groups = node.get("group", 1)
    return _CONV[s](x, weight, bias, strides, before, dilations, groups)


def activated(node: Node, y: Tensor, values: list[float]) -> Tensor:
    """Return what a fused node makes of its sum: its activation, if it has one."""
    name = node.get("activation", "")
    if name not in _ACTIVATIONS:
        raise NotImplementedError(f"{node.op} with activation {name}")
    return _ACTIVATIONS[name](y, values)


@table(LAYERS, "FusedConv")
def _fused_conv(node: Node, x: Tensor, weight: Tensor, *rest: Tensor | None) -> Tensor:
    """ONNX Runtime's own: convolution, an optional addition, and an activation."""
    y = _conv(node, x, weight, rest[0] if rest else None)
    if len(rest) > 1 and rest[1] is not None:
        y = y + rest[1]
    return activated(node, y, node.get("activation_params", [0.0, 0.0]))


@table(LAYERS, "ConvTranspose")
def _conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """All of it, then cut to the size the file asks for."""
    s = x.ndim - 2
    strides, extra = node.get("strides", [1] * s), node.get("output_padding", [0] * s)
    groups, dilations = node.get("group", 1), node.get("dilations", [1] * s)
    kernel = node.get("kernel_shape", list(weight.shape[2:]))
    before, after = _cuts(node, x, kernel, strides, extra, dilations)
    if before == after and min(before) >= 0 and all(map(int.__lt__, extra, strides)):
        return _CONV_TRANSPOSE[s](x, weight, bias, strides, before, extra, groups, dilations)
    y = _CONV_TRANSPOSE[s](x, weight, None, strides, 0, 0, groups, dilations)
    y = _pad(y, [-cut for cut in before], [more - cut for more, cut in zip(extra, after)])  # noqa: B905 - S each
    return y if bias is None else y + bias.reshape(-1, *[1] * s)


def _cuts(
    node: Node,
    x: Tensor,
    kernel: list[int],
    strides: list[int],
    extra: list[int],
    dilations: list[int],
) -> tuple[list[int], list[int]]:
    """Return what is cut off the whole of a transposed convolution, before and after."""
    s = len(kernel)
    how, sizes = node.get("auto_pad", "NOTSET"), node.get("output_shape")
    if sizes is None and how not in {"SAME_UPPER", "SAME_LOWER"}:
        return _pads(node, x, kernel)
    if sizes is None:
        sizes = [size * step for size, step in zip(x.shape[2:], strides, strict=True)]
    before, after = [], []
    for i, size in enumerate(sizes[-s:]):
        whole = strides[i] * (x.shape[2 + i] - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1
        total = whole - size
        half = total // 2
        before.append(half if how == "SAME_UPPER" else total - half)
        after.append(total - half if how == "SAME_UPPER" else half)
    return before, after


@table(LAYERS, "MaxPool")
def _max_pool(node: Node, x: Tensor) -> Tensor:
    if len(node.outputs) > 1:
        raise NotImplementedError("MaxPool with indices")
    kernel = list(node.get("kernel_shape"))
    s = len(kernel)
    whole = not x.is_floating_point()
    x = x.float()
    before, after = _pads(node, x, kernel)
    # torch allows symmetric padding up to half the kernel
    if before != after or any(2 * pad > k for pad, k in zip(before, kernel, strict=True)):
        x, before = _pad(x, before, after, -torch.inf), [0] * s
    strides, dilations = node.get("strides", [1] * s), node.get("dilations", [1] * s)
    ceil = bool(node.get("ceil_mode", 0))
    y: Tensor = _MAX_POOL[s](x, kernel, strides, before, dilations, ceil)
    return y.to(torch.int64) if whole else y


@table(LAYERS, "AveragePool")
def _average_pool(node: Node, x: Tensor) -> Tensor:
    kernel = list(node.get("kernel_shape"))
    s = len(kernel)
    before, after = _pads(node, x, kernel)
    strides, dilations = node.get("strides", [1] * s), node.get("dilations", [1] * s)
    ceil, inside = bool(node.get("ceil_mode", 0)), bool(node.get("count_include_pad", 0))
    even = before == after and all(2 * pad <= k for pad, k in zip(before, kernel, strict=True))
    if even and set(dilations) == {1}:
        pooled: Tensor = _AVG_POOL[s](x, kernel, strides, before, ceil, inside)
        return pooled
    total = _window_sums(_pad(x, before, after), kernel, strides, dilations, ceil)
    counted = _pad(torch.ones_like(x[:1, :1]), before, after, float(inside))
    return total / _window_sums(counted, kernel, strides, dilations, ceil)


def _window_sums(
    x: Tensor, kernel: list[int], strides: list[int], dilations: list[int], ceil: bool
) -> Tensor:
    """Return the sum of every window, of those too that reach over the end, where `ceil` says so.

    A sum over a box is a sum over one axis after the other.
    """
    for axis, (k, step, gap) in enumerate(zip(kernel, strides, dilations, strict=True), start=2):
        size = x.shape[axis]
        free = size - (k - 1) * gap - 1
        count = (math.ceil(free / step) if ceil else free // step) + 1
        if ceil and (count - 1) * step >= size:
            count -= 1
        missing = (count - 1) * step + (k - 1) * gap + 1 - size
        padded = F.pad(x, [0, 0] * (x.ndim - 1 - axis) + [0, max(0, missing)])
        places = torch.arange(count, device=x.device) * step
        x = torch.stack([padded.index_select(axis, places + j * gap) for j in range(k)]).sum(0)
    return x


@table(LAYERS, "LpPool")
def _lp_pool(node: Node, x: Tensor) -> Tensor:
    kernel, p = list(node.get("kernel_shape")), node.get("p", 2)
    s = len(kernel)
    before, after = _pads(node, x, kernel)
    strides, dilations = node.get("strides", [1] * s), node.get("dilations", [1] * s)
    powers = _pad(x, before, after).abs() ** p
    sums = _window_sums(powers, kernel, strides, dilations, bool(node.get("ceil_mode", 0)))
    # a window of zeros has no slope, and a root of it an endless one
    return torch.where(sums > 0, sums.clamp_min(1e-30) ** (1 / p), torch.zeros_like(sums))


@table(LAYERS, "GlobalAveragePool")
def _global_average_pool(_node: Node, x: Tensor) -> Tensor:
    return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


@table(LAYERS, "GlobalMaxPool")
def _global_max_pool(_node: Node, x: Tensor) -> Tensor:
    return x.amax(dim=tuple(range(2, x.ndim)), keepdim=True)


@table(LAYERS, "GlobalLpPool")
def _global_lp_pool(node: Node, x: Tensor) -> Tensor:
    p: int = node.get("p", 2)
    return (x.abs() ** p).sum(dim=tuple(range(2, x.ndim)), keepdim=True) ** (1 / p)


@table(LAYERS, "Gemm")
def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    product = (a.T if node.get("transA", 0) else a) @ (b.T if node.get("transB", 0) else b)
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    product = product if alpha == 1.0 else alpha * product
    return product if c is None else product + (c if beta == 1.0 else beta * c)


@table(LAYERS, "FusedGemm")
def _fused_gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """ONNX Runtime's own: a product, a bias and an activation."""
    values = [node.get(f"activation_{name}", 0.0) for name in ("alpha", "beta")]
    return activated(node, _gemm(node, a, b, c), values)


@table(LAYERS, "MatMul")
def _matmul(_node: Node, a: Tensor, b: Tensor) -> Tensor:
    a, b = meet(a, b)
    return a @ b


@table(LAYERS, "FusedMatMul")
def _fused_matmul(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """ONNX Runtime's own: factors turned over, and scaled."""
    if node.get("transBatchA", 0) or node.get("transBatchB", 0):
        raise NotImplementedError("FusedMatMul with transBatchA or transBatchB")
    alpha: float = node.get("alpha", 1.0)
    a = a.mT if node.get("transA", 0) else a
    return (a @ (b.mT if node.get("transB", 0) else b)) * alpha


@table(LAYERS, "Einsum")
def _einsum(node: Node, *values: Tensor) -> Tensor:
    return torch.einsum(node.get("equation"), *values)


@table(LAYERS, "GridSample")
def _grid_sample(node: Node, x: Tensor, grid: Tensor) -> Tensor:
    modes = {"linear": "bilinear", "cubic": "bicubic"}
    mode = node.get("mode", "bilinear" if node.opset < 20 else "linear")
    edge, corners = node.get("padding_mode", "zeros"), bool(node.get("align_corners", 0))
    return F.grid_sample(x, grid, modes.get(mode, mode), edge, corners)


@table(LAYERS, "DepthToSpace")
def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = node.get("blocksize")
    if node.get("mode", "DCR") == "CRD":
        y = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    else:
        y = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(n, c // b**2, h * b, w * b)


@table(LAYERS, "SpaceToDepth")
def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = node.get("blocksize")
    order = (0, 1, 3, 5, 2, 4) if node.get("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    y = x.reshape(n, c, h // b, b, w // b, b).permute(order)
    return y.reshape(n, c * b**2, h // b, w // b)


_Softmax = Callable[[Tensor, int], Tensor]


@table(LAYERS, "Softmax", "LogSoftmax")
def _softmax(node: Node, x: Tensor) -> Tensor:
    function: _Softmax = torch.log_softmax if node.op == "LogSoftmax" else torch.softmax
    if node.opset >= 13:
        return function(x, node.get("axis", -1))
    # Older opsets flatten to two axes first.
    rows = math.prod(x.shape[: node.get("axis", 1) % x.ndim])
    return function(x.reshape(rows, -1), 1).reshape(x.shape)
