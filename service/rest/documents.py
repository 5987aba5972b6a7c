"""JSON that strangers send, read at a cost that is known before.

Python's JSON reader makes an object of every number and holds the interpreter while it does: 16 MB
of numbers would keep everybody waiting for a second, and 16 MB of empty lists take 20 times as much
memory. So arrays of numbers are cut out first, by searching for bytes, and read in pieces, and what
is left is counted before it is read.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.service.errors import RequestError

__all__ = ["Cut", "cut_numbers", "read_document", "read_numbers_text"]

_DATA = re.compile(rb'"data"\s*:\s*\[')
_MOST_ARRAYS = 64
_MOST_DIGITS = 64
_PIECE_BYTES = 32 * 1024
_BLANKS = bytes.maketrans(b"[]", b"  ")
_PARTS = b",:[{\\"  # what each begins an object of Python's
_NOT_IN_NUMBERS = b"{\\"  # of these, what can be counted before numbers are cut out


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A document whose arrays of numbers were cut out.

    Attributes:
        rest: the document, with `[K]` in place of array K.
        arrays: the text of each, brackets and all.
    """

    rest: bytes
    arrays: Sequence[memoryview]


def cut_numbers(document: bytes | bytearray | memoryview, *, most: int) -> Cut:
    """Return a document without the numbers of its `data`.

    Args:
        document: as it came.
        most: parts it may have beside numbers.

    Raises:
        RequestError: there are more arrays than any request has inputs, or more parts.
    """
    text = bytes(document)
    _count_parts(text, _NOT_IN_NUMBERS, most)
    whole = memoryview(text)
    parts: list[bytes | memoryview] = []
    arrays: list[memoryview] = []
    at = done = tensors = 0
    brace = -1
    while (found := _DATA.search(text, at)) is not None:
        tensors += 1
        if tensors > _MOST_ARRAYS:
            raise RequestError(f"expected at most {_MOST_ARRAYS} arrays of data, got more")
        start, at = found.end() - 1, found.end()
        # inside of numbers there is neither a quote nor a brace
        if brace < at:
            brace = text.find(b"}", at) % (len(text) + 1)  # its end where there is none
        quote = text.find(b'"', at, brace)
        end = text.rfind(b"]", at, brace if quote < 0 else quote)
        if end < 0:
            continue
        parts += [whole[done:start], b"[%d]" % len(arrays)]
        arrays.append(whole[start : end + 1])
        at = done = end + 1
    if not arrays:
        return Cut(rest=text, arrays=())
    return Cut(rest=b"".join([*parts, whole[done:]]), arrays=arrays)


def read_document(text: bytes, *, most: int) -> Any:
    """Return what a JSON document says.

    Args:
        text: without the numbers of its tensors.
        most: parts it may have.

    Raises:
        RequestError: it is no JSON as RFC 8259 has it, has a key twice, or more parts.
    """
    _count_parts(text, _PARTS, most)
    try:
        return json.loads(
            text.decode(),
            parse_int=_whole,
            parse_float=_decimal,
            parse_constant=_constant,
            object_pairs_hook=_once,
        )
    except (ValueError, RecursionError) as error:
        raise RequestError(f"expected a JSON document, got none: {_words(error)}") from None


def _count_parts(text: bytes, parts: bytes, most: int) -> None:
    for byte in parts:
        if text.count(byte) > most:
            raise RequestError(f"expected at most {most} of {chr(byte)!r} in a JSON document beside"
                               " the numbers of its data, got more")  # fmt: skip


def _words(error: Exception) -> str:
    """Return what was wrong, without what the caller sent."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at {error.pos}"
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)[:80]


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise RequestError(f"expected numbers of at most {_MOST_DIGITS} digits, got a longer one")
    return int(text)


def _decimal(text: str) -> float:
    if len(text) > _MOST_DIGITS:
        raise RequestError(f"expected numbers of at most {_MOST_DIGITS} digits, got a longer one")
    return float(text)


def _constant(text: str) -> float:
    raise RequestError(f"expected JSON, which has no {text}")


def _once(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RequestError("expected each key of a JSON object once, got one twice")
    return found


def read_numbers_text(text: memoryview, dtype: np.dtype[Any], *, count: int) -> NDArray[Any]:
    """Return the numbers of an array's text, however its brackets are nested: (count,).

    Read in pieces, between which other threads of the process get their turn.

    Args:
        text: brackets, numbers, commas, blanks.
        dtype: of the tensor.
        count: how many there are to be.

    Raises:
        RequestError: another number of them, something that is none, or one that doesn't fit.
    """
    whole = bytes(text)
    commas = whole.count(b",")  # before the long way: who sends millions of them is refused at once
    if commas in {0, count - 1}:
        whole = whole.translate(_BLANKS)
    got = commas + 1 if commas or whole.strip() else 0
    if got != count:
        raise RequestError(f"expected {count} numbers as data, got {got}")
    exact = np.dtype(np.uint64 if dtype == np.uint64 else np.int64)
    values = np.empty(count, np.float64 if dtype.kind == "f" else exact)
    at = filled = 0
    while filled < count:
        end = whole.rfind(b",", at, at + _PIECE_BYTES)
        if end < 0 or len(whole) - at <= _PIECE_BYTES:
            end = len(whole)
        if end - at > _PIECE_BYTES:
            raise RequestError(f"expected numbers of at most {_MOST_DIGITS} digits as data, got"
                               " something longer")  # fmt: skip
        piece = whole[at:end].split(b",")
        try:
            values[filled : filled + len(piece)] = [*map(_number_of(dtype), piece)]
        except (ValueError, OverflowError):
            raise RequestError(_not_a_number(piece, dtype)) from None
        filled += len(piece)
        at = end + 1
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # what is too large is refused as infinite
            return values.astype(dtype)
    if dtype.kind != "b":
        limits = np.iinfo(dtype)
        if count and (values.min() < limits.min or values.max() > limits.max):
            raise RequestError(f"expected numbers in {limits.min}..{limits.max}, got others")
    return values.astype(dtype)


def _number_of(dtype: np.dtype[Any]) -> Any:
    return {"f": _float, "b": _truth}.get(dtype.kind, _int)


def _float(word: bytes) -> float:
    if len(word) > _MOST_DIGITS and len(word.strip()) > _MOST_DIGITS:
        raise ValueError(word)
    return float(word)


def _int(word: bytes) -> int:
    if len(word) > _MOST_DIGITS and len(word.strip()) > _MOST_DIGITS:
        raise ValueError(word)
    return int(word)


def _truth(word: bytes) -> bool:
    found = {b"true": True, b"false": False}.get(word.strip())
    if found is None:
        raise ValueError(word)
    return found


def _not_a_number(piece: Sequence[bytes], dtype: np.dtype[Any]) -> str:
    what = "numbers" if dtype.kind == "f" else "whole numbers"
    for word in piece:
        try:
            _number_of(dtype)(word)
        except (ValueError, OverflowError):
            got = word.strip()[:_MOST_DIGITS].decode(errors="replace")
            return f"expected {what} of at most {_MOST_DIGITS} digits as data, got {got!r}"
    return f"expected {what} that {dtype.name} holds as data, got others"
