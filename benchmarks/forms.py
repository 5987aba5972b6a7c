"""A network in other number types: 8-bit by ONNX Runtime's own tool, float16, bfloat16 weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["FORMS", "Form"]

Tensors = NDArray[np.float32]
Form = Callable[[Path, Tensors, Path], None]
"""From a file and tensors (N, C, H, W) that go into it to another file."""


def plain(model: Path, _: Tensors, out: Path) -> None:
    """Write it as it is."""
    onnx.save(onnx.load(model), out)


def qdq(model: Path, tensors: Tensors, out: Path) -> None:
    """Write it with QuantizeLinear and DequantizeLinear around its layers, weights by channel."""
    _quantised(model, tensors, out, "QDQ", per_channel=True)


def qoperator(model: Path, tensors: Tensors, out: Path) -> None:
    """Write it with QLinearConv and its like."""
    _quantised(model, tensors, out, "QOperator", per_channel=False)


def _quantised(model: Path, tensors: Tensors, out: Path, form: str, *, per_channel: bool) -> None:
    from onnxruntime import quantization

    prepared = out.with_suffix(".prepared.onnx")
    quantization.shape_inference.quant_pre_process(model, prepared)
    name = onnx.load(prepared).graph.input[0].name

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc] # it has no types
        """Gives one image at a time."""

        def __init__(self) -> None:
            self._left = iter([{name: tensor[None]} for tensor in tensors])

        def get_next(self) -> dict[str, Any] | None:
            """Return the next one."""
            return next(self._left, None)

    quantization.quantize_static(
        prepared, out, Reader(), quant_format=quantization.QuantFormat[form],
        per_channel=per_channel,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip
    prepared.unlink()


def half(model: Path, _: Tensors, out: Path) -> None:
    """Write it in float16 throughout, but for its input and its outputs."""
    proto = onnx.load(model)
    graph = proto.graph
    for tensor in graph.initializer:
        _halve(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type in {"Constant", "ConstantOfShape"} and attribute.name == "value":
                _halve(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = TensorProto.FLOAT16 if attribute.i == 1 else attribute.i
    del graph.value_info[:]
    casts = []
    for value in graph.input:
        inner = f"{value.name}/half"
        casts.append(helper.make_node("Cast", [value.name], [inner], to=TensorProto.FLOAT16))
        _rename(graph, value.name, inner, outputs=False)
    ends = []
    for value in graph.output:
        inner = f"{value.name}/half"
        _rename(graph, value.name, inner, outputs=True)
        ends.append(helper.make_node("Cast", [inner], [value.name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node, *ends]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(proto, out)


def _halve(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        values = numpy_helper.to_array(tensor)
        limit = np.finfo(np.float16).max
        halved = np.clip(values, -limit, limit).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(halved, tensor.name))


def _rename(graph: onnx.GraphProto, old: str, new: str, *, outputs: bool) -> None:
    for node in graph.node:
        for names in (node.input, node.output) if outputs else (node.input,):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new


def bfloat16(model: Path, _: Tensors, out: Path) -> None:
    """Write it with weights in bfloat16 that are cast to float32 where they are used."""
    proto = onnx.load(model)
    graph = proto.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        values = numpy_helper.to_array(tensor)
        name = tensor.name
        bits = (values.view(np.uint32) + 0x8000 >> 16).astype(np.uint16)
        kept = onnx.TensorProto(
            name=f"{name}/kept", data_type=TensorProto.BFLOAT16, dims=values.shape,
            raw_data=bits.tobytes(),
        )  # fmt: skip
        tensor.CopyFrom(kept)
        casts.append(helper.make_node("Cast", [kept.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(proto, out)


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "float32": plain,
        "int8 QDQ": qdq,
        "int8 QOperator": qoperator,
        "float16": half,
        "bfloat16": bfloat16,
    }
)
