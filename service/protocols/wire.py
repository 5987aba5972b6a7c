"""Between bytes on the wire and arrays: claims are checked before anything is allocated.

Every function takes what a caller sent and raises RequestError that says what was expected and what
came.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.service.errors import RequestError

__all__ = [
    "DATATYPES",
    "Data",
    "check_shape",
    "datatype_of",
    "read_bytes_elements",
    "read_numbers",
    "read_strings",
    "read_tensor",
    "write_tensor",
]

Data = bytes | memoryview

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_STRINGS = np.dtype(object)  # how ONNX Runtime gives them out
_MAX_RANK = 8
_LENGTH_BYTES = 4


def datatype_of(dtype: Any) -> str:
    """Return the protocol's name for this NumPy dtype.

    Raises:
        KeyError: the protocol has none.
    """
    if dtype == _STRINGS:
        return "BYTES"
    found = _NAMES.get(dtype)
    return _NAMES[np.dtype(dtype).newbyteorder("<")] if found is None else found


def check_shape(shape: Sequence[int], *, name: str) -> int:
    """Return how many elements this shape has, as a Python int that can't wrap.

    Raises:
        RequestError: a negative size, or more dimensions than any model has.
    """
    if len(shape) > _MAX_RANK:
        raise RequestError(
            f"expected at most {_MAX_RANK} dimensions for {name!r}, got {len(shape)}"
        )
    if shape and min(shape) < 0:
        raise RequestError(f"expected sizes of 0 or more for {name!r}, got {list(shape)}")
    return math.prod(shape)


def read_tensor(data: Data, *, name: str, datatype: str, shape: Sequence[int]) -> NDArray[Any]:
    """Return the array these bytes hold, without copying them.

    Args:
        data: little-endian, row-major, no padding.
        name: for messages only.
        datatype: a key of `DATATYPES`.
        shape: any rank; nothing is allocated, so any claim is cheap.

    Raises:
        RequestError: an unknown datatype, an impossible shape, or another number of bytes.
    """
    dtype = DATATYPES.get(datatype)
    if dtype is None:
        known = ", ".join(DATATYPES)
        raise RequestError(f"expected a datatype of {known} for {name!r}, got {datatype[:32]!r}")
    expected = check_shape(shape, name=name) * dtype.itemsize
    if len(data) != expected:
        raise RequestError(f"byte size mismatch for {name!r}: expected {expected}, got {len(data)}")
    if expected == 0:
        return _empty(shape, dtype)
    return np.frombuffer(data, dtype).reshape(shape)


def _empty(shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    try:
        return np.empty(shape, dtype)
    except (ValueError, OverflowError):
        # numpy refuses (0, 2**62, 2**62) although it holds nothing
        return np.empty(tuple(min(size, 32) for size in shape), dtype)


def read_strings(data: Data, *, name: str, shape: Sequence[int]) -> NDArray[Any]:
    """Return the array of strings that a raw BYTES tensor holds.

    Raises:
        RequestError: an impossible shape, or lengths that don't add up.
    """
    elements = read_bytes_elements(data, name=name, count=check_shape(shape, name=name))
    texts = np.empty(len(elements), _STRINGS)
    texts[:] = [element.decode(errors="replace") for element in elements]
    return texts.reshape(shape)


def read_bytes_elements(data: Data, *, name: str, count: int) -> list[bytes]:
    """Return the elements of a raw BYTES tensor: each a uint32 length and that many bytes.

    Raises:
        RequestError: the lengths don't add up to `count` elements and all of the data.
    """
    # each element has at least its length, so the count is bounded by what really came
    if count * _LENGTH_BYTES > len(data):
        raise RequestError(f"byte size mismatch for {name!r}: {len(data)} bytes hold less than"
                           f" {count} elements")  # fmt: skip
    elements: list[bytes] = []
    start = 0
    for _ in range(count):
        end = start + _LENGTH_BYTES
        length = int.from_bytes(data[start:end], "little")
        if len(data) - end < length or end > len(data):
            raise RequestError(
                f"byte size mismatch for {name!r}: element {len(elements)} claims {length} bytes,"
                f" got {max(0, len(data) - end)}"
            )
        elements.append(bytes(data[end : end + length]))
        start = end + length
    if start != len(data):
        raise RequestError(
            f"byte size mismatch for {name!r}: {count} elements take {start} bytes, got {len(data)}"
        )
    return elements


def read_numbers(packed: bytes) -> NDArray[np.uint64]:
    """Return the whole numbers of a packed field, negative ones as protobuf has them: modulo 2**64.

    Protobuf hands its numbers over one by one, as objects; here they are read all at once.

    Args:
        packed: varints, each whole: protobuf has read them before.
    """
    data = np.frombuffer(packed, np.uint8)
    if data.max(initial=0) < 0x80:  # each of one byte
        return data.astype(np.uint64)
    ends = np.flatnonzero(data < 0x80)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    lengths = ends - starts + 1
    values = np.zeros(len(ends), np.uint64)
    for i in range(int(lengths.max(initial=0))):
        longer = np.flatnonzero(lengths > i)
        part = (data[starts[longer] + i] & 0x7F).astype(np.uint64)
        values[longer] |= part << np.uint64(7 * i)
    return values


def write_tensor(array: NDArray[Any]) -> bytes:
    """Return the array's bytes, little-endian and row-major; each string behind its length."""
    if array.dtype == _STRINGS:
        texts = [str(text).encode() for text in array.reshape(-1)]
        return b"".join(len(text).to_bytes(_LENGTH_BYTES, "little") + text for text in texts)
    if array.dtype in _NAMES:  # as the protocol has it: one copy, straight from the array
        return array.tobytes()
    return array.astype(array.dtype.newbyteorder("<")).tobytes()
