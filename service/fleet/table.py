"""What callers have used of a server of several processes: one table in memory that all share.

A caller's row is found by a keyed hash of its name among the eight of its set. Whoever reads or
changes rows of a set holds the kernel's lock on it, which ends with the process that holds it. Each
process counts its calls in a column of its own, which goes when the process does.
"""

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from reluguard.service.errors import OverloadedError
from reluguard.service.quotas import Bucket, Use
from reluguard.service.shared_memory import NAME_BYTES, locked, make_memory, name_of

__all__ = ["Table"]

_SETS, _WAYS = 2048, 8
_PUSHBACK_S = 1.0
_NEVER = -1.0
_BUCKETS = struct.Struct("<4d")  # of calls and of rows: what is left, and when that was
_COLUMN = struct.Struct("<i")


class Table:
    """The accounts of all callers of a server, as `quotas.Uses`; one end of it per process.

    Args:
        handle: of the file that `make` made.
        number: of this process, from 0.
        of: processes that there are.
        key: secret, so that nobody can choose a set.
    """

    def __init__(self, handle: int, *, number: int, of: int, key: bytes) -> None:
        self._handle, self._number, self._key = handle, number, key
        self._row_bytes = _row_bytes(of)
        self._calls = struct.Struct(f"<{of}i")
        self._map = mmap.mmap(handle, _SETS * _WAYS * self._row_bytes)

    @staticmethod
    def make(of: int) -> int:
        """Return the handle of a new table for so many processes; the caller closes it."""
        return make_memory("reluguard-quotas", _SETS * _WAYS * _row_bytes(of))

    def clear(self, number: int) -> None:
        """Forget the calls that a process was handling: it is gone."""
        for row in range(0, len(self._map), self._row_bytes):
            _COLUMN.pack_into(self._map, self._column(row, number), 0)

    @contextmanager
    def held(self, who: str) -> Iterator[Use]:
        """Give a caller's account, nobody else's meanwhile; what is changed in it is kept.

        Raises:
            OverloadedError: all of its set's rows are callers with calls being handled.
        """
        name = name_of(who, self._key)
        group = int.from_bytes(name[:2]) % _SETS
        with locked(self._handle, group):
            row = self._row(group, name)
            calls = sum(self._calls_of(row))
            by_call, by_row = self._buckets(row)
            use = Use(calls, by_call, by_row)
            try:
                yield use
            finally:
                place = self._column(row, self._number)
                (own,) = _COLUMN.unpack_from(self._map, place)
                _COLUMN.pack_into(self._map, place, own + use.calls - calls)
                self._put(row, use)

    def _row(self, group: int, name: bytes) -> int:
        """Return where a caller's row is; a new one is that of whoever was not seen for longest."""
        first = group * _WAYS * self._row_bytes
        rows = range(first, first + _WAYS * self._row_bytes, self._row_bytes)
        for row in rows:
            if self._map[row : row + NAME_BYTES] == name:
                return row
        free = [row for row in rows if not any(self._calls_of(row))]
        if not free:
            raise OverloadedError("expected fewer callers at once", retry_after_s=_PUSHBACK_S)
        row = min(free, key=self._seen)
        self._map[row : row + NAME_BYTES] = name
        self._put(row, Use.none())
        return row

    def _column(self, row: int, number: int) -> int:
        return row + NAME_BYTES + _BUCKETS.size + _COLUMN.size * number

    def _calls_of(self, row: int) -> tuple[int, ...]:
        return self._calls.unpack_from(self._map, self._column(row, 0))

    def _buckets(self, row: int) -> tuple[Bucket, Bucket]:
        left, at, rows_left, rows_at = _BUCKETS.unpack_from(self._map, row + NAME_BYTES)
        return (
            Bucket(left, None if at == _NEVER else at),
            Bucket(rows_left, None if rows_at == _NEVER else rows_at),
        )

    def _seen(self, row: int) -> float:
        return max(bucket.at or _NEVER for bucket in self._buckets(row))

    def _put(self, row: int, use: Use) -> None:
        numbers = [
            number
            for bucket in (use.by_call, use.by_row)
            for number in (bucket.left, _NEVER if bucket.at is None else bucket.at)
        ]
        _BUCKETS.pack_into(self._map, row + NAME_BYTES, *numbers)


def _row_bytes(of: int) -> int:
    return NAME_BYTES + _BUCKETS.size + _COLUMN.size * of
