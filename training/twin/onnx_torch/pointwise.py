"""Operators that work element by element."""

import math
from collections.abc import Callable
from functools import reduce

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from reluguard.training.twin.onnx_torch.node import Node, Operator, meet, table

__all__ = ["POINTWISE"]

POINTWISE: dict[str, Operator] = {}

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "Identity": torch.Tensor.contiguous,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tanh": torch.tanh,
}

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Pow": torch.pow,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
_INTEGERS: dict[int, torch.dtype] = {
    TensorProto.BOOL: torch.bool,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
}


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda _node, x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda _node, a, b: function(*meet(a, b))


POINTWISE |= {name: _unary(function) for name, function in _UNARY.items()}
POINTWISE |= {name: _binary(function) for name, function in _BINARY.items()}


@table(POINTWISE, "Div")
def _div(_node: Node, a: Tensor, b: Tensor) -> Tensor:
    a, b = meet(a, b)
    whole = not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc" if whole else None)


@table(POINTWISE, "Mod")
def _mod(node: Node, a: Tensor, b: Tensor) -> Tensor:
    a, b = meet(a, b)
    return torch.fmod(a, b) if node.get("fmod", 0) else torch.remainder(a, b)


@table(POINTWISE, "Sum")
def _sum(_node: Node, *values: Tensor) -> Tensor:
    return reduce(torch.add, meet(*values))


@table(POINTWISE, "Mean")
def _mean(_node: Node, *values: Tensor) -> Tensor:
    return reduce(torch.add, meet(*values)) / len(values)


@table(POINTWISE, "Max")
def _max(_node: Node, *values: Tensor) -> Tensor:
    return reduce(torch.maximum, meet(*values))


@table(POINTWISE, "Min")
def _min(_node: Node, *values: Tensor) -> Tensor:
    return reduce(torch.minimum, meet(*values))


@table(POINTWISE, "Where")
def _where(_node: Node, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    condition, a, b = meet(condition, a, b)
    return torch.where(condition, a, b)


@table(POINTWISE, "Clip")
def _clip(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Bounds are inputs since opset 11, each may be missing; before that they were attributes."""
    least = node.get("min") if low is None else low.item()
    most = node.get("max") if high is None else high.item()
    return x if least is None and most is None else torch.clamp(x, least, most)


@table(POINTWISE, "Dropout")
def _dropout(node: Node, x: Tensor, *_: Tensor | None) -> Tensor | tuple[Tensor, ...]:
    mask = torch.ones_like(x, dtype=torch.bool)
    return (x, mask) if len(node.outputs) > 1 else x


@table(POINTWISE, "Cast")
def _cast(node: Node, x: Tensor) -> Tensor:
    return _as_type(x, node.get("to"))


@table(POINTWISE, "CastLike")
def _cast_like(_node: Node, x: Tensor, like: Tensor) -> Tensor:
    return x.float() if like.is_floating_point() else x.to(like.dtype)


def _as_type(x: Tensor, to: int) -> Tensor:
    if to in _FLOATS:
        return x.float()
    if x.requires_grad:
        # A whole number has no slope: pass the gradient straight through.
        return x + (x.trunc() - x).detach()
    return x.to(_INTEGERS.get(to, torch.int64))


@table(POINTWISE, "LeakyRelu")
def _leaky_relu(node: Node, x: Tensor) -> Tensor:
    return F.leaky_relu(x, node.get("alpha", 0.01))


@table(POINTWISE, "PRelu")
def _prelu(_node: Node, x: Tensor, slope: Tensor) -> Tensor:
    x, slope = meet(x, slope)
    return torch.where(x > 0, x, x * slope)


@table(POINTWISE, "ThresholdedRelu")
def _thresholded_relu(node: Node, x: Tensor) -> Tensor:
    return F.threshold(x, node.get("alpha", 1.0), 0.0)


@table(POINTWISE, "Elu")
def _elu(node: Node, x: Tensor) -> Tensor:
    return F.elu(x, node.get("alpha", 1.0))


@table(POINTWISE, "Celu")
def _celu(node: Node, x: Tensor) -> Tensor:
    return F.celu(x, node.get("alpha", 1.0))


@table(POINTWISE, "Selu")
def _selu(node: Node, x: Tensor) -> Tensor:
    alpha, gamma = node.get("alpha", 1.67326319217681884765625), node.get("gamma", 1.05070102214813)
    return torch.where(x > 0, gamma * x, gamma * alpha * torch.expm1(x.clamp(max=0)))


@table(POINTWISE, "HardSigmoid")
def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    return torch.clamp(node.get("alpha", 0.2) * x + node.get("beta", 0.5), 0, 1)


@table(POINTWISE, "Swish")
def _swish(node: Node, x: Tensor) -> Tensor:
    return x * torch.sigmoid(node.get("alpha", 1.0) * x)


@table(POINTWISE, "Gelu")
def _gelu(node: Node, x: Tensor) -> Tensor:
    kind = node.get("approximate", "none")
    return F.gelu(x, approximate=kind if kind == "tanh" else "none")


@table(POINTWISE, "QuantizeLinear")
def _quantize(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Quantised numbers stay floats, so that the gradient passes straight through the rounding."""
    kind = torch.uint8 if zero is None else zero.dtype
    x, scale, offset = meet(x, scale, torch.zeros(1) if zero is None else zero.float())
    scale, offset = _along(node, x, scale), _along(node, x, offset)
    limits = torch.iinfo(kind)
    exact = x / scale
    rounded = torch.round(exact) + offset
    # The range limits what is passed on, and what slips through has no gradient.
    return torch.clamp(exact + offset + (rounded - exact - offset).detach(), limits.min, limits.max)


@table(POINTWISE, "DequantizeLinear")
def _dequantize(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    x, scale, offset = meet(x.float(), scale, torch.zeros(1) if zero is None else zero.float())
    return (x - _along(node, x, offset)) * _along(node, x, scale)


def _along(node: Node, x: Tensor, value: Tensor) -> Tensor:
    if value.numel() == 1 or x.ndim == 0:
        return value.reshape(())
    shape = [1] * x.ndim
    shape[node.get("axis", 1)] = math.prod(value.shape)
    return value.reshape(shape)
