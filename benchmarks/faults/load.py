"""An open-loop caller as a process of its own: it sends at a rate, whatever the server can take.

Reads a plan as JSON on standard input, writes what happened on standard output. Latency counts from
when a call was due, so a caller that falls behind hides nothing; `lag` says how far it fell behind.
"""

import asyncio
import base64
import gc
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import grpc

from benchmarks.faults.process import ROOT
from benchmarks.faults.report import spread
from benchmarks.faults.traffic import NO_RETRIES, Ask, code_of

__all__ = ["Phase", "send"]

_REFUSED = "RESOURCE_EXHAUSTED"
_CHANNELS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """So many calls a second for so long."""

    rate: float
    seconds: float


def send(
    address: str, ask: Ask, phases: Sequence[Phase], *, cpus: set[int] | None = None
) -> list[dict[str, Any]]:
    """Run the phases in a process of its own, one right after the other; return each one's figures.

    Args:
        address: of the server.
        ask: the request.
        phases: what to send.
        cpus: the cores the caller may use.
    """
    plan = {
        "address": address,
        "method": ask.method,
        "data": base64.b64encode(ask.data).decode(),
        "phases": [asdict(phase) for phase in phases],
    }
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.faults.load"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as popen:  # fmt: skip
        if cpus is not None:
            os.sched_setaffinity(popen.pid, cpus)
        out, _ = popen.communicate(json.dumps(plan).encode())
    if popen.returncode:
        raise RuntimeError(f"the caller failed with {popen.returncode}")
    results: list[dict[str, Any]] = json.loads(out)
    return results


class _Record:
    """What one phase saw: (due, sent, ended, code) of each call."""

    def __init__(self, phase: Phase) -> None:
        self.phase = phase
        self.calls: list[tuple[float, float, float, str]] = []

    def figures(self) -> dict[str, Any]:
        """Return the figures of this phase."""
        first = min(due for due, _, _, _ in self.calls)
        lag = [sent - due for due, sent, _, _ in self.calls]
        accepted = [ended - due for due, _, ended, code in self.calls if code == "OK"]
        refused = [ended - sent for _, sent, ended, code in self.calls if code == _REFUSED]
        last_sent = max(sent for _, sent, _, _ in self.calls)
        return {
            "asked_per_s": round(len(self.calls) / max(last_sent - first, 1e-9), 1),
            "accepted_per_s": round(len(accepted) / self.phase.seconds, 1),
            "codes": dict(Counter(code for _, _, _, code in self.calls)),
            "accepted": spread(accepted),
            "refused": spread(refused),
            "lag": spread(lag),
            # by when they were due, from the start of the phase: for recovery
            "timeline": [
                (round(due - first, 4), round(ended - due, 4), code)
                for due, _, ended, code in self.calls
            ]
            if len(self.calls) <= 2000
            else [],
        }


async def _phase(asks: Sequence[Any], data: bytes, phase: Phase) -> _Record:
    record = _Record(phase)
    calls: set[asyncio.Task[None]] = set()

    async def call(ask: Any, due: float) -> None:
        sent = time.perf_counter()
        code = "OK"
        try:
            await ask(data, timeout=10)
        except grpc.aio.AioRpcError as error:
            code = code_of(error)
        record.calls.append((due, sent, time.perf_counter(), code))

    start = time.perf_counter()
    for i in range(int(phase.rate * phase.seconds)):
        due = start + i / phase.rate
        left = due - time.perf_counter()
        if left > 0:
            await asyncio.sleep(left)
        task = asyncio.create_task(call(asks[i % len(asks)], due))
        calls.add(task)
        task.add_done_callback(calls.discard)
    _pending.extend(calls)  # the next phase begins meanwhile
    return record


_pending: list[asyncio.Task[None]] = []


async def _main(plan: dict[str, Any]) -> list[dict[str, Any]]:
    data = base64.b64decode(plan["data"])
    options = [*NO_RETRIES]
    channels = [
        grpc.aio.insecure_channel(plan["address"], options=options) for _ in range(_CHANNELS)
    ]
    asks = [channel.unary_unary(plan["method"]) for channel in channels]
    for channel in channels:
        await channel.channel_ready()
    gc.collect()
    gc.freeze()
    records = [await _phase(asks, data, Phase(**phase)) for phase in plan["phases"]]
    await asyncio.gather(*_pending)
    for channel in channels:
        await channel.close()
    return [record.figures() for record in records]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_main(json.load(sys.stdin)))))
