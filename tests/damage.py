"""Every way in which an npz can be other than it was written, for tests of whoever reads one."""

import io
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.arrays import write_arrays

__all__ = ["DAMAGES", "HARMLESS", "arrays_in", "flips", "rewritten"]

Arrays = dict[str, NDArray[Any]]


def arrays_in(file: Path) -> Arrays:
    """Return what a whole npz holds, read by NumPy."""
    with file.open("rb") as stream, np.load(stream) as found:
        return {name: found[name] for name in found.files}


def rewritten(arrays: Arrays, *, compress: bool = True) -> bytes:
    """Return an npz of these arrays."""
    buffer = io.BytesIO()
    write_arrays(buffer, arrays, compress=compress)
    return buffer.getvalue()


def flips(data: bytes, count: int) -> Iterator[bytes]:
    """Yield the bytes with one of them inverted, at places spread over all of them.

    The ends of an archive hold what says where things are, so each byte there has its turn.
    """
    edge = 160
    spread = range(0, len(data), max(1, len(data) // count))
    for position in sorted(
        {*spread, *range(min(edge, len(data)), 3), *range(len(data) - edge, len(data))}
    ):
        if 0 <= position < len(data):
            yield data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


def _members(data: bytes, method: int, **more: bytes) -> bytes:
    """Return the archive again with its members compressed so, and with others put in."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, more.get(name, old.read(name)))
    return buffer.getvalue()


def _npy(
    shape: Any, descr: str = "|u1", content: bytes = b"", version: tuple[int, int] = (1, 0)
) -> bytes:
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    return np.lib.format.magic(*version) + struct.pack("<H", len(header)) + header + content


def _first(data: bytes) -> str:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.namelist()[0]


def _instead(content: bytes) -> Callable[[bytes], bytes]:
    return lambda data: _members(data, zipfile.ZIP_DEFLATED, **{_first(data): content})


def _flipped_stream(data: bytes) -> bytes:
    """Return the archive with a byte inverted well inside its largest member."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        info = max(archive.infolist(), key=lambda info: info.compress_size)
    place = info.header_offset + 30 + len(info.filename) + info.compress_size // 2
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def _flagged(data: bytes) -> bytes:
    """Return the archive with every member said to be encrypted."""
    bad = bytearray(data)
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = data.find(mark)
        while place >= 0:
            bad[place + flags] |= 1
            place = data.find(mark, place + 1)
    return bytes(bad)


def _objects(data: bytes) -> bytes:
    """Return the archive with Python objects for its first array."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.array([{}], object), allow_pickle=True)
    return _instead(buffer.getvalue())(data)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "text": lambda _: b"not an archive\n" * 20,
    "cut": lambda data: data[: len(data) // 2],
    "without its end": lambda data: data[:-30],
    "flipped stream": _flipped_stream,
    "zeros at the end": lambda data: data[:-40] + bytes(40),
    "zeros in the middle": lambda data: data[:300] + bytes(200) + data[500:],
    "bzip2": lambda data: _members(data, zipfile.ZIP_BZIP2),
    "lzma": lambda data: _members(data, zipfile.ZIP_LZMA),
    "encrypted": _flagged,
    "nothing in it": lambda _: rewritten({}),
    "other arrays": lambda _: rewritten({"other": np.zeros(3)}),
    "no array": _instead(b"hello"),
    "empty array file": _instead(b""),
    "huge shape": _instead(_npy((2**40, 2**20), content=bytes(64))),
    "overflowing shape": _instead(_npy((10**30,), content=bytes(64))),
    "empty but huge": _instead(_npy((0, 10**30))),
    "negative shape": _instead(_npy((-4, -16), content=bytes(64))),
    "shape of words": _instead(_npy("many", content=bytes(64))),
    "too long": _instead(_npy((4,), content=bytes(64))),
    "too short": _instead(_npy((400,), content=bytes(64))),
    "no header": _instead(_npy(()).replace(b"{", b"(")),
    "deep header": _instead(_npy(()).replace(b"()", b"(" * 90)),
    "unknown dtype": _instead(_npy((64,), descr="evil", content=bytes(64))),
    "later format": _instead(_npy((64,), content=bytes(64), version=(3, 0))),
    "objects": _objects,
}
HARMLESS: dict[str, Callable[[bytes], bytes]] = {
    "stored": lambda data: _members(data, zipfile.ZIP_STORED),
    "deflated": lambda data: _members(data, zipfile.ZIP_DEFLATED),
    "something before it": lambda data: b"#!/bin/sh\n" + data,
}
