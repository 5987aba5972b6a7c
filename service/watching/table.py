"""What the watch remembers: one table of fixed size in memory, which several processes may share.

A caller's row is found by a keyed hash of its name among the ways of its set, as in `fleet.table`;
where a set is full, whoever asked longest ago is forgotten. A row holds prints of so many questions
that others are compared with, how many came near each, keyed hashes of the last questions, and
nothing of any image.
"""

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.service.shared_memory import NAME_BYTES, locked, make_memory, name_of
from reluguard.service.watching.prints import WORDS

__all__ = ["LEADERS", "LEAST_BYTES", "RECENT", "ROW_BYTES", "Table"]

LEADERS = 128  # prints of one caller that others are compared with
RECENT = 256  # questions of one caller that are known again when they return
_WAYS = 4
_LOCKS = 64
_SHOWN_BYTES = 64  # of a caller's name
_ROW = np.dtype(
    [
        ("name", "u1", NAME_BYTES),
        ("shown", f"S{_SHOWN_BYTES}"),
        ("seen", "<f8"),
        ("level", "<f8"),
        ("level_at", "<f8"),
        ("since", "<f8"),
        ("suspected", "<u8"),
        ("asked", "<u8"),
        ("recent", "<u8", RECENT),
        ("prints", "<u8", (LEADERS, WORDS)),
        ("weight", "<f8", LEADERS),
        ("at", "<f8", LEADERS),
    ]
)
ROW_BYTES = _ROW.itemsize
LEAST_BYTES = _WAYS * ROW_BYTES


class Table:
    """Rows of callers, at most so many bytes of them.

    Args:
        max_bytes: of the whole table, `LEAST_BYTES` or more.
        key: secret, so that nobody can choose a set.
        handle: of the file that `make` made, where several processes share it; None for memory
            of this process alone.
    """

    def __init__(self, max_bytes: int, *, key: bytes, handle: int | None = None) -> None:
        self._sets = _sets(max_bytes)
        self._key, self._handle = key, handle
        # the kernel's locks are between processes only
        self._locks = [threading.Lock() for _ in range(min(self._sets, _LOCKS))]
        self.bytes = self._sets * _WAYS * ROW_BYTES
        self._map = mmap.mmap(-1 if handle is None else handle, self.bytes)
        self.rows: NDArray[Any] = np.frombuffer(self._map, _ROW)

    @staticmethod
    def make(max_bytes: int) -> int:
        """Return the handle of a new table; the caller closes it."""
        return make_memory("reluguard-watch", _sets(max_bytes) * _WAYS * ROW_BYTES)

    @contextmanager
    def held(self, who: str, now: float) -> Iterator[Any]:
        """Give a caller's row, nobody else's meanwhile; a caller never seen gets an empty one."""
        name = name_of(who, self._key)
        group = int.from_bytes(name[:4]) % self._sets
        with self._locked(group):
            ways = self.rows[group * _WAYS : (group + 1) * _WAYS]
            row = ways[self._way(ways, name, who)]
            row["seen"] = now
            yield row

    def forget(self, before: float) -> None:
        """Wipe the rows of callers that did not ask since then."""
        for group in range(self._sets):
            ways = self.rows[group * _WAYS : (group + 1) * _WAYS]
            if not _old(ways, before).any():
                continue
            with self._locked(group):
                ways[_old(ways, before)] = np.zeros((), _ROW)

    @contextmanager
    def _locked(self, group: int) -> Iterator[None]:
        shared = nullcontext() if self._handle is None else locked(self._handle, group)
        with self._locks[group % len(self._locks)], shared:
            yield

    @staticmethod
    def _way(ways: NDArray[Any], name: bytes, who: str) -> int:
        for way in range(_WAYS):
            if ways["name"][way].tobytes() == name:
                return way
        way = int(ways["seen"].argmin())
        ways[way] = np.zeros((), _ROW)
        ways["name"][way] = np.frombuffer(name, np.uint8)
        ways["shown"][way] = who.encode()[:_SHOWN_BYTES]
        return way


def _old(ways: NDArray[Any], before: float) -> NDArray[np.bool_]:
    old: NDArray[np.bool_] = (ways["seen"] != 0) & (ways["seen"] < before)
    return old


def _sets(max_bytes: int) -> int:
    return max(1, max_bytes // LEAST_BYTES)
