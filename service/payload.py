"""The one large field of a request, read where it lies.

Protobuf copies a bytes field into its message and once more when it is read: for a batch of
photographs that is milliseconds on the event loop. So the field is cut out first. What is left is
parsed by protobuf as ever, and the field stays a view of the bytes that came. Whatever looks
unusual is left whole to protobuf: nothing here decides what is valid.
"""

from collections.abc import Mapping

__all__ = ["AT_LEAST", "Fields", "lift"]

Fields = Mapping[int, int | None]
AT_LEAST = 32 * 1024  # bytes: below this, looking for the field costs more than copying it
_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5
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
            elif kind == _VARINT:
                _, at = _read(message, at, _MAX_VARINT)
            elif kind in {_EIGHT, _FOUR}:
                at += 8 if kind == _EIGHT else 4
            else:  # a group, or nothing that protobuf knows
                return None
    except IndexError:
        return None
    return found if at == size else None


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
