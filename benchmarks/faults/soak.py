"""Thirty minutes of mixed traffic: memory, files and threads stay where they were after warm-up.

An open loop at a moderate rate: every protocol, images as tensors, pixels and files, one to forty
rows, streams, broken requests, callers that give up, new connections, scrapes, and capture writing.
SOAK_S sets another length.
"""

import asyncio
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc

from benchmarks.faults.pair import Pair, make_pair
from benchmarks.faults.process import Process, Usage, served
from benchmarks.faults.report import Finding, spread
from benchmarks.faults.traffic import NO_RETRIES, Ask, Kit, code_of

__all__ = ["run"]

_GROWTH = 0.05
_WARM_UP = 1 / 6  # of the whole time
_STUCK_S = 60.0
_EXPECTED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED", "CANCELLED",
             "RESOURCE_EXHAUSTED"}  # fmt: skip


def run(pair: Pair | None, folder: Path, *, short: bool) -> list[Finding]:
    """Soak one server."""
    seconds, rate = (40.0, 60.0) if short else (float(os.environ.get("SOAK_S", "1800")), 20.0)
    pair = pair or make_pair(folder)
    kit = Kit(pair)
    settings = {"capture": folder / "capture", "capture_share": 0.2, "capture_images": "true"}
    with served(pair, settings=settings) as server:
        soak = _Soak(kit, server, rate=rate, seconds=seconds)
        asyncio.run(soak.run())
        return [soak.finding(short=short)]


class _Soak:
    def __init__(self, kit: Kit, server: Process, *, rate: float, seconds: float) -> None:
        self._kit, self._server, self._rate, self._seconds = kit, server, rate, seconds
        self._rng = random.Random(0)
        self._valid = kit.valid(most_rows=40)
        self._broken = [_broken(ask, self._rng) for ask in self._valid]
        self._codes: Counter[str] = Counter()
        self._latencies: list[float] = []
        self._samples: list[tuple[float, Usage]] = []
        self._sent = 0

    async def run(self) -> None:
        """Send until the time is over, looking at the process twenty times a minute at least."""
        sampling = asyncio.create_task(self._sample())
        calls: set[asyncio.Task[None]] = set()
        started = time.monotonic()
        channel = self._channel()
        try:
            while (passed := time.monotonic() - started) < self._seconds:
                if self._sent % 500 == 499:  # callers come and go
                    await asyncio.gather(*calls)
                    await channel.close()
                    channel = self._channel()
                call = asyncio.create_task(self._bounded(channel))
                calls.add(call)
                call.add_done_callback(calls.discard)
                self._sent += 1
                await asyncio.sleep(max(0.0, self._sent / self._rate - passed))
            await asyncio.gather(*calls)
        finally:
            await channel.close()
            sampling.cancel()

    def _channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self._server.address, options=list(NO_RETRIES))

    async def _bounded(self, channel: grpc.aio.Channel) -> None:
        """Count a call that outlives its own deadline: the caller's library lost it."""
        try:
            async with asyncio.timeout(_STUCK_S):
                await self._one(channel)
        except TimeoutError:
            self._codes["lost by the caller"] += 1

    async def _one(self, channel: grpc.aio.Channel) -> None:
        dice = self._rng.random()
        started = time.perf_counter()
        try:
            if dice < 0.03:
                await self._stream(channel)
            elif dice < 0.13:
                ask = self._rng.choice(self._broken)
                await channel.unary_unary(ask.method)(ask.data, timeout=30)
            elif dice < 0.16:
                ask = self._rng.choice(self._valid)
                await channel.unary_unary(ask.method)(ask.data, timeout=0.0005)
            elif dice < 0.19:
                await self._give_up(channel)
            elif dice < 0.2:
                await asyncio.to_thread(self._scrape)
            else:
                ask = self._rng.choice(self._valid)
                await channel.unary_unary(ask.method)(ask.data, timeout=30)
                self._latencies.append(time.perf_counter() - started)
        except grpc.aio.AioRpcError as error:
            code = code_of(error)
            self._codes[code if code in _EXPECTED else f"{code}: {error.details()}"[:120]] += 1
        except (
            asyncio.CancelledError,
            asyncio.InvalidStateError,
        ):  # given up, or cut while writing
            self._codes["CANCELLED"] += 1
        else:
            self._codes["OK"] += 1

    async def _stream(self, channel: grpc.aio.Channel) -> None:
        stream = channel.stream_stream("/reluguard.v1.Guard/InspectStream")(timeout=30)
        for rows in (1, 5, 2, 9):
            await stream.write(self._kit.inspect_pixels(self._kit.images(rows)).data)
        await stream.done_writing()
        async for _ in stream:
            pass

    def _scrape(self) -> None:
        try:
            self._server.scrape()
        except OSError as error:  # a machine that does something else for seconds
            self._codes[f"scrape: {error}"] += 1

    async def _give_up(self, channel: grpc.aio.Channel) -> None:
        ask = self._rng.choice(self._valid)
        call = channel.unary_unary(ask.method)(ask.data, timeout=30)
        await asyncio.sleep(0.001)
        call.cancel()
        await call

    async def _sample(self) -> None:
        started = time.monotonic()
        every = min(3.0, self._seconds / 100)
        while True:
            self._samples.append((time.monotonic() - started, self._server.usage()))
            await asyncio.sleep(every)

    def finding(self, *, short: bool) -> Finding:
        """Compare the first tenth after warm-up with the last tenth."""
        calm = [usage for at, usage in self._samples if at >= self._seconds * _WARM_UP]
        tenth = max(1, len(calm) // 10)

        def medians(read: Callable[[Usage], float]) -> tuple[float, float]:
            values = [read(usage) for usage in calm]
            return statistics.median(values[:tenth]), statistics.median(values[-tenth:])

        rss, files, threads = (
            medians(lambda usage: usage.rss_mib),
            medians(lambda usage: usage.files),
            medians(lambda usage: usage.threads),
        )
        growth = rss[1] / rss[0] - 1
        odd = {code: number for code, number in self._codes.items() if code not in _EXPECTED}
        slow = sum(number for code, number in odd.items() if code.startswith(("scrape", "lost")))
        errors = [line for line in self._server.messages() if line["level"] in {"ERROR", "TEXT"}]
        return Finding(
            exercise="soak",
            goal="RSS growth <= 5 % after warm-up, files and threads flat",
            figures={
                "seconds": round(self._seconds),
                "requests": self._sent,
                "codes": dict(self._codes.most_common()),
                "latency": spread(self._latencies),
                "rss_mib": [round(value, 1) for value in rss],
                "rss_growth": f"{growth:+.1%}",
                "rss_highest_mib": round(max(usage.rss_mib for _, usage in self._samples), 1),
                "files": files,
                "threads": threads,
                "errors_in_log": len(errors),
            },
            met=growth <= (_GROWTH if not short else 3 * _GROWTH)  # seconds are all warm-up
            and abs(files[1] - files[0]) <= 2
            and abs(threads[1] - threads[0]) <= 2  # gRPC keeps a pool that breathes
            and sum(odd.values()) == slow <= self._sent / 1000
            and not errors
            and self._server.popen.poll() is None,
            sound=not errors and self._server.popen.poll() is None,
        )


def _broken(ask: Ask, rng: random.Random) -> Ask:
    data = bytearray(ask.data)
    for _ in range(3):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
    return Ask(method=ask.method, data=bytes(data[: rng.randint(0, len(data))]))
