"""What a request costs, in things that can be counted: copies, sessions, runs, tasks."""

import asyncio
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import grpc
import numpy as np
import onnxruntime as ort
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from reluguard.detector.runtime import Guard
from reluguard.service.background import Running, on_loop, running
from reluguard.service.models.batching import Batcher
from reluguard.service.models.slots import Slots
from reluguard.service.models.version import Version
from reluguard.service.monitoring.metrics import Metrics
from reluguard.service.payload import AT_LEAST, lift
from reluguard.service.protocols.pb import open_inference as oip
from reluguard.service.protocols.pb import reluguard_v1 as pb
from reluguard.service.protocols.wire import read_tensor, write_tensor

LARGE = 24  # rows whose tensor is read in place
Ask = Callable[[str, NDArray[np.float32]], None]


def inspect(address: str, tensor: NDArray[np.float32]) -> None:
    request = pb.InspectRequest(
        tensor=pb.Tensor(datatype="FP32", shape=tensor.shape, data=tensor.tobytes())
    )
    _call(address, "/reluguard.v1.Guard/Inspect", request)


def infer(address: str, tensor: NDArray[np.float32]) -> None:
    inputs = [
        oip.ModelInferRequest.InferInputTensor(name="image", datatype="FP32", shape=tensor.shape)
    ]
    request = oip.ModelInferRequest(
        model_name="model", inputs=inputs, raw_input_contents=[tensor.tobytes()]
    )
    _call(address, "/inference.GRPCInferenceService/ModelInfer", request)


def _call(address: str, method: str, request: Any) -> None:
    with grpc.insecure_channel(address) as channel:
        channel.unary_unary(method, None, None)(request.SerializeToString(), timeout=30)


class Watched:
    """A real guard that keeps what it was run on."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self.tensors: list[NDArray[np.float32]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._guard, name)

    def run_checked(self, tensor: NDArray[np.float32]) -> object:
        """Run the real guard."""
        self.tensors.append(tensor)
        return self._guard.run_checked(tensor)


def owner(array: NDArray[Any]) -> object:
    """Return what holds the memory that an array looks at."""
    base: Any = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    return base.obj if isinstance(base, memoryview) else base


@pytest.mark.parametrize("ask", [inspect, infer], ids=["inspect", "open inference"])
@pytest.mark.parametrize("rows", [1, LARGE])
def test_the_model_reads_the_bytes_that_came(
    guard: Guard, tensor: NDArray[np.float32], ask: Ask, rows: int
) -> None:
    """A lone request is run on a view: of the whole message if it is large, else of its field."""
    watched = Watched(guard)
    with running(cast("Guard", watched)) as server:
        ask(server.address, tensor[:rows])
    (seen,) = watched.tensors
    assert_array_equal(seen, tensor[:rows])
    held = owner(seen)
    assert isinstance(held, bytes)
    assert (len(held) > seen.nbytes) == (seen.nbytes >= AT_LEAST)


def test_merged_requests_are_copied_once_and_run_in_full_batches(
    gate: Any, tensor: NDArray[np.float32]
) -> None:
    """Of 64 callers the first runs alone, the others wait for it and go in batches of 32."""
    with (
        running(cast("Guard", gate), max_batch=32) as server,
        ThreadPoolExecutor(64) as threads,
        grpc.insecure_channel(server.address) as channel,
    ):
        ask = channel.unary_unary("/reluguard.v1.Guard/Inspect", None, None)
        one = pb.Tensor(datatype="FP32", shape=tensor[:1].shape, data=tensor[:1].tobytes())
        data = pb.InspectRequest(tensor=one).SerializeToString()
        calls = [threads.submit(ask, data, timeout=60) for _ in range(64)]
        on_loop(_queued(server, 63))
        gate.opened.set()
        for call in calls:
            call.result()
    assert gate.rows == [1, 32, 31]


async def _queued(server: Running, rows: int) -> None:
    batcher = server.server.catalogue.repository.get("").batcher
    while batcher.queued_rows != rows:  # noqa: ASYNC110 - the batcher owes nobody an event
        await asyncio.sleep(0)


def test_a_guard_is_one_session_and_serving_opens_none(
    pair: Any, tensor: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Golden replay, serving and every batch size go through the same session."""
    opened: list[int] = []

    class Counted(ort.InferenceSession):  # type: ignore[misc] # onnxruntime ships no types
        def __init__(self, *arguments: Any, **more: Any) -> None:
            opened.append(1)
            super().__init__(*arguments, **more)

    monkeypatch.setattr(ort, "InferenceSession", Counted)
    guard = pair.open()
    assert len(opened) == 1
    with running(guard) as server:
        for rows in (1, 2, LARGE):
            inspect(server.address, tensor[:rows])
    assert len(opened) == 1


def test_a_run_costs_no_task(guard: Guard, tensor: NDArray[np.float32]) -> None:
    """Queueing and running are callbacks: nothing but the caller's own task exists."""

    async def main() -> int:
        made: list[Any] = []
        loop = asyncio.get_running_loop()

        def count(loop: asyncio.AbstractEventLoop, work: Any, **more: Any) -> asyncio.Task[Any]:
            made.append(work)
            return asyncio.Task(work, loop=loop, **more)

        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(
                max_batch=8, max_delay_s=0.0, max_queue_rows=64, max_wait_s=60.0,
                executor=executor, slots=Slots(1),
                metrics=Metrics(CollectorRegistry()).model("m", "annotate"),
            )  # fmt: skip
            batcher.start()
            loop.set_task_factory(count)
            for _ in range(5):
                await batcher.submit(tensor[:2], Version(guard=guard))
            await batcher.close()
        return len(made)

    assert asyncio.run(main()) == 0


def test_reading_a_large_request_allocates_next_to_nothing() -> None:
    """Neither the payload nor the array is a copy, whichever protocol brings it."""
    data = bytes(4 * 2**20)
    shape = [1, 2**20]
    infer_data = oip.ModelInferRequest(id="a", raw_input_contents=[data]).SerializeToString()
    own = pb.InspectRequest(tensor=pb.Tensor(datatype="FP32", shape=shape, data=data))
    inspect_data = own.SerializeToString()
    cases: list[tuple[Any, bytes, Any]] = [
        (oip.ModelInferRequest, infer_data, {7: None}),
        (pb.InspectRequest, inspect_data, {3: 4, 4: 5}),
    ]
    for kind, message, fields in cases:
        tracemalloc.start()
        rest, payload = lift(message, fields)
        kind.FromString(rest)
        assert payload is not None
        array = read_tensor(payload, name="x", datatype="FP32", shape=shape)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert array.nbytes == len(data)
        assert peak < len(data) / 100


def test_an_answer_is_copied_once() -> None:
    """From the array straight into the bytes that are sent, whatever its strides."""
    for array in (np.zeros((64, 1000), np.float32), np.zeros((1000, 64), np.float32).T):
        tracemalloc.start()
        written = write_tensor(array)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(written) == array.nbytes
        assert peak < 1.1 * array.nbytes
