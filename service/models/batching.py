"""Merges requests into model runs. N images.

One `Batcher` belongs to one model and one event loop. The model runs in a thread of the executor,
never on the loop. A request waits in a bounded queue; when a worker is free, as many requests as
fit go together, in the order they came. What expired or was cancelled meanwhile never runs. If a
merged run fails, each of its requests runs again alone, so only the guilty one fails.

A request of more than one run has no more than its next two runs in the queue: the others' turn
comes in between.

A request costs one future and a run one hop to a thread and one back: on small models the way to
the model is longer than the model.

Rows that a version looks at again are run among themselves (`again`), and their request is answered
after that; what was merged with it is not held up.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.verdict import Verdicts
from reluguard.service.errors import ExpiredError, NotReadyError, OverloadedError
from reluguard.service.models.again import (
    NONE,
    UNSEEN,
    Again,
    AgainQueue,
    LooksAgain,
    look_again,
)
from reluguard.service.models.rows import join, take
from reluguard.service.models.slots import Slots
from reluguard.service.models.speed import Speed
from reluguard.service.monitoring.metrics import ModelMetrics

__all__ = ["Answer", "Batcher", "Runner"]

_log = logging.getLogger(__name__)
_SMOOTHING = 0.2  # weight of the newest run
_ALONE = 1.1  # requests in a run: less is as good as one
_AHEAD = 2  # runs of one request in the queue: the next is ready when one ends
_PUSHBACK_S = 0.05  # shortest time we ask a refused caller to wait


class Runner(Protocol):
    """What one version of a model can do. Called from a worker thread."""

    def run(self, tensor: NDArray[Any]) -> Verdicts:
        """Return the verdicts on this tensor, one per row."""


@dataclass(slots=True)
class Answer:
    """Verdicts on one request, and the run that gave them.

    `all_scored` is False where that is not known.
    """

    verdicts: Verdicts
    queue_s: float
    model_s: float
    run_rows: int
    all_scored: bool = False


@dataclass(slots=True, eq=False)
class _Item:
    tensor: NDArray[Any]
    rows: int
    runner: Runner
    future: asyncio.Future[Answer]
    deadline: float | None
    since: float


@dataclass(slots=True, eq=False)
class _Run:
    """One run of the model: what went in, and what came out or went wrong.

    `first` and `wanted` are of a version that looks again: what its first look said, and which rows
    are still to be looked at; `verdicts` are right for the others.
    """

    batch: list[_Item]
    rows: int
    started: float = 0.0
    took: float = 0.0
    verdicts: Verdicts | None = None
    first: Verdicts | None = None
    wanted: NDArray[np.bool_] | None = None
    all_scored: bool = False
    error: Exception | None = None


@dataclass(slots=True, kw_only=True)
class Batcher:
    """The queue in front of one model.

    Attributes:
        max_batch: most images in one run; larger requests are split.
        max_delay_s: how long the first of a batch waits for company.
        max_queue_rows: most images waiting; of large requests, what is not yet in the queue counts
            apart from the others.
        max_wait_s: a request that would wait longer than this is refused.
        executor: runs the model.
        slots: one per worker, shared by all models.
        inline_s: what a run may take, by the measured speed, to be done without a thread.
        metrics: where batch sizes, waiting and rejections are counted.
    """

    max_batch: int
    max_delay_s: float
    max_queue_rows: int
    max_wait_s: float
    executor: Executor
    slots: Slots
    metrics: ModelMetrics
    inline_s: float = 0.0
    _queue: deque[_Item] = field(default_factory=deque, init=False)
    _again: AgainQueue[tuple[_Item, _Run]] = field(init=False)
    _queued_rows: int = field(default=0, init=False)
    _later_rows: int = field(default=0, init=False)  # of large requests, not yet in the queue
    _running: int = field(default=0, init=False)
    _running_rows: int = field(default=0, init=False)
    _speed: Speed = field(default_factory=Speed, init=False)
    _loop: asyncio.AbstractEventLoop = field(init=False)
    _woken: bool = field(default=False, init=False)
    _company: float = field(default=1.0, init=False)  # requests in a run, smoothed
    _timer: asyncio.TimerHandle | None = field(default=None, init=False)
    _alone: set[asyncio.Task[None]] = field(default_factory=set, init=False)
    _idle: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _closed: bool = field(default=False, init=False)

    def start(self) -> None:
        """Belong to the running event loop. Call on it, before anything is submitted."""
        self._loop = asyncio.get_running_loop()
        self._again = AgainQueue(self.max_batch)
        self._idle.set()
        self.metrics.watch_queue(lambda: self.queued_rows)

    async def close(self) -> None:
        """Refuse what waits, let what runs finish."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        while self._queue:
            self._fail(self._pop(), NotReadyError("the server is shutting down"))
        await self._idle.wait()

    @property
    def queued_rows(self) -> int:
        """Return how many images wait."""
        return self._queued_rows + self._later_rows

    @property
    def expected_wait_s(self) -> float:
        """Return how long a new request of one run would wait, by the speed of the last runs."""
        rows = self._queued_rows + self._running_rows + self._again.rows
        return self._speed.rows_s(rows, self.max_batch)

    async def submit(
        self, tensor: NDArray[Any], runner: Runner, *, deadline: float | None = None
    ) -> Answer:
        """Return the answer to one request; cancelling this call takes it out of the queue.

        Args:
            tensor: a checked tensor, one or more rows.
            runner: the version that answers, whatever is loaded meanwhile.
            deadline: in the event loop's time; None for none.

        Raises:
            OverloadedError: the queue is full, or the wait would be too long.
            ExpiredError: the deadline passed before the model ran.
            NotReadyError: the batcher is closed.
        """
        rows = len(tensor)
        self._admit(rows, deadline)
        if rows <= self.max_batch:
            return await self._answered(self._enqueue(tensor, runner, deadline))
        answers = await self._in_parts(tensor, runner, deadline)
        return Answer(
            join([answer.verdicts for answer in answers]),
            answers[0].queue_s,
            sum(answer.model_s for answer in answers),
            sum(answer.run_rows for answer in answers),
            all(answer.all_scored for answer in answers),
        )

    async def _in_parts(
        self, tensor: NDArray[Any], runner: Runner, deadline: float | None
    ) -> list[Answer]:
        """Answer a request of several runs, of which the queue holds the next two."""
        later = len(tensor) - _AHEAD * self.max_batch
        self._later_rows += max(later, 0)
        items: list[_Item] = []
        answers: list[Answer] = []
        try:
            for start in range(0, len(tensor), self.max_batch):
                part = tensor[start : start + self.max_batch]
                if len(items) >= _AHEAD:
                    answers.append(await self._answered(items[len(answers)]))
                    self._later_rows -= len(part)
                    later -= len(part)
                items.append(self._enqueue(part, runner, deadline))
            answers += [await self._answered(item) for item in items[len(answers) :]]
        finally:
            self._later_rows -= max(later, 0)
            for item in items:
                self._forget(item)
        return answers

    async def _answered(self, item: _Item) -> Answer:
        try:
            return await item.future
        finally:
            self._forget(item)

    def _admit(self, rows: int, deadline: float | None) -> None:
        if self._closed:
            raise NotReadyError("the server is shutting down")
        wait = self.expected_wait_s
        now = min(rows, _AHEAD * self.max_batch)
        for held, more in ((self._queued_rows, now), (self._later_rows, rows - now)):
            if more and held + more > self.max_queue_rows:
                self.metrics.rejected("queue_full")
                raise OverloadedError(
                    f"expected at most {self.max_queue_rows} images waiting,"
                    f" got {held} and {more} more",
                    retry_after_s=_retry(wait),
                )
        if rows > now:
            wait += self._speed.rows_s(self._later_rows, self.max_batch)
        if wait > self.max_wait_s:
            self.metrics.rejected("wait_too_long")
            raise OverloadedError(
                f"expected a wait of at most {self.max_wait_s:g} s, it would be {wait:.3g} s",
                retry_after_s=_retry(wait),
            )
        if deadline is not None:
            left = deadline - self._loop.time()
            if left <= 0:
                self.metrics.rejected("expired")
                raise ExpiredError("the deadline passed before the model ran")
            if wait > left:
                self.metrics.rejected("wait_too_long")
                raise OverloadedError(
                    f"the wait would be {wait:.3g} s and the deadline is in {left:.3g} s",
                    retry_after_s=_retry(wait),
                )

    def _enqueue(self, tensor: NDArray[Any], runner: Runner, deadline: float | None) -> _Item:
        if self._closed:
            raise NotReadyError("the server is shutting down")
        loop = self._loop
        item = _Item(tensor, len(tensor), runner, loop.create_future(), deadline, loop.time())
        self._queue.append(item)
        self._queued_rows += item.rows
        self._wake()
        return item

    def _forget(self, item: _Item) -> None:
        """Take a cancelled request out of the queue at once: it must not keep others out."""
        if item.future.done() and not item.future.cancelled():
            item.future.exception()  # seen: a sibling part may have failed first
            return
        item.future.cancel()
        if item in self._queue:
            self._queue.remove(item)
            self._queued_rows -= item.rows
            self.metrics.rejected("cancelled")

    def _pop(self) -> _Item:
        item = self._queue.popleft()
        self._queued_rows -= item.rows
        return item

    @staticmethod
    def _fail(item: _Item, error: BaseException) -> None:
        if not item.future.done():
            item.future.set_exception(error)

    def _wake(self) -> None:
        """Form a batch once the loop has read all that came, so that it goes together."""
        if not self._woken:
            self._woken = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Start as many runs as there are full or ripe batches and free slots."""
        self._woken = False
        while (kind := self._next()) and self.slots.take(self._dispatch):
            if kind == "second":
                self._start_again()
                continue
            batch = self._form()
            if batch:
                self._start(batch)
            else:
                self.slots.release()

    def _next(self) -> str:
        """Return which look is to be taken next, empty where nothing is to be run."""
        ripe = bool(self._queue) and self._is_ripe()
        if len(self._again) and (not ripe or self._again.is_due(self._loop.time())):
            return "second"
        return "first" if ripe else ""

    def _is_ripe(self) -> bool:
        """Return whether the batch is full or its first request waited enough; else wait on."""
        if not self.max_delay_s or self._queued_rows >= self.max_batch:
            return True
        left = self._queue[0].since + self.max_delay_s - self._loop.time()
        if left <= 0:
            return True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(left, self._dispatch)
        return False

    def _form(self) -> list[_Item]:
        """Take the next requests that fit together: same version, in order."""
        now = self._loop.time()
        batch: list[_Item] = []
        rows = 0
        while self._queue:
            item = self._queue[0]
            if item.deadline is not None and item.deadline <= now:
                self.metrics.rejected("expired")
                self._fail(self._pop(), ExpiredError("the deadline passed before the model ran"))
                continue
            if batch and (item.runner is not batch[0].runner or rows + item.rows > self.max_batch):
                break
            batch.append(self._pop())
            rows += item.rows
        return batch

    def _start(self, batch: list[_Item]) -> None:
        run = _Run(batch, sum(item.rows for item in batch))
        self._running += 1
        self._running_rows += run.rows
        self._idle.clear()
        self._company += _SMOOTHING * (len(batch) - self._company)
        is_short = 0 < self._speed.run_s(run.rows) <= self.inline_s
        if is_short and self._company < _ALONE:
            self._run_here(run)
        else:
            self.executor.submit(self._work, run)

    def _run_here(self, run: _Run) -> None:
        """Run the model on the loop: it takes less than the way to a thread and back.

        Not while requests come together: then what gathers while a thread runs goes in one run.
        """
        self._compute(run)
        self._loop.call_soon(self._finish, run)

    def _work(self, run: _Run) -> None:
        """Run the model, in a thread of the executor."""
        self._compute(run)
        self._loop.call_soon_threadsafe(self._finish, run)

    def _compute(self, run: _Run) -> None:
        run.started = self._loop.time()
        try:
            _look(run)
        except Exception as error:  # noqa: BLE001 - it goes to the request that caused it
            run.error = error
        run.took = self._loop.time() - run.started

    def _finish(self, run: _Run) -> None:
        if run.error is not None and len(run.batch) > 1:
            _log.warning("a merged run of %d requests failed; running each alone", len(run.batch))
            task = self._loop.create_task(self._run_alone(run))
            self._alone.add(task)
            task.add_done_callback(self._alone.discard)
            return
        self._end(run)  # first, so that the next run goes while this one's answers are written
        if run.verdicts is None:
            self._fail(run.batch[0], run.error or RuntimeError("a run without an outcome"))
            return
        self._speed.learn(run.rows, run.took)
        self.metrics.ran(run.rows, run.took)
        if run.wanted is None or not run.wanted.any():
            self.metrics.verdicts(run.verdicts)
        start = 0
        for item in run.batch:
            stop = start + item.rows
            self._looked(item, run, start, stop)
            start = stop

    def _looked(self, item: _Item, run: _Run, start: int, stop: int) -> None:
        """Answer a request by a run's rows, or let some of them wait for a second look."""
        whole = len(run.batch) == 1
        assert run.verdicts is not None
        mine = run.verdicts if whole else take(run.verdicts, start, stop)
        if run.wanted is None or not run.wanted.any():
            self._answer(item, run, mine)
            return
        rows = np.flatnonzero(run.wanted[start:stop])
        if not len(rows):
            self.metrics.verdicts(mine)
            self._answer(item, run, mine)
            return
        if item.future.done():
            return
        assert run.first is not None
        assert isinstance(item.runner, LooksAgain)
        first = run.first if whole else take(run.first, start, stop)
        since = self._loop.time()
        self._again.add(Again((item, run), item.runner, item.tensor, first, rows, since))
        self._idle.clear()
        self._wake()

    def _start_again(self) -> None:
        batch = self._again.form()
        self._running += 1
        rows = sum(len(again.rows) for again in batch)
        self._running_rows += rows
        self._idle.clear()
        self.executor.submit(self._work_again, batch, rows)

    def _work_again(self, batch: list[Again[tuple[_Item, _Run]]], rows: int) -> None:
        """Take second looks, in a thread of the executor."""
        started = self._loop.time()
        look_again(batch)
        took = self._loop.time() - started
        self._loop.call_soon_threadsafe(self._finish_again, batch, rows, took)

    def _finish_again(self, batch: list[Again[tuple[_Item, _Run]]], rows: int, took: float) -> None:
        self._running -= 1
        self._running_rows -= rows
        self._settle()
        self.metrics.looked_again(rows, took)
        for again in batch:
            (item, run), verdicts = again.item, again.verdicts
            assert verdicts is not None  # look_again leaves none out
            self.metrics.verdicts(verdicts)
            scored = run.all_scored and not verdicts.unscored.any()
            self._answer(item, replace(run, took=run.took + took, all_scored=scored), verdicts)

    def _end(self, run: _Run) -> None:
        self._running -= 1
        self._running_rows -= run.rows
        self._settle()

    def _settle(self) -> None:
        """Go on after a run; nobody is busy when nothing runs and nothing waits to be seen again.

        A run that ends may leave rows to be looked at again, so it is asked once they were put in.
        """
        self.slots.release()
        self._dispatch()
        self._loop.call_soon(self._rest)

    def _rest(self) -> None:
        if not self._running and not len(self._again):
            self._idle.set()

    async def _run_alone(self, run: _Run) -> None:
        """Run each of these requests by itself, in the slot that they hold together."""
        try:
            for item in run.batch:
                if item.future.done():
                    continue
                alone = _Run([item], item.rows, started=self._loop.time())
                try:
                    verdicts = await self._loop.run_in_executor(
                        self.executor, _all_looks, alone.batch
                    )
                except Exception as error:  # noqa: BLE001 - it goes to the request that caused it
                    self._fail(item, error)
                else:
                    alone.took = self._loop.time() - alone.started
                    self._observe(alone, verdicts)
                    self._answer(item, alone, verdicts)
        finally:
            self._end(run)

    def _observe(self, run: _Run, verdicts: Verdicts) -> None:
        self.metrics.ran(run.rows, run.took)
        self.metrics.verdicts(verdicts)

    def _answer(self, item: _Item, run: _Run, verdicts: Verdicts) -> None:
        if not item.future.done():
            queue_s = run.started - item.since
            self.metrics.stage("queue", queue_s)
            item.future.set_result(Answer(verdicts, queue_s, run.took, run.rows, run.all_scored))


def _look(run: _Run) -> None:
    """Run the model, and judge what needs no second look."""
    first = _run_merged(run.batch)
    runner = run.batch[0].runner
    run.verdicts = first
    if isinstance(runner, LooksAgain):
        run.first, run.wanted = first, runner.wanted(first)
        run.verdicts = runner.judged(first, NONE, UNSEEN)
    run.all_scored = not run.verdicts.unscored.any()


def _all_looks(batch: Sequence[_Item]) -> Verdicts:
    """Return the verdicts of all looks at one request."""
    first, item = _run_merged(batch), batch[0]
    if not isinstance(item.runner, LooksAgain):
        return first
    rows = np.flatnonzero(item.runner.wanted(first))
    again = Again(item, item.runner, item.tensor, first, rows, 0.0)
    look_again([again])
    assert again.verdicts is not None  # look_again leaves none out
    return again.verdicts


def _run_merged(batch: Sequence[_Item]) -> Verdicts:
    tensors = [item.tensor for item in batch]
    return batch[0].runner.run(tensors[0] if len(tensors) == 1 else np.concatenate(tensors))


def _retry(wait_s: float) -> float:
    return max(_PUSHBACK_S, wait_s / 2)
