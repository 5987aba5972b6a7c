"""Firing rates kept at one byte each, in memory or in shards on disk. N images, D rates.

A rate is a share of so many places, so its count is exact in a byte where there are up to 255 of
them. Of larger tensors it is rounded to the nearest 255th, by at most .002.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.arrays import Place
from reluguard.detector.taps import Tap
from reluguard.training.data.mapped import empty_array, release
from reluguard.training.errors import DataError

__all__ = ["REMEDY", "SHARD", "StoredRates", "decode", "encode", "places", "stored"]

Codes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

FINEST = 255
SHARD, REMEDY = "a shard", "remove it to make it anew"  # for messages
_EXACT = 1e-3  # of a step: what float32 may be off a whole count


def places(taps: Sequence[Tap]) -> NDArray[np.int64]:
    """Return of how many values each rate is the share: int64, (D,)."""
    counts = []
    for tap in taps:
        sizes = [s for i, s in enumerate(tap.shape) if i != tap.channel_axis]
        if tap.is_strided:
            sizes = list(tap.sampled)
        counts += [int(np.prod(sizes))] * tap.rates
    return np.array(counts, np.int64)


def encode(rates: Floats, counts: NDArray[np.int64]) -> tuple[Codes, Codes] | None:
    """Return rates as whole numbers of steps and each column's steps to one, or None.

    None means that they are no shares: a value below 0, above 1 or not a number.

    Args:
        rates: float32, (N, D).
        counts: int64, (D,), of how many values each rate is the share. A column whose rates are no
            multiples of that has 255 steps.
    """
    if not ((rates >= 0) & (rates <= 1)).all():
        return None
    steps = np.where(counts <= FINEST, counts, FINEST).astype(np.float32)
    scaled = rates * steps
    coarse = (np.abs(scaled - np.rint(scaled)) > _EXACT).any(axis=0) & (steps < FINEST)
    if coarse.any():
        steps[coarse] = FINEST
        scaled[:, coarse] = rates[:, coarse] * np.float32(FINEST)
    return np.rint(scaled).astype(np.uint8), steps.astype(np.uint8)


def stored(rates: Floats, counts: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Return the arrays a shard keeps of rates: codes and steps, or half precision.

    Args:
        rates: float32, (N, D).
        counts: int64, (D,), as for `encode`.
    """
    coded = encode(rates, counts)
    if coded is None:
        return {"rates": rates.astype(np.float16)}
    return {"rates": coded[0], "steps": coded[1]}


def decode(codes: Codes, steps: Codes) -> Floats:
    """Return the rates: float32, (N, D).

    Args:
        codes: uint8, (N, D).
        steps: uint8, (D,).
    """
    rates: Floats = codes.astype(np.float32)
    rates /= steps.astype(np.float32)
    return rates


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Rows that lie together: an array of rates or of codes, or codes in a file from `offset` on.

    Codes have `steps`.
    """

    rows: int
    width: int
    array: NDArray[Any] | None = None
    file: Path | None = None
    offset: int = 0
    steps: Codes | None = None

    def read(self, first: int, last: int) -> NDArray[Any]:
        """Return the rates of rows first to last - 1."""
        kept = self.kept(first, last)
        return kept if self.steps is None else decode(kept, self.steps)

    def kept(self, first: int, last: int) -> NDArray[Any]:
        """Return these rows as they are kept, rates or codes."""
        if self.array is not None:
            return self.array[first:last]
        assert self.file is not None
        start, count = self.offset + first * self.width, (last - first) * self.width
        codes = np.fromfile(self.file, np.uint8, count, offset=start)
        if len(codes) != count:
            raise DataError(f"expected {SHARD}, {self.file} was cut: {REMEDY}")
        return codes.reshape(last - first, self.width)

    def release(self) -> None:
        """Let the system take back the memory of rows that lie on disk."""
        if self.array is not None:
            release(self.array)


class StoredRates:
    """Rates (N, D) that are read when asked for; indexed like an array.

    `rates[rows]` chooses rows and reads nothing. `rates[rows, columns]` and `rates[:, columns]`
    return float32. Reading rows in their order is fast, a few of many shards is not.
    """

    ndim = 2

    def __init__(
        self, parts: Sequence[_Part], rows: Rows | None = None, columns: Rows | None = None
    ) -> None:
        self._parts = tuple(parts)
        self._starts = np.cumsum([0, *(part.rows for part in parts)])
        self._rows = np.arange(self._starts[-1]) if rows is None else rows
        self._columns = columns

    @classmethod
    def joined(cls, arrays: Sequence["NDArray[Any] | StoredRates"]) -> "StoredRates":
        """Return stored rates or plain arrays (N, D), one below the other; nothing is copied."""
        parts: list[_Part] = []
        rows, total = [], 0
        for array in arrays:
            own = array if isinstance(array, StoredRates) else cls([_plain(array)])
            more, chosen = own.pieces()
            rows.append(chosen + total)
            parts += more
            total += sum(part.rows for part in more)
        return cls(parts, np.concatenate(rows))

    @classmethod
    def at(cls, place: Place, steps: Codes) -> "StoredRates":
        """Return the rates of a shard that holds them as uint8 codes (N, D) there.

        Args:
            place: of the codes.
            steps: uint8, (D,).
        """
        rows, width = place.shape
        part = _Part(rows=rows, width=width, file=place.file, offset=place.offset, steps=steps)
        return cls([part])

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        width = self._parts[0].width if self._columns is None else len(self._columns)
        return len(self._rows), width

    def __len__(self) -> int:
        return len(self._rows)

    def pieces(self) -> tuple[tuple[_Part, ...], Rows]:
        """Return parts of all columns, and which of their rows these are.

        Columns that were chosen are copied as they are kept: codes of a byte stay that.
        """
        if self._columns is None:
            return self._parts, self._rows
        found = list(self._places())
        coded = sum(len(at) for at, part, _ in found if part.steps is not None)
        codes = empty_array((coded, len(self._columns)), np.uint8)
        parts, rows = [], np.empty(len(self), np.int64)
        start = done = 0
        for at, part, within in found:
            values = part.kept(int(within[0]), int(within[-1]) + 1)[within - within[0]]
            values, steps = values[:, self._columns], part.steps
            if steps is not None:
                codes[done : done + len(at)] = values
                values, steps = codes[done : done + len(at)], steps[self._columns]
                done += len(at)
            parts.append(_Part(rows=len(at), width=len(self._columns), array=values, steps=steps))
            rows[at] = np.arange(start, start + len(at))
            start += len(at)
            part.release()
            release(codes)
        return tuple(parts), rows

    def only(self, columns: Rows) -> "StoredRates":
        """Return the same rows with these columns alone; nothing is read."""
        chosen = columns if self._columns is None else self._columns[columns]
        return StoredRates(self._parts, self._rows, chosen)

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, tuple):
            return StoredRates(self._parts, self._rows[key], self._columns)
        rows, columns = key
        chosen = self if isinstance(rows, slice) and rows == slice(None) else self[rows]
        return chosen.only(np.arange(chosen.shape[1])[columns]).astype(np.float32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("stored rates are read into a new array")
        return self.astype(np.float32 if dtype is None else dtype)

    def astype(self, dtype: Any) -> NDArray[Any]:
        """Return all of them as an array."""
        out = np.empty(self.shape, dtype)
        for at, values in self._read():
            out[at] = values if self._columns is None else values[:, self._columns]
        return out

    def _read(self) -> Iterator[tuple[Rows, NDArray[Any]]]:
        """Yield places in the result and their rates, part by part."""
        for at, part, within in self._places():
            yield at, part.read(int(within[0]), int(within[-1]) + 1)[within - within[0]]
            part.release()

    def _places(self) -> Iterator[tuple[Rows, _Part, Rows]]:
        """Yield places in the result, the part that holds them, and its rows, ascending."""
        order = np.argsort(self._rows, kind="stable")
        of_part = np.searchsorted(self._starts, self._rows[order], side="right") - 1
        cuts = np.flatnonzero(np.diff(of_part)) + 1
        for at in np.split(order, cuts):
            if len(at):
                i = int(np.searchsorted(self._starts, self._rows[at[0]], side="right")) - 1
                yield at, self._parts[i], self._rows[at] - self._starts[i]


def _plain(array: NDArray[Any]) -> _Part:
    return _Part(rows=len(array), width=array.shape[1], array=array)
