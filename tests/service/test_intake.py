"""Who begins a message and does not end it keeps nobody out and holds no more than is allowed."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.service.background import Running, on_loop, running
from reluguard.service.client.client import Client
from reluguard.service.client.probe import is_healthy
from reluguard.service.errors import OverloadedError
from reluguard.service.intake import Intake
from reluguard.service.protocols.pb import reluguard_v1 as pb
from reluguard.service.quotas import Quota, Quotas
from reluguard.service.room import room_of
from reluguard.service.security import Scope, token_entry
from reluguard.service.settings import Settings
from tests.waiting import until

IMAGE = np.zeros((1, 12, 12, 3), np.uint8)
INSPECT = "/reluguard.v1.Guard/Inspect"
HEALTH = "/grpc.health.v1.Health/Check"
ALONE = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]


def refused(server: Running, reason: str) -> float:
    registry = server.server.metrics.registry
    return registry.get_sample_value("reluguard_refused_calls_total", {"reason": reason}) or 0


class Dawdlers:
    """Callers who begin calls and send no message."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, ALONE)
        self._never: list[Any] = []

    def begin(self, count: int, method: str = INSPECT) -> list[Any]:
        """Begin so many calls."""
        calls = []
        for _ in range(count):
            pause = _Pause()
            self._never.append(pause)
            calls.append(self._channel.stream_unary(method).future(pause))
        return calls

    def close(self) -> None:
        """Let all of them go."""
        for pause in self._never:
            pause.end()
        self._channel.close()


class _Pause:
    """An iterator of requests that gives none until it is ended."""

    def __init__(self) -> None:
        import threading

        self._ended = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._ended.wait(60)
        raise StopIteration

    def end(self) -> None:
        self._ended.set()


@pytest.fixture
def dawdle() -> Iterator[Callable[[str], Dawdlers]]:
    with ExitStack() as stack:

        def make(address: str) -> Dawdlers:
            made = Dawdlers(address)
            stack.callback(made.close)
            return made

        yield make


def code(call: Any) -> str:
    error: Any = call.exception(20)
    return str(error.code().name)


def test_without_a_token_no_message_is_waited_for(
    guard: Guard, tmp_path: Path, dawdle: Callable[[str], Dawdlers]
) -> None:
    """The answer comes on the headers: nothing of a body is read, and no lane is taken."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(token_entry("t", name="mine", scopes=[Scope.INFER]))
    with running(guard, tokens=tokens) as server:
        calls = dawdle(server.address).begin(20)
        assert {code(call) for call in calls} == {"UNAUTHENTICATED"}
        assert server.server.reading == 0
        assert refused(server, "unauthenticated") == 20


def test_who_sends_at_once_passes_those_who_do_not(
    guard: Guard, clean: Images, dawdle: Callable[[str], Dawdlers]
) -> None:
    """With every lane taken and a crowd behind, the newest goes first; dawdlers are sent away."""
    with running(guard, max_bytes_in_flight=1) as server:
        room = server.server.room
        lanes = room.quick + room.slow
        late = dawdle(server.address).begin(4 * lanes)
        until(lambda: server.server.reading == lanes)
        with Client(server.address) as client:
            for _ in range(10):
                assert len(client.inspect(clean[:2])) == 2
        assert server.server.reading <= lanes
        until(lambda: refused(server, "slow_message") > 0)
        assert "RESOURCE_EXHAUSTED" in {code(call) for call in late if call.done()}


class Slow:
    """A call whose message never comes, or is here at once."""

    def __init__(self, *, comes: bool = False) -> None:
        self.comes = comes
        self.told: list[grpc.StatusCode] = []
        self._ended = asyncio.Event()

    async def read(self) -> Any:
        """Return the message, or nothing once told off."""
        if self.comes:
            return b"here"
        await self._ended.wait()
        return grpc.aio.EOF

    async def abort(self, code: grpc.StatusCode, *_: Any) -> None:
        """End the call."""
        self.told.append(code)
        self._ended.set()


def test_a_crowd_that_waits_keeps_nobody_out() -> None:
    """Of hundreds who send nothing, each newcomer who does passes before one lane is free twice."""
    quick, slow = 4, 3

    async def main() -> None:
        refused: list[str] = []
        intake = Intake(
            quick=quick, slow=slow, max_message_bytes=10, max_bytes=10, longest_s=60.0,
            refused=refused.append,
        )  # fmt: skip
        crowd = [asyncio.ensure_future(intake.read(Slow())) for _ in range(300)]
        while intake.reading < quick + slow:  # noqa: ASYNC110 - it owes nobody an event
            await asyncio.sleep(0)
        for _ in range(10):
            before = len(refused)
            assert await intake.read(Slow(comes=True)) == b"here"
            assert len(refused) - before <= quick
        given_up = asyncio.ensure_future(intake.read(Slow(comes=True)))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        assert await intake.read(Slow(comes=True)) == b"here"
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        assert intake.reading == 0
        assert await intake.read(Slow(comes=True)) == b"here"

    asyncio.run(main())


def test_a_message_has_its_time(guard: Guard, dawdle: Callable[[str], Dawdlers]) -> None:
    """Even when nobody else waits, one that does not come is given up."""
    with running(guard, receive_s=0.05) as server:
        (call,) = dawdle(server.address).begin(1)
        assert code(call) == "RESOURCE_EXHAUSTED"
        until(lambda: server.server.reading == 0)


def test_strangers_share_a_lobby(guard: Guard, dawdle: Callable[[str], Dawdlers]) -> None:
    """Health is open to all, so it has lanes of its own, and takes no more than a name."""
    with running(guard) as server:
        dawdle(server.address).begin(3 * server.server.room.lobby, HEALTH)
        until(lambda: server.server.reading == server.server.room.lobby)
        assert is_healthy(server.address)
        with Client(server.address) as client:
            client.inspect(IMAGE)
        with grpc.insecure_channel(server.address, ALONE) as channel:
            ask = channel.unary_unary(HEALTH)
            with pytest.raises(grpc.RpcError) as caught:
                ask(health_pb2.HealthCheckRequest(service="x" * 2000).SerializeToString())
            error: Any = caught.value
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            with pytest.raises(grpc.RpcError):
                ask(b"\xff\xff")


def test_live_and_ready_are_not_read(guard: Guard, dawdle: Callable[[str], Dawdlers]) -> None:
    """Their requests say nothing, so nobody waits for them."""
    with running(guard) as server:
        calls = dawdle(server.address).begin(2, "/inference.GRPCInferenceService/ServerReady")
        assert {bytes(call.result(20)) for call in calls} == {b"\x08\x01"}


def test_bytes_in_flight_have_a_limit(gate: Any, clean: Images) -> None:
    """What is whole and waits for the model counts until it is answered."""
    most = 40 * clean[0].nbytes
    settings: dict[str, Any] = {"max_message_bytes": most, "max_bytes_in_flight": 2 * most}
    with running(cast("Guard", gate), **settings) as server, ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(server.address, ALONE))
        ask = channel.unary_unary(INSPECT)
        n, h, w, c = clean[:30].shape
        block = pb.Pixels(count=n, height=h, width=w, channels=c, data=clean[:30].tobytes())
        data = pb.InspectRequest(pixels=block).SerializeToString()
        first = ask.future(data, timeout=30)
        assert gate.entered.acquire(timeout=30)
        with pytest.raises(grpc.RpcError) as caught:
            ask(data, timeout=30)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "bytes of requests at once" in error.details()
        assert "grpc-retry-pushback-ms" in dict(error.trailing_metadata())
        gate.opened.set()
        assert first.result(30)
        ask(data, timeout=30)
        assert refused(server, "too_many_bytes") == 1


def test_connections_have_a_limit(guard: Guard) -> None:
    """What is beyond it is hung up on; who is in stays in."""
    with running(guard, max_connections=3) as server, ExitStack() as stack:
        client = stack.enter_context(Client(server.address))
        client.inspect(IMAGE)
        host, _, port = server.address.rpartition(":")
        others = [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
            for _ in range(6)
        ]
        greeted = [bool(other.recv(9)) for other in others]
        assert sum(greeted) <= 3
        assert not all(greeted)
        client.inspect(IMAGE)


def test_streams_have_a_limit(guard: Guard) -> None:
    """Each open stream may hold a message, so there are so many."""
    with running(guard, max_open_streams=2) as server, Client(server.address) as client:

        async def crowd() -> str:
            async with grpc.aio.insecure_channel(server.address) as channel:
                talk = channel.stream_stream("/reluguard.v1.Guard/InspectStream")
                calls = [talk() for _ in range(2)]
                message = pb.InspectRequest().SerializeToString()
                for call in calls:
                    await call.write(message)
                    await call.read()
                one_more = talk()
                return str((await one_more.code()).name)

        assert on_loop(crowd()) == "RESOURCE_EXHAUSTED"
        assert refused(server, "too_many_streams") == 1
        until(lambda: len(list(client.stream(iter([IMAGE])))) == 1)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"caller_calls_per_s": 0.1}, "calls_per_second"),
        ({"caller_rows_per_s": 2.0}, "rows_per_second"),
    ],
)
def test_a_caller_has_a_quota(guard: Guard, settings: dict[str, Any], reason: str) -> None:
    """By address where there are no tokens: RESOURCE_EXHAUSTED with a pushback, and counted."""
    data = pb.InspectRequest(
        pixels=pb.Pixels(count=2, height=12, width=12, channels=3, data=bytes(864))
    ).SerializeToString()
    with (
        running(guard, **settings) as server,
        grpc.insecure_channel(server.address, ALONE) as channel,
    ):
        ask = channel.unary_unary(INSPECT)
        ask(data, timeout=20)
        with pytest.raises(grpc.RpcError) as caught:
            ask(data, timeout=20)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) >= 100
        assert refused(server, reason) == 1


def test_a_token_has_a_quota_of_its_own(gate: Any, tmp_path: Path) -> None:
    """One caller at its limit keeps no other out."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(
        token_entry("one", name="one", scopes=[Scope.INFER])
        + "calls = 1\n"
        + token_entry("two", name="two", scopes=[Scope.INFER])
    )
    data = pb.InspectRequest(
        pixels=pb.Pixels(count=1, height=12, width=12, channels=3, data=IMAGE.tobytes())
    ).SerializeToString()
    with (
        running(cast("Guard", gate), tokens=tokens) as server,
        grpc.insecure_channel(server.address, ALONE) as channel,
    ):
        ask = channel.unary_unary(INSPECT)
        one, two = ([("authorization", f"Bearer {name}")] for name in ("one", "two"))
        first = ask.future(data, timeout=30, metadata=one)
        assert gate.entered.acquire(timeout=30)
        assert code(ask.future(data, timeout=30, metadata=one)) == "RESOURCE_EXHAUSTED"
        other = ask.future(data, timeout=30, metadata=two)
        gate.opened.set()
        assert first.result(30)
        assert other.result(30)
        assert ask(data, timeout=30, metadata=one)
        assert refused(server, "calls_at_once") == 1


def test_a_bucket_gives_what_a_second_allows() -> None:
    """A second's worth at once, more as time goes by; a batch above it when the bucket is full."""

    async def spend() -> list[str]:
        told: list[str] = []
        quotas = Quotas(Quota(rows_per_s=10), told.append)
        quotas.rows("a", 10)
        with pytest.raises(OverloadedError, match="at most 10 rows a second"):
            quotas.rows("a", 1)
        quotas.rows("b", 50)
        with pytest.raises(OverloadedError) as caught:
            quotas.rows("b", 1)
        assert 4 < caught.value.retry_after_s <= 5
        return told

    assert asyncio.run(spend()) == ["rows_per_second"] * 2


@pytest.mark.parametrize("rows", [64, 3072, 150_528 * 4])
def test_the_stated_memory_follows_the_model(rows: int) -> None:
    """Small images, small messages; at least a batch of the model's goes in one request."""
    settings = Settings()
    room = room_of(settings, rows)
    assert min(settings.max_batch, settings.max_rows) * rows < room.max_message_bytes
    assert room.max_message_bytes <= max(17 * 2**20, (settings.max_batch + 2) * rows)
    lanes = room.quick + room.slow + room.lobby + room.max_open_streams
    assert room.memory_bytes >= lanes * room.max_message_bytes + room.max_bytes_in_flight
    assert room.lobby * room.max_message_bytes <= 64 * 2**20
    assert room_of(settings, 64).max_message_bytes < 2 * 2**20


def test_the_limits_are_told(guard: Guard) -> None:
    """Describe says what callers may use together."""
    with running(guard, max_connections=77) as server:
        data = pb.DescribeRequest().SerializeToString()
        with grpc.insecure_channel(server.address) as channel:
            reply = channel.unary_unary("/reluguard.v1.Guard/Describe")(data)
        limits = pb.DescribeResponse.FromString(reply).limits
        room = server.server.room
        assert (limits.max_connections, limits.memory_bytes) == (77, room.memory_bytes)
        assert limits.max_bytes_in_flight == room.max_bytes_in_flight
