"""Ten times what the server can take: what it accepts stays quick, the rest hears no at once.

The server has one core, the caller another. Refusing a call costs processor time too, so the
network made here is heavy enough that ten times its capacity is a rate one core can still turn
away; give `--model` for another. `max_wait_s` is set to the unloaded median: the rule for callers
who want latency. A second run shows the default, which lets callers wait rather than refuse them.
"""

import asyncio
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks.faults.load import Phase, send
from benchmarks.faults.pair import Pair, make_pair
from benchmarks.faults.process import Process, served
from benchmarks.faults.report import Finding
from benchmarks.faults.traffic import NO_RETRIES, Ask, Callers, Kit
from reluguard.service.settings import Settings

__all__ = ["run"]

_TIMES = 10
_SLOWER = 3
_REFUSED_MS = 50
_RECOVERY_S = 2
_LEAK = 0.05
_LIGHT = 0.2  # of capacity: what counts as unloaded
_IMAGE_S = 0.012  # about what a ResNet-50 of 112 x 112 takes on one core
_PROBE_WIDTH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cores:
    server: set[int]
    caller: set[int]


def run(pair: Pair | None, folder: Path, *, short: bool) -> list[Finding]:
    """Overload a server that guards latency, then one with default settings."""
    kit = Kit(pair or _heavy(folder))
    pair = kit.pair
    ask = kit.inspect_tensor(kit.images(1))
    seconds = 5.0 if short else 15.0
    with _apart() as cores:
        with served(pair, cpus=cores.server) as server:
            capacity = asyncio.run(_capacity(server, ask, seconds=3.0))
            light = Phase(rate=max(5.0, capacity * _LIGHT), seconds=seconds)
            (unloaded,) = send(server.address, ask, [light], cpus=cores.caller)
        wait_s = round(unloaded["accepted"]["p50_ms"] / 1000, 4)
        findings = []
        for given in (wait_s, None):
            settings = {} if given is None else {"max_wait_s": given}
            phases = [light, Phase(rate=_TIMES * capacity, seconds=seconds), light]
            with served(pair, cpus=cores.server, settings=settings) as server:
                # once before: memory keeps the high-water mark of the largest batch
                warm = Phase(rate=_TIMES * capacity, seconds=2)
                send(server.address, ask, [warm], cpus=cores.caller)
                before, cpu = server.usage(), server.cpu_s()
                parts = send(server.address, ask, phases, cpus=cores.caller)
                cpu = server.cpu_s() - cpu
                after = server.usage()
                figures = {
                    "max_wait_s": given or Settings().max_wait_s,
                    "capacity_per_s": round(capacity, 1),
                    **_figures(min(unloaded, parts[0], key=_p99), *parts[1:]),
                    "rss_mib": [round(before.rss_mib, 1), round(after.rss_mib, 1)],
                    "files": [before.files, after.files],
                    "threads": [before.threads, after.threads],
                    "left_in_flight": _gauge(server, "reluguard_in_flight"),
                }
            findings.append(_judge(figures, default=given is None))
            if short:
                break
    return findings


def _heavy(folder: Path) -> Pair:
    probe = make_pair(folder / "probe", size=32, width=_PROBE_WIDTH)
    guard = probe.open()
    x = guard.spec.to_tensor(Kit(probe).images(1))
    times = []
    for _ in range(20):
        started = time.perf_counter()
        guard.run(x)
        times.append(time.perf_counter() - started)
    width = round(_PROBE_WIDTH * math.sqrt(_IMAGE_S / sorted(times)[len(times) // 2]))
    return make_pair(folder / "heavy", size=32, width=width)


@contextmanager
def _apart() -> Iterator[_Cores]:
    """Keep the server and this process on different cores, where there are two."""
    ours = os.sched_getaffinity(0)
    first, *rest = sorted(ours)
    cores = _Cores(server={first}, caller=set(rest) or {first})
    os.sched_setaffinity(0, cores.caller)
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, ours)


async def _capacity(server: Process, ask: Ask, *, seconds: float) -> float:
    async with grpc.aio.insecure_channel(server.address, options=list(NO_RETRIES)) as channel:
        method = channel.unary_unary(ask.method)
        await method(ask.data)

        async def one() -> bytes:
            answer: bytes = await method(ask.data, timeout=30)
            return answer

        started = time.perf_counter()
        async with Callers(ask=one, count=16) as callers:
            await asyncio.sleep(seconds)
        return callers.answered / (time.perf_counter() - started)


def _p99(part: dict[str, Any]) -> float:
    """Return what tells the quieter of two measurements on a machine that others use too."""
    p99: float = part["accepted"]["p99_ms"]
    return p99


def _figures(
    unloaded: dict[str, Any], loaded: dict[str, Any], afterwards: dict[str, Any]
) -> dict[str, Any]:
    slow_s = _SLOWER * unloaded["accepted"]["p99_ms"] / 1000
    bad = [
        due + took for due, took, code in afterwards["timeline"] if code != "OK" or took > slow_s
    ]
    return {
        "unloaded": unloaded["accepted"],
        "asked_per_s": loaded["asked_per_s"],
        "codes": loaded["codes"],
        "accepted_per_s": loaded["accepted_per_s"],
        "accepted": loaded["accepted"],
        "accepted_over_unloaded_p99": round(
            loaded["accepted"]["p99_ms"] / unloaded["accepted"]["p99_ms"], 2
        ),
        "refused": loaded["refused"],
        "caller_lag": loaded["lag"],
        "recovery_s": round(max(bad, default=0.0), 3),
    }


def _gauge(server: Process, name: str) -> float:
    values = [
        float(line.rpartition(" ")[2])
        for line in server.scrape().splitlines()
        if line.startswith(name)
    ]
    return sum(values)


def _judge(figures: dict[str, Any], *, default: bool) -> Finding:
    rss, files, threads = figures["rss_mib"], figures["files"], figures["threads"]
    steady = (
        rss[1] <= rss[0] * (1 + _LEAK)
        and files[1] <= files[0] + 2
        and threads[1] <= threads[0] + 2
        and figures["left_in_flight"] == 0
    )
    polite = (
        set(figures["codes"]) <= {"OK", "RESOURCE_EXHAUSTED"}
        and figures["refused"]["p99_ms"] <= _REFUSED_MS
        and figures["recovery_s"] <= _RECOVERY_S
    )
    if default:
        quick = figures["accepted"]["p99_ms"] <= 2000 * figures["max_wait_s"]
        goal = "by default callers wait: accepted p99 <= 2 x max_wait_s, the rest as above"
    else:
        quick = figures["accepted_over_unloaded_p99"] <= _SLOWER
        goal = (
            f"at {_TIMES} x capacity accepted p99 <= {_SLOWER} x unloaded, refused p99 <= "
            f"{_REFUSED_MS} ms, recovery <= {_RECOVERY_S} s, no leak"
        )
    return Finding(
        exercise="overload, defaults" if default else "overload",
        goal=goal,
        figures=figures,
        met=quick and polite and steady,
        sound=set(figures["codes"]) <= {"OK", "RESOURCE_EXHAUSTED"}
        and figures["left_in_flight"] == 0,
    )
