"""One ONNX node, read: what every operator function gets beside its tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

__all__ = ["Node", "Operator", "ints", "meet", "straight", "table", "tensor_of"]

_WHOLE = {
    TensorProto.INT8,
    TensorProto.INT16,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.UINT8,
    TensorProto.UINT16,
    TensorProto.UINT32,
    TensorProto.UINT64,
}
_WIDER = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}  # torch's own can do little


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """An operator with its attributes as plain values; missing optional inputs are empty names.

    `kind` is the ONNX type of the first output where it matters and can be inferred, else 0. What
    depends on the input is held as floats even where the file declares whole numbers, so that a
    gradient can pass.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int
    kind: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether the first output is declared to hold whole numbers."""
        return self.kind in _WHOLE

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or the default where the file leaves it out."""
        return self.attributes.get(name, default)


Operator = Callable[..., Tensor | tuple[Tensor, ...]]
"""Called as `operator(node, *inputs)`, with None for an optional input that is not there."""


_Function = TypeVar("_Function", bound=Operator)


def table(registry: dict[str, Operator], *names: str) -> Callable[[_Function], _Function]:
    """Enter the decorated function in a registry under these ONNX names."""

    def enter(function: _Function) -> _Function:
        for name in names:
            registry[name] = function
        return function

    return enter


def ints(value: Tensor | None) -> list[int] | None:
    """Return a tensor of whole numbers as a list, None for a missing input."""
    return None if value is None else [int(item) for item in value.reshape(-1).tolist()]


def meet(*values: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors on one device; shapes and small constants live on the host."""
    device = next((v.device for v in values if v.device.type != "cpu"), torch.device("cpu"))
    return tuple(value.to(device) for value in values)


def tensor_of(proto: TensorProto) -> Tensor:
    """Return an ONNX tensor as torch's: every float as float32, whole numbers as they are."""
    if proto.data_type == TensorProto.STRING:
        raise NotImplementedError("a tensor of strings")
    array = numpy_helper.to_array(proto)
    if array.dtype.kind == "V" or array.dtype.name not in _NATIVE:  # bfloat16 and its like
        whole = "int" in array.dtype.name
        array = array.astype("int8" if whole else "float32")
    kind = array.dtype.name
    value = torch.from_numpy(array.astype(_WIDER.get(kind, kind)))
    return value.float() if value.is_floating_point() else value


_NATIVE = {"bool", "float16", "float32", "float64", "uint16", "uint32", "uint64", "uint8"}
_NATIVE |= {"int8", "int16", "int32", "int64"}


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, through: Tensor) -> Tensor:
        del ctx, through
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        del ctx
        return None, gradients[0]


def straight(value: Tensor, through: Tensor) -> Tensor:
    """Return a value, bit for bit, whose gradient is that of another tensor of its shape.

    What rounds has no slope of its own; what it rounds has.

    Source: Bengio et al. 2013, arXiv 1308.3432; as an attack Athalye et al. 2018, arXiv 1802.00420.
    """
    if not through.requires_grad:
        return value
    return cast("Tensor", _Straight.apply(value.detach(), through))
