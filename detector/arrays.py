"""Arrays in files that others may have damaged: one reader, one list of what can go wrong."""

import struct
import zipfile
from typing import Any, BinaryIO

import numpy as np

__all__ = ["stored_array"]


def stored_array(stream: BinaryIO, name: str) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
    """Return where an uncompressed array of an open npz begins, its shape and its type.

    Raises:
        KeyError: it isn't there.
        ValueError: it is compressed, or not in C order.
    """
    with zipfile.ZipFile(stream) as archive:
        info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"expected {name} uncompressed")
    stream.seek(info.header_offset + 26)  # PKWARE's APPNOTE 4.3.7: lengths of name and extra field
    named, extra = struct.unpack("<HH", stream.read(4))
    stream.seek(named + extra, 1)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"expected {name} in version 1.0 of the format, got {version}")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran:
        raise ValueError(f"expected {name} in C order")
    return stream.tell(), shape, dtype
