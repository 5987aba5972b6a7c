"""What a file costs is known before it is decoded, and never far below what it does cost."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from reluguard.detector.errors import ImageTooLargeError
from reluguard.service.decoding.weight import MOST_PARTS, MOST_SCANS, Weight, weigh

HEAVY = 2_000_000


def encoded(width: int, height: int, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(out, kind, **options)
    return out.getvalue()


def scan_bomb(scans: int, side: int = 64) -> bytes:
    """Return a progressive JPEG whose last scan comes again and again."""
    data = encoded(side, side, "JPEG", progressive=True)
    begin = data.rindex(b"\xff\xda")
    return data[:begin] + data[begin:-2] * scans + b"\xff\xd9"


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def chunked(*chunks: bytes) -> bytes:
    """Return a PNG with these chunks before its pixels."""
    data = encoded(8, 8, "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"quality": 5, "restart_marker_rows": 1}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}),
    ],
)
@given(st.integers(1, 90), st.integers(1, 90))
def test_pixels_are_those_of_the_image(
    kind: str, options: dict[str, object], width: int, height: int
) -> None:
    """Of every format, whatever the order of its parts."""
    weight = weigh(encoded(width, height, kind, **options))
    assert weight.pixels == width * height
    assert width * height <= weight.work < HEAVY


BOMBS: dict[str, Callable[[], bytes]] = {
    "scans of a JPEG": lambda: scan_bomb(MOST_SCANS + 1),
    "segments of a JPEG": lambda: b"\xff\xd8" + b"\xff\xe1\0\x02" * (MOST_PARTS + 1),
    "markers of a JPEG": lambda: b"\xff\xd8" + b"\xff\x01" * (MOST_PARTS + 1),
    "chunks of a PNG": lambda: chunked(chunk(b"teSt") * (MOST_PARTS + 1)),
    "empty pixels of a PNG": lambda: chunked(chunk(b"IDAT") * (MOST_PARTS + 1)),
    "notes of a PNG": lambda: chunked(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**6))) * 20),
    "profiles of a PNG": lambda: chunked(chunk(b"iCCP", b"a\0\0") * 20),
    "chunks of a WebP": lambda: (
        b"RIFF\0\0\0\0WEBP" + (b"ALPH" + struct.pack("<I", 0)) * (MOST_PARTS + 1)
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_more_parts_than_a_file_needs_are_refused(name: str) -> None:
    """Before a decoder takes a step for each."""
    with pytest.raises(ImageTooLargeError, match=r"expected a .* of at most"):
        weigh(BOMBS[name]())


def test_work_grows_with_scans_and_claims() -> None:
    """Few bytes may claim much: what they claim counts."""
    assert weigh(scan_bomb(40, 256)).work > 40 * 256 * 256
    assert weigh(scan_bomb(40, 256)).work > HEAVY
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 16, 2, 0, 0, 1)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND")
    assert weigh(png).pixels == 9 * 10**8
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\x3f\0" * 2
    assert weigh(b"RIFF\0\0\0\0WEBP" + canvas).pixels == 2**28


def table(entries: int, size: int, order: str) -> bytes:
    """Return EXIF data of so many entries, each of which claims to be all of `size` bytes."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    rows = [struct.pack(f"{order}HHII", tag, 7, size - 64, 8) for tag in range(1, entries + 1)]
    found = head + struct.pack(f"{order}H", entries) + b"".join(rows)
    return b"Exif\0\0" + found.ljust(size - 6, b"\0")


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def in_jpeg(*segments: bytes) -> bytes:
    data = encoded(8, 8, "JPEG")
    return data[:2] + b"".join(segments) + data[2:]


NOTES: dict[str, Callable[[bytes], bytes]] = {
    "JPEG": lambda exif: in_jpeg(segment(0xE1, exif)),
    "several pictures": lambda exif: in_jpeg(segment(0xE2, b"MPF\0" + exif[6:])),
    "PNG": lambda exif: chunked(chunk(b"eXIf", exif[6:])),
    "WebP": lambda exif: encoded(8, 8, "WEBP", exif=exif),
    "WebP without a name": lambda exif: encoded(8, 8, "WEBP", exif=exif[6:]),
}


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("where", NOTES)
def test_a_table_weighs_what_its_entries_claim(where: str, order: str) -> None:
    """Each may claim all bytes for itself; a camera's twenty beside its thumbnail are nothing."""
    assert weigh(NOTES[where](table(20, 40_000, order))).work < HEAVY
    assert weigh(NOTES[where](table(2_000, 60_000, order))).work > HEAVY


def test_what_a_reader_joins_or_unpacks_first_is_heavy() -> None:
    """Its size is not known before."""
    half = segment(0xE1, table(20, 1_000, "<"))
    assert weigh(in_jpeg(half, half)).work > HEAVY
    for kind in (b"tEXt", b"zTXt", b"iTXt"):
        assert weigh(chunked(chunk(kind, b"Raw profile type exif\0\0"))).work > HEAVY


@given(st.binary(max_size=300) | st.binary(max_size=60).map(lambda b: b"\xff\xd8" + b)
       | st.binary(max_size=60).map(lambda b: b"\x89PNG\r\n\x1a\n" + b)
       | st.binary(max_size=60).map(lambda b: b"RIFF\0\0\0\0WEBP" + b))  # fmt: skip
def test_any_bytes_have_a_weight(data: bytes) -> None:
    """What can't be followed is heavy, what is no image weighs nothing."""
    weight = weigh(data)
    assert weight.pixels >= 0
    assert weight.work == 0 or weight.work >= weight.pixels


def test_what_is_no_image_weighs_nothing() -> None:
    """A decoder refuses it at the first bytes."""
    assert weigh(b"GIF89a") == weigh(b"") == Weight(0, 0)


def test_a_cut_file_is_heavy() -> None:
    """A decoder may get further than we could follow."""
    for kind in ("JPEG", "PNG"):
        assert weigh(encoded(64, 64, kind)[:20]).work > HEAVY
