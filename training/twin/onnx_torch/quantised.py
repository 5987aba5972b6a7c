"""Whole-number arithmetic: quantise, dequantise, and the operators that stay between.

A quantised tensor that depends on the input is held as floats of whole values, and its gradient
passes straight through the rounding; where a value is cut off at the end of its range it stops.
"""

import math
from collections.abc import Callable

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from reluguard.training.twin.onnx_torch.layers import LAYERS
from reluguard.training.twin.onnx_torch.node import Node, Operator, meet, straight, table
from reluguard.training.twin.onnx_torch.pointwise import POINTWISE

__all__ = ["QUANTISED"]

QUANTISED: dict[str, Operator] = {}

_RANGES: dict[int, tuple[int, int]] = {
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: (0, 255),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT4: (0, 15),
}
_RANGE_OF = {
    torch.int8: (-128, 127),
    torch.uint8: (0, 255),
    torch.int16: (-32768, 32767),
    torch.int32: (0, 65535),  # how uint16 is held
}


def _limits(node: Node, zero: Tensor | None) -> tuple[int, int]:
    if zero is None:
        return _RANGES[node.get("output_dtype", 0) or TensorProto.UINT8]
    limits = _RANGES.get(node.kind) if node.kind else _RANGE_OF.get(zero.dtype)
    if limits is None:
        raise NotImplementedError(f"{node.op} to {zero.dtype}")
    return limits


def _along(axis: int, x: Tensor, value: Tensor) -> Tensor:
    if value.numel() == 1 or x.ndim == 0:
        return value.reshape(())
    shape = [1] * x.ndim
    shape[axis] = math.prod(value.shape)
    return value.reshape(shape)


def _whole(exact: Tensor, zero: Tensor, limits: tuple[int, int]) -> Tensor:
    """Return what so many steps round to, beside a zero point."""
    shifted = exact + zero
    return torch.clamp(straight(torch.round(exact) + zero, shifted), *limits)


def _real(x: Tensor, scale: Tensor, zero: Tensor | None, axis: int = 1) -> Tensor:
    x, scale, offset = meet(x.float(), scale, _zero(zero))
    return (x - _along(axis, x, offset)) * _along(axis, x, scale)


def _zero(zero: Tensor | None) -> Tensor:
    return torch.zeros(1) if zero is None else zero.float()


@table(QUANTISED, "QuantizeLinear")
def _quantise(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    if node.get("block_size", 0):
        raise NotImplementedError(f"{node.op} in blocks")
    x, scale, offset = meet(x.float(), scale, _zero(zero))
    axis = node.get("axis", 1)
    exact = x / _along(axis, x, scale)
    return _whole(exact, _along(axis, x, offset), _limits(node, zero))


@table(QUANTISED, "DequantizeLinear")
def _dequantise(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    if node.get("block_size", 0):
        raise NotImplementedError(f"{node.op} in blocks")
    return _real(x, scale, zero, node.get("axis", 1))


@table(QUANTISED, "DynamicQuantizeLinear")
def _dynamic_quantise(_node: Node, x: Tensor) -> tuple[Tensor, ...]:
    low, high = x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round((-low / scale).clamp(0, 255))
    return _whole(x / scale, zero, (0, 255)), scale, zero.to(torch.uint8)


@table(QUANTISED, "ConvInteger")
def _conv_integer(
    node: Node, x: Tensor, weight: Tensor, zero: Tensor | None = None, other: Tensor | None = None
) -> Tensor:
    x, weight, zero, other = meet(x.float(), weight.float(), _zero(zero), _zero(other))
    return _plain(LAYERS["Conv"](node, x - zero, weight - _along(0, weight, other)))


@table(QUANTISED, "MatMulInteger")
def _matmul_integer(
    _node: Node, a: Tensor, b: Tensor, zero: Tensor | None = None, other: Tensor | None = None
) -> Tensor:
    a, b, zero, other = meet(a.float(), b.float(), _zero(zero), _zero(other))
    rows = zero.reshape(-1, 1) if zero.ndim == 1 and zero.numel() > 1 else zero
    return (a - rows) @ (b - other)


@table(QUANTISED, "MatMulIntegerToFloat")
def _matmul_to_float(
    node: Node,
    a: Tensor,
    b: Tensor,
    left: Tensor,
    right: Tensor,
    zero: Tensor | None = None,
    other: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    product = _matmul_integer(node, a, b, zero, other) * left * right
    return product if bias is None else product + bias


@table(QUANTISED, "DynamicQuantizeMatMul")
def _dynamic_matmul(
    node: Node,
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    steps, size, middle = _dynamic_quantise(node, a)
    return _matmul_to_float(node, steps, b, size, scale, middle, zero, bias)


@table(QUANTISED, "QLinearConv")
def _qlinear_conv(node: Node, x: Tensor, xs: Tensor, xz: Tensor, *rest: Tensor) -> Tensor:
    weight, ws, wz, ys, yz, *bias = rest
    sums = _conv_integer(node, x, weight, xz, wz)
    if bias:
        sums = sums + _along(1, sums, bias[0].float())
    return _whole(sums * (_along(1, sums, xs * ws) / ys), yz.float(), _limits(node, yz))


@table(QUANTISED, "QLinearMatMul")
def _qlinear_matmul(node: Node, a: Tensor, scale: Tensor, az: Tensor, *rest: Tensor) -> Tensor:
    b, bs, bz, ys, yz = rest
    rows = scale.reshape(-1, 1) if scale.ndim == 1 and scale.numel() > 1 else scale
    sums = _matmul_integer(node, a, b, az, bz)
    return _whole(sums * (rows * bs / ys), yz.float(), _limits(node, yz))


@table(QUANTISED, "QGemm")
def _qgemm(
    node: Node,
    a: Tensor,
    scale: Tensor,
    az: Tensor | None,
    b: Tensor,
    bs: Tensor,
    bz: Tensor | None,
    bias: Tensor | None = None,
    ys: Tensor | None = None,
    yz: Tensor | None = None,
) -> Tensor:
    a = a.T if node.get("transA", 0) else a
    b, per_column = (b.T, bs) if node.get("transB", 0) else (b, bs)
    sums = _matmul_integer(node, a, b, az, bz)
    sums = sums if bias is None else sums + bias.float()
    real = sums * (node.get("alpha", 1.0) * scale * per_column)
    return real if ys is None else _whole(real / ys, _zero(yz), _limits(node, yz))


_PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "QLinearAdd": torch.add,
    "QLinearMul": torch.mul,
}


@table(QUANTISED, *_PAIRS)
def _qlinear_pair(
    node: Node,
    a: Tensor,
    scale: Tensor,
    az: Tensor | None,
    b: Tensor,
    bs: Tensor,
    bz: Tensor | None,
    ys: Tensor,
    yz: Tensor | None = None,
) -> Tensor:
    real = _PAIRS[node.op](_real(a, scale, az), _real(b, bs, bz))
    return _whole(real / ys, _zero(yz), _limits(node, yz))


_SINGLES: dict[str, Callable[[Node, Tensor], Tensor | tuple[Tensor, ...]]] = {
    "QLinearAveragePool": lambda node, x: _last(node, x, LAYERS["AveragePool"]),
    "QLinearGlobalAveragePool": lambda node, x: _last(node, x, LAYERS["GlobalAveragePool"]),
    "QLinearLeakyRelu": lambda node, x: F.leaky_relu(x, node.get("alpha", 0.01)),
    "QLinearSigmoid": POINTWISE["Sigmoid"],
    "QLinearSoftmax": lambda node, x: torch.softmax(x, node.get("axis", -1)),
}


def _last(node: Node, x: Tensor, pool: Operator) -> Tensor:
    """Pool where channels may be the last axis."""
    if not node.get("channels_last", 0):
        return _plain(pool(node, x))
    return _plain(pool(node, x.movedim(-1, 1))).movedim(1, -1)


@table(QUANTISED, *_SINGLES)
def _qlinear_single(
    node: Node, x: Tensor, xs: Tensor, xz: Tensor | None, ys: Tensor, yz: Tensor | None = None
) -> Tensor:
    real = _plain(_SINGLES[node.op](node, _real(x, xs, xz)))
    return _whole(real / ys, _zero(yz), _limits(node, yz))


@table(QUANTISED, "QLinearConcat")
def _qlinear_concat(node: Node, ys: Tensor, yz: Tensor, *parts: Tensor) -> Tensor:
    thirds = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    real = [_real(x, scale, zero) for x, scale, zero in thirds]
    joined = torch.cat(meet(*real), node.get("axis"))
    return _whole(joined / ys, _zero(yz), _limits(node, yz))


def _plain(value: Tensor | tuple[Tensor, ...]) -> Tensor:
    assert isinstance(value, Tensor)
    return value
