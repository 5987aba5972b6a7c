import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from reluguard.detector.runtime import Guard
from reluguard.detector.verdict import Verdicts
from reluguard.service.errors import ExpiredError, NotReadyError, OverloadedError
from reluguard.service.models.batching import Batcher, Runner
from reluguard.service.models.rows import join, take
from reluguard.service.models.slots import Slots
from reluguard.service.models.version import Version
from reluguard.service.monitoring.metrics import Metrics


@pytest.fixture(scope="module")
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture(scope="module")
def with_batcher(executor: ThreadPoolExecutor) -> Callable[..., Any]:
    def run(test: Callable[[Batcher], Awaitable[Any]], **changes: Any) -> Any:
        async def main() -> Any:
            options: dict[str, Any] = {
                "max_batch": 8,
                "max_delay_s": 0.0,
                "max_queue_rows": 64,
                "max_wait_s": 60.0,
                "executor": executor,
                "slots": Slots(1),
                "metrics": Metrics(CollectorRegistry()).model("m", "annotate"),
            }
            batcher = Batcher(**(options | changes))
            batcher.start()
            try:
                return await test(batcher)
            finally:
                await batcher.close()

        return asyncio.run(main())

    return run


class Held:
    """A real version whose runs wait until they are let go."""

    def __init__(self, guard: Guard, *, fails_on: float | None = None) -> None:
        self._version = Version(guard=guard)
        self._fails_on = fails_on
        self.go = asyncio.Event()
        self.started = asyncio.Event()
        self.batches: list[int] = []
        self._loop = asyncio.get_running_loop()

    def run(self, tensor: NDArray[Any]) -> Verdicts:
        """Return the real verdicts, once let go."""
        self.batches.append(len(tensor))
        self._loop.call_soon_threadsafe(self.started.set)
        asyncio.run_coroutine_threadsafe(self.go.wait(), self._loop).result(30)
        if self._fails_on is not None and (tensor == self._fails_on).any():
            raise ValueError("this row breaks the run")
        return self._version.run(tensor)


async def busy(
    batcher: Batcher, guard: Guard, tensor: NDArray[Any]
) -> tuple[Held, asyncio.Future[Any]]:
    """Return a version that runs and waits, and the request that it runs."""
    held = Held(guard)
    first = asyncio.ensure_future(batcher.submit(tensor, held))
    await held.started.wait()
    return held, first


async def queued(batcher: Batcher, rows: int) -> None:
    """Return once so many rows wait."""
    while batcher.queued_rows != rows:  # noqa: ASYNC110 - the batcher owes nobody an event
        await asyncio.sleep(0)


def test_take_and_join_are_inverse(guard: Guard, tensor: NDArray[np.float32]) -> None:
    """Cutting verdicts and joining the parts gives the same verdicts."""
    whole = guard.inspect_tensor(tensor[:10])
    back = join([take(whole, 0, 3), take(whole, 3, 4), take(whole, 4, 10)])
    for name in ("prediction", "score", "likelihood", "p_value", "is_adversarial", "evidence"):
        assert_array_equal(getattr(back, name), getattr(whole, name))
    assert_array_equal(back.outputs["logits"], whole.outputs["logits"])


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=8), max_batch=st.integers(1, 12))
def test_rows_come_back_to_their_request_in_order(
    with_batcher: Callable[..., Any],
    guard: Guard,
    tensor: NDArray[np.float32],
    sizes: list[int],
    max_batch: int,
) -> None:
    """However requests are merged and split, each gets its own rows in its own order."""
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    rows = tensor[np.arange(offsets[-1]) % len(tensor)]
    version = Version(guard=guard)

    async def ask(batcher: Batcher) -> list[Any]:
        return await asyncio.gather(
            *(
                batcher.submit(rows[start:stop], version)
                for start, stop in itertools.pairwise(offsets)
            )
        )

    answers = with_batcher(ask, max_batch=max_batch, max_queue_rows=1000)
    alone = guard.inspect_tensor(rows)
    assert [len(answer.verdicts) for answer in answers] == sizes
    served = join([answer.verdicts for answer in answers])
    # ONNX Runtime may add up in another order for another batch size
    assert_allclose(served.score, alone.score, atol=1e-3)
    assert_allclose(served.outputs["logits"], alone.outputs["logits"], atol=1e-5)
    assert_array_equal(served.prediction, alone.prediction)


def test_waiting_requests_go_together(
    with_batcher: Callable[..., Any], guard: Guard, tensor: NDArray[np.float32]
) -> None:
    """What gathers while the model runs goes in one run, up to the limit, in order."""

    async def ask(batcher: Batcher) -> list[int]:
        held = Held(guard)
        calls = [asyncio.ensure_future(batcher.submit(tensor[:1], held))]
        await held.started.wait()
        calls += [asyncio.ensure_future(batcher.submit(tensor[:3], held)) for _ in range(4)]
        await queued(batcher, 12)
        held.go.set()
        await asyncio.gather(*calls)
        return held.batches

    assert with_batcher(ask, max_batch=8) == [1, 6, 6]


def test_an_oversize_request_is_split(
    with_batcher: Callable[..., Any], guard: Guard, tensor: NDArray[np.float32]
) -> None:
    """No run holds more than the limit."""

    async def ask(batcher: Batcher) -> tuple[list[int], int]:
        held = Held(guard)
        held.go.set()
        answer = await batcher.submit(tensor[:20], held)
        return held.batches, len(answer.verdicts)

    assert with_batcher(ask, max_batch=8) == ([8, 8, 4], 20)


def test_cancelled_requests_never_run(
    with_batcher: Callable[..., Any], guard: Guard, tensor: NDArray[np.float32]
) -> None:
    """A caller that hung up leaves the queue at once and makes room."""

    async def ask(batcher: Batcher) -> list[int]:
        held, first = await busy(batcher, guard, tensor[:1])
        second = asyncio.ensure_future(batcher.submit(tensor[:5], held))
        third = asyncio.ensure_future(batcher.submit(tensor[:2], held))
        await queued(batcher, 7)
        second.cancel()
        await queued(batcher, 2)
        held.go.set()
        await asyncio.gather(first, third)
        assert second.cancelled()
        return held.batches

    assert with_batcher(ask) == [1, 2]


def test_expired_requests_never_run(
    with_batcher: Callable[..., Any],
    guard: Guard,
    tensor: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request whose deadline passed while it waited fails and is not computed."""

    async def ask(batcher: Batcher) -> list[int]:
        loop = asyncio.get_running_loop()
        held, first = await busy(batcher, guard, tensor[:1])
        late = asyncio.ensure_future(batcher.submit(tensor[:3], held, deadline=loop.time() + 1000))
        await queued(batcher, 3)
        clock = loop.time
        monkeypatch.setattr(loop, "time", lambda: clock() + 2000)
        held.go.set()
        await first
        with pytest.raises(ExpiredError, match="the deadline passed before the model ran"):
            await late
        with pytest.raises(ExpiredError):
            await batcher.submit(tensor[:1], held, deadline=loop.time() - 1)
        return held.batches

    assert with_batcher(ask) == [1]


def test_one_bad_request_never_fails_its_neighbours(
    with_batcher: Callable[..., Any], guard: Guard, tensor: NDArray[np.float32]
) -> None:
    """When a merged run breaks, each request runs alone and only the guilty one fails."""

    async def ask(batcher: Batcher) -> list[Any]:
        held = Held(guard, fails_on=77.0)
        bad = np.full_like(tensor[:1], 77.0)
        first = asyncio.ensure_future(batcher.submit(tensor[:1], held))
        await held.started.wait()
        calls = [batcher.submit(rows, held) for rows in (tensor[1:3], bad, tensor[3:4])]
        tasks = [asyncio.ensure_future(call) for call in calls]
        await queued(batcher, 4)
        held.go.set()
        await first
        return await asyncio.gather(*tasks, return_exceptions=True)

    before, bad, after = with_batcher(ask)
    assert_allclose(before.verdicts.score, guard.inspect_tensor(tensor[1:3]).score, atol=1e-3)
    assert isinstance(bad, ValueError)
    assert_allclose(after.verdicts.score, guard.inspect_tensor(tensor[3:4]).score, atol=1e-3)


def test_versions_are_never_mixed(
    with_batcher: Callable[..., Any], guard: Guard, tensor: NDArray[np.float32]
) -> None:
    """A request runs on the version it came with, whatever was swapped in meanwhile."""

    async def ask(batcher: Batcher) -> tuple[list[int], list[int]]:
        old, new = Held(guard), Held(guard)
        new.go.set()
        calls = [asyncio.ensure_future(batcher.submit(tensor[:1], old))]
        await old.started.wait()
        runners: list[Runner] = [old, old, new, new, old]
        calls += [asyncio.ensure_future(batcher.submit(tensor[:1], one)) for one in runners]
        await queued(batcher, 5)
        old.go.set()
        await asyncio.gather(*calls)
        return old.batches, new.batches

    assert with_batcher(ask) == ([1, 2, 1], [2])


def test_a_full_queue_refuses_at_once(
    with_batcher: Callable[..., Any], guard: Guard, tensor: NDArray[np.float32]
) -> None:
    """The bound holds, the refusal says when to come back, and room is used again."""

    async def ask(batcher: Batcher) -> None:
        held, first = await busy(batcher, guard, tensor[:1])
        second = asyncio.ensure_future(batcher.submit(tensor[:8], held))
        await queued(batcher, 8)
        with pytest.raises(
            OverloadedError, match="expected at most 10 images waiting, got 8 and 3 more"
        ) as caught:
            await batcher.submit(tensor[:3], held)
        assert caught.value.retry_after_s > 0
        third = asyncio.ensure_future(batcher.submit(tensor[:2], held))
        await queued(batcher, 10)
        held.go.set()
        await asyncio.gather(first, second, third)
        await batcher.submit(tensor[:10], held)

    with_batcher(ask, max_queue_rows=10)


def test_a_large_request_lets_others_go_in_between(
    with_batcher: Callable[..., Any], guard: Guard, tensor: NDArray[np.float32]
) -> None:
    """Of 80 rows two runs are in the queue: a row that comes later waits for no more."""
    rows = tensor[np.arange(80) % len(tensor)]

    async def ask(batcher: Batcher) -> None:
        held, first = await busy(batcher, guard, tensor[:3])
        large = asyncio.ensure_future(batcher.submit(rows, held))
        await queued(batcher, 80)
        small = asyncio.ensure_future(batcher.submit(tensor[:1], held))
        await queued(batcher, 81)
        other = asyncio.ensure_future(batcher.submit(rows, held))
        await queued(batcher, 161)
        with pytest.raises(OverloadedError, match="at most 128 images waiting, got 128 and 1 more"):
            await batcher.submit(tensor[:17], held)
        held.go.set()
        _, answer, _, _ = await asyncio.gather(first, large, small, other)
        assert held.batches[:4] == [3, 8, 8, 1]
        whole = guard.inspect_tensor(rows)
        assert_array_equal(answer.verdicts.prediction, whole.prediction)
        assert batcher.queued_rows == 0

    with_batcher(ask, max_queue_rows=128)


def test_a_large_request_that_is_given_up_leaves_nothing(
    with_batcher: Callable[..., Any], guard: Guard, tensor: NDArray[np.float32]
) -> None:
    """Neither its rows in the queue nor those that were still to come keep others out."""

    async def ask(batcher: Batcher) -> None:
        held, first = await busy(batcher, guard, tensor[:1])
        large = asyncio.ensure_future(batcher.submit(tensor[np.arange(60) % 5], held))
        await queued(batcher, 60)
        large.cancel()
        await asyncio.gather(large, return_exceptions=True)
        assert batcher.queued_rows == 0
        held.go.set()
        await first

    with_batcher(ask)


@pytest.mark.parametrize(
    ("max_wait_s", "deadline_s", "message"),
    [
        (0.3, None, "expected a wait of at most 0.3 s, it would be"),
        (60.0, 0.2, "the wait would be .* s and the deadline is in"),
    ],
)
def test_a_hopeless_wait_is_refused_early(
    with_batcher: Callable[..., Any],
    guard: Guard,
    tensor: NDArray[np.float32],
    max_wait_s: float,
    deadline_s: float | None,
    message: str,
) -> None:
    """By the measured speed the wait would outlast the limit or the deadline: no use to queue."""

    async def ask(batcher: Batcher) -> None:
        loop = asyncio.get_running_loop()
        slow = Held(guard)
        first = asyncio.ensure_future(batcher.submit(tensor[:1], slow))
        await slow.started.wait()
        loop.call_later(0.05, slow.go.set)
        await first
        held = Held(guard)
        second = asyncio.ensure_future(batcher.submit(tensor[:8], held))
        await held.started.wait()
        assert batcher.expected_wait_s >= 0.4
        deadline = None if deadline_s is None else loop.time() + deadline_s
        with pytest.raises(OverloadedError, match=message):
            await batcher.submit(tensor[:1], held, deadline=deadline)
        held.go.set()
        await second

    with_batcher(ask, max_wait_s=max_wait_s)


def test_close_refuses_what_waits_and_finishes_what_runs(
    with_batcher: Callable[..., Any], guard: Guard, tensor: NDArray[np.float32]
) -> None:
    """Shutting down loses no running request, and nobody waits for ever."""

    async def ask(batcher: Batcher) -> None:
        held = Held(guard)
        running = asyncio.ensure_future(batcher.submit(tensor[:1], held))
        await held.started.wait()
        waiting = asyncio.ensure_future(batcher.submit(tensor[:1], held))
        await queued(batcher, 1)
        closing = asyncio.ensure_future(batcher.close())
        with pytest.raises(NotReadyError, match="the server is shutting down"):
            await waiting
        held.go.set()
        await closing
        assert len((await running).verdicts) == 1
        with pytest.raises(NotReadyError):
            await batcher.submit(tensor[:1], held)

    with_batcher(ask)


class Threads:
    """A real version that says in which thread it ran."""

    def __init__(self, guard: Guard) -> None:
        self._version = Version(guard=guard)
        self.here: list[bool] = []

    def run(self, tensor: NDArray[Any]) -> Verdicts:
        """Return the real verdicts."""
        self.here.append(threading.current_thread() is threading.main_thread())
        return self._version.run(tensor)


def test_a_run_shorter_than_the_way_to_a_thread_stays_on_the_loop(
    with_batcher: Callable[..., Any], guard: Guard, tensor: NDArray[np.float32]
) -> None:
    """Once its speed is known, and while requests come one by one; the answers are the same."""
    version = Threads(guard)
    whole = guard.inspect_tensor(tensor[:4])

    async def ask(batcher: Batcher) -> None:
        alone = [await batcher.submit(tensor[i : i + 1], version) for i in range(4)]
        together = await asyncio.gather(
            *(batcher.submit(tensor[i : i + 1], version) for i in range(4))
        )
        for answers in (alone, together):
            assert_allclose([a.verdicts.score[0] for a in answers], whole.score, atol=1e-5)

    with_batcher(ask, inline_s=1.0)
    assert version.here == [False, True, True, True, False]


def test_a_longer_run_goes_to_a_thread(
    with_batcher: Callable[..., Any], guard: Guard, tensor: NDArray[np.float32]
) -> None:
    """The loop is for others meanwhile."""
    version = Threads(guard)

    async def ask(batcher: Batcher) -> None:
        for _ in range(3):
            await batcher.submit(tensor[:1], version)

    with_batcher(ask, inline_s=1e-9)
    assert version.here == [False] * 3


def test_a_run_on_the_loop_that_fails_fails_alone(
    with_batcher: Callable[..., Any], guard: Guard, tensor: NDArray[np.float32]
) -> None:
    """Its request is told, and the next is answered."""

    class Fails(Threads):
        def run(self, tensor: NDArray[Any]) -> Verdicts:
            """Return the verdicts, but of the third."""
            verdicts = super().run(tensor)
            if len(self.here) == 3:
                raise ValueError("this run breaks")
            return verdicts

    version = Fails(guard)

    async def ask(batcher: Batcher) -> None:
        for _ in range(2):
            await batcher.submit(tensor[:1], version)
        with pytest.raises(ValueError, match="this run breaks"):
            await batcher.submit(tensor[:1], version)
        assert len((await batcher.submit(tensor[:1], version)).verdicts) == 1

    with_batcher(ask, inline_s=1.0)
    assert version.here == [False, True, True, True]
