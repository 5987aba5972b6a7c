"""One ONNX node, read: what every operator function gets beside its tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["Node", "Operator", "ints", "meet", "table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """An operator with its attributes as plain values; missing optional inputs are empty names."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int

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
