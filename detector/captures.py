"""The format of captured production: what a server writes, and people, retraining and drift read.

A folder holds `capture.sqlite` (WAL) with one row per captured image, and append-only
`shards/*.npz` with what the head read of them: `rates`, `logits` and, where raw input was asked
for, `images` (uint8 pixels, decoded ones too) or `tensors` (the caller's own).

A shard's name stands in the index before the shard is written, and its rows only after, so whenever
the process dies each row has its shard, and what has none is known to be ours. Nothing else in the
folder is touched. Order is that of insertion: clocks go backwards. N images, D rates, K classes, L
taps.
"""

import re
import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.arrays import read_arrays
from reluguard.detector.artifact import write_file
from reluguard.detector.errors import CapturesError

__all__ = [
    "INDEX",
    "LABEL",
    "RAW",
    "Entry",
    "Labelled",
    "Raw",
    "Shard",
    "add",
    "drop_raw",
    "forget",
    "index",
    "labelled",
    "prepare",
    "read_shard",
    "shard_file",
    "shards",
    "tidy",
]

INDEX = "capture.sqlite"
LABEL = re.compile(r"clean|attack:[A-Za-z0-9._-]{1,64}")
LOCK_S = 5.0
Raw = Literal["images", "tensors"]
RAW: tuple[Raw, ...] = ("images", "tensors")
_SHARDS = "shards"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS captures (
  id TEXT PRIMARY KEY, time REAL NOT NULL, guard TEXT NOT NULL, model TEXT NOT NULL,
  score REAL NOT NULL, p_value REAL NOT NULL, prediction INT NOT NULL, stratum TEXT NOT NULL,
  weight REAL NOT NULL, source TEXT NOT NULL, label TEXT, labeller TEXT, labelled_at REAL,
  shard TEXT NOT NULL, row INT NOT NULL, layers BLOB);
CREATE INDEX IF NOT EXISTS captures_time ON captures (guard, time);
CREATE INDEX IF NOT EXISTS captures_shard ON captures (shard);
CREATE TABLE IF NOT EXISTS sampling (key BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS shards (name TEXT PRIMARY KEY);
"""
# what came after the first version, and an older index gets
_LATER = {
    "layers": "layers BLOB",
    "request": "request TEXT NOT NULL DEFAULT ''",
    "content": "content BLOB",
    "repeats": "repeats INT NOT NULL DEFAULT 0",
}
_UNIQUE = "CREATE UNIQUE INDEX IF NOT EXISTS captures_content ON captures (content)"
_COLUMNS = (
    "id", "time", "guard", "model", "score", "p_value", "prediction", "stratum", "weight",
    "source", "label", "shard", "row", "layers", "request", "content",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the index says of one captured image.

    Attributes:
        id: ours, never a caller's.
        time: seconds since the epoch.
        guard: digest of the one that scored it.
        model: SHA-256 of the production model.
        score, p_value, prediction: the verdict.
        stratum: why it was kept.
        weight: one over the chance with which it was.
        source: who sent it.
        layers: (L,). The share of each layer's gates that fired.
        request: what the caller calls its request.
        content: a keyed hash of the row; the same content is kept once. None for any.
        label: what a person says it is.
    """

    id: str
    time: float
    guard: str
    model: str
    score: float
    p_value: float
    prediction: int
    stratum: str
    weight: float
    source: str
    layers: NDArray[np.float32] | None = None
    request: str = ""
    content: bytes | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """One labelled image: where its readings lie."""

    id: str
    label: str
    shard: str
    row: int
    source: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What the head read of some images: rates (N, D), logits (N, K), and maybe the raw input.

    `kind` says what that is, where it is there.
    """

    rates: NDArray[Any]
    logits: NDArray[Any]
    raw: NDArray[Any] | None = None
    kind: Raw | None = None


@contextmanager
def index(folder: Path) -> Iterator[sqlite3.Connection]:
    """Give the index of a capture folder, committed when the block ends well.

    Raises:
        sqlite3.Error: it is locked, damaged or none.
    """
    with closing(sqlite3.connect(folder / INDEX, timeout=LOCK_S)) as connection, connection:
        yield connection


def shard_file(folder: Path, name: str) -> Path:
    """Return where a shard lies, whatever its name in a foreign index may say."""
    return folder / _SHARDS / Path(name).name


def prepare(folder: Path) -> bytes:
    """Make a folder ready to be written, an older one too, and return its sampling key.

    Raises:
        sqlite3.Error: its index is locked, damaged or none.
        OSError: it can't be written.
    """
    (folder / _SHARDS).mkdir(parents=True, exist_ok=True)
    with index(folder) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(_SCHEMA)
        there = {row[1] for row in connection.execute("PRAGMA table_info(captures)")}
        for name, column in _LATER.items():
            if name not in there:
                connection.execute(f"ALTER TABLE captures ADD COLUMN {column}")
        connection.execute(_UNIQUE)
        row = connection.execute("SELECT key FROM sampling").fetchone()
        key: bytes = row[0] if row else secrets.token_bytes(32)
        if row is None:
            connection.execute("INSERT INTO sampling VALUES (?)", (key,))
    return key


def add(
    folder: Path, shard: str, arrays: Mapping[str, NDArray[Any]], entries: Sequence[Entry]
) -> int:
    """Write one shard and its rows, and return how many are new; without any, no shard is left.

    A row whose id or content is there already counts as a repeat of that one.

    Raises:
        sqlite3.Error: the index is locked, damaged or none. Nothing is left.
        OSError: the disk is full or can't be written. Nothing is left.
    """
    places = ", ".join("?" * len(_COLUMNS))
    with index(folder) as connection:
        connection.execute("INSERT OR IGNORE INTO shards VALUES (?)", (shard,))
    try:
        write_file(shard_file(folder, shard), npz=arrays)
        with index(folder) as connection:
            kept = 0
            for row, entry in enumerate(entries):
                new = connection.execute(
                    f"INSERT OR IGNORE INTO captures ({', '.join(_COLUMNS)}) VALUES ({places})",  # noqa: S608 - our own words
                    _values(entry, shard, row),
                ).rowcount
                kept += new
                if not new:
                    connection.execute(
                        "UPDATE captures SET repeats = repeats + 1 WHERE id = ? OR content = ?",
                        (entry.id, entry.content),
                    )
    except BaseException:
        with suppress(OSError):
            shard_file(folder, shard).unlink(missing_ok=True)
        raise
    if not kept:
        forget(folder, shard)
    return kept


def _values(entry: Entry, shard: str, row: int) -> tuple[Any, ...]:
    layers = None if entry.layers is None else entry.layers.astype("<f4").tobytes()
    own = {"shard": shard, "row": row, "layers": layers}
    return tuple(own[name] if name in own else getattr(entry, name) for name in _COLUMNS)


def forget(folder: Path, shard: str) -> None:
    """Remove a shard that we wrote, its rows first.

    Raises:
        sqlite3.Error: the index is locked, damaged or none.
        OSError: the file can't be removed.
    """
    with index(folder) as connection:
        connection.execute("DELETE FROM captures WHERE shard = ?", (shard,))
    shard_file(folder, shard).unlink(missing_ok=True)
    with index(folder) as connection:
        connection.execute("DELETE FROM shards WHERE name = ?", (shard,))


def shards(folder: Path) -> dict[str, bool]:
    """Return the shards that have rows, oldest first, and whether any of those has a label.

    Raises:
        sqlite3.Error: the index is locked, damaged or none.
    """
    with index(folder) as connection:
        rows = connection.execute(
            "SELECT shard, MAX(label IS NOT NULL) FROM captures GROUP BY shard ORDER BY shard"
        ).fetchall()
    return {name: bool(has_label) for name, has_label in rows}


def tidy(folder: Path, *, writer: int | None = None) -> None:
    """Remove what a killed writer left: shards that the index promised and that have no rows.

    Args:
        folder: of captures.
        writer: the number of the process, which ends the names of its shards; None for all.

    Raises:
        sqlite3.Error: the index is locked, damaged or none.
        OSError: a file can't be removed.
    """
    with index(folder) as connection:
        promised = connection.execute(
            "SELECT name FROM shards WHERE name NOT IN (SELECT shard FROM captures)"
        ).fetchall()
    for (name,) in promised:
        if writer is not None and not name.endswith(f"-{writer}.npz"):
            continue
        file = shard_file(folder, name)
        for aside in file.parent.glob(f".{file.name}.*"):
            aside.unlink(missing_ok=True)
        forget(folder, name)


def labelled(folder: Path) -> list[Labelled]:
    """Return all images with a label, by id.

    Raises:
        CapturesError: there is no index, or it is locked or damaged.
    """
    names = tuple(Labelled.__dataclass_fields__)
    try:
        if not (folder / INDEX).is_file():
            raise CapturesError(f"expected captures in {folder}, it has no {INDEX}")
        with index(folder) as connection:
            rows = connection.execute(
                f"SELECT {', '.join(names)} FROM captures WHERE label IS NOT NULL ORDER BY id"  # noqa: S608 - our own words
            ).fetchall()
    except sqlite3.Error as error:
        raise CapturesError(f"the captures in {folder / INDEX} can't be read: {error}") from error
    return [Labelled(**dict(zip(names, row, strict=True))) for row in rows]


def read_shard(folder: Path, name: str) -> Shard:
    """Return what a shard holds, every byte of it checked.

    Raises:
        CapturesError: it is not there, damaged, or not what a shard is.
    """
    file = shard_file(folder, name)
    arrays = read_arrays(
        file, "rates", "logits", optional=RAW, error=CapturesError, what="a shard of captures"
    )
    rates, logits = arrays["rates"], arrays["logits"]
    found = next((kind for kind in RAW if kind in arrays), None)
    raw = None if found is None else arrays[found]
    fits = rates.ndim == logits.ndim == 2 and len(rates) == len(logits)
    fits = fits and rates.dtype.kind == logits.dtype.kind == "f"
    fits = fits and (raw is None or (raw.ndim > 0 and len(raw) == len(rates)))
    if not fits:
        raise CapturesError(f"expected a shard of captures, {file} holds other arrays")
    return Shard(rates=rates, logits=logits, raw=raw, kind=found)


def drop_raw(folder: Path, name: str) -> None:
    """Leave of a shard what the head read only.

    Raises:
        CapturesError: it is damaged: it stays as it is.
        OSError: it can't be written: it stays as it is.
    """
    shard = read_shard(folder, name)
    if shard.raw is not None:
        write_file(shard_file(folder, name), npz={"rates": shard.rates, "logits": shard.logits})
