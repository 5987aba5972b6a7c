"""`infer` as HTTP says it: a JSON document, with tensors in it or in binary behind it.

What comes becomes the message that gRPC would have brought, and goes the same way from there. JSON
holds no bytes, so encoded images in it are base64; in binary they lie as gRPC has them, each behind
its length. NaN and infinity, which JSON has no words for, are null in answers. N images.
"""

import base64
import binascii
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.service.errors import RequestError
from reluguard.service.models.models import VERSION
from reluguard.service.protocols.infer_answer import Answer
from reluguard.service.protocols.pb import open_inference as pb
from reluguard.service.protocols.wire import DATATYPES, check_shape, datatype_of, write_tensor
from reluguard.service.rest.documents import cut_numbers, read_document, read_numbers_text

__all__ = ["Asked", "read_infer", "write_answer"]

_MOST_TENSORS = 64
_INT64 = range(-(2**63), 2**63)
_UINT64 = range(2**64)
_LENGTH_BYTES = 4
Check = Callable[[str, tuple[int, ...]], None]
_PIECE = 4096  # numbers written between two turns of other threads


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request.

    Attributes:
        message: all but the data of its input.
        payload: that data, as it lies on the wire of gRPC; None where there is none.
        binary: outputs wanted in binary.
        all_binary: every output, where the request doesn't say otherwise.
    """

    message: pb.ModelInferRequest
    payload: memoryview | None
    binary: Mapping[str, bool] = field(default_factory=dict)
    all_binary: bool = False


def read_infer(
    body: bytes | bytearray,
    header_bytes: int | None,
    *,
    most_parts: int,
    most_bytes: int,
    check: Check | None = None,
) -> Asked:
    """Return what a request asks. Takes time with the number of numbers: for a thread.

    Args:
        body: all of it.
        header_bytes: `Inference-Header-Content-Length`; None where all of it is JSON.
        most_parts: of the JSON document, beside numbers.
        most_bytes: of one tensor.
        check: told datatype and shape of numbers before they are read; raises if they are not
            worth it.

    Raises:
        RequestError: it is no such request.
    """
    whole = memoryview(body)
    if header_bytes is not None and header_bytes > len(whole):
        raise RequestError(
            f"expected Inference-Header-Content-Length of at most the body's {len(whole)} bytes,"
            f" got {header_bytes}"
        )
    head = whole if header_bytes is None else whole[:header_bytes]
    cut = cut_numbers(head, most=most_parts)
    document = _object(read_document(cut.rest, most=most_parts), "the document")
    message = pb.ModelInferRequest(
        id=_text(document.get("id", ""), "id"),
        parameters=_parameters(document, "the request", but="binary_data_output"),
    )
    binary: dict[str, bool] = {}
    for output in _objects(document.get("outputs", []), "outputs"):
        name = _text(output.get("name", ""), "name of an output")
        if (wish := _parameter(output, "binary_data", bool)) is not None:
            binary[name] = wish
        message.outputs.add(
            name=name, parameters=_parameters(output, f"output {name[:64]!r}", but="binary_data")
        )
    behind = memoryview(b"") if header_bytes is None else whole[header_bytes:]
    payload = _read_inputs(
        message,
        _objects(document.get("inputs", []), "inputs"),
        behind,
        _Numbers(cut.arrays, most_bytes, check),
    )
    return Asked(
        message=message,
        payload=payload,
        binary=binary,
        all_binary=bool(_parameter(document, "binary_data_output", bool)),
    )


def _read_inputs(
    message: Any,
    inputs: Sequence[Mapping[str, Any]],
    behind: memoryview,
    numbers: "_Numbers",
) -> memoryview | None:
    """Add the inputs to the message, and return the data of the only one."""
    payloads: list[memoryview] = []
    at = 0
    for given in inputs:
        name = _text(given.get("name", ""), "name of an input")
        what = f"input {name[:64]!r}"
        datatype = _text(given.get("datatype", ""), f"datatype of the {what}")
        shape = _shape(given.get("shape"), what)
        size = _parameter(given, "binary_data_size", int)
        message.inputs.add(
            name=name,
            datatype=datatype,
            shape=shape,
            parameters=_parameters(given, what, but="binary_data_size"),
        )
        if size is None:
            if "data" in given:
                payloads.append(_data(given["data"], numbers, name, datatype, shape))
            continue
        if "data" in given:
            raise RequestError(f"expected data or binary_data_size for the {what}, got both")
        if not 0 <= size <= len(behind) - at:
            raise RequestError(
                f"byte size mismatch for {name!r}: binary_data_size is {size},"
                f" got {len(behind) - at} bytes"
            )
        payloads.append(behind[at : at + size])
        at += size
    if at != len(behind):
        raise RequestError(
            f"byte size mismatch: the inputs' binary_data_size add up to {at}, got {len(behind)}"
            " bytes behind the JSON document"
        )
    if len(payloads) > 1:  # as many raw entries: whoever reads them says what is wrong
        message.raw_input_contents.extend([b""] * len(payloads))
        return None
    return payloads[0] if payloads else None


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The texts of arrays of numbers, how large a tensor of them may be, and which is worth it."""

    arrays: Sequence[memoryview]
    most_bytes: int
    check: Check | None


def _data(
    given: Any, numbers: _Numbers, name: str, datatype: str, shape: Sequence[int]
) -> memoryview:
    """Return the data of an input in JSON as it lies on the wire of gRPC."""
    count = check_shape(shape, name=name)
    if datatype == "BYTES":
        return memoryview(_images(given, count))
    dtype = DATATYPES.get(datatype)
    if dtype is None:
        raise RequestError(f"expected a datatype of {', '.join(DATATYPES)} or BYTES for {name!r},"
                           f" got {datatype[:32]!r}")  # fmt: skip
    if count * dtype.itemsize > numbers.most_bytes:
        raise RequestError(
            f"expected at most {numbers.most_bytes} bytes of {name!r}, got the shape {list(shape)}"
        )
    if numbers.check is not None:
        numbers.check(datatype, tuple(shape))
    if not (isinstance(given, list) and len(given) == 1 and type(given[0]) is int):
        raise RequestError(f"expected an array of numbers as data of {name!r}, got something else")
    return memoryview(read_numbers_text(numbers.arrays[given[0]], dtype, count=count).tobytes())


def _images(given: Any, count: int) -> bytes:
    rows = given
    if isinstance(given, list) and all(isinstance(row, list) and len(row) == 1 for row in given):
        rows = [row[0] for row in given]
    if not isinstance(rows, list) or not all(isinstance(row, str) for row in rows):
        raise RequestError("expected base64 texts as data of BYTES, got something else")
    if len(rows) != count:
        raise RequestError(f"expected {count} base64 texts as data of BYTES, got {len(rows)}")
    parts = []
    for row in rows:
        try:
            image = base64.b64decode(row, validate=True)
        except (binascii.Error, ValueError):
            raise RequestError(
                "expected base64 as data of BYTES, which JSON can't hold, got other text:"
                " or send it in binary"
            ) from None
        parts += [len(image).to_bytes(_LENGTH_BYTES, "little"), image]
    return b"".join(parts)


def _object(given: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(given, dict):
        raise RequestError(f"expected a JSON object as {what}, got {type(given).__name__}")
    return given


def _objects(given: Any, what: str) -> list[Mapping[str, Any]]:
    if not isinstance(given, list):
        raise RequestError(f"expected a list as {what}, got {type(given).__name__}")
    if len(given) > _MOST_TENSORS:
        raise RequestError(f"expected at most {_MOST_TENSORS} {what}, got {len(given)}")
    return [_object(part, f"one of the {what}") for part in given]


def _text(given: Any, what: str) -> str:
    if not isinstance(given, str):
        raise RequestError(f"expected a text as {what}, got {type(given).__name__}")
    try:
        given.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no message can hold
        raise RequestError(f"expected a text as {what}, got half characters") from None
    return given


def _shape(given: Any, what: str) -> list[int]:
    fits = isinstance(given, list) and all(type(size) is int and size in _INT64 for size in given)
    if not fits:
        raise RequestError(f"expected a list of sizes as shape of the {what}, got something else")
    sizes: list[int] = given
    return sizes


def _parameter(holder: Mapping[str, Any], name: str, kind: type) -> Any:
    """Return one parameter that HTTP alone has; None where it isn't given."""
    found = _object(holder.get("parameters", {}), "parameters").get(name)
    if found is not None and type(found) is not kind:
        raise RequestError(f"expected {name} to be a {kind.__name__}, got {found!r:.32}")
    return found


def _parameters(holder: Mapping[str, Any], what: str, *, but: str) -> dict[str, pb.InferParameter]:
    found = {}
    for name, value in _object(holder.get("parameters", {}), f"parameters of {what}").items():
        if name == but:
            continue
        _text(name, "name of a parameter")
        if isinstance(value, bool):
            found[name] = pb.InferParameter(bool_param=value)
        elif isinstance(value, int) and value in _INT64:
            found[name] = pb.InferParameter(int64_param=value)
        elif isinstance(value, int) and value in _UINT64:
            found[name] = pb.InferParameter(uint64_param=value)
        elif isinstance(value, float) and math.isfinite(value):
            found[name] = pb.InferParameter(double_param=value)
        elif isinstance(value, str):
            found[name] = pb.InferParameter(string_param=_text(value, f"parameter {name[:64]!r}"))
        else:
            raise RequestError(
                f"expected a number, a text, true or false as parameter {name[:64]!r} of {what},"
                f" got {value!r:.32}"
            )
    return found


def write_answer(answer: Answer, asked: Asked) -> tuple[bytes, list[bytes]]:
    """Return the JSON document of an answer, and the tensors in binary that follow it.

    Takes time with the number of numbers in JSON: for a thread.
    """
    outputs: list[bytes] = []
    behind: list[bytes] = []
    for name, array in answer.tensors.items():
        about: dict[str, Any] = {
            "name": name,
            "datatype": datatype_of(array.dtype),
            "shape": list(array.shape),
        }
        if asked.binary.get(name, asked.all_binary):
            data = write_tensor(array)
            behind.append(data)
            about["parameters"] = {"binary_data_size": len(data)}
            outputs.append(_json(about))
        else:
            outputs += [_json(about)[:-1] + b',"data":[' + _numbers(array) + b"]}"]
    head = {
        "model_name": answer.model.name,
        "model_version": VERSION,
        **({"id": answer.id} if answer.id else {}),
        "parameters": {"reluguard_guard": answer.guard, **answer.parameters},
    }
    return _json(head)[:-1] + b',"outputs":[' + b",".join(outputs) + b"]}", behind


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _numbers(array: NDArray[Any]) -> bytes:
    """Return the array's values with commas between, row-major."""
    flat = array.reshape(-1)
    pieces = []
    for start in range(0, len(flat), _PIECE):
        piece = flat[start : start + _PIECE]
        values: list[Any] = piece.tolist()
        if piece.dtype.kind == "f" and not np.isfinite(piece).all():
            values = [value if math.isfinite(value) else None for value in values]
        elif piece.dtype == object:
            values = [str(value) for value in values]
        pieces.append(_json(values)[1:-1])
    return b",".join(pieces)
