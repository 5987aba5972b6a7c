"""The other side of `decoders`: a process that decodes what it is given and can be ended.

A message is a head of four bytes that say how long its JSON is, the JSON, and then the bytes whose
sizes stand in it: files one way, pixels the other. It ends when its socket closes, with its
parent, or by its parent's hand.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import struct
import warnings
from typing import Any

import numpy as np

from reluguard.detector.errors import DetectorError, ImageError
from reluguard.detector.images import InputSpec, decode_image

__all__ = ["HEAD", "main"]

HEAD = struct.Struct("<I")
_NICE = 10
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_OWN_BYTES = 2**30  # of addresses that Python, NumPy and Pillow take by themselves
_BYTES_PER_PIXEL = 24  # RGBA, its conversion, and a progressive JPEG's coefficients


def main(handle: int, max_pixels: int) -> None:
    """Decode until the socket closes.

    Args:
        handle: of the socket.
        max_pixels: of one request: what memory is for.
    """
    warnings.simplefilter("ignore")  # of what a caller sends: it would stand in the server's log
    _settle(_OWN_BYTES + _BYTES_PER_PIXEL * max_pixels)
    with socket.socket(fileno=handle) as connection:
        while True:
            head = _exactly(connection, HEAD.size)
            if head is None:
                return
            asked = json.loads(_exactly(connection, *HEAD.unpack(head)) or b"{}")
            files = [_exactly(connection, size) or b"" for size in asked["sizes"]]
            told, pixels = _decoded(asked, files)
            text = json.dumps(told | {"sizes": [len(pixels)]}).encode()
            connection.sendall(HEAD.pack(len(text)) + text)
            connection.sendall(pixels)


def _settle(max_bytes: int) -> None:
    """Take the place of one who must not be in anybody's way."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent ends us
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    with contextlib.suppress(OSError, AttributeError):  # only Linux has it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _decoded(asked: dict[str, Any], files: list[bytes]) -> tuple[dict[str, str], bytes]:
    spec = InputSpec.from_json(asked["spec"])
    try:
        images = [decode_image(file, spec, max_pixels=asked["max_pixels"]) for file in files]
        return {}, np.stack(images).tobytes()
    except DetectorError as error:
        return {"error": type(error).__name__, "message": str(error)}, b""
    except MemoryError:
        return {"error": ImageError.__name__, "message": "an image takes too much memory"}, b""


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    """Return so many bytes; None if the socket closed."""
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        got = connection.recv_into(view[at:])
        if not got:
            return None
        at += got
    return bytes(data)
