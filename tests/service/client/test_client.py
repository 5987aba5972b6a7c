import asyncio
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from reluguard.detector.errors import ImageError, ImageTooLargeError, SettingsError
from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.service.background import Running, on_loop, running
from reluguard.service.client.client import AsyncClient, Client
from reluguard.service.client.probe import is_healthy
from reluguard.service.errors import CallError

IMAGE = np.zeros((1, 12, 12, 3), np.uint8)
COLUMNS = ("prediction", "score", "likelihood", "p_value", "is_adversarial", "evidence")


def test_async_equals_sync(server: Running, guard: Guard, mixed: Images) -> None:
    """The same methods, the same verdicts."""
    tensor = guard.spec.to_tensor(mixed[:16])

    async def ask() -> list[Any]:
        async with AsyncClient(server.address) as client:
            many = await asyncio.gather(*(client.inspect(mixed[i : i + 1]) for i in range(20)))
            described = await client.describe()
            assert described.input == guard.spec
            with pytest.raises(CallError, match="INVALID_ARGUMENT: expected uint8 images"):
                await client.inspect(np.zeros((1, 5, 5, 3), np.uint8))
            with pytest.raises(ImageError, match="got an empty batch"):
                await client.inspect_encoded([])
            assert [one.prediction[0] for one in many] == guard.inspect(
                mixed[:20]
            ).prediction.tolist()
            return [
                await client.inspect(mixed[:16], outputs=True),
                await client.inspect_tensor(tensor, outputs=True),
                await client(mixed[:16], outputs=True),
            ]

    with Client(server.address) as client:
        own = client.inspect(mixed[:16], outputs=True)
    for answer in on_loop(ask()):
        for name in COLUMNS:
            assert_array_equal(getattr(answer, name), getattr(own, name))
        assert_array_equal(answer.outputs["logits"], own.outputs["logits"])


@pytest.mark.parametrize(
    ("method", "argument", "message"),
    [
        ("inspect", np.zeros((1, 12, 12, 3), np.float32), "expected uint8 images of shape"),
        ("inspect", np.zeros((12, 12, 3), np.uint8), "expected uint8 images of shape"),
        ("inspect", IMAGE[:0], "expected at least one image, got an empty batch"),
        ("inspect_tensor", np.zeros((0, 3), np.float32), "expected at least one image"),
        ("inspect_tensor", np.array(["a"]), "expected an array of bool, .* got <U1"),
        ("inspect_tensor", [1.0], "expected an array of .*, got list"),
        ("inspect_encoded", [], "expected at least one image, got an empty batch"),
    ],
)
def test_what_can_not_be_sent_never_leaves(method: str, argument: Any, message: str) -> None:
    """Bad arguments fail here, without a server."""
    with Client("127.0.0.1:1") as client, pytest.raises(ImageError, match=message):
        getattr(client, method)(argument)


def test_batches_keep_the_servers_limits(guard: Guard, mixed: Images) -> None:
    """More rows or bytes than one request may hold go in several, in order."""
    for limits in ({"max_rows": 7, "max_queue_rows": 7}, {"max_message_bytes": 64 * 1024 + 2000}):
        with running(guard, **limits) as server, Client(server.address) as client:
            served = client.inspect(mixed)
            assert_array_equal(served.prediction, guard.inspect(mixed).prediction)
            registry = server.server.metrics.registry
            labels = {
                "grpc_type": "unary",
                "grpc_service": "reluguard.v1.Guard",
                "grpc_method": "Inspect",
            }
            sent = registry.get_sample_value("grpc_server_started_total", labels)
            assert sent is not None
            assert sent >= 12


def test_a_restarting_server_is_waited_for(guard: Guard) -> None:
    """UNAVAILABLE is retried with backoff within the deadline."""
    with running(guard) as first:
        port = int(first.address.rpartition(":")[2])
        with Client(first.address) as client:
            client.inspect(IMAGE)
    with Client(f"127.0.0.1:{port}") as client, ThreadPoolExecutor(1) as threads:
        asked = threads.submit(client.inspect, IMAGE)
        with running(guard, port=port):
            assert len(asked.result(20)) == 1


def test_a_server_that_is_not_there_is_an_error_in_time() -> None:
    """The deadline bounds the retries."""
    with Client("127.0.0.1:1", deadline_s=0.5) as client, pytest.raises(CallError) as caught:
        client.inspect(IMAGE)
    assert caught.value.code in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
    assert not is_healthy("127.0.0.1:1", deadline_s=0.2)


def test_a_refusal_that_can_not_change_is_not_retried(server: Running) -> None:
    """INVALID_ARGUMENT is sent once."""
    registry = server.server.metrics.registry
    labels = {
        "grpc_type": "unary",
        "grpc_service": "reluguard.v1.Guard",
        "grpc_method": "Inspect",
    }
    before = registry.get_sample_value("grpc_server_started_total", labels) or 0
    with Client(server.address) as client, pytest.raises(CallError):
        client.inspect(np.zeros((1, 5, 5, 3), np.uint8))
    assert registry.get_sample_value("grpc_server_started_total", labels) == before + 1


def test_one_client_serves_many_threads(server: Running, guard: Guard, mixed: Images) -> None:
    """Safe to share."""
    own = guard.inspect(mixed)
    with Client(server.address) as client, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda i: client.inspect(mixed[i : i + 2]), range(0, 80, 2)))
    assert [p for answer in answers for p in answer.prediction] == own.prediction.tolist()


def test_replicas_take_turns_and_a_lost_one_is_passed_over(guard: Guard) -> None:
    """Three servers behind one name: all are asked, and one that goes away costs no request."""
    with running(guard) as one, running(guard) as two:
        stop = threading.Event()
        address = f"ipv4:{one.address},{two.address}"
        with running(guard) as three, Client(f"{address},{three.address}") as client:
            for _ in range(30):
                client.inspect(IMAGE)
            counts = [count(server) for server in (one, two, three)]
            assert min(counts) >= 5

            def ask() -> int:
                asked = 0
                while not stop.is_set():
                    client.inspect(IMAGE)
                    asked += 1
                return asked

            with ThreadPoolExecutor(2) as threads:
                askers = [threads.submit(ask) for _ in range(2)]
                on_loop(three.server.stop())
                for _ in range(20):
                    client.inspect(IMAGE)
                stop.set()
                assert all(asker.result() > 0 for asker in askers)
        assert count(one) + count(two) > counts[0] + counts[1] + 20


def count(server: Running) -> float:
    registry = server.server.metrics.registry
    return registry.get_sample_value("reluguard_score_count", {"model": "model"}) or 0


def test_an_async_client_may_be_made_before_its_loop(server: Running, mixed: Images) -> None:
    """It connects where it is asked, on one loop after another too."""
    client = AsyncClient(server.address)

    async def ask() -> int:
        return len(await client.inspect(mixed[:3]))

    code = (
        "import asyncio, sys, numpy as np\n"
        "from reluguard import AsyncClient\n"
        "client = AsyncClient(sys.argv[1])\n"
        "async def ask(): return len(await client.inspect(np.zeros((3, 12, 12, 3), np.uint8)))\n"
        "print(asyncio.run(ask()), asyncio.run(ask()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, server.address], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["3", "3"], done.stderr
    assert on_loop(ask()) == 3
    on_loop(client.close())


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:50051", "expected host:port, got 'http://127.0.0.1:50051': leave http"),
        ("https://guard.example", "leave https:// out"),
        ("127.0.0.1", "expected host:port, got '127.0.0.1' without a port"),
        ("::1", "without a port"),
        ("[::1]", "a port in 1..65535"),
        ("127.0.0.1:port", "a port in 1..65535"),
        ("127.0.0.1:0", "a port in 1..65535"),
        ("", "without a port"),
    ],
)
@pytest.mark.parametrize("family", [Client, AsyncClient])
def test_what_is_no_address_is_refused_at_once(family: Any, address: str, message: str) -> None:
    """GRPC would try until the deadline."""
    with pytest.raises(SettingsError, match=re.escape(message)):
        family(address)


@pytest.mark.parametrize("address", ["dns:///guard:50051", "[::1]:50051", "unix:/run/guard", "a:1"])
def test_addresses_that_grpc_resolves_are_taken(address: str) -> None:
    """Nothing is asked before the first call."""
    with Client(address):
        pass


def test_the_metrics_port_is_told_from_the_servers(server: Running) -> None:
    """One sentence, in far less than the deadline; both clients."""
    address = server.metrics_address
    assert address is not None

    async def ask() -> None:
        async with AsyncClient(address, deadline_s=60) as client:
            await client.describe()

    started = time.monotonic()
    with Client(address, deadline_s=60) as client, pytest.raises(CallError, match="metrics port"):
        client.inspect(IMAGE)
    with Client(address, deadline_s=60) as client, pytest.raises(CallError, match="metrics port"):
        list(client.stream(iter([IMAGE])))
    with pytest.raises(CallError, match="speaks no gRPC"):
        on_loop(ask())
    assert time.monotonic() - started < 10


def test_an_image_that_can_never_fit_is_refused_once(guard: Guard) -> None:
    """Neither sent again nor left to the deadline."""
    with running(guard, max_message_bytes=100_000) as server, Client(server.address) as client:
        for _ in range(2):
            with pytest.raises(ImageTooLargeError, match=r"less than 100000 bytes, .* has 100000"):
                client.inspect_encoded([bytes(100_000)])
        with pytest.raises(ImageTooLargeError, match="image 1 has 200000"):
            client.inspect_encoded([b"small", bytes(200_000)])
        registry = server.server.metrics.registry
        labels = {
            "grpc_type": "unary",
            "grpc_service": "reluguard.v1.Guard",
            "grpc_method": "Inspect",
        }
        assert registry.get_sample_value("grpc_server_started_total", labels) == 0


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=30),
    st.integers(1, 10),
    st.integers(64 * 1024, 64 * 1024 + 200),
)
def test_blocks_cover_every_row_once(sizes: list[int], rows: int, size: int) -> None:
    """In order, within the limits, and none empty."""
    from reluguard.service.client.requests import row_runs
    from reluguard.service.protocols.inspection import Limits

    limits = Limits(max_rows=rows, max_message_bytes=size, max_pixels=1)
    blocks = list(row_runs(sizes, limits))
    assert [i for block in blocks for i in range(block.start, block.stop)] == list(
        range(len(sizes))
    )
    for block in blocks:
        taken = sizes[block]
        assert 1 <= len(taken) <= rows
        assert len(taken) == 1 or sum(taken) <= size - 64 * 1024
