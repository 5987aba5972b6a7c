"""The tensors of a graph that never change, by name."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["constants"]


def constants(graph: onnx.GraphProto) -> Mapping[str, np.ndarray[Any, np.dtype[Any]]]:
    """Return the graph's constant tensors by name: initializers, Constant nodes and their copies.

    Lazy: a tensor is decoded only when it is asked for.
    """
    return _Constants(graph)


class _Constants(Mapping[str, np.ndarray[Any, np.dtype[Any]]]):
    def __init__(self, graph: onnx.GraphProto) -> None:
        self._tensors = {item.name: item for item in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        self._tensors[node.output[0]] = attribute.t
                    elif attribute.name == "value_float":
                        value = np.float32(attribute.f)
                        self._tensors[node.output[0]] = numpy_helper.from_array(np.asarray(value))
            elif node.op_type == "Identity" and node.input[0] in self._tensors:
                # torch's exporter shares equal weights through an Identity
                self._tensors[node.output[0]] = self._tensors[node.input[0]]

    def __getitem__(self, name: str) -> np.ndarray[Any, np.dtype[Any]]:
        return numpy_helper.to_array(self._tensors[name])

    def __iter__(self) -> Any:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
