"""Keeps a known sample of production for retraining and drift, off the request path.

A folder holds `capture.sqlite` (WAL), one row per captured image, and append-only `shards/*.npz`
with what the head read of them: `rates`, `logits` and, where raw input is asked for, `images`
(uint8 pixels, decoded ones too) or `tensors` (the caller's own). Strata, with the weight each row
carries:

- `above`: everything above the threshold, weight 1.
- `band`: below it, but with a p-value up to twice the target false-positive rate, weight 1.
- `uniform`: a share of the rest, chosen by a keyed hash of the request's id, weight 1 / share.

A shard is written aside and renamed before its index rows exist, so that whenever the process dies
each row has its shard. Order is that of insertion: clocks go backwards. N images, D rates, K
classes, L taps.
"""

import hashlib
import logging
import os
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import write_file
from reluguard.detector.head import is_scored
from reluguard.detector.reference import layer_rates
from reluguard.detector.runtime import Guard
from reluguard.detector.verdict import Verdicts
from reluguard.service.errors import StartError

__all__ = ["INDEX", "RAW", "SHARDS", "Capture", "Captured", "DropReason", "Raw", "index", "sample"]

_log = logging.getLogger(__name__)
INDEX = "capture.sqlite"
SHARDS = "shards"
Raw = Literal["images", "tensors"]
RAW: tuple[Raw, ...] = ("images", "tensors")
DropReason = Literal["queue_full", "duplicate", "index", "disk", "full"]
_BAND = 2.0  # times the target false-positive rate
_QUEUE_BATCHES = 256
_SHARD_ROWS = 512
_FLUSH_S = 1.0
_LOCK_S = 5.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS captures (
  id TEXT PRIMARY KEY, time REAL NOT NULL, guard TEXT NOT NULL, model TEXT NOT NULL,
  score REAL NOT NULL, p_value REAL NOT NULL, prediction INT NOT NULL, stratum TEXT NOT NULL,
  weight REAL NOT NULL, source TEXT NOT NULL, label TEXT, labeller TEXT, labelled_at REAL,
  shard TEXT NOT NULL, row INT NOT NULL, layers BLOB);
CREATE INDEX IF NOT EXISTS captures_time ON captures (guard, time);
CREATE INDEX IF NOT EXISTS captures_shard ON captures (shard);
CREATE TABLE IF NOT EXISTS sampling (key BLOB NOT NULL);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """The sampled rows of one request, on their way to disk."""

    guard: str
    model: str
    source: str
    ids: Sequence[str]
    strata: Sequence[str]
    weights: NDArray[np.float64]
    score: NDArray[np.float32]
    p_value: NDArray[np.float64]
    prediction: NDArray[np.int64]
    rates: NDArray[np.float16]
    logits: NDArray[np.float32]
    layers: NDArray[np.float32]
    raw: NDArray[Any] | None
    kind: Raw


@contextmanager
def index(folder: Path) -> Iterator[sqlite3.Connection]:
    """Give the index of a capture folder, committed when the block ends well.

    Raises:
        sqlite3.Error: it is locked, damaged or none.
    """
    with closing(sqlite3.connect(folder / INDEX, timeout=_LOCK_S)) as connection, connection:
        yield connection


def sample(
    ids: Sequence[str], p_values: NDArray[np.float64], *, fpr: float, share: float, key: bytes
) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
    """Return each row's stratum and weight; weight 0 is not sampled. The same id, the same choice.

    Args:
        ids: (N,).
        p_values: (N,).
        fpr: the guard's target false-positive rate.
        share: of the uniform stratum, in (0, 1].
        key: without it nobody can choose an id that is sampled or is not.
    """
    strata = np.where(
        p_values <= fpr, "above", np.where(p_values <= _BAND * fpr, "band", "uniform")
    )
    digests = [hashlib.blake2b(name.encode(), key=key, digest_size=8).digest() for name in ids]
    drawn = np.array([int.from_bytes(digest) for digest in digests]) / 2.0**64 < share
    return strata, np.where(strata != "uniform", 1.0, np.where(drawn, 1 / share, 0.0))


class Capture:
    """The writer of one capture folder: a bounded queue and one thread.

    Args:
        folder: made if it is not there.
        share: of the uniform stratum.
        max_bytes: of all shards; beyond it the oldest unlabelled shards go.
        ttl_s: age at which unlabelled shards go, and images of labelled ones.
        with_images: keep raw input too: pixels, decoded files or the caller's own tensor.
        dropped: told how many rows were not kept, and why.
        clock: seconds since the epoch.

    Raises:
        StartError: the folder or its index can't be used.
    """

    def __init__(
        self,
        folder: Path,
        *,
        share: float,
        max_bytes: int,
        ttl_s: float,
        with_images: bool,
        dropped: Callable[[DropReason, int], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        self.with_images = with_images
        self._share, self._max_bytes, self._ttl_s = share, max_bytes, ttl_s
        self._dropped, self._clock = dropped, clock
        self._queue: queue.Queue[Captured | None] = queue.Queue(_QUEUE_BATCHES)
        self._last = 0
        try:
            (folder / SHARDS).mkdir(parents=True, exist_ok=True)
            with index(folder) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.executescript(_SCHEMA)
                columns = {row[1] for row in connection.execute("PRAGMA table_info(captures)")}
                if "layers" not in columns:  # an index of before it was kept
                    connection.execute("ALTER TABLE captures ADD COLUMN layers BLOB")
                row = connection.execute("SELECT key FROM sampling").fetchone()
                self._key = row[0] if row else secrets.token_bytes(32)
                if row is None:
                    connection.execute("INSERT INTO sampling VALUES (?)", (self._key,))
            self._clean()
        except (sqlite3.Error, OSError) as error:
            raise StartError(f"the capture folder {folder} can't be used: {error}") from error
        self._thread = threading.Thread(target=self._write_forever, name="capture", daemon=True)
        self._thread.start()

    def offer(
        self,
        verdicts: Verdicts,
        guard: Guard,
        *,
        request: str,
        source: str,
        raw: NDArray[Any] | None,
        kind: Raw = "images",
    ) -> None:
        """Sample one request's rows and queue them; never waits.

        Args:
            verdicts: N of them, with readings.
            guard: that gave them.
            request: its id; a row is REQUEST:ROW.
            source: who asked.
            raw: (N, ...), the input as it came or was decoded; None where there is none.
            kind: of `raw`.
        """
        read = verdicts.readings
        if read is None:
            return
        ids = [f"{request}:{i}" for i in range(len(verdicts))]
        strata, weights = sample(
            ids, verdicts.p_value, fpr=guard.fpr, share=self._share, key=self._key
        )
        rows = np.flatnonzero((weights > 0) & is_scored(verdicts.score))
        if not len(rows):
            return
        rates = read.rates[rows]
        captured = Captured(
            guard=guard.artifact.digest,
            model=guard.artifact.manifest.model_sha256,
            source=source,
            ids=[ids[i] for i in rows],
            strata=strata[rows].tolist(),
            weights=weights[rows],
            score=verdicts.score[rows],
            p_value=verdicts.p_value[rows],
            prediction=verdicts.prediction[rows],
            rates=rates.astype(np.float16),
            logits=read.logits[rows],
            layers=layer_rates(rates, guard.artifact.manifest.taps),
            raw=raw[rows] if self.with_images and raw is not None else None,
            kind=kind,
        )
        try:
            self._queue.put_nowait(captured)
        except queue.Full:
            self._dropped("queue_full", len(rows))

    def close(self) -> None:
        """Write what is queued and end."""
        self._queue.put(None)
        self._thread.join()

    def _write_forever(self) -> None:
        ends = False
        while not ends:
            batches, ends = self._gather()
            groups: dict[tuple[Any, ...], list[Captured]] = {}
            for batch in batches:
                raw = batch.raw
                form = () if raw is None else (batch.kind, raw.dtype.str, raw.shape[1:])
                groups.setdefault((batch.guard, form), []).append(batch)
            for group in groups.values():
                self._write(group)

    def _gather(self) -> tuple[list[Captured], bool]:
        """Return what came until a shard is full or waited long enough, and whether to end."""
        first = self._queue.get()
        if first is None:
            return [], True
        batches, rows, until = [first], len(first.ids), time.monotonic() + _FLUSH_S
        while rows < _SHARD_ROWS and (left := until - time.monotonic()) > 0:
            try:
                batch = self._queue.get(timeout=left)
            except queue.Empty:
                break
            if batch is None:
                return batches, True
            batches.append(batch)
            rows += len(batch.ids)
        return batches, False

    def _write(self, batches: Sequence[Captured]) -> None:
        rows = sum(len(batch.ids) for batch in batches)
        self._last = max(self._last + 1, time.time_ns())  # later shards sort later, come what may
        name = f"{self._last}-{os.getpid()}.npz"
        try:
            if not self._make_room():
                self._dropped("full", rows)
                return
            write_file(self.folder / SHARDS / name, npz=_arrays(batches))
            with index(self.folder) as connection:
                before = connection.total_changes
                connection.executemany(
                    "INSERT OR IGNORE INTO captures "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL, NULL, ?, ?, ?)",
                    _rows(batches, self._clock(), name),
                )
                kept = connection.total_changes - before
        except (sqlite3.Error, OSError) as error:
            reason: DropReason = "index" if isinstance(error, sqlite3.Error) else "disk"
            _log.error("%d captured rows are lost (%s): %s", rows, reason, error)
            self._dropped(reason, rows)
            (self.folder / SHARDS / name).unlink(missing_ok=True)
        else:
            if not kept:
                (self.folder / SHARDS / name).unlink(missing_ok=True)
            if kept < rows:
                self._dropped("duplicate", rows - kept)

    def _clean(self) -> None:
        """Remove what a killed process left without index rows."""
        with index(self.folder) as connection:
            known = {row[0] for row in connection.execute("SELECT DISTINCT shard FROM captures")}
        for file in (self.folder / SHARDS).iterdir():
            if file.name not in known:
                file.unlink(missing_ok=True)
            elif (number := file.name.partition("-")[0]).isdigit():
                self._last = max(self._last, int(number))

    def _make_room(self) -> bool:
        """Let go of what is too old or too much, and return whether there is room."""
        files = sorted((self.folder / SHARDS).glob("[!.]*.npz"))
        sizes = {file.name: file.stat().st_size for file in files}
        total = sum(sizes.values())
        oldest = self._clock() - self._ttl_s
        if total <= self._max_bytes and (not files or files[0].stat().st_mtime > oldest):
            return True
        with index(self.folder) as connection:
            labelled = {
                row[0]
                for row in connection.execute(
                    "SELECT DISTINCT shard FROM captures WHERE label IS NOT NULL"
                )
            }
        for file in files:
            expired = file.stat().st_mtime <= oldest
            if file.name in labelled:
                if expired:
                    _drop_images(file)
            elif expired or total > self._max_bytes:
                with index(self.folder) as connection:
                    connection.execute("DELETE FROM captures WHERE shard = ?", (file.name,))
                file.unlink(missing_ok=True)
                total -= sizes[file.name]
        return total <= self._max_bytes


def _arrays(batches: Sequence[Captured]) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {
        "rates": np.concatenate([batch.rates for batch in batches]),
        "logits": np.concatenate([batch.logits for batch in batches]),
    }
    raw = [batch.raw for batch in batches if batch.raw is not None]
    return arrays | ({batches[0].kind: np.concatenate(raw)} if raw else {})


def _rows(batches: Sequence[Captured], now: float, shard: str) -> Iterator[tuple[Any, ...]]:
    row = 0
    for batch in batches:
        for i, name in enumerate(batch.ids):
            yield (
                name,
                now,
                batch.guard,
                batch.model,
                float(batch.score[i]),
                float(batch.p_value[i]),
                int(batch.prediction[i]),
                batch.strata[i],
                float(batch.weights[i]),
                batch.source,
                shard,
                row,
                batch.layers[i].astype("<f4").tobytes(),
            )
            row += 1


def _drop_images(file: Path) -> None:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if not set(RAW) & set(arrays.files):
                return
            rest = {name: arrays[name] for name in ("rates", "logits")}
    except (OSError, ValueError, KeyError) as error:
        _log.error("the shard %s is damaged: %s", file.name, error)
        return
    write_file(file, npz=rest)
