"""How much work a file is to decode, read from its structure before any decoder sees it.

A few kilobytes can claim gigapixels (PNG, WebP), go over the same pixels hundreds of times
(progressive JPEG), or be cut into a million parts, each of which costs a decoder a step. What is
counted here is counted in C or a bounded number of times, and what exceeds what any camera or
program writes is refused. One unit of work is about what one pixel of an ordinary file costs.

Source: ITU-T T.81, annex B (JPEG); W3C PNG, 5.3; RFC 9649 (WebP).
"""

import re
import struct
from dataclasses import dataclass

from reluguard.detector.errors import ImageTooLargeError

__all__ = ["MOST_PARTS", "MOST_SCANS", "Weight", "weigh"]

MOST_SCANS = 64  # of a JPEG: encoders write ten, the most careful scripts some thirty
MOST_PARTS = 4096  # segments of a JPEG, chunks of a PNG or WebP
_MOST_PACKED = 16  # compressed chunks of a PNG beside its pixels: a megabyte each
_PER_PART = 1000
_PER_PACKED = 300_000
_UNKNOWN = 2**30  # work of what can't be followed: a decoder may get further
# the next marker behind pixels: 0xFF not followed by a stuffed zero, a restart or more 0xFF
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SOS, _EOI = 0xDA, 0xD9
_APP1, _APP2 = 0xE1, 0xE2
_PNG = b"\x89PNG\r\n\x1a\n"
_PACKED = {b"zTXt", b"iTXt", b"iCCP"}
_EXIF, _SEVERAL = b"Exif\0\0", b"MPF\0"
_AS_TEXT = b"Raw profile type exif\0"  # as ImageMagick once wrote it into a PNG
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}


@dataclass(frozen=True, slots=True)
class Weight:
    """What a file claims: its pixels, and the work that they are."""

    pixels: int
    work: int


def weigh(data: bytes) -> Weight:
    """Return a file's weight; nothing for what is no JPEG, PNG or WebP: that is refused soon.

    Raises:
        ImageTooLargeError: more scans or parts than a file needs.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
        if data.startswith(_PNG):
            return _png(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp(data)
    except (struct.error, IndexError):
        return Weight(0, _UNKNOWN)
    return Weight(0, 0)


def _jpeg(data: bytes) -> Weight:
    at, parts, scans, pixels = 2, 0, 0, 0
    notes: dict[bytes, int] = {}
    while at < len(data):
        found = _MARKER.search(data, at)
        if found is None:
            break
        at = found.start() + 2
        marker = data[at - 1]
        parts = _counted(parts)
        if marker == _EOI:
            break
        if marker in _ALONE:
            continue
        (length,) = struct.unpack_from(">H", data, at)
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            pixels = max(pixels, height * width)
        if marker == _SOS:
            scans += 1
            if scans > MOST_SCANS:
                raise ImageTooLargeError(f"expected a JPEG of at most {MOST_SCANS} scans, got more")
        if marker in {_APP1, _APP2}:
            _note(notes, data, at + 2, length)
        at += length
    if not pixels:
        return Weight(0, _UNKNOWN)
    return Weight(pixels, pixels * max(1, scans) + parts * _PER_PART + sum(notes.values()))


def _png(data: bytes) -> Weight:
    width, height, depth, _, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    at, parts, packed, notes = len(_PNG), 0, 0, 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        parts = _counted(parts)
        packed += kind in _PACKED
        if packed > _MOST_PACKED:
            raise ImageTooLargeError(
                f"expected a PNG of at most {_MOST_PACKED} compressed notes, got more"
            )
        if kind == b"IEND":
            break
        if kind == b"eXIf":
            notes += _entries(data, at + 8, length)
        elif kind in _TEXTS and data.startswith(_AS_TEXT, at + 8):
            notes += _UNKNOWN
        at += 12 + length
    pixels = width * height
    each = (2 if depth == 16 else 1) + bool(interlaced)
    return Weight(pixels, pixels * each + parts * _PER_PART + packed * _PER_PACKED + notes)


def _webp(data: bytes) -> Weight:
    at, parts, pixels, notes = 12, 0, 0, 0
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        parts = _counted(parts)
        body = at + 8
        if kind == b"VP8X":
            sides = (int.from_bytes(data[body + i : body + i + 3], "little") + 1 for i in (4, 7))
            pixels = max(pixels, next(sides) * next(sides))
        elif kind == b"VP8 ":
            width, height = struct.unpack_from("<HH", data, body + 6)
            pixels = max(pixels, (width & 0x3FFF) * (height & 0x3FFF))
        elif kind == b"VP8L":
            (bits,) = struct.unpack_from("<I", data, body + 1)
            pixels = max(pixels, ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1))
        elif kind == b"EXIF":
            notes += _entries(data, body + len(_EXIF) * data.startswith(_EXIF, body), length)
        at = body + length + length % 2
    if not pixels:
        return Weight(0, _UNKNOWN)
    return Weight(pixels, pixels * 2 + parts * _PER_PART + notes)


def _note(notes: dict[bytes, int], data: bytes, start: int, length: int) -> None:
    """Add the work of the notes in a segment of a JPEG, by kind."""
    for name in (_EXIF, _SEVERAL):
        if data.startswith(name, start):
            again = name in notes  # Pillow joins them: what the whole claims isn't known
            notes[name] = _UNKNOWN if again else _entries(data, start + len(name), length)


def _entries(data: bytes, start: int, length: int) -> int:
    """Return the work of a table of notes: each may claim all of its bytes as its own.

    Source: TIFF 6.0, section 2.

    Pillow 10.3 keeps a copy for each: 260 kB took 54 s and five gigabytes.
    """
    order = "<" if data.startswith(b"II", start) else ">"
    try:
        (offset,) = struct.unpack_from(f"{order}I", data, start + 4)
        (count,) = struct.unpack_from(f"{order}H", data, start + offset)
    except struct.error:
        return _UNKNOWN
    return int(count) * length


def _counted(parts: int) -> int:
    if parts >= MOST_PARTS:
        raise ImageTooLargeError(f"expected a file of at most {MOST_PARTS} parts, got more")
    return parts + 1
