"""Guards, certificates and tokens replaced under load: nobody notices but by what they are shown.

Callers don't retry: one failed request misses the goal. Each answer is held against what the guard
that it names says of these images.
"""

import asyncio
import itertools
import signal
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from cryptography import x509

from benchmarks.faults.certificates import Authority, replace_file
from benchmarks.faults.pair import Pair, make_guard, make_pair
from benchmarks.faults.process import Process, served
from benchmarks.faults.report import Finding, spread
from benchmarks.faults.traffic import INFER, INSPECT, NO_RETRIES, Callers, Kit
from reluguard.service.protocols.pb import open_inference as oip
from reluguard.service.protocols.pb import reluguard_v1 as pb
from reluguard.service.security import Scope, token_entry

__all__ = ["Shelf", "run"]

_PATIENCE_S = 60.0
_ROWS = 3


class Shelf:
    """Two guards for one model in one folder, a pointer to one of them, and the right answers."""

    def __init__(self, folder: Path) -> None:
        pair = make_pair(folder / "pair")
        size = Kit(pair).spec.height
        self.folder = folder / "shelf"
        self.pair = Pair(model=pair.model, guard=self.folder)
        self.digests: dict[str, str] = {}
        self.scores: dict[str, np.ndarray[Any, Any]] = {}
        self.images = Kit(pair).images(_ROWS)
        for name, seed in (("a", 1), ("b", 2)):
            made = make_guard(pair.model, self.folder / name, size=size, seed=seed)
            guard = Pair(model=pair.model, guard=made).open()
            self.digests[name] = guard.artifact.digest
            self.scores[guard.artifact.digest] = guard.inspect(self.images).score
        self.point("a")
        self.kit = Kit(Pair(model=pair.model, guard=self.folder / "a"))

    def point(self, name: str) -> str:
        """Make this guard current; return its digest."""
        replace_file(self.folder / "CURRENT", name.encode())
        return self.digests.get(name, "")

    def check(self, answer: bytes) -> None:
        """Raise AssertionError unless the answer is what the guard it names says."""
        digest, score = _read(answer)
        assert digest in self.scores
        assert np.allclose(score, self.scores[digest], rtol=1e-3, atol=1e-3)


def _read(answer: bytes) -> tuple[str, "np.ndarray[Any, Any]"]:
    """Return digest and scores of an answer of either protocol."""
    kind, data = answer[:1], answer[1:]
    if kind == b"i":
        reply = pb.InspectResponse.FromString(data)
        return reply.guard, np.array(reply.score)
    infer = oip.ModelInferResponse.FromString(data)
    score = np.frombuffer(infer.raw_output_contents[0], "<f4")
    return infer.parameters["reluguard_guard"].string_param, score


def run(pair: Pair | None, folder: Path, *, short: bool) -> list[Finding]:  # noqa: ARG001 - needs two guards
    """Replace each of them again and again under load."""
    shelf = Shelf(folder)
    return [
        asyncio.run(_reloads(shelf, times=20 if short else 100)),
        asyncio.run(_certificates(shelf, folder, times=10 if short else 50)),
        asyncio.run(_tokens(shelf, folder, times=10 if short else 50)),
    ]


def asking(shelf: Shelf, channel: grpc.aio.Channel, **how: Any) -> Callable[[], Awaitable[bytes]]:
    """Return what asks in both protocols in turn; its answers begin with the protocol's letter."""
    inspect = shelf.kit.inspect_pixels(shelf.images)
    infer = shelf.kit.infer_raw(shelf.images, outputs=["reluguard_score"])
    asks = itertools.cycle([(b"i", INSPECT, inspect.data), (b"o", INFER, infer.data)])

    async def ask() -> bytes:
        kind, method, data = next(asks)
        answer: bytes = await channel.unary_unary(method)(data, timeout=30, **how)
        return kind + answer

    return ask


def _channel(address: str, credentials: grpc.ChannelCredentials | None = None) -> Any:
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=list(NO_RETRIES))
    return grpc.aio.secure_channel(address, credentials, options=list(NO_RETRIES))


async def _reloads(shelf: Shelf, *, times: int) -> Finding:
    took: list[float] = []
    shelf.point("a")
    with served(shelf.pair) as server:
        async with (
            _channel(server.address) as channel,
            Callers(ask=asking(shelf, channel), check=shelf.check) as callers,
        ):
            for _, name in zip(range(times), itertools.cycle("ba"), strict=False):
                wanted = shelf.point(name)
                started = time.monotonic()
                server.send(signal.SIGHUP)
                await _until_live(channel, wanted)
                took.append(time.monotonic() - started)
            await asyncio.sleep(0.2)
        usage = server.usage()
    return Finding(
        exercise="reload under load",
        goal="zero failed, wrong or lost requests",
        figures={"reloads": len(took), "until_live": spread(took), "rss_mib": round(usage.rss_mib)}
        | _told(callers),
        met=len(took) == times and _clean(callers),
    )


async def _until_live(channel: grpc.aio.Channel, digest: str) -> None:
    describe = channel.unary_unary("/reluguard.v1.Guard/Describe")
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        reply = pb.DescribeResponse.FromString(await describe(b"", timeout=30))
        if reply.guard == digest:
            return
        await asyncio.sleep(0.01)
    raise TimeoutError(f"guard {digest[:16]} did not come live in {_PATIENCE_S:g} s")


def _told(callers: Callers) -> dict[str, Any]:
    return {
        "answered": callers.answered,
        "failed": dict(callers.errors),
        "wrong": callers.wrong,
        "latency": spread(callers.latencies),
    }


def _clean(callers: Callers) -> bool:
    return callers.answered > 0 and not callers.errors and not callers.wrong


async def _certificates(shelf: Shelf, folder: Path, *, times: int) -> Finding:
    authority = Authority.made(folder / "tls")
    certificate, key, _ = authority.issue("server")
    settings = {"tls_certificate": certificate, "tls_key": key}
    trust = grpc.ssl_channel_credentials(authority.path.read_bytes())
    seen = 0
    with served(shelf.pair, settings=settings) as server:

        async def anew() -> bytes:
            """Ask on a connection of its own, with a handshake."""
            async with _channel(server.address, trust) as channel:
                return await asking(shelf, channel)()

        async with (
            _channel(server.address, trust) as channel,
            Callers(ask=asking(shelf, channel), check=shelf.check, count=4) as steady,
            Callers(ask=anew, check=shelf.check, count=4) as new,
        ):
            for _ in range(times):
                *_, serial = authority.issue("server")
                seen += await asyncio.to_thread(_serial, server, authority) == serial
                await asyncio.sleep(0.05)
    return Finding(
        exercise="certificate rotation under load",
        goal="zero failed requests, on old connections and on new ones; each certificate shown",
        figures={
            "rotations": times,
            "shown": seen,
            "old_connections": _told(steady),
            "new_connections": _told(new),
        },
        met=seen == times and _clean(steady) and _clean(new),
    )


def _serial(server: Process, authority: Authority) -> int:
    """Return the serial number of the certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=authority.path)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
    ):
        shown = wrapped.getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(shown or b"").serial_number


async def _tokens(shelf: Shelf, folder: Path, *, times: int) -> Finding:
    file = folder / "tokens.toml"

    def entries(*numbers: int) -> bytes:
        scopes = [Scope.PRIVILEGED]
        return "".join(token_entry(f"t{n}", name=f"t{n}", scopes=scopes) for n in numbers).encode()

    replace_file(file, entries(0))
    current, refused = 0, 0
    with served(shelf.pair, settings={"tokens": file}) as server:
        async with _channel(server.address) as channel:
            inspect = shelf.kit.inspect_pixels(shelf.images)

            async def ask(number: int | None = None) -> bytes:
                token = current if number is None else number
                metadata = (("authorization", f"Bearer t{token}"),)
                method = channel.unary_unary(inspect.method)
                answer: bytes = await method(inspect.data, timeout=30, metadata=metadata)
                return b"i" + answer

            async with Callers(ask=ask, check=shelf.check) as callers:
                for number in range(1, times + 1):
                    replace_file(file, entries(number - 1, number))  # both, while callers move
                    current = number
                    # what was sent with the old one must have come: the server tells
                    await asyncio.sleep(0.05)
                    await asyncio.gather(*(ask() for _ in range(8)))
                    replace_file(file, entries(number))
                    try:
                        await ask(number - 1)
                    except grpc.aio.AioRpcError as error:
                        refused += error.code() is grpc.StatusCode.UNAUTHENTICATED
    return Finding(
        exercise="token rotation under load",
        goal="zero failed requests with a live token; each old one refused at once",
        figures={"rotations": times, "old_tokens_refused": refused} | _told(callers),
        met=refused == times and _clean(callers),
    )
