"""A lock on a folder that ends with the process that holds it, however that ends.

The lock is the kernel's (flock) on a file in the folder; the file's text, who holds it, is only for
people. The file is never removed, so that all who come lock the same one.
"""

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from reluguard.detector.errors import HeldError

__all__ = ["LOCK", "hold"]

LOCK = "lock"
_POLL_S = 0.02
_WITHOUT = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # what a disk without locks answers
_log = logging.getLogger(__name__)


@contextmanager
def hold(folder: Path, *, name: str = LOCK, wait_s: float = 0.0) -> Iterator[int]:
    """Hold a folder until the block ends; other processes and threads are refused meanwhile.

    Gives the handle of the locked file: a process that inherits it holds the folder too.

    On a disk that knows no locks, a network disk perhaps, a warning is logged and nobody refused.

    Args:
        folder: one that is there.
        name: of the file that is locked.
        wait_s: how long to wait for another holder.

    Raises:
        HeldError: another holds it for longer than that; the message says which process.
        OSError: there is no such folder, or no right to write there.
    """
    with (folder / name).open("a+", encoding="utf-8") as stream:  # "w" would wipe who holds it
        patience = time.monotonic() + wait_s
        while not _taken(stream):
            if time.monotonic() >= patience:
                raise HeldError(
                    f"expected {folder} for this process alone, {_holder(stream)} works in it"
                )
            time.sleep(_POLL_S)
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
        yield stream.fileno()


def _taken(stream: IO[str]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _WITHOUT:
            raise
        _log.warning(
            "%s can't be locked: %s; two at once there are not noticed", stream.name, error
        )
    return True


def _holder(stream: IO[str]) -> str:
    stream.seek(0)
    return stream.read(256).strip() or "another process"
