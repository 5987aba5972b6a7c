"""The production model: an ONNX file, read and never changed. N images, K classes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from reluguard.detector.errors import ModelError, did_you_mean
from reluguard.detector.images import InputSpec
from reluguard.detector.onnx_file.constants import constants
from reluguard.detector.onnx_file.opset import modern, opset_of
from reluguard.detector.onnx_file.scores import Ending, class_scores, find_scores, with_columns
from reluguard.detector.onnx_file.weights import read_model
from reluguard.detector.pixels.pipeline import Pipeline
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
    class scores are read from, (N, K): the classifier output itself, or what enters its final
    Softmax or Sigmoid. A classifier of one output has two classes: the second is the answer where
    the output is above one half, or above 0 if it is no probability. `ending` says what the model
    makes of its class scores before it gives them out. `proto` is the owner's graph, in an opset we
    can add to; where `logits` is no tensor of its own, it is made at the graph's end.
    """

    proto: onnx.ModelProto
    sha256: str
    input: TensorInfo
    outputs: tuple[TensorInfo, ...]
    answer: str
    logits: str
    opset: int
    ending: Ending = ""

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width where the model fixes them, for images of another size."""
        shape = self.input.shape
        if len(shape) != 4:
            return None
        h, w = shape[2:] if shape[1] in {1, 3} else shape[1:3]
        return (h, w) if h is not None and w is not None else None

    def class_scores(self, answer: NDArray[Any]) -> NDArray[Any]:
        """Return what the model gave out with a column per class: (N, K), K at least 2."""
        return class_scores(answer, self.ending)

    def classes(self, answer: NDArray[Any]) -> NDArray[np.int64]:
        """Return the class the model answers, int64 (N,), by what it gave out."""
        found: NDArray[np.int64] = self.class_scores(answer).argmax(axis=1)
        return found

    @property
    def image_channels(self) -> int | None:
        """Channels where the model fixes them: 3 for colour, 1 for grey."""
        shape = self.input.shape
        places = [shape[axis] for axis in (1, 3)] if len(shape) == 4 else []
        return next((side for side in places if side in {1, 3}), None)


def load_production(path: Path | str, *, output: str | None = None) -> Production:
    """Return the classifier in an ONNX file, external weights included.

    Args:
        path: the ONNX file.
        output: which output holds the class scores; by default the only float output with one
            value per class, or the only float output of one value.

    Raises:
        ModelError: missing, unparsable, too large, without its external weights, of an opset that
            can't be brought to a newer one, with several inputs, or without an output that looks
            like class scores.
    """
    path = Path(path)
    proto, digest = read_model(path)
    proto = modern(proto, path)
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
    chosen = _choose_output(outputs, output, path)
    logits, ending, is_shaped = find_scores(graph, chosen.name)
    single = bool(chosen.shape) and set(chosen.shape[1:]) <= {1}
    if single or is_shaped or len(chosen.shape) > 2:
        logits = with_columns(proto, logits, single=single)
    return Production(
        proto=proto,
        sha256=digest,
        input=inputs[0],
        outputs=outputs,
        answer=chosen.name,
        logits=logits,
        opset=opset_of(proto),
        ending=ending,
    )


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    tensor = value.type.tensor_type
    if tensor.elem_type == TensorProto.UNDEFINED:
        hint = (
            "; skl2onnx leaves that out with options={'zipmap': False}"
            if value.type.sequence_type.elem_type.HasField("map_type")
            else ""
        )
        raise ModelError(
            f"expected tensors at the model's edge, {value.name!r} is something else{hint}"
        )
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        for dim in tensor.shape.dim
    )
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return TensorInfo(name=value.name, dtype=dtype.name, shape=shape)


def _choose_output(outputs: tuple[TensorInfo, ...], wanted: str | None, path: Path) -> TensorInfo:
    found = ", ".join(f"{info.name} {info.dtype} {info.shape}" for info in outputs)
    named = [info for info in outputs if info.name == wanted]
    if wanted is not None and not named:
        raise ModelError(
            f"expected an output named {wanted!r}, {path} has {found}"
            f"{did_you_mean(wanted, (info.name for info in outputs))}"
        )
    scores = [o for o in named or outputs if "float" in o.dtype and _wide(o.shape) <= 1]
    many = [o for o in scores if not o.shape or _wide(o.shape) == 1]
    if len(many or scores) != 1:
        hint = "" if named else ": name the one that holds the class scores"
        if not any("float" in info.dtype for info in outputs):
            hint = "; labels alone say nothing of how sure it is: export it with its class scores"
        raise ModelError(
            f"expected one float output of shape (N, classes), {path} has {found}{hint}"
        )
    return (many or scores)[0]


def _wide(shape: tuple[int | None, ...]) -> int:
    """Return how many axes behind the first hold more than one value, or may."""
    return sum(size != 1 for size in shape[1:])


def infer_spec(
    production: Production,
    image_shape: tuple[int, int, int],
    *,
    scale: float | None = None,
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
    bgr: bool = False,
    files: Pipeline | None = None,
) -> InputSpec:
    """Return how images of this size go into this model.

    Args:
        production: the classifier.
        image_shape: (H, W, C) of the images at hand; fills in what the model leaves free.
        scale: factor from pixels to the model's range; by default 1 / 255, or 1 for uint8 inputs.
        mean: subtracted after scaling, per channel or one for all.
        std: divided by after that.
        bgr: whether the model wants blue first.
        files: from a file to pixels; None stretches it.

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
        files=files,
    )
    return replace(spec, batch=_real_batch(production, spec))


def _real_batch(production: Production, spec: InputSpec) -> int | None:
    """Return None if any batch runs, 1 if only that does: exporters bake it into a Reshape.

    Raises:
        ModelError: it doesn't run, or an output is not one row per image.
    """
    session = open_session(production.proto, optimise=False)
    names = [info.name for info in production.outputs]
    for rows in (spec.batch,) if spec.batch else (2, 1):
        blank = np.zeros((rows, *spec.tensor_shape), spec.dtype)
        try:
            values = run_session(session, {spec.name: blank}, names)
        except ModelError:
            if rows != 2 or spec.batch:
                raise
        else:
            named = dict(zip(names, values, strict=True))
            scores = named[production.answer]
            if scores.ndim and len(scores) == rows:
                if _wide(scores.shape) > 1:
                    break
                _check_rows(named, rows)
                return spec.batch or (None if rows == 2 else 1)
    raise ModelError(f"expected a row of class scores per image, got shape {scores.shape} for one")


def _check_rows(values: Mapping[str, NDArray[Any]], rows: int) -> None:
    """Every output is given out image by image, whoever else was in the batch."""
    for name, value in values.items():
        if value.ndim == 0 or len(value) != rows:
            raise ModelError(
                f"expected a row per image in every output, {name!r} has shape {value.shape} for "
                f"{rows} images: a batch can't be taken apart with it, so take it out of the "
                "graph's outputs"
            )


def _text(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"
