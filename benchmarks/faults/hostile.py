"""Clients that hold a server's resources and give nothing: the rest is served.

Each is tried while a good client asks at a steady rate; its latency before and during is compared.
Most of them speak HTTP/2 by hand, because no gRPC library would do what they do. Where something
else works on the same cores, latency is not judged: it does the same to the server.
"""

import asyncio
import contextlib
import io
import os
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from PIL import Image

from benchmarks.calls import share_of
from benchmarks.faults.load import Phase, send
from benchmarks.faults.pair import Pair, make_pair
from benchmarks.faults.process import Process, raise_file_limit, served
from benchmarks.faults.report import Finding
from benchmarks.faults.traffic import NO_RETRIES, Ask, Kit, code_of
from reluguard.service.protocols.pb import open_inference as oip
from reluguard.service.protocols.pb import reluguard_v1 as pb

__all__ = ["Attack", "run", "tried"]

_SLOWER = 3
_FLOOR_MS = 50.0  # p99 below this is as good as before, whatever it was
_IDLE = 0.9  # of a core on which latency says something about the server
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING = 0, 1, 4, 6
_END_HEADERS, _END_STREAM, _ACK = 4, 1, 1
_INSPECT_STREAM = "/reluguard.v1.Guard/InspectStream"

Attack = Callable[[Process, Ask], Any]


def run(pair: Pair | None, folder: Path, *, short: bool) -> list[Finding]:
    """Try each kind of client for a while."""
    kit = Kit(pair or make_pair(folder / "pair"))
    ask = kit.inspect_pixels(kit.images(1))
    big = kit.inspect_pixels(kit.images(32))
    idle = 1000 if short else 4000
    seconds = 2.0 if short else 10.0
    room = raise_file_limit(2 * idle + 1000)
    idle = min(idle, (room - 500) // 2)
    attacks: list[tuple[str, Attack, Ask]] = [
        (f"{idle} idle channels", lambda s, a: _idle(s, a, count=idle), ask),
        ("500 slow handshakes, a byte a second", lambda s, a: _drip(s, a, count=500), ask),
        ("500 slow bodies, a byte a second", lambda s, a: _slow_bodies(s, a, count=500), ask),
        ("1,000 half-open streams", lambda s, a: _half_open(s, a, count=1000), ask),
        ("huge metadata", _metadata, ask),
        ("50 clients that never read", lambda s, a: _deaf(s, a, count=50), big),
        ("20 streams that never read", lambda s, a: _deaf_streams(s, a, count=20), big),
        ("garbage on the port", _garbage, ask),
        ("pings without end", _pings, ask),
        *((f"worst bytes: {name}", _flood(method, make()), ask) for name, method, make in WORST),
    ]
    return [tried(kit, ask, name, attack, theirs, seconds) for name, attack, theirs in attacks]


def tried(
    kit: Kit,
    ask: Ask,
    name: str,
    attack: Attack,
    theirs: Ask,
    seconds: float,
    *,
    settings: Mapping[str, Any] | None = None,
) -> Finding:
    """Compare a good caller's latency before and during an attack.

    Args:
        kit: what is served.
        ask: the good caller's request.
        name: of the attack.
        attack: what the others do.
        theirs: a request for them.
        seconds: how long each phase lasts.
        settings: of the server.
    """
    steady = Phase(rate=50, seconds=seconds)
    share = _share()
    with served(kit.pair, settings=settings) as server:
        warm, before = send(server.address, ask, [Phase(rate=50, seconds=1), steady])
        del warm
        held = server.usage()

        async def during() -> tuple[dict[str, Any], Any]:
            async with attack(server, theirs) as told:
                (part,) = await asyncio.to_thread(send, server.address, ask, [steady])
                return part, (told, server.usage())

        part, (told, most) = asyncio.run(during())
        (afterwards,) = send(server.address, ask, [Phase(rate=50, seconds=1)])
        alive = server.popen.poll() is None
        let_go = server.usage()
    share = min(share, _share())
    idle = share >= _IDLE
    slowest = max(_SLOWER * before["accepted"]["p99_ms"], _FLOOR_MS) if idle else float("inf")
    wanted = (
        f"p99 <= {_SLOWER} x before or {_FLOOR_MS:g} ms"
        if idle
        else f"p99 not measurable here: a busy thread got {share:.0%} of its core"
    )
    return Finding(
        exercise=f"hostile: {name}",
        goal=f"every good request answered, {wanted}",
        figures={
            "p99_ms_before": before["accepted"]["p99_ms"],
            "p99_ms_during": part["accepted"]["p99_ms"],
            "codes_during": part["codes"],
            "codes_afterwards": afterwards["codes"],
            "rss_mib": [round(u.rss_mib, 1) for u in (held, most, let_go)],
            "files": [u.files for u in (held, most, let_go)],
            "threads": [u.threads for u in (held, most, let_go)],
        }
        | told,
        met=alive
        and set(part["codes"]) == set(afterwards["codes"]) == {"OK"}
        and part["accepted"]["p99_ms"] <= slowest,
    )


def _share() -> float:
    """Return the least share of its time that a busy thread gets on one of our cores."""
    return min(share_of({core}) for core in os.sched_getaffinity(0))


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return an HTTP/2 frame (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers(path: str, authority: str) -> bytes:
    """Return a gRPC request's header block: literals without indexing (RFC 7541, 6.2.2)."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority),
              ("te", "trailers"), ("content-type", "application/grpc")]  # fmt: skip
    return b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields
    )


def message(data: bytes) -> bytes:
    """Return a gRPC message: not compressed, its length, its bytes."""
    return b"\0" + struct.pack(">I", len(data)) + data


class _Connections:
    """Many plain connections to one server, opened in slices so that the listener keeps up."""

    def __init__(self, server: Process) -> None:
        self._server = server
        self.open: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.refused = 0

    async def connect(self, count: int, first: bytes) -> None:
        """Open so many and send the first bytes on each."""
        for start in range(0, count, 100):
            slice_of = range(start, min(start + 100, count))
            results = await asyncio.gather(
                *(asyncio.open_connection("127.0.0.1", self._server.port) for _ in slice_of),
                return_exceptions=True,
            )
            for result in results:
                if isinstance(result, BaseException):
                    self.refused += 1
                    continue
                result[1].write(first)
                self.open.append(result)
            await asyncio.sleep(0)

    async def greet(self, count: int) -> None:
        """Open so many with a whole HTTP/2 handshake: their settings, ours, both acknowledged."""
        await self.connect(count, _PREFACE + frame(_SETTINGS, 0, 0) + frame(_SETTINGS, _ACK, 0))
        await asyncio.gather(*(self._greeted(reader) for reader, _ in self.open))

    async def _greeted(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError, OSError):
            async with asyncio.timeout(30):
                await reader.readexactly(9)

    def write(self, data: bytes) -> None:
        """Send this on each that is still open."""
        for _, writer in self.open:
            if not writer.is_closing():
                writer.write(data)

    def alive(self) -> int:
        """Return how many the server has not closed."""
        return sum(not reader.at_eof() and not w.is_closing() for reader, w in self.open)

    def close(self) -> None:
        """Drop all of them."""
        for _, writer in self.open:
            writer.transport.abort()


@asynccontextmanager
async def _connections(server: Process) -> AsyncIterator[_Connections]:
    connections = _Connections(server)
    try:
        yield connections
    finally:
        connections.close()
        await asyncio.sleep(0.2)


@asynccontextmanager
async def _idle(server: Process, _: Ask, *, count: int) -> AsyncIterator[dict[str, Any]]:
    async with _connections(server) as connections:
        await connections.greet(count)
        yield {"connected": connections.alive(), "refused": connections.refused}


async def _forever(step: Callable[[], None], every_s: float) -> None:
    while True:
        step()
        await asyncio.sleep(every_s)


@asynccontextmanager
async def _repeating(step: Callable[[], None], every_s: float) -> AsyncIterator[None]:
    task = asyncio.create_task(_forever(step, every_s))
    try:
        yield
    finally:
        task.cancel()


@asynccontextmanager
async def _drip(server: Process, _: Ask, *, count: int) -> AsyncIterator[dict[str, Any]]:
    sent = iter(_PREFACE[1:] + bytes(10**6))
    async with _connections(server) as connections:
        await connections.connect(count, _PREFACE[:1])
        async with _repeating(lambda: connections.write(bytes([next(sent)])), 1.0):
            yield {"connected": connections.alive()}


@asynccontextmanager
async def _slow_bodies(server: Process, ask: Ask, *, count: int) -> AsyncIterator[dict[str, Any]]:
    """Open a call, announce a whole message, and send it a byte at a time."""
    block = headers(ask.method, server.address)
    start = frame(_HEADERS, _END_HEADERS, 1, block) + frame(_DATA, 0, 1, message(ask.data)[:9])
    async with _connections(server) as connections:
        await connections.greet(count)
        connections.write(start)
        async with _repeating(lambda: connections.write(frame(_DATA, 0, 1, b"\0")), 1.0):
            yield {"connected": connections.alive()}


@asynccontextmanager
async def _half_open(server: Process, _: Ask, *, count: int) -> AsyncIterator[dict[str, Any]]:
    """Open streams of requests and send none."""
    channels = [
        grpc.aio.insecure_channel(server.address, options=list(NO_RETRIES)) for _ in range(10)
    ]
    calls = [channels[i % 10].stream_stream(_INSPECT_STREAM)() for i in range(count)]
    await asyncio.sleep(1)
    yield {"streams": sum(not call.done() for call in calls)}
    for call in calls:
        call.cancel()
    for channel in channels:
        await channel.close()


@asynccontextmanager
async def _metadata(server: Process, ask: Ask) -> AsyncIterator[dict[str, Any]]:
    """Send calls with 20 KiB to 4 MiB of metadata until the good client is done."""
    codes: dict[str, int] = {}
    channel = grpc.aio.insecure_channel(
        server.address, options=[*NO_RETRIES, ("grpc.max_metadata_size", 2**24)]
    )

    async def bother() -> None:
        for size in (20_000, 200_000, 4_000_000) * 10**6:
            rows = [(f"x-{i}", "a" * 10_000) for i in range(size // 10_000)]
            code = "OK"
            try:
                await channel.unary_unary(ask.method)(ask.data, timeout=5, metadata=rows)
            except grpc.aio.AioRpcError as error:
                code = code_of(error)
            codes[code] = codes.get(code, 0) + 1
            await asyncio.sleep(0.02)

    task = asyncio.create_task(bother())
    yield {"their_codes": codes}
    task.cancel()
    await channel.close()


@asynccontextmanager
async def _deaf(server: Process, ask: Ask, *, count: int) -> AsyncIterator[dict[str, Any]]:
    """Ask for large answers on raw connections, then never read a byte."""
    block = headers(ask.method, server.address)
    body = message(ask.data)
    parts = [body[i : i + 16_000] for i in range(0, len(body), 16_000)]
    async with _connections(server) as connections:
        await connections.greet(count)
        for reader, _ in connections.open:
            reader._transport.pause_reading()  # type: ignore[attr-defined]  # noqa: SLF001 - the point
        for number in range(4):  # our window allows 64 KiB of bodies
            stream = 2 * number + 1
            connections.write(frame(_HEADERS, _END_HEADERS, stream, block))
            for part in parts[:-1]:
                connections.write(frame(_DATA, 0, stream, part))
            connections.write(frame(_DATA, _END_STREAM, stream, parts[-1]))
        await asyncio.sleep(0.5)
        yield {"connected": connections.alive()}


@asynccontextmanager
async def _deaf_streams(server: Process, ask: Ask, *, count: int) -> AsyncIterator[dict[str, Any]]:
    """Send requests on streams as fast as they go, and read no answer."""
    sent = 0
    options = [*NO_RETRIES, ("grpc.http2.bdp_probe", 0)]  # windows stay as small as they begin
    channels = [grpc.aio.insecure_channel(server.address, options=options) for _ in range(count)]

    async def talk(channel: grpc.aio.Channel) -> None:
        nonlocal sent
        call = channel.stream_stream(_INSPECT_STREAM)()
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await call.write(ask.data)
                sent += 1

    tasks = [asyncio.create_task(talk(channel)) for channel in channels]
    seen = -1
    async with asyncio.timeout(60):
        while seen != sent:  # until their windows are full
            seen = sent
            await asyncio.sleep(1)
    yield {"messages_taken": sent}
    for task in tasks:
        task.cancel()
    for channel in channels:
        await channel.close()


@asynccontextmanager
async def _garbage(server: Process, _: Ask) -> AsyncIterator[dict[str, Any]]:
    """Keep connecting and sending what is no HTTP/2, or frames that break its rules."""
    sent = 0

    async def bother() -> None:
        nonlocal sent
        kinds = [
            os.urandom(500), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            _PREFACE + frame(_SETTINGS, 0, 0) + os.urandom(300),
            _PREFACE + frame(_SETTINGS, 0, 0) + frame(_HEADERS, _END_HEADERS, 2, b"\xff" * 50),
            _PREFACE + frame(_DATA, 0, 99, bytes(100)),
        ]  # fmt: skip
        for kind in kinds * 10**6:
            async with _connections(server) as connections:
                await connections.connect(20, kind)
                sent += 20

    task = asyncio.create_task(bother())
    told: dict[str, Any] = {}
    yield told
    told["connections"] = sent
    task.cancel()


def _flood(method: str, data: bytes) -> Attack:
    """Return a caller who sends this message again and again."""

    @asynccontextmanager
    async def flood(server: Process, _: Ask) -> AsyncIterator[dict[str, Any]]:
        codes: dict[str, int] = {}
        channel = grpc.aio.insecure_channel(server.address, options=NO_RETRIES)
        call = channel.unary_unary(method)

        async def bother() -> None:
            while True:
                try:
                    await call(data, timeout=20)
                    code = "OK"
                except grpc.aio.AioRpcError as error:
                    code = code_of(error)
                codes[code] = codes.get(code, 0) + 1

        task = asyncio.create_task(bother())
        yield {"their_codes": codes, "their_bytes": len(data)}
        task.cancel()
        await channel.close()

    return flood


_INSPECT, _INFER = "/reluguard.v1.Guard/Inspect", "/inference.GRPCInferenceService/ModelInfer"
_ROOM = 2**20  # what any model's server takes; a larger message is refused by gRPC itself


def _of_files(files: list[bytes]) -> bytes:
    return pb.InspectRequest(encoded=pb.EncodedImages(images=files)).SerializeToString()


def _scan_bomb() -> bytes:
    """Return a progressive JPEG of as many scans as are let through, on many pixels."""
    out = io.BytesIO()
    Image.new("L", (8000, 8000)).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    begin = data.rindex(b"\xff\xda")
    return data[:begin] + data[begin:-2] * 50 + b"\xff\xd9"


def _png_bomb() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8000, 8000)).save(out, "PNG")
    return out.getvalue()


def _numbers() -> bytes:
    contents = oip.InferTensorContents(uint_contents=[1] * (_ROOM - 4096))
    tensor = oip.ModelInferRequest.InferInputTensor(
        name="image", datatype="UINT8", shape=[1, 1, 1, _ROOM - 4096], contents=contents
    )
    return oip.ModelInferRequest(inputs=[tensor]).SerializeToString()


def _elements() -> bytes:
    count = (_ROOM - 4096) // 4
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[count])
    return oip.ModelInferRequest(
        inputs=[tensor], raw_input_contents=[bytes(4 * count)]
    ).SerializeToString()


# what costs a server most for the bytes it takes, by what it is made of
WORST: list[tuple[str, str, Callable[[], bytes]]] = [
    ("a JPEG of 50 scans", _INSPECT, lambda: _of_files([_scan_bomb()])),
    ("a PNG of 64 megapixels", _INSPECT, lambda: _of_files([_png_bomb()])),
    ("16 MB of empty fields", _INSPECT, lambda: b"\x78\x00" * 2**23),
    ("empty output names", _INFER, lambda: b"\x32\x00" * (_ROOM // 2 - 99)),
    ("empty inputs", _INFER, lambda: b"\x2a\x00" * (_ROOM // 2 - 99)),
    ("unknown fields", _INSPECT, lambda: b"\x78\x00" * (_ROOM // 2 - 99)),
    ("empty BYTES", _INFER, _elements),
    ("typed whole numbers", _INFER, _numbers),
    ("16 KB of empty names", _INSPECT, lambda: b"\x32\x00" * 2**13),
]


@asynccontextmanager
async def _pings(server: Process, _: Ask) -> AsyncIterator[dict[str, Any]]:
    """Send pings far above the allowed rate; the server hangs up on such connections."""
    async with _connections(server) as connections:
        await connections.greet(50)
        ping = frame(_PING, 0, 0, bytes(8)) * 20
        told: dict[str, Any] = {}
        async with _repeating(lambda: connections.write(ping), 0.05):
            yield told
            await asyncio.sleep(0.2)
            told["left_of_50"] = connections.alive()
