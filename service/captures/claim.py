"""A capture folder held against other servers, by the lock on a file in it."""

import fcntl
import os
import sqlite3
from contextlib import ExitStack, suppress
from pathlib import Path

from reluguard.detector.captures import prepare, tidy
from reluguard.detector.errors import HeldError
from reluguard.detector.lock import hold
from reluguard.service.errors import StartError

__all__ = ["Claim"]

_LOCK = "writer.lock"


class Claim:
    """Holds a capture folder, made and tidied, until it is released.

    It lasts as long as any process has the lock's handle open.

    Args:
        folder: made if it is not there.

    Attributes:
        folder: that is held.
        handle: of the locked file, for processes that write there too.

    Raises:
        StartError: the folder or its index can't be used, or another process writes there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held = ExitStack()
        self.handle = -1
        self._take()

    def _take(self) -> None:
        with ExitStack() as held:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                handle = held.enter_context(hold(self.folder, name=_LOCK))
                prepare(self.folder)
                tidy(self.folder)
            except (sqlite3.Error, OSError, HeldError) as error:
                raise StartError(
                    f"the capture folder {self.folder} can't be used: {error}"
                ) from error
            self._held, self.handle = held.pop_all(), handle

    def is_current(self) -> bool:
        """Return whether what is held still lies there: somebody may have taken it away."""
        if self.handle < 0:
            return False
        try:
            there = (self.folder / _LOCK).stat()
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(self.handle))

    def renew(self) -> None:
        """Hold what lies there now, made if need be; what was held before is free for others.

        Raises:
            StartError: as when it was made; nothing is held then.
        """
        if self.handle >= 0:
            with suppress(OSError):  # a disk without locks
                fcntl.flock(self.handle, fcntl.LOCK_UN)  # of every process that has this handle
        self.release()
        self._take()

    def release(self) -> None:
        """Let go of it in this process."""
        self.handle = -1
        self._held.close()
