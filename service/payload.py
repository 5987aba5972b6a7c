"""What a message is made of, looked at before protobuf makes it.

`lift` reads the one large field of a request where it lies. Protobuf copies a bytes field into its
message and once more when it is read: for a batch of photographs that is milliseconds on the event
loop. So the field is cut out first. What is left is parsed by protobuf as ever, and the field stays
a view of the bytes that came. Whatever looks unusual is left whole to protobuf.

`check_parts` counts what protobuf would make objects of: an empty field takes two bytes on the wire
and fifty times that, and a microsecond, in memory. Who needs more parts than any request has gets
none made.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from reluguard.service.errors import RequestError

__all__ = ["AT_LEAST", "Fields", "check_parts", "lift"]

Fields = Mapping[int, int | None]
AT_LEAST = 32 * 1024  # bytes: below this, looking for the field costs more than copying it
_VARINT, _EIGHT, _LENGTH, _START, _END, _FOUR = range(6)
_MOST_DEEP = 16  # messages in one another
_MOST_NUMBERS = 2**19  # bytes of numbers of a length each, which are slow to read
_MOST_SHAPE = 128  # bytes: more dimensions than any tensor has
_SLOW_TYPES = {
    FieldDescriptor.TYPE_BOOL,
    FieldDescriptor.TYPE_INT32,
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_UINT32,
    FieldDescriptor.TYPE_UINT64,
}
_MAX_VARINT = 10  # bytes
_MAX_TAG = 5  # bytes, of a tag or a length


def lift(
    data: bytes, fields: Fields, *, at_least: int = AT_LEAST
) -> tuple[bytes, memoryview | None]:
    """Return the serialised message without its large field, and that field's bytes.

    Args:
        data: a serialised message.
        fields: numbers of fields, of which one may be taken: None takes the field itself, a number
            the bytes field of that number in the message which it holds.
        at_least: leave smaller messages whole.

    Returns:
        The message as it came and None if it has no such field, several of them, or is small.
    """
    if len(data) < at_least:
        return data, None
    whole = memoryview(data)
    found = _only(whole, fields)
    if found is None:
        return data, None
    number, begin, start, end = found
    inner = fields[number]
    if inner is None:
        return b"".join((whole[:begin], whole[end:])), whole[start:end]
    holder = whole[start:end]
    found = _only(holder, {inner: None})
    if found is None:
        return data, None
    _, inner_begin, inner_start, inner_end = found
    rest = b"".join((holder[:inner_begin], holder[inner_end:]))
    tag = _written(number << 3 | _LENGTH)
    message = b"".join((whole[:begin], tag, _written(len(rest)), rest, whole[end:]))
    return message, holder[inner_start:inner_end]


def _only(message: memoryview, fields: Fields) -> tuple[int, int, int, int] | None:
    """Return number, beginning, start and end of the value of the only field among these."""
    found = None
    at, size = 0, len(message)
    try:
        while at < size:
            begin = at
            tag, at = _read(message, at, _MAX_TAG)
            kind, number = tag & 7, tag >> 3
            if kind == _LENGTH:
                length, at = _read(message, at, _MAX_TAG)
                start, at = at, at + length
                if number in fields:
                    if found is not None:
                        return None
                    found = (number, begin, start, at)
            else:  # of a group nothing is known
                at = _after(message, at, kind)
    except IndexError:
        return None
    return found if at == size else None


def _after(message: memoryview, at: int, wire: int) -> int:
    """Return where a number ends; IndexError if it is none."""
    if wire == _VARINT:
        return _read(message, at, _MAX_VARINT)[1]
    if wire not in {_EIGHT, _FOUR}:
        raise IndexError
    return at + (8 if wire == _EIGHT else 4)


def _read(message: memoryview, at: int, most: int) -> tuple[int, int]:
    """Return a varint and where it ends; IndexError if it does not end."""
    value = 0
    for i in range(most):
        byte = message[at + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    raise IndexError


def _written(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


@dataclass(frozen=True, slots=True)
class _Known:
    """What counting must know of a message: which fields are messages, and which are numbers."""

    inner: Mapping[int, Any]
    numbers: frozenset[int]
    shapes: frozenset[int]


@cache
def _known(kind: Any) -> _Known:
    fields = kind.fields
    numbers = [f for f in fields if f.type in _SLOW_TYPES]
    return _Known(
        inner={f.number: f.message_type for f in fields if f.message_type is not None},
        numbers=frozenset(f.number for f in numbers),
        shapes=frozenset(f.number for f in numbers if f.name == "shape"),
    )


def check_parts(data: bytes, kind: Any, *, most: int, at_least: int = AT_LEAST) -> None:
    """Raise RequestError if these bytes hold more fields than a request has, at all depths.

    Args:
        data: a serialised message.
        kind: of which it is one.
        most: fields that it may hold.
        at_least: let smaller messages pass: they hold few.
    """
    if len(data) < at_least:
        return
    count = _Count(kind.full_name, most)
    try:
        count.walk(memoryview(data), kind, 0)
    except IndexError:
        raise RequestError(
            f"expected a {kind.full_name} message, got bytes that are none"
        ) from None


class _Count:
    """Counts the fields of one message."""

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most = name, most
        self._fields = self._numbers = 0

    def walk(self, message: memoryview, kind: Any, depth: int) -> None:
        if depth > _MOST_DEEP:
            raise RequestError(f"expected messages at most {_MOST_DEEP} deep, got deeper ones")
        known = _known(kind)
        at, size = 0, len(message)
        while at < size:
            self._fields += 1
            if self._fields > self._most:
                raise RequestError(
                    f"expected at most {self._most} fields in a {self._name}, got more"
                )
            tag, at = _read(message, at, _MAX_TAG)
            wire, number = tag & 7, tag >> 3
            if wire == _LENGTH:
                length, start = _read(message, at, _MAX_TAG)
                at = start + length
                if at > size:
                    raise IndexError
                if number in known.inner:
                    self.walk(message[start:at], known.inner[number], depth + 1)
                elif number in known.numbers:
                    self._count_numbers(length, shape=number in known.shapes)
            elif wire not in {_START, _END}:
                at = _after(message, at, wire)

    def _count_numbers(self, length: int, *, shape: bool) -> None:
        if shape and length > _MOST_SHAPE:
            raise RequestError("expected at most 8 dimensions in a shape, got more")
        self._numbers += length
        if self._numbers > _MOST_NUMBERS:
            raise RequestError(
                f"expected at most {_MOST_NUMBERS} bytes of whole numbers as typed contents: "
                "send more as raw contents"
            )
