"""Quantised models: reading a tensor without changing how ONNX Runtime fuses its neighbours."""

import numpy as np
import onnx
from onnx import numpy_helper

from reluguard.detector.model import constants

__all__ = ["with_unsigned_pairs"]

_SHIFT = 128


def with_unsigned_pairs(proto: onnx.ModelProto) -> None:
    """Store signed 8-bit activations as unsigned ones, in place; every real value stays the same.

    Where a QuantizeLinear has one DequantizeLinear as only reader and that has one reader, ONNX
    Runtime does this itself on x86, and only then runs the layer between in integers. A tap is a
    second reader, so it would stop that and change the production outputs in the last bits. Done
    beforehand nothing is left to stop: the integers are those of before plus 128, zero point too.

    Source: QDQS8ToU8Transformer of ONNX Runtime.
    """
    graph = proto.graph
    values = constants(graph)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    for node in list(graph.node):
        if node.op_type != "QuantizeLinear" or len(node.input) < 3 or node.output[0] in outputs:
            continue
        pair = readers.get(node.output[0], [])
        zero = values.get(node.input[2])
        if len(pair) != 1 or pair[0].op_type != "DequantizeLinear" or len(pair[0].input) < 3:
            continue
        restored = pair[0].output[0]
        used = len(readers.get(restored, [])) + (restored in outputs)
        if used != 1 or zero is None or zero.dtype != np.int8:
            continue
        other = values.get(pair[0].input[2])
        if other is None or not np.array_equal(zero, other):
            continue
        shifted = (zero.astype(np.int16) + _SHIFT).astype(np.uint8)
        name = f"reluguard/zero_point/{node.output[0]}"
        graph.initializer.append(numpy_helper.from_array(shifted, name))
        node.input[2] = pair[0].input[2] = name
