"""Memory that the processes of a server share: made once, locked by place, names by a key.

The kernel's locks are between processes and end with the process that holds one.
"""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["NAME_BYTES", "locked", "make_memory", "name_of"]

NAME_BYTES = 16


def make_memory(name: str, size: int) -> int:
    """Return the handle of new memory of so many bytes, all zero; the caller closes it."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create(name)
    else:
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    os.ftruncate(handle, size)
    return handle


@contextmanager
def locked(handle: int, place: int) -> Iterator[None]:
    """Keep other processes from a place until the block ends."""
    fcntl.lockf(handle, fcntl.LOCK_EX, 1, place)
    try:
        yield
    finally:
        fcntl.lockf(handle, fcntl.LOCK_UN, 1, place)


def name_of(who: str, key: bytes) -> bytes:
    """Return a caller's name as a table holds it: a keyed hash, so that nobody can choose a set."""
    return hashlib.blake2b(who.encode(), key=key, digest_size=NAME_BYTES).digest()
