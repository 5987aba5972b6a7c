"""Operators that work element by element."""

from collections.abc import Callable
from functools import reduce
from typing import Any, cast

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from reluguard.training.twin.onnx_torch.node import Node, Operator, meet, straight, table

__all__ = ["POINTWISE"]

POINTWISE: dict[str, Operator] = {}

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": lambda x: straight(torch.ceil(x), x),
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": lambda x: straight(torch.floor(x), x),
    "HardSwish": F.hardswish,
    "Identity": torch.Tensor.contiguous,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": lambda x: straight(torch.round(x), x),
    "Sigmoid": torch.sigmoid,
    # as binarised networks are trained: the slope of one between -1 and 1
    "Sign": lambda x: straight(torch.sign(x), x.clamp(-1, 1)),
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": lambda x: F.softplus(x, threshold=80.0),
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
_INTEGERS: dict[int, torch.dtype] = {
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.int32,
    TensorProto.UINT32: torch.int64,
    TensorProto.UINT64: torch.int64,
}


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda _node, x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda _node, a, b: function(*meet(a, b))


POINTWISE |= {name: _unary(function) for name, function in _UNARY.items()}
POINTWISE |= {name: _binary(function) for name, function in _BINARY.items()}


@table(POINTWISE, "Div")
def _div(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """Whole numbers divide to whole numbers, as in C."""
    a, b = meet(a, b)
    if not (a.is_floating_point() or b.is_floating_point()):
        return torch.div(a, b, rounding_mode="trunc")
    exact = a / b
    return straight(exact.trunc(), exact) if node.is_whole else exact


@table(POINTWISE, "Pow")
def _pow(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """The result has the type of the base."""
    a, b = meet(a, b)
    power = torch.pow(a, b)
    if a.is_floating_point():
        return straight(power.trunc(), power) if node.is_whole else power
    return power.to(a.dtype)


@table(POINTWISE, "Mod")
def _mod(node: Node, a: Tensor, b: Tensor) -> Tensor:
    a, b = meet(a, b)
    return torch.fmod(a, b) if node.get("fmod", 0) else torch.remainder(a, b)


@table(POINTWISE, "BitShift")
def _bit_shift(node: Node, a: Tensor, b: Tensor) -> Tensor:
    a, b = meet(a, b)
    if not (a.is_floating_point() or b.is_floating_point()):
        shift = torch.bitwise_left_shift if node.get("direction") == "LEFT" else _right_shift
        return shift(a, b)
    if node.get("direction") == "LEFT":
        return a * 2.0**b
    exact = a / 2.0**b
    return straight(exact.floor(), exact)


def _right_shift(a: Tensor, b: Tensor) -> Tensor:
    return torch.bitwise_right_shift(a, b)


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
    return torch.where(condition.bool(), a, b)


@table(POINTWISE, "Clip")
def _clip(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Bounds are inputs since opset 11, each may be missing; before that they were attributes."""
    least = node.get("min") if low is None else low.item()
    most = node.get("max") if high is None else high.item()
    if least is None and most is None:
        return x
    if x.requires_grad and least is not None and most is not None and least < most:
        return cast("Tensor", _Clamp.apply(x, float(least), float(most)))
    return torch.clamp(x, least, most)


class _Clamp(torch.autograd.Function):
    """Both bounds at once; what lies on one of them passes its gradient, as torch's clamp has it.

    Pixels lie on the bounds of a model that cuts its input. The way back is torch's own for
    hardtanh, one pass instead of four: a third of the time of networks of ReLU6.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, least: float, most: float) -> Tensor:
        ctx.save_for_backward(x)
        edges = np.nextafter(np.array([least, most], "f4"), np.array([-np.inf, np.inf], "f4"))
        ctx.least, ctx.most = edges.tolist()
        return torch.clamp(x, least, most)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradients[0], x, ctx.least, ctx.most), None, None


@table(POINTWISE, "IsInf")
def _is_inf(node: Node, x: Tensor) -> Tensor:
    below = torch.isneginf(x) & bool(node.get("detect_negative", 1))
    return below | (torch.isposinf(x) & bool(node.get("detect_positive", 1)))


@table(POINTWISE, "Dropout")
def _dropout(
    node: Node, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
) -> Tensor | tuple[Tensor, ...]:
    if training is not None and bool(training) and (ratio is None or float(ratio) > 0):
        raise NotImplementedError("Dropout in training mode, which answers by chance")
    mask = torch.ones_like(x, dtype=torch.bool)
    return (x, mask) if len(node.outputs) > 1 else x


@table(POINTWISE, "Cast")
def _cast(node: Node, x: Tensor) -> Tensor:
    return _as_type(x, node.get("to"))


def _as_type(x: Tensor, to: int) -> Tensor:
    if to in _FLOATS:
        return x.float()
    if to == TensorProto.BOOL:
        return x != 0
    if to not in _INTEGERS:
        raise NotImplementedError(f"Cast to {TensorProto.DataType.Name(to)}")
    # A whole number has no slope: pass the gradient straight through.
    return straight(x.trunc(), x) if x.requires_grad else x.to(_INTEGERS[to])


@table(POINTWISE, "CastLike")
def _cast_like(node: Node, x: Tensor, like: Tensor) -> Tensor:
    fallback = TensorProto.FLOAT if like.is_floating_point() else TensorProto.INT64
    return _as_type(x, node.kind or fallback)


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


@table(POINTWISE, "Shrink")
def _shrink(node: Node, x: Tensor) -> Tensor:
    edge, bias = node.get("lambd", 0.5), node.get("bias", 0.0)
    inside = torch.zeros_like(x)
    return torch.where(x < -edge, x + bias, torch.where(x > edge, x - bias, inside))


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
