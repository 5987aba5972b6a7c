"""Merges requests into model runs. N images.

One `Batcher` belongs to one model and one event loop. The model runs in a thread of the executor,
never on the loop. A request waits in a bounded queue; when a worker is free, as many requests as
fit go together, in the order they came. What expired or was cancelled meanwhile never runs. If a
merged run fails, each of its requests runs again alone, so only the guilty one fails.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from detector.verdict import Challenge, Readings, Verdicts
from service.errors import ExpiredError, NotReadyError, OverloadedError
from service.metrics import ModelMetrics

__all__ = ["Answer", "Batcher", "Runner", "join", "take"]

_log = logging.getLogger(__name__)
_SMOOTHING = 0.2  # weight of the newest run in the measured speed
_PUSHBACK_S = 0.05  # shortest time we ask a refused caller to wait


class Runner(Protocol):
    """What one version of a model can do. Called from a worker thread."""

    def run(self, tensor: NDArray[Any]) -> Verdicts:
        """Return the verdicts on this tensor, one per row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Verdicts on one request, and how long it waited and ran."""

    verdicts: Verdicts
    queue_s: float
    model_s: float


@dataclass(slots=True, eq=False, kw_only=True)
class _Item:
    tensor: NDArray[Any]
    runner: Runner
    future: asyncio.Future[Answer]
    deadline: float | None
    since: float

    @property
    def rows(self) -> int:
        return len(self.tensor)


@dataclass(slots=True, kw_only=True)
class Batcher:
    """The queue in front of one model.

    Attributes:
        max_batch: most images in one run; larger requests are split.
        max_delay_s: how long the first of a batch waits for company.
        max_queue_rows: most images waiting.
        max_wait_s: a request that would wait longer than this is refused.
        executor: runs the model.
        slots: one per worker, shared by all models.
        metrics: where batch sizes, waiting and rejections are counted.
    """

    max_batch: int
    max_delay_s: float
    max_queue_rows: int
    max_wait_s: float
    executor: Executor
    slots: asyncio.Semaphore
    metrics: ModelMetrics
    _queue: deque[_Item] = field(default_factory=deque, init=False)
    _queued_rows: int = field(default=0, init=False)
    _running_rows: int = field(default=0, init=False)
    _row_s: float = field(default=0.0, init=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _loop_task: asyncio.Task[None] | None = field(default=None, init=False)
    _runs: set[asyncio.Task[None]] = field(default_factory=set, init=False)
    _closed: bool = field(default=False, init=False)

    def start(self) -> None:
        """Begin to form batches. Call on the event loop."""
        self._loop_task = asyncio.get_running_loop().create_task(self._form_forever())

    async def close(self) -> None:
        """Refuse what waits, let what runs finish."""
        self._closed = True
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        while self._queue:
            self._fail(self._pop(), NotReadyError("the server is shutting down"))
        await asyncio.gather(*self._runs, return_exceptions=True)

    @property
    def queued_rows(self) -> int:
        """Return how many images wait."""
        return self._queued_rows

    @property
    def expected_wait_s(self) -> float:
        """Return how long a new request would wait, by the speed of the last runs."""
        return (self._queued_rows + self._running_rows) * self._row_s

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
        self._admit(len(tensor), deadline)
        items = [
            self._enqueue(tensor[start : start + self.max_batch], runner, deadline)
            for start in range(0, len(tensor), self.max_batch)
        ]
        try:
            answers = await asyncio.gather(*(item.future for item in items))
        finally:
            for item in items:
                item.future.cancel()
        if len(answers) == 1:
            return answers[0]
        return Answer(
            verdicts=join([answer.verdicts for answer in answers]),
            queue_s=answers[0].queue_s,
            model_s=sum(answer.model_s for answer in answers),
        )

    def _admit(self, rows: int, deadline: float | None) -> None:
        if self._closed:
            raise NotReadyError("the server is shutting down")
        wait = self.expected_wait_s
        retry = max(_PUSHBACK_S, wait / 2)
        if self._queued_rows + rows > self.max_queue_rows:
            self.metrics.rejected("queue_full")
            raise OverloadedError(
                f"expected at most {self.max_queue_rows} images waiting,"
                f" got {self._queued_rows} and {rows} more",
                retry_after_s=retry,
            )
        if wait > self.max_wait_s:
            self.metrics.rejected("wait_too_long")
            raise OverloadedError(
                f"expected a wait of at most {self.max_wait_s:g} s, it would be {wait:.3g} s",
                retry_after_s=retry,
            )
        if deadline is not None:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                self.metrics.rejected("expired")
                raise ExpiredError("the deadline passed before the model ran")
            if wait > left:
                self.metrics.rejected("wait_too_long")
                raise OverloadedError(
                    f"the wait would be {wait:.3g} s and the deadline is in {left:.3g} s",
                    retry_after_s=retry,
                )

    def _enqueue(self, tensor: NDArray[Any], runner: Runner, deadline: float | None) -> _Item:
        loop = asyncio.get_running_loop()
        item = _Item(
            tensor=tensor,
            runner=runner,
            future=loop.create_future(),
            deadline=deadline,
            since=loop.time(),
        )
        self._queue.append(item)
        self._count(item.rows)
        item.future.add_done_callback(lambda _: self._forget(item))
        self._changed.set()
        return item

    def _forget(self, item: _Item) -> None:
        """Take a cancelled request out of the queue at once: it must not keep others out."""
        if item.future.cancelled() and item in self._queue:
            self._queue.remove(item)
            self._count(-item.rows)
            self.metrics.rejected("cancelled")

    def _pop(self) -> _Item:
        item = self._queue.popleft()
        self._count(-item.rows)
        return item

    def _count(self, rows: int) -> None:
        self._queued_rows += rows
        self.metrics.queue_depth(self._queued_rows)

    @staticmethod
    def _fail(item: _Item, error: BaseException) -> None:
        if not item.future.done():
            item.future.set_exception(error)

    async def _form_forever(self) -> None:
        while True:
            await self._wait_for_company()
            await self.slots.acquire()
            batch = self._form()
            if not batch:
                self.slots.release()
                continue
            self._running_rows += sum(item.rows for item in batch)
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._runs.add(task)
            task.add_done_callback(self._runs.discard)

    async def _wait_for_company(self) -> None:
        """Return when something waits and the batch is full or its first request waited enough."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            if not self._queue:
                await self._changed.wait()
                continue
            left = self._queue[0].since + self.max_delay_s - loop.time()
            if left <= 0 or self._queued_rows >= self.max_batch:
                return
            timer = loop.call_later(left, self._changed.set)
            try:
                await self._changed.wait()
            finally:
                timer.cancel()

    def _form(self) -> list[_Item]:
        """Take the next requests that fit together: same version, in order."""
        now = asyncio.get_running_loop().time()
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

    async def _run(self, batch: list[_Item]) -> None:
        loop = asyncio.get_running_loop()
        rows = sum(item.rows for item in batch)
        started = loop.time()
        try:
            verdicts = await loop.run_in_executor(
                self.executor, _run_merged, batch[0].runner, [item.tensor for item in batch]
            )
        except Exception as error:  # noqa: BLE001 - it goes to the request that caused it
            if len(batch) == 1:
                self._fail(batch[0], error)
            else:
                _log.warning("a merged run of %d requests failed; running each alone", len(batch))
                await self._run_alone(batch)
        else:
            took = loop.time() - started
            self._learn(took / rows)
            self.metrics.ran(rows, took)
            start = 0
            for item in batch:
                part = verdicts if len(batch) == 1 else take(verdicts, start, start + item.rows)
                start += item.rows
                self._answer(item, part, started, took)
        finally:
            self._running_rows -= rows
            self.slots.release()

    async def _run_alone(self, batch: list[_Item]) -> None:
        loop = asyncio.get_running_loop()
        for item in batch:
            if item.future.done():
                continue
            started = loop.time()
            try:
                verdicts = await loop.run_in_executor(
                    self.executor, _run_merged, item.runner, [item.tensor]
                )
            except Exception as error:  # noqa: BLE001 - it goes to the request that caused it
                self._fail(item, error)
            else:
                took = loop.time() - started
                self.metrics.ran(item.rows, took)
                self._answer(item, verdicts, started, took)

    def _answer(self, item: _Item, verdicts: Verdicts, started: float, took: float) -> None:
        if not item.future.done():
            queue_s = started - item.since
            self.metrics.stage("queue", queue_s)
            item.future.set_result(Answer(verdicts=verdicts, queue_s=queue_s, model_s=took))

    def _learn(self, row_s: float) -> None:
        self._row_s = (
            row_s if self._row_s == 0 else (_SMOOTHING * row_s + (1 - _SMOOTHING) * self._row_s)
        )


def _run_merged(runner: Runner, tensors: Sequence[NDArray[Any]]) -> Verdicts:
    return runner.run(tensors[0] if len(tensors) == 1 else np.concatenate(tensors))


def take(verdicts: Verdicts, start: int, stop: int) -> Verdicts:
    """Return these rows of the verdicts."""
    rows = slice(start, stop)
    read, challenge = verdicts.readings, verdicts.challenge
    return Verdicts(
        prediction=verdicts.prediction[rows],
        score=verdicts.score[rows],
        likelihood=verdicts.likelihood[rows],
        p_value=verdicts.p_value[rows],
        is_adversarial=verdicts.is_adversarial[rows],
        evidence=verdicts.evidence[rows],
        outputs={name: output[rows] for name, output in verdicts.outputs.items()},
        readings=None
        if read is None
        else Readings(rates=read.rates[rows], logits=read.logits[rows]),
        challenge=None
        if challenge is None
        else Challenge(score=challenge.score[rows], is_adversarial=challenge.is_adversarial[rows]),
    )


def join(parts: Sequence[Verdicts]) -> Verdicts:
    """Return the verdicts of several parts as one, in order. Undoes `take`."""
    read = [part.readings for part in parts if part.readings is not None]
    challenges = [part.challenge for part in parts if part.challenge is not None]
    return Verdicts(
        prediction=np.concatenate([part.prediction for part in parts]),
        score=np.concatenate([part.score for part in parts]),
        likelihood=np.concatenate([part.likelihood for part in parts]),
        p_value=np.concatenate([part.p_value for part in parts]),
        is_adversarial=np.concatenate([part.is_adversarial for part in parts]),
        evidence=np.concatenate([part.evidence for part in parts]),
        outputs={
            name: np.concatenate([part.outputs[name] for part in parts])
            for name in parts[0].outputs
        },
        readings=Readings(
            rates=np.concatenate([part.rates for part in read]),
            logits=np.concatenate([part.logits for part in read]),
        )
        if read
        else None,
        challenge=Challenge(
            score=np.concatenate([part.score for part in challenges]),
            is_adversarial=np.concatenate([part.is_adversarial for part in challenges]),
        )
        if challenges
        else None,
    )
