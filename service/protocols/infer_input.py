"""What a ModelInfer request brings: one input, raw or typed, read as images. N images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.images import InputSpec, check_images
from reluguard.service.errors import RequestError
from reluguard.service.protocols.inspection import (
    Encoded,
    Input,
    Limits,
    PixelArray,
    TensorArray,
    check_rows,
)
from reluguard.service.protocols.pb import open_inference as pb
from reluguard.service.protocols.wire import (
    DATATYPES,
    Data,
    check_shape,
    datatype_of,
    read_bytes_elements,
    read_numbers,
    read_tensor,
)

__all__ = ["check_parameters", "check_sizes", "read_input"]

_MAX_INPUTS = 64
_TYPED = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def read_input(
    request: pb.ModelInferRequest, raw: Sequence[Data], spec: InputSpec, limits: Limits
) -> Input:
    """Return the images of a request.

    Args:
        request: one input, with typed contents or none.
        raw: its raw contents, one entry where it has any.
        spec: how images go into the model.
        limits: of one request.

    Raises:
        RequestError: it is not what the protocol has, or another input than the model's.
        ImageError: its sizes are not the model's.
        ImageTooLargeError: too many images.
    """
    name, datatype = spec.name, datatype_of(spec.dtype)
    names = [tensor.name for tensor in request.inputs[:_MAX_INPUTS]]
    if len(names) > 1 and len(set(names)) < len(names):
        raise RequestError("the same input is given twice")
    if names != [name]:
        got = ", ".join(repr(other[:64]) for other in names[:4]) or "none"
        raise RequestError(f"expected one input named {name!r}, got {got}")
    (tensor,) = request.inputs
    typed = tensor.HasField("contents") and tensor.contents.ByteSize() > 0
    check_parameters(tensor.parameters, f"input {name!r}")
    if raw and typed:
        raise RequestError(f"expected raw or typed contents for {name!r}, got both")
    if raw and len(raw) != 1:
        raise RequestError(f"expected one raw entry for one input, got {len(raw)}")
    count = check_shape(tensor.shape, name=name)
    shape = tuple(tensor.shape)
    if tensor.datatype not in {datatype, "UINT8", "BYTES"}:
        raise RequestError(
            f"expected {datatype} for {name!r} (or UINT8 pixels, or BYTES of encoded images),"
            f" got {tensor.datatype[:32]!r}"
        )
    if tensor.datatype == "BYTES":
        return _read_encoded(tensor, raw, name=name, count=count, limits=limits)
    if raw:
        array = read_tensor(raw[0], name=name, datatype=tensor.datatype, shape=shape)
    elif typed:
        check_sizes(shape, spec, tensor.datatype)
        array = _read_typed(tensor.contents, name=name, datatype=tensor.datatype, shape=shape)
    else:
        raise RequestError(f"expected data for the input {name!r}, got none")
    return TensorArray(array) if tensor.datatype == datatype else PixelArray(array)


def _read_encoded(
    tensor: Any, raw: Sequence[Data], *, name: str, count: int, limits: Limits
) -> Encoded:
    shape = tuple(tensor.shape)
    if len(shape) not in {1, 2} or (len(shape) == 2 and shape[1] != 1):
        raise RequestError(f"expected shape [N] or [N, 1] for encoded images, got {list(shape)}")
    check_rows(count, limits)
    return Encoded(_elements(tensor, raw, name=name, count=count))


def check_sizes(shape: tuple[int, ...], spec: InputSpec, datatype: str) -> None:
    """Raise ImageError unless numbers of this shape are worth reading one by one."""
    claimed = np.broadcast_to(np.zeros((), DATATYPES[datatype]), shape)
    if datatype == datatype_of(spec.dtype):
        if shape[1:] != spec.tensor_shape:
            spec.check_tensor(claimed)
    elif shape[1:] != (spec.height, spec.width, spec.channels):
        check_images(claimed, height=spec.height, width=spec.width, channels=spec.channels)


def _elements(tensor: Any, raw: Sequence[Data], *, name: str, count: int) -> list[bytes]:
    if raw:
        return read_bytes_elements(raw[0], name=name, count=count)
    elements = list(tensor.contents.bytes_contents)
    if len(elements) != count:
        raise RequestError(f"expected {count} elements for {name!r}, got {len(elements)}")
    return elements


def _read_typed(contents: Any, *, name: str, datatype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    field = _TYPED.get(datatype)
    if field is None:
        raise RequestError(f"expected raw contents for {datatype}, got typed")
    filled = [descriptor.name for descriptor, _ in contents.ListFields()]
    if filled != [field]:
        raise RequestError(f"expected {field} for {name!r}, got {', '.join(filled)}")
    count = check_shape(shape, name=name)
    got = len(getattr(contents, field))
    if got != count:
        raise RequestError(f"expected {count} elements for {name!r}, got {got}")
    dtype = np.dtype(_numpy_name(datatype))
    packed = _packed(contents)
    if dtype.kind == "f":
        return np.frombuffer(packed, dtype.newbyteorder("<")).astype(dtype).reshape(shape)
    numbers = read_numbers(packed)
    values = numbers if dtype.kind == "u" or dtype == np.bool_ else numbers.view(np.int64)
    if dtype != np.bool_ and count:
        limits = np.iinfo(dtype)
        if values.min() < limits.min or values.max() > limits.max:
            raise RequestError(f"expected values of {datatype} for {name!r}, got others")
    return values.astype(dtype).reshape(shape)


def _packed(contents: Any) -> bytes:
    """Return the numbers of the one field that is filled, as they lie on the wire."""
    contents.DiscardUnknownFields()
    data: bytes = contents.SerializeToString()
    at = 1  # of a tag below 16
    while data[at] >= 0x80:
        at += 1
    return data[at + 1 :]


def _numpy_name(datatype: str) -> str:
    return {"FP32": "float32", "FP64": "float64"}.get(datatype, datatype.lower())


def check_parameters(parameters: Mapping[str, Any], what: str) -> None:
    """Raise RequestError for what would change the answer's meaning if it were passed over."""
    for key in parameters:
        if key.startswith("shared_memory") or key == "classification":
            raise RequestError(f"the parameter {key!r} of the {what} is not offered")
