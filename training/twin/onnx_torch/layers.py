"""Convolutions, pools, products and normalisations. S spatial axes."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from reluguard.training.twin.onnx_torch.node import Node, Operator, table

__all__ = ["LAYERS"]

LAYERS: dict[str, Operator] = {}

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
    if how == "NOTSET":
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


@table(LAYERS, "FusedConv")
def _fused_conv(node: Node, x: Tensor, weight: Tensor, *rest: Tensor | None) -> Tensor:
    """ONNX Runtime's own: convolution, an optional addition, and an activation."""
    y = _conv(node, x, weight, rest[0] if rest else None)
    if len(rest) > 1 and rest[1] is not None:
        y = y + rest[1]
    values = node.get("activation_params", [0.0, 0.0])
    match node.get("activation", ""):
        case "Relu":
            return torch.relu(y)
        case "LeakyRelu":
            return F.leaky_relu(y, values[0])
        case "Clip":
            return torch.clamp(y, values[0], values[1])
        case "Sigmoid":
            return torch.sigmoid(y)
        case "Tanh":
            return torch.tanh(y)
        case "":
            return y
        case other:
            raise NotImplementedError(f"FusedConv with activation {other}")


@table(LAYERS, "ConvTranspose")
def _conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    s = x.ndim - 2
    before, after = _pads(node, x, list(weight.shape[2:]))
    if before != after or "output_shape" in node.attributes:
        raise NotImplementedError("ConvTranspose with uneven pads or output_shape")
    strides, extra = node.get("strides", [1] * s), node.get("output_padding", [0] * s)
    groups, dilations = node.get("group", 1), node.get("dilations", [1] * s)
    return _CONV_TRANSPOSE[s](x, weight, bias, strides, before, extra, groups, dilations)


@table(LAYERS, "MaxPool")
def _max_pool(node: Node, x: Tensor) -> Tensor:
    if len(node.outputs) > 1:
        raise NotImplementedError("MaxPool with indices")
    kernel = list(node.get("kernel_shape"))
    s = len(kernel)
    before, after = _pads(node, x, kernel)
    # torch allows symmetric padding up to half the kernel
    if before != after or any(2 * pad > k for pad, k in zip(before, kernel, strict=True)):
        x, before = _pad(x, before, after, -torch.inf), [0] * s
    strides, dilations = node.get("strides", [1] * s), node.get("dilations", [1] * s)
    return _MAX_POOL[s](x, kernel, strides, before, dilations, bool(node.get("ceil_mode", 0)))


@table(LAYERS, "AveragePool")
def _average_pool(node: Node, x: Tensor) -> Tensor:
    kernel = list(node.get("kernel_shape"))
    s = len(kernel)
    if any(gap != 1 for gap in node.get("dilations", [1] * s)):
        raise NotImplementedError("AveragePool with dilations")
    before, after = _pads(node, x, kernel)
    strides = node.get("strides", [1] * s)
    ceil, inside = bool(node.get("ceil_mode", 0)), bool(node.get("count_include_pad", 0))
    if before == after and all(2 * pad <= k for pad, k in zip(before, kernel, strict=True)):
        pooled: Tensor = _AVG_POOL[s](x, kernel, strides, before, ceil, inside)
        return pooled
    zeros = [0] * s
    total = _AVG_POOL[s](_pad(x, before, after), kernel, strides, zeros, ceil)
    counted = _pad(torch.ones_like(x[:1, :1]), before, after, float(inside))
    share: Tensor = _AVG_POOL[s](counted, kernel, strides, zeros, ceil)
    return torch.as_tensor(total / share)


@table(LAYERS, "GlobalAveragePool")
def _global_average_pool(_node: Node, x: Tensor) -> Tensor:
    return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


@table(LAYERS, "GlobalMaxPool")
def _global_max_pool(_node: Node, x: Tensor) -> Tensor:
    return x.amax(dim=tuple(range(2, x.ndim)), keepdim=True)


@table(LAYERS, "Gemm")
def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    product = (a.T if node.get("transA", 0) else a) @ (b.T if node.get("transB", 0) else b)
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    product = product if alpha == 1.0 else alpha * product
    return product if c is None else product + (c if beta == 1.0 else beta * c)


@table(LAYERS, "MatMul")
def _matmul(_node: Node, a: Tensor, b: Tensor) -> Tensor:
    return a @ b


@table(LAYERS, "Einsum")
def _einsum(node: Node, *values: Tensor) -> Tensor:
    return torch.einsum(node.get("equation"), *values)


@table(LAYERS, "BatchNormalization")
def _batch_norm(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    """By the stored statistics, whatever mode the file was exported in."""
    eps = node.get("epsilon", 1e-5)
    return F.batch_norm(x, mean, variance, scale, bias, training=False, eps=eps)


@table(LAYERS, "InstanceNormalization")
def _instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=node.get("epsilon", 1e-5))


@table(LAYERS, "GroupNormalization")
def _group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = node.get("num_groups")
    if len(scale) == groups and groups != x.shape[1]:  # before opset 21: one value per group
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    return F.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


@table(LAYERS, "LayerNormalization")
def _layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    if len(node.outputs) > 1:
        raise NotImplementedError("LayerNormalization with several outputs")
    shape = x.shape[node.get("axis", -1) :]
    offset = None if bias is None else bias.expand(shape)
    return F.layer_norm(x, shape, scale.expand(shape), offset, node.get("epsilon", 1e-5))


@table(LAYERS, "LRN")
def _local_response_norm(node: Node, x: Tensor) -> Tensor:
    alpha, beta, k = node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0)
    return F.local_response_norm(x, node.get("size"), alpha, beta, k)


@table(LAYERS, "LpNormalization")
def _lp_norm(node: Node, x: Tensor) -> Tensor:
    return F.normalize(x, float(node.get("p", 2)), node.get("axis", -1))


@table(LAYERS, "Softmax", "LogSoftmax")
def _softmax(node: Node, x: Tensor) -> Tensor:
    function = torch.log_softmax if node.op == "LogSoftmax" else torch.softmax
    if node.opset >= 13:
        return function(x, node.get("axis", -1))
    # Older opsets flatten to two axes first.
    rows = math.prod(x.shape[: node.get("axis", 1) % x.ndim])
    return function(x.reshape(rows, -1), 1).reshape(x.shape)
