"""Callers in a process of their own: closed and open loops over any unary gRPC method.

`measure` starts that process on the cores it is given, `python -m benchmarks.load` is it. Requests
are serialised once and answers never parsed, so that the callers cost as little as they can.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

__all__ = ["Load", "arrivals", "measure", "spread"]

Report = dict[str, Any]
_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to ask, and how.

    Attributes:
        address: host:port.
        method: `/package.Service/Method`, one request and one answer.
        request: file with the serialised request.
        rows: images in it.
        seconds: how long to ask.
        callers: a closed loop of so many, each asking again as soon as it is answered.
        rate: instead an open loop of so many requests per second, at random moments (Poisson).
        seed: of those moments.
    """

    address: str
    method: str
    request: str
    rows: int = 1
    seconds: float = 5.0
    callers: int = 1
    rate: float | None = None
    seed: int = 0


def measure(load: Load, *, cores: set[int] | None = None) -> Report:
    """Return what the callers saw, from a process of their own.

    Args:
        load: what to ask.
        cores: that the process may use; all of ours if None.

    Raises:
        RuntimeError: the process failed.
    """
    command = [sys.executable, "-m", "benchmarks.load", json.dumps(asdict(load))]
    if cores:
        command += [",".join(map(str, sorted(cores)))]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    if done.returncode:
        raise RuntimeError(f"the callers failed: {done.stderr.strip()[-2000:]}")
    report: Report = json.loads(done.stdout)
    return report


def spread(latencies: list[float]) -> Report:
    """Return p50 and p99 in milliseconds, None where there are no latencies."""
    if not latencies:
        return {"p50_ms": None, "p99_ms": None}
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}


def arrivals(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Return the moments of Poisson arrivals at this rate, ascending, in seconds."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds))
    return np.cumsum(gaps)


def _one_caller(load: Load, data: bytes) -> Report:
    """Ask from one thread without an event loop: the least a Python caller adds."""
    latencies: list[float] = []
    with grpc.insecure_channel(load.address, _OPTIONS) as channel:
        ask = channel.unary_unary(load.method, None, None)
        for _ in range(20):
            ask(data, timeout=_PATIENCE_S)
        started = time.perf_counter()
        while (sent := time.perf_counter()) < started + load.seconds:
            ask(data)
            latencies.append(time.perf_counter() - sent)
        took = time.perf_counter() - started
    return {"images_per_s": round(len(latencies) * load.rows / took, 1), **spread(latencies)}


async def _closed(load: Load, data: bytes) -> Report:
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(load.address, _OPTIONS) as channel:
        ask = channel.unary_unary(load.method, None, None)
        await ask(data, timeout=_PATIENCE_S)

        async def caller(started: float) -> None:
            while (sent := time.perf_counter()) < started + load.seconds:
                await ask(data)
                latencies.append(time.perf_counter() - sent)

        # everybody asks at once and then falls out of step: that beginning is not counted
        await asyncio.gather(
            *(caller(time.perf_counter() - load.seconds * 0.8) for _ in range(load.callers))
        )
        latencies.clear()
        started = time.perf_counter()
        await asyncio.gather(*(caller(started) for _ in range(load.callers)))
        took = time.perf_counter() - started
    return {"images_per_s": round(len(latencies) * load.rows / took, 1), **spread(latencies)}


async def _open(load: Load, data: bytes) -> Report:
    """Latency counts from when a call was due, so that a stalled caller hides nothing."""
    assert load.rate is not None
    accepted: list[float] = []
    refused: list[float] = []
    odd: dict[str, int] = {}
    due_after = arrivals(load.rate, load.seconds, load.seed)
    async with grpc.aio.insecure_channel(load.address, _OPTIONS) as channel:
        ask = channel.unary_unary(load.method, None, None)
        for _ in range(5):
            await ask(data, timeout=_PATIENCE_S)

        async def call(due: float) -> None:
            sent = time.perf_counter()
            try:
                await ask(data, timeout=_PATIENCE_S)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    refused.append(time.perf_counter() - sent)
                else:
                    odd[error.code().name] = odd.get(error.code().name, 0) + 1
            else:
                accepted.append(time.perf_counter() - due)

        tasks = []
        start = time.perf_counter()
        for due in (start + due_after).tolist():
            # asyncio sleeps in whole milliseconds, so the last two are spent looking at the clock
            while (left := due - time.perf_counter()) > 0:  # noqa: ASYNC110 - a clock, no event
                await asyncio.sleep(left - 0.002 if left > 0.003 else 0)
            tasks.append(asyncio.create_task(call(due)))
        sent_in = time.perf_counter() - start
        await asyncio.gather(*tasks)
        ended = time.perf_counter()
        await ask(data, timeout=_PATIENCE_S)
        recovery = time.perf_counter() - ended
    return {
        "asked_per_s": round(len(tasks) / sent_in, 1),
        "accepted": len(accepted),
        "refused": len(refused),
        "other": odd,
        **spread(accepted),
        "refusal": spread(refused),
        "first_answer_afterwards_ms": round(recovery * 1000, 2),
    }


def _main() -> None:
    load = Load(**json.loads(sys.argv[1]))
    if len(sys.argv) > 2:
        os.sched_setaffinity(0, set(map(int, sys.argv[2].split(","))))
    data = Path(load.request).read_bytes()
    if load.rate is not None:
        report = asyncio.run(_open(load, data))
    elif load.callers == 1:
        report = _one_caller(load, data)
    else:
        report = asyncio.run(_closed(load, data))
    print(json.dumps(report))


if __name__ == "__main__":
    _main()
