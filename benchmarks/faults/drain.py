"""SIGTERM under load: no request is lost, and no caller with a second address to go to notices.

- One server, callers that don't retry: each call ends answered or told UNAVAILABLE, and what the
  server says it answered was answered.
- A rolling restart of three replicas behind client-side round robin: nobody sees an error.
"""

import asyncio
import contextlib
import json
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from benchmarks.faults.pair import Pair, make_pair
from benchmarks.faults.process import Process, served
from benchmarks.faults.report import Finding, spread
from benchmarks.faults.traffic import NO_RETRIES, Ask, Kit, code_of
from reluguard.detector.images import Images
from reluguard.service.client.client import Client
from reluguard.service.errors import CallError

__all__ = ["run"]

_CALLERS = 8


def run(pair: Pair | None, folder: Path, *, short: bool) -> list[Finding]:
    """Stop servers under load."""
    kit = Kit(pair or make_pair(folder / "pair"))
    return [
        _alone(kit, times=2 if short else 10),
        _rolling(kit, rounds=1 if short else 4),
    ]


def _alone(kit: Kit, *, times: int) -> Finding:
    ask = kit.inspect_pixels(kit.images(4))
    codes: Counter[str] = Counter()
    exits: list[int] = []
    stopped: list[float] = []
    in_flight = 0
    for _ in range(times):
        with served(kit.pair) as server:
            calls, code, took, drained = asyncio.run(_stop_under_load(server, ask))
            codes += calls
            exits.append(code)
            stopped.append(took)
            in_flight += drained
    return Finding(
        exercise="SIGTERM under load, one server",
        goal="each call answered or told UNAVAILABLE, exit code 0",
        figures={
            "stops": times,
            "calls": dict(codes),
            "in_flight_at_the_signal": in_flight,
            "exit_codes": sorted(set(exits)),
            "until_exit": spread(stopped),
        },
        met=set(exits) == {0} and codes["OK"] > 0 and set(codes) <= {"OK", "UNAVAILABLE"},
    )


async def _stop_under_load(server: Process, ask: Ask) -> tuple[Counter[str], int, float, int]:
    codes: Counter[str] = Counter()

    async def caller(channel: grpc.aio.Channel) -> None:
        while True:
            try:
                await channel.unary_unary(ask.method)(ask.data, timeout=20)
            except grpc.aio.AioRpcError as error:
                codes[code_of(error)] += 1
                return
            codes["OK"] += 1

    channels = [
        grpc.aio.insecure_channel(server.address, options=list(NO_RETRIES)) for _ in range(2)
    ]
    tasks = [asyncio.create_task(caller(channels[i % 2])) for i in range(_CALLERS)]
    await asyncio.sleep(0.5)
    started = time.monotonic()
    server.send(signal.SIGTERM)
    await asyncio.gather(*tasks)
    code = await asyncio.to_thread(server.popen.wait, 60)
    took = time.monotonic() - started
    for channel in channels:
        await channel.close()
    (line,) = [
        line["message"] for line in server.messages() if line["message"].startswith("draining")
    ]
    return codes, code, took, int(line.split()[1])


class _Replicas:
    """Three servers at fixed addresses; each can be restarted."""

    def __init__(self, kit: Kit, stack: contextlib.ExitStack) -> None:
        self._kit, self._stack = kit, stack
        self.servers = [stack.enter_context(served(kit.pair)) for _ in range(3)]

    @property
    def address(self) -> str:
        return "ipv4:" + ",".join(server.address for server in self.servers)

    def restart(self, i: int) -> int:
        """Stop one by SIGTERM, start another at its address, and return the exit code."""
        old = self.servers[i]
        old.send(signal.SIGTERM)
        code = old.popen.wait(60)
        self.servers[i] = self._stack.enter_context(
            served(self._kit.pair, settings={"port": old.port, "drain_delay_s": 0.2})
        )
        return code


def _rolling(kit: Kit, *, rounds: int) -> Finding:
    images = kit.images(4)
    expected = kit.guard.inspect(images).score.round(2).tolist()
    done = threading.Event()
    tally: Counter[str] = Counter()
    latencies: list[float] = []
    exits: list[int] = []
    with contextlib.ExitStack() as stack:
        replicas = _Replicas(kit, stack)
        with ThreadPoolExecutor(_CALLERS) as threads:
            for _ in range(_CALLERS):
                threads.submit(
                    _ask_until, done, replicas.address, images, expected, tally, latencies
                )
            time.sleep(1)
            try:
                for _ in range(rounds):
                    for i in range(3):
                        exits.append(replicas.restart(i))
                        time.sleep(2.0)  # callers find the new one
            finally:
                done.set()
    return Finding(
        exercise="rolling restart under load, three replicas",
        goal="zero failed or lost requests",
        figures={
            "restarts": len(exits),
            "exit_codes": sorted(set(exits)),
            "calls": dict(tally),
            "latency": spread(latencies),
        },
        met=set(exits) == {0} and set(tally) == {"OK"},
    )


def _ask_until(
    done: threading.Event,
    address: str,
    images: Images,
    expected: list[float],
    tally: "Counter[str]",
    latencies: list[float],
) -> None:
    with Client(address, deadline_s=20) as client:
        while not done.is_set():
            started = time.perf_counter()
            try:
                score: Any = client.inspect(images).score
            except CallError as error:
                tally[json.dumps(str(error))[:120]] += 1
            else:
                latencies.append(time.perf_counter() - started)
                tally["OK" if score.round(2).tolist() == expected else "wrong"] += 1
