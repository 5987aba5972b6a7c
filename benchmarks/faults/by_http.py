"""The HTTP port under callers that hold it or feed it the worst: callers by gRPC are served on.

A good client asks by gRPC at a steady rate; its latency before and during each attack is compared,
as in `hostile`. And requests that nobody would write: each is answered or refused in words.
"""

import asyncio
import contextlib
import functools
import json
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.faults.hostile import Attack, tried
from benchmarks.faults.pair import Pair, make_pair
from benchmarks.faults.process import Process, served
from benchmarks.faults.report import Finding
from benchmarks.faults.traffic import Ask, Kit

__all__ = ["run"]

_MOST = 2**24
_INFER = "/v2/models/small/infer"
_FINE = {200, 400, 404, 405, 413, 422, 429, 431, 501, 505}
_HANG_S = 20.0


def run(pair: Pair | None, folder: Path, *, short: bool) -> list[Finding]:
    """Try each kind of caller for a while, then many odd requests."""
    kit = Kit(pair or make_pair(folder / "pair"))
    ask = kit.inspect_pixels(kit.images(1))
    seconds = 2.0 if short else 10.0
    findings = []
    for name, make in _attacks(kit).items():
        port = _free_port()
        settings = {"http_port": port, "max_message_bytes": _MOST}
        findings.append(
            tried(kit, ask, f"by HTTP: {name}", make(port), ask, seconds, settings=settings)
        )
    findings.append(_fuzz(kit, 2000 if short else 100_000))
    return findings


def _attacks(kit: Kit) -> dict[str, Callable[[int], Attack]]:
    shape = (1, kit.spec.channels, kit.spec.height, kit.spec.width)
    row = shape[1] * shape[2] * shape[3]
    most = 256
    numbers = _document([most, *shape[1:]], b",".join([b"1.5"] * (most * row)))
    small = _document(list(shape), b",".join([b"1"] * row))
    bodies = {
        "all rows as JSON numbers": numbers,
        "16 MB of numbers for one image": _document(list(shape), b"1," * (_MOST // 2 - 99) + b"1"),
        "16 MB of brackets": b"[" * (_MOST - 9),
        "16 MB of empty lists": b"[" + b"[]," * (_MOST // 3 - 9) + b"[]]",
        "16 MB of data after data": b'"data":[' * (_MOST // 8 - 9),
        "16 MB of escapes": b'"' + b"\\n" * (_MOST // 2 - 9) + b'"',
        "16 MB of blanks in data": b'{"inputs":[{"data":[' + b" " * (_MOST - 99) + b"1]}]}",
    }
    begun = _head(len(small)) + small[:9]
    chunked = _head(None) + b"1\r\n \r\n" * (_MOST // 8) + b"0\r\n\r\n"
    deaf = (_head(len(small)) + small) * 50
    return {
        **{name: functools.partial(_flood, request=_head(len(body)) + body)
           for name, body in bodies.items()},
        "chunks of a byte": functools.partial(_flood, request=chunked),
        "1,000 idle connections": functools.partial(_hold, count=1000, first=b"", then=b""),
        "400 slow heads": functools.partial(
            _hold, count=400, first=b"POST /v2 HTTP/1.1\r\n", then=b"a"
        ),
        "400 slow bodies": functools.partial(_hold, count=400, first=begun, then=b" "),
        "50 that never read": functools.partial(_hold, count=50, first=deaf, then=b""),
    }  # fmt: skip


def _document(shape: list[int], numbers: bytes) -> bytes:
    given = {"name": "image", "datatype": "FP32", "shape": shape, "data": []}
    text = json.dumps({"inputs": [given]}).encode()
    return text.replace(b'"data": []', b'"data": [' + numbers + b"]")


def _head(length: int | None) -> bytes:
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {_INFER} HTTP/1.1\r\nHost: x\r\n{size}\r\n\r\n".encode()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _flood(port: int, request: bytes) -> Attack:
    """Return a caller who sends this request again and again, each on a connection of its own."""

    @asynccontextmanager
    async def flood(_: Process, __: Ask) -> AsyncIterator[dict[str, Any]]:
        codes: Counter[int] = Counter()

        async def bother() -> None:
            while True:
                codes[await _asked(port, request)] += 1

        task = asyncio.create_task(bother())
        told: dict[str, Any] = {"their_bytes": len(request)}
        yield told
        task.cancel()
        told["their_codes"] = dict(codes)

    return flood


async def _asked(port: int, request: bytes) -> int:
    """Return the status of one request; 0 where none came."""
    try:
        async with asyncio.timeout(_HANG_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(request)
                line = await reader.readline()
                return int(line.split()[1]) if line.startswith(b"HTTP/1.1 ") else 0
            finally:
                writer.transport.abort()
    except TimeoutError:
        return -1
    except OSError:
        return 0


def _hold(port: int, count: int, first: bytes, then: bytes) -> Attack:
    """Return callers who begin, and send a little every second."""

    @asynccontextmanager
    async def hold(_: Process, __: Ask) -> AsyncIterator[dict[str, Any]]:
        held = []
        for _number in range(count):
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                reader._transport.pause_reading()  # type: ignore[attr-defined]  # noqa: SLF001 - the point
                writer.write(first)
                held.append(writer)

        async def drip() -> None:
            while then:
                for writer in held:
                    if not writer.is_closing():  # the server may have let go of it
                        writer.write(then)
                await asyncio.sleep(1)

        task = asyncio.create_task(drip())
        yield {"connected": len(held)}
        task.cancel()
        for writer in held:
            writer.transport.abort()

    return hold


def _fuzz(kit: Kit, count: int) -> Finding:
    """Send requests that nobody would write: each mutated from one that is right."""
    shape = [1, kit.spec.channels, kit.spec.height, kit.spec.width]
    row = shape[1] * shape[2] * shape[3]
    good = _document(shape, b",".join([b"0.5"] * row))
    given = {"name": "image", "datatype": "FP32", "shape": shape,
             "parameters": {"binary_data_size": 4 * row}}  # fmt: skip
    binary = json.dumps({"inputs": [given]}).encode()
    whole = [
        _head(len(good)) + good,
        _head(len(binary) + 4 * row).replace(
            b"Host: x", b"Host: x\r\nInference-Header-Content-Length: %d" % len(binary)
        ) + binary + bytes(4 * row),
        b"GET /v2/models/small HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
    ]  # fmt: skip
    port = _free_port()
    codes: Counter[int] = Counter()
    with served(kit.pair, settings={"http_port": port, "receive_s": 0.3}) as server:
        before = server.usage().rss_mib

        async def go() -> bool:
            draw = random.Random(0)
            limit = asyncio.Semaphore(24)

            async def one(request: bytes) -> None:
                async with limit:
                    codes[await _asked(port, request)] += 1

            for start in range(0, count, 500):
                batch = [_mutated(draw, draw.choice(whole)) for _ in range(min(500, count - start))]
                await asyncio.gather(*map(one, batch))
            return [await _asked(port, request) for request in whole] == [200] * len(whole)

        right = asyncio.run(go())
        after = server.usage().rss_mib
        alive = server.popen.poll() is None
        errors = [line for line in server.messages() if line.get("level") == "ERROR"]
    return Finding(
        exercise="by HTTP: requests nobody would write",
        goal="no crash, no hang, no unexpected status, the right ones answered",
        figures={"requests": count, "codes": {str(k): v for k, v in sorted(codes.items())},
                 "rss_mib": [round(before, 1), round(after, 1)], "errors": len(errors)},
        met=alive and right and not errors and not set(codes) - _FINE - {0},
    )  # fmt: skip


def _mutated(draw: random.Random, request: bytes) -> bytes:
    """Return a request with bytes flipped, cut, repeated or moved."""
    data = bytearray(request)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(max(1, len(data)))
        match draw.randrange(5):
            case 0:
                data[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                del data[at : at + draw.randint(1, 20)]
            case 2:
                data[at:at] = data[at : at + draw.randint(1, 50)]
            case 3:
                data[at:at] = draw.choice(
                    [b"[", b"]", b"{", b"}", b'"', b",", b":", b"\\u0000", b"1e999", b"NaN",
                     b"-1", b"9" * 70, b"\r\n", b"null", b'"data":['])  # fmt: skip
            case _:
                other = draw.randrange(max(1, len(data)))
                data[at : at + 8], data[other : other + 8] = (
                    data[other : other + 8], data[at : at + 8]
                )  # fmt: skip
    # without an end of its head the server would wait for one, as it should
    return bytes(data) if b"\r\n\r\n" in data else bytes(data) + b"\r\n\r\n"
