"""Keeps a known sample of production for retraining and drift, off the request path.

Strata, with the weight each row carries:

- `above`: everything above the threshold, weight 1.
- `band`: below it, but with a p-value up to twice the target false-positive rate, weight 1.
- `uniform`: a share of the rest, chosen by a keyed hash of the image itself, weight 1 / share.

Ids are the server's own. What a caller calls its request is kept and decides nothing: the same
image from the same caller is kept once, and counted; another image never is taken for it. Whatever
happens to the folder costs what was to be written just then, and is counted too. N images, D rates,
K classes, L taps.
"""

import hashlib
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.captures import (
    INDEX,
    Entry,
    Raw,
    add,
    drop_raw,
    forget,
    prepare,
    shard_file,
    shards,
)
from reluguard.detector.errors import CapturesError
from reluguard.detector.reference import layer_rates
from reluguard.detector.runtime import Guard
from reluguard.detector.verdict import Readings, Verdicts
from reluguard.service.captures.claim import Claim
from reluguard.service.errors import StartError

__all__ = ["Capture", "DropReason", "content_of", "sample"]

_log = logging.getLogger(__name__)
DropReason = Literal["queue_full", "duplicate", "index", "disk", "full", "failed"]
_BAND = 2.0  # times the target false-positive rate
_QUEUE_REQUESTS = 4096
_QUEUE_BYTES = 64 * 2**20
_SHARD_ROWS = 512
_FLUSH_S = 1.0
_CLOSE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Offer:
    """One request on its way to be sampled."""

    verdicts: Verdicts
    read: Readings
    guard: Guard
    name: str
    request: str
    source: str
    raw: NDArray[Any] | None
    kind: Raw

    @property
    def size(self) -> int:
        """How many bytes wait with it."""
        read = self.read.rates.nbytes + self.read.logits.nbytes
        return read + (0 if self.raw is None else self.raw.nbytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sampled:
    """The rows of one request that are kept."""

    entries: Sequence[Entry]
    rates: NDArray[np.float16]
    logits: NDArray[np.float32]
    raw: NDArray[Any] | None
    kind: Raw

    @property
    def form(self) -> tuple[Any, ...]:
        """What must be the same for rows to share a shard."""
        raw = () if self.raw is None else (self.kind, self.raw.dtype.str, self.raw.shape[1:])
        return self.entries[0].guard, raw, self.rates.shape[1:], self.logits.shape[1:]


def content_of(rows: Sequence[NDArray[Any]], *, source: str, kind: str, key: bytes) -> list[bytes]:
    """Return a hash of each row and who sent it; without the key nobody can choose one.

    Args:
        rows: N arrays.
        source: who sent them.
        kind: of them: a tensor is not the pixels with the same bytes.
        key: secret.
    """
    digests = []
    for row in rows:
        told = f"{source}\0{kind}\0{row.dtype.str}\0{row.shape}".encode()
        digest = hashlib.blake2b(told, key=key, digest_size=16)
        digest.update(np.ascontiguousarray(row).data)
        digests.append(digest.digest())
    return digests


def sample(
    contents: Sequence[bytes], p_values: NDArray[np.float64], *, fpr: float, share: float
) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
    """Return each row's stratum and weight; weight 0 is not sampled. The same row, the same choice.

    Args:
        contents: N hashes of `content_of`.
        p_values: (N,).
        fpr: the guard's target false-positive rate.
        share: of the uniform stratum, in (0, 1].
    """
    strata = np.where(
        p_values <= fpr, "above", np.where(p_values <= _BAND * fpr, "band", "uniform")
    )
    drawn = np.array([int.from_bytes(content[:8]) for content in contents]) / 2.0**64 < share
    return strata, np.where(strata != "uniform", 1.0, np.where(drawn, 1 / share, 0.0))


class Capture:
    """The writer of one capture folder: a bounded queue and one thread.

    Args:
        folder: made if it is not there; no other writer may work in it.
        share: of the uniform stratum.
        max_bytes: of all shards; beyond it the oldest unlabelled shards go.
        ttl_s: age at which unlabelled shards go, and images of labelled ones.
        with_images: keep raw input too: pixels, decoded files or the caller's own tensor.
        dropped: told how many rows were not kept, and why.
        kept: told how many rows were.
        damaged: told of each shard that can't be read, once.
        clock: seconds since the epoch.
        alone: False for one of several writers, whose folder another process holds.

    Raises:
        StartError: the folder or its index can't be used, or another process writes there.
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
        kept: Callable[[int], None] = lambda _: None,
        damaged: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
        alone: bool = True,
    ) -> None:
        self.folder = folder
        self.with_images = with_images
        self._share, self._max_bytes, self._ttl_s = share, max_bytes, ttl_s
        self._dropped, self._kept, self._damaged = dropped, kept, damaged
        self._clock = clock
        self._queue: queue.Queue[_Offer | None] = queue.Queue(_QUEUE_REQUESTS)
        self._waiting_bytes = 0
        self._count = threading.Lock()
        self._closing = threading.Event()
        self._told: set[str] = set()
        self._last = 0
        self._claim = Claim(folder) if alone else None
        try:
            self._open()
            names = [name.partition("-")[0] for name in shards(folder)]
            self._last = max((int(name) for name in names if name.isdigit()), default=0)
        except (sqlite3.Error, OSError) as error:
            self._release()
            raise StartError(f"the capture folder {folder} can't be used: {error}") from error
        self._thread = threading.Thread(target=self._write_forever, name="capture", daemon=True)
        self._thread.start()

    def offer(
        self,
        verdicts: Verdicts,
        guard: Guard,
        *,
        name: str,
        source: str,
        raw: NDArray[Any] | None,
        request: str = "",
        kind: Raw = "images",
    ) -> None:
        """Queue one request's rows to be sampled; never waits.

        Args:
            verdicts: N of them, with readings.
            guard: that gave them.
            name: ours, of this request and no other; a row is NAME:ROW.
            source: who asked.
            raw: (N, ...), the input as it came or was decoded; None where there is none.
            request: what the caller calls it.
            kind: of `raw`.
        """
        if verdicts.readings is None:
            return
        offer = _Offer(
            verdicts=verdicts,
            read=verdicts.readings,
            guard=guard,
            name=name,
            request=request,
            source=source,
            raw=raw,
            kind=kind,
        )
        with self._count:
            fits = not self._waiting_bytes or self._waiting_bytes + offer.size <= _QUEUE_BYTES
            fits = fits and not self._queue.full()
            if fits:
                self._waiting_bytes += offer.size
                self._queue.put_nowait(offer)  # nobody else puts outside of this lock
        if not fits:
            self._dropped("queue_full", len(verdicts))

    def close(self) -> None:
        """Write what is queued and end; what a stuck disk holds up is given up."""
        self._closing.set()
        with self._count, suppress(queue.Full):  # a full queue wakes the thread by itself
            self._queue.put_nowait(None)
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            _log.error("the capture folder %s does not take what is left; giving up", self.folder)
        else:
            self._release()

    def _let_go(self, offer: _Offer) -> None:
        with self._count:
            self._waiting_bytes -= offer.size

    def _write_forever(self) -> None:
        ends = False
        while not ends:
            sampled, ends = self._gather()
            groups: dict[tuple[Any, ...], list[_Sampled]] = {}
            for part in sampled:
                groups.setdefault(part.form, []).append(part)
            for group in groups.values():
                self._write(group)

    def _gather(self) -> tuple[list[_Sampled], bool]:
        """Return what came until a shard is full or waited long enough, and whether to end."""
        sampled: list[_Sampled] = []
        rows, until = 0, 0.0
        while rows < _SHARD_ROWS:
            left = until - time.monotonic() if sampled else None
            if left is not None and left <= 0:
                break
            if self._closing.is_set() and self._queue.empty():
                return sampled, True
            try:
                offer = self._queue.get(timeout=left)
            except queue.Empty:
                break
            if offer is None:
                continue
            part = self._sampled(offer)
            if part is not None:
                until = until if sampled else time.monotonic() + _FLUSH_S
                sampled.append(part)
                rows += len(part.entries)
        return sampled, self._closing.is_set() and self._queue.empty()

    def _sampled(self, offer: _Offer) -> _Sampled | None:
        """Return the rows of a request that are kept, if any."""
        try:
            return self._sample(offer)
        except Exception:  # noqa: BLE001 - one odd request must not end the thread
            _log.exception("a request can't be captured")
            self._dropped("failed", len(offer.verdicts))
            return None
        finally:
            self._let_go(offer)

    def _sample(self, offer: _Offer) -> _Sampled | None:
        verdicts, read, artifact = offer.verdicts, offer.read, offer.guard.artifact
        if offer.raw is None:
            kind, whole = "readings", list(np.concatenate([read.rates, read.logits], axis=1))
        else:
            kind, whole = str(offer.kind), list(offer.raw)
        contents = content_of(whole, source=offer.source, kind=kind, key=self._key)
        strata, weights = sample(contents, verdicts.p_value, fpr=offer.guard.fpr, share=self._share)
        rows = np.flatnonzero((weights > 0) & ~verdicts.unscored)
        if not len(rows):
            return None
        rates = read.rates[rows]
        layers = layer_rates(rates, artifact.manifest.taps)
        now = self._clock()
        entries = [
            Entry(
                id=f"{offer.name}:{i}",
                time=now,
                guard=artifact.digest,
                model=artifact.manifest.model_sha256,
                score=float(verdicts.score[i]),
                p_value=float(verdicts.p_value[i]),
                prediction=int(verdicts.prediction[i]),
                stratum=str(strata[i]),
                weight=float(weights[i]),
                source=offer.source,
                layers=layers[at],
                request=offer.request,
                content=contents[i],
            )
            for at, i in enumerate(rows.tolist())
        ]
        return _Sampled(
            entries=entries,
            rates=rates.astype(np.float16),
            logits=read.logits[rows],
            raw=offer.raw[rows] if self.with_images and offer.raw is not None else None,
            kind=offer.kind,
        )

    def _open(self) -> None:
        self._key = prepare(self.folder)
        self._index = (self.folder / INDEX).stat()

    def _release(self) -> None:
        if self._claim is not None:
            self._claim.release()

    def _reopen(self) -> None:
        """Begin anew where somebody took the folder or its index away; nothing that is there goes.

        Where another process was first to begin anew, this one takes its key.

        Raises:
            sqlite3.Error: the index can't be made.
            OSError: the folder can't be.
        """
        with suppress(FileNotFoundError):
            there = (self.folder / INDEX).stat()
            if there.st_size and os.path.samestat(there, self._index):
                return
        _log.error("the captures in %s are gone: somebody took them away", self.folder)
        if self._claim is not None and not self._claim.is_current():
            try:
                self._claim.renew()
            except StartError as error:
                raise OSError(str(error)) from error
        self._open()

    def _write(self, parts: Sequence[_Sampled]) -> None:
        entries = [entry for part in parts for entry in part.entries]
        self._last = max(self._last + 1, time.time_ns())  # later shards sort later, come what may
        reason: DropReason = "full"
        try:
            self._reopen()
            if self._make_room():
                name = f"{self._last}-{os.getpid()}.npz"
                kept = add(self.folder, name, _arrays(parts), entries)
                self._kept(kept)
                if kept < len(entries):
                    self._dropped("duplicate", len(entries) - kept)
                return
        except (sqlite3.Error, OSError) as error:
            reason = "index" if isinstance(error, sqlite3.Error) else "disk"
            _log.error("%d captured rows are lost (%s): %s", len(entries), reason, error)
        except Exception:  # noqa: BLE001 - the next ones may well be kept
            reason = "failed"
            _log.exception("%d captured rows are lost", len(entries))
        self._dropped(reason, len(entries))

    def _make_room(self) -> bool:
        """Let go of what is too old or too much, and return whether there is room."""
        known = shards(self.folder)
        stats = {name: found for name in known if (found := _stat(self.folder, name)) is not None}
        total = sum(stat.st_size for stat in stats.values())
        oldest = self._clock() - self._ttl_s
        for name, stat in stats.items():
            expired = stat.st_mtime <= oldest
            if known[name]:
                if expired:
                    self._drop_raw(name)
            elif expired or total > self._max_bytes:
                try:
                    forget(self.folder, name)
                except OSError as error:
                    _log.error("the shard %s can't be removed: %s", name, error)
                else:
                    total -= stat.st_size
        return total <= self._max_bytes

    def _drop_raw(self, name: str) -> None:
        """Leave of a labelled shard what the head read; a damaged one stays for a person to see."""
        if name in self._told:
            return
        self._told.add(name)
        try:
            drop_raw(self.folder, name)
        except (CapturesError, OSError) as error:
            self._damaged()
            _log.error("a labelled shard is left as it is: %s", error)


def _stat(folder: Path, name: str) -> os.stat_result | None:
    """Return what is known of a shard's file; None of one that a person took away."""
    try:
        return shard_file(folder, name).stat()
    except OSError:
        return None


def _arrays(parts: Sequence[_Sampled]) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {
        "rates": np.concatenate([part.rates for part in parts]),
        "logits": np.concatenate([part.logits for part in parts]),
    }
    raw = [part.raw for part in parts if part.raw is not None]
    return arrays | ({parts[0].kind: np.concatenate(raw)} if raw else {})
