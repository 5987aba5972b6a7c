"""Second looks wait here, apart from requests, and are run together. N images.

A request whose first look finds a row suspicious is answered after that row was looked at again.
Its suspicious rows wait among those of other requests; first looks go before them, until they have
waited long or fill a run.
"""

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.head import NO_SCORE
from reluguard.detector.verdict import Readings, Verdicts

__all__ = ["Again", "AgainQueue", "LooksAgain", "look_again"]

_log = logging.getLogger(__name__)
_LONGEST_WAIT_S = 0.01  # that first looks may hold a second one up
Item = TypeVar("Item")
NONE = np.zeros(0, np.int64)
UNSEEN = np.zeros(0, np.float32)


@runtime_checkable
class LooksAgain(Protocol):
    """A version of a model that may look again. Called from worker threads."""

    def wanted(self, first: Verdicts) -> NDArray[np.bool_]:
        """Return which rows are to be looked at again."""

    def again(self, tensor: NDArray[Any], first: Readings) -> NDArray[np.float32]:
        """Return second scores of rows, by what the first look read of them."""

    def judged(
        self, first: Verdicts, rows: NDArray[np.int64], scores: NDArray[np.float32]
    ) -> Verdicts:
        """Return the verdicts of both looks."""


@dataclass(slots=True, eq=False)
class Again(Generic[Item]):
    """Rows of one request that wait for a second look.

    Attributes:
        item: the request.
        runner: the version that gave the first look.
        tensor: of the request.
        first: verdicts of the first look at all its rows, with what was read.
        rows: int64, (M,). Those to look at.
        since: when they came.
        verdicts: of both looks, once they were taken.
    """

    item: Item
    runner: LooksAgain
    tensor: NDArray[Any]
    first: Verdicts
    rows: NDArray[np.int64]
    since: float
    verdicts: Verdicts | None = None

    def read(self) -> Readings:
        """Return what the first look read of the rows."""
        assert self.first.readings is not None  # a version that looks again has them
        read = self.first.readings
        return Readings(rates=read.rates[self.rows], logits=read.logits[self.rows])


@dataclass(slots=True)
class AgainQueue(Generic[Item]):
    """What waits for a second look, in the order it came."""

    max_batch: int
    _waiting: deque[Again[Item]] = field(default_factory=deque)
    _rows: int = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def rows(self) -> int:
        """Images that wait."""
        return self._rows

    def add(self, again: Again[Item]) -> None:
        """Put rows at the end."""
        self._waiting.append(again)
        self._rows += len(again.rows)

    def is_due(self, now: float) -> bool:
        """Whether second looks go before first ones: a run is full, or the oldest waited long."""
        if not self._waiting:
            return False
        return self._rows >= self.max_batch or now - self._waiting[0].since >= _LONGEST_WAIT_S

    def form(self) -> list[Again[Item]]:
        """Take the next rows that fit together: of one version, in order."""
        batch: list[Again[Item]] = []
        rows = 0
        while self._waiting:
            again = self._waiting[0]
            full = rows + len(again.rows) > self.max_batch
            if batch and (again.runner is not batch[0].runner or full):
                break
            batch.append(self._waiting.popleft())
            rows += len(again.rows)
        self._rows -= rows
        return batch


def look_again(batch: list[Again[Item]]) -> None:
    """Look again at these rows in one run and judge their requests, in a worker thread.

    Where that fails each request is run alone, and rows that can't be looked at have no score.
    """
    try:
        _run(batch)
    except Exception:  # noqa: BLE001 - each request is run alone then
        _log.exception("a run of second looks failed; running each alone")
        for again in batch:
            try:
                _run([again])
            except Exception:  # noqa: BLE001 - its rows then have no score
                _log.exception("a second look failed: its rows have no score")
                nothing = np.full(len(again.rows), NO_SCORE, np.float32)
                again.verdicts = again.runner.judged(again.first, again.rows, nothing)


def _run(batch: list[Again[Item]]) -> None:
    reads = [again.read() for again in batch]
    tensor = np.concatenate([again.tensor[again.rows] for again in batch])
    read = Readings(
        rates=np.concatenate([one.rates for one in reads]),
        logits=np.concatenate([one.logits for one in reads]),
    )
    scores = batch[0].runner.again(tensor, read)
    cuts = np.cumsum([len(again.rows) for again in batch])[:-1]
    for again, own in zip(batch, np.split(scores, cuts), strict=True):
        again.verdicts = again.runner.judged(again.first, again.rows, own)
