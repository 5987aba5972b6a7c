"""The production model: an ONNX file, read and never changed. N images, K classes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from reluguard.detector.errors import ModelError
from reluguard.detector.images import InputSpec
from reluguard.detector.session import open_session, run_session

__all__ = [
    "OUTPUT_PREFIX",
    "Production",
    "TensorInfo",
    "constants",
    "infer_spec",
    "load_production",
]

OUTPUT_PREFIX = "reluguard_"
MIN_OPSET = 11
MAX_BYTES = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """A model input or output: its NumPy dtype by name, and its shape, None where free."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Production:
    """A classifier as its owner runs it.

    `sha256` is over the file and the external weight files it names. `logits` is the tensor the
    class scores are read from: the classifier output itself, or what enters its final Softmax.
    """

    proto: onnx.ModelProto
    sha256: str
    input: TensorInfo
    outputs: tuple[TensorInfo, ...]
    answer: str
    logits: str
    opset: int

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width where the model fixes them, for images of another size."""
        shape = self.input.shape
        if len(shape) != 4:
            return None
        h, w = shape[2:] if shape[1] in {1, 3} else shape[1:3]
        return (h, w) if h is not None and w is not None else None


def load_production(path: Path | str, *, output: str | None = None) -> Production:
    """Return the classifier in an ONNX file, external weights included.

    Args:
        path: the ONNX file.
        output: which output holds the class scores; by default the only float output of rank 2.

    Raises:
        ModelError: missing, unparsable, too large, without its external weights, with several
            inputs, or without an output that looks like class scores.
    """
    path = Path(path)
    proto, digest = _read(path)
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    opset = opsets.get("", opsets.get("ai.onnx", 0))
    if opset < MIN_OPSET:
        raise ModelError(f"expected an ONNX opset of {MIN_OPSET} or newer, {path} has {opset}")
    graph = proto.graph
    weights = {item.name for item in graph.initializer}
    inputs = [_info(value) for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(info.name for info in inputs) or "none"
        raise ModelError(f"expected a model with exactly one input, {path} has {names}")
    outputs = tuple(_info(value) for value in graph.output)
    taken = [info.name for info in outputs if info.name.startswith(OUTPUT_PREFIX)]
    if taken:
        raise ModelError(f"expected a plain classifier, {path} is already guarded: {taken[0]}")
    answer = _choose_output(outputs, output, path)
    return Production(
        proto=proto,
        sha256=digest,
        input=inputs[0],
        outputs=outputs,
        answer=answer,
        logits=_before_softmax(graph, answer),
        opset=opset,
    )


def _read(path: Path) -> tuple[onnx.ModelProto, str]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelError(f"expected a model of at most 2 GiB, {path} is larger")
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"can't read the model {path}: {error.strerror}") from error
    try:
        proto = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise ModelError(f"expected an ONNX model, {path} does not parse as one") from error
    if not proto.graph.node:
        raise ModelError(f"expected an ONNX model, {path} holds no graph")
    digest = hashlib.sha256(data)
    external = _external_files(proto)
    size = len(data)
    for name in sorted(external):
        file = path.parent / name
        if not file.is_file() or not file.resolve().is_relative_to(path.parent.resolve()):
            raise ModelError(f"{path} keeps weights in {name!r}, which is missing beside it")
        size += file.stat().st_size
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    if size > MAX_BYTES:
        raise ModelError(f"expected a model of at most 2 GiB with its weights, got {size} bytes")
    if external:
        try:
            load_external_data_for_model(proto, str(path.parent))
        except (OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
            raise ModelError(f"the external weights of {path} can't be read") from error
    return proto, digest.hexdigest()


def _external_files(proto: onnx.ModelProto) -> set[str]:
    in_nodes = (
        attribute.t
        for node in proto.graph.node
        for attribute in node.attribute
        if attribute.HasField("t")
    )
    return {
        entry.value
        for tensor in chain(proto.graph.initializer, in_nodes)
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    tensor = value.type.tensor_type
    if tensor.elem_type == TensorProto.UNDEFINED:
        raise ModelError(f"expected tensors at the model's edge, {value.name!r} is something else")
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        for dim in tensor.shape.dim
    )
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return TensorInfo(name=value.name, dtype=dtype.name, shape=shape)


def _choose_output(outputs: tuple[TensorInfo, ...], wanted: str | None, path: Path) -> str:
    found = ", ".join(f"{info.name} {info.dtype} {info.shape}" for info in outputs)
    named = [info for info in outputs if info.name == wanted]
    if wanted is not None and not named:
        raise ModelError(f"expected an output named {wanted!r}, {path} has {found}")
    scores = [o for o in named or outputs if "float" in o.dtype and len(o.shape) in {0, 2}]
    if len(scores) != 1:
        hint = "" if named else ": name the one that holds the class scores"
        raise ModelError(
            f"expected one float output of shape (N, classes), {path} has {found}{hint}"
        )
    if scores[0].shape[1:] == (1,):
        raise ModelError(f"expected scores of two or more classes, {path} has {found}")
    return scores[0].name


def _before_softmax(graph: onnx.GraphProto, answer: str) -> str:
    for node in graph.node:
        if answer in node.output:
            return node.input[0] if node.op_type in {"Softmax", "LogSoftmax"} else answer
    return answer


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


def infer_spec(
    production: Production,
    image_shape: tuple[int, int, int],
    *,
    scale: float | None = None,
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
    bgr: bool = False,
) -> InputSpec:
    """Return how images of this size go into this model.

    Args:
        production: the classifier.
        image_shape: (H, W, C) of the images at hand; fills in what the model leaves free.
        scale: factor from pixels to the model's range; by default 1 / 255, or 1 for uint8 inputs.
        mean: subtracted after scaling, per channel or one for all.
        std: divided by after that.
        bgr: whether the model wants blue first.

    Raises:
        ModelError: images of this size can't be laid into the model's input, or it doesn't run.
        SettingsError: a value has no meaning.
    """
    info = production.input
    h, w, c = image_shape
    layouts = {"NCHW": (c, h, w), "NHWC": (h, w, c), "flat": (c * h * w,)}
    fitting = [
        name
        for name, shape in layouts.items()
        if len(info.shape) == len(shape) + 1
        and all(want in {None, have} for want, have in zip(info.shape[1:], shape, strict=True))
    ]
    if not fitting:
        raise ModelError(
            f"the model takes {info.dtype} {_text(info.shape)}, "
            f"which images of {h} x {w} pixels and {c} channels don't fit"
        )
    spec = InputSpec(
        name=info.name,
        height=h,
        width=w,
        channels=c,
        layout="NCHW" if "NCHW" in fitting else "NHWC" if "NHWC" in fitting else "flat",
        dtype=info.dtype,
        batch=info.shape[0],
        scale=scale if scale is not None else 1.0 if info.dtype == "uint8" else 1 / 255,
        mean=mean,
        std=std,
        bgr=bgr,
    )
    return spec if spec.batch else replace(spec, batch=_real_batch(production, spec))


def _real_batch(production: Production, spec: InputSpec) -> int | None:
    """Return None if any batch runs, 1 if only that does: exporters bake it into a Reshape."""
    session = open_session(production.proto, optimise=False)
    for rows in (2, 1):
        blank = np.zeros((rows, *spec.tensor_shape), spec.dtype)
        try:
            (scores,) = run_session(session, {spec.name: blank}, [production.answer])
        except ModelError:
            if rows == 1:
                raise
        else:
            if scores.ndim == 2 and len(scores) == rows:
                return None if rows == 2 else 1
    raise ModelError(f"expected a row of class scores per image, got shape {scores.shape} for one")


def _text(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"
