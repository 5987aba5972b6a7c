"""Files of before opset 11, brought to a newer one where that leaves every answer as it was."""

import numpy as np
import onnx
import onnx.version_converter
from onnx import TensorProto, helper

from reluguard.detector.errors import ModelError
from reluguard.detector.session import open_session, run_session

__all__ = ["MIN_OPSET", "modern", "opset_of"]

MIN_OPSET = 11
_TARGETS = (11, 13, 17)  # the nearest first: it changes least
_ROWS = 2
_SIDES = (224, 299, 64, 32)  # tried in turn where the file leaves the size of its images free


def opset_of(proto: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators, 0 where the file doesn't say."""
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    return opsets.get("", opsets.get("ai.onnx", 0))


def modern(proto: onnx.ModelProto, name: object) -> onnx.ModelProto:
    """Return the model in an opset of 11 or newer: itself, or converted by onnx's own converter.

    What was converted is run beside the original, and taken only if all its outputs are the same
    bits: what is served is what the owner's file answers.

    Args:
        proto: with its weights inside.
        name: what the file is called, for messages.

    Raises:
        ModelError: no conversion answers as the file does.
    """
    opset = opset_of(proto)
    if opset >= MIN_OPSET:
        return proto
    wanted = f"expected an ONNX opset of {MIN_OPSET} or newer, {name} has {opset}"
    if opset < 1:
        raise ModelError(wanted)
    feeds, answers = _answers(proto, wanted)
    for target in _TARGETS:
        try:
            converted = onnx.version_converter.convert_version(proto, target)
            got = run_session(open_session(converted), feeds, list(answers))
        except (ModelError, RuntimeError, ValueError, TypeError):
            continue
        if all(
            np.array_equal(old, new, equal_nan=old.dtype.kind == "f")
            for old, new in zip(answers.values(), got, strict=True)
        ):
            return converted
    raise ModelError(f"{wanted}, and onnx's converter gives no file that answers as it does")


def _answers(
    proto: onnx.ModelProto, wanted: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return inputs drawn at random, and what the model makes of them."""
    session = open_session(proto)
    names = [value.name for value in proto.graph.output]
    weights = {item.name for item in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    for side in _SIDES:
        feeds = {value.name: _drawn(value, side) for value in inputs}
        try:
            found = run_session(session, feeds, names)
        except ModelError:
            continue
        return feeds, dict(zip(names, found, strict=True))
    raise ModelError(f"{wanted}, and it can't be run to see whether a converted one is the same")


def _drawn(value: onnx.ValueInfoProto, side: int) -> np.ndarray:
    kind = value.type.tensor_type
    sizes = [dim.dim_value or None for dim in kind.shape.dim]
    shape = [size or (_ROWS if axis == 0 else side) for axis, size in enumerate(sizes)]
    drawn = np.random.default_rng(0).random(shape, np.float32)
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    scale = 1.0 if kind.elem_type in {TensorProto.FLOAT, TensorProto.FLOAT16} else 255.0
    return (drawn * np.float32(scale)).astype(dtype)
