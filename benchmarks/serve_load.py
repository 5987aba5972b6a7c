"""How fast the server answers, and how it refuses.

    python benchmarks/serve_load.py --model M.onnx --guard G [--seconds 5] [--json OUT]

Three parts, on this machine's cores, the callers in a process of their own:

- closed loop: 1, 8 and 64 callers with one image each, 4 callers with 32 each; images/s, p50, p99;
- the same work done by a bare ONNX Runtime loop in this process, plain model and guarded model;
- overload: an open loop at ten times the measured capacity; latency of the accepted calls against
  the unloaded one, how fast the others are refused, and how soon a call is answered afterwards.

Latencies of the open loop count from when a call was due, not from when it was sent, so a stalled
caller hides nothing.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort

from detector.images import InputSpec
from detector.runtime import Guard
from service.client import Client
from service.pb import reluguard_v1 as pb

Report = dict[str, Any]
_MAIN = (
    "import sys\nfrom service.server import serve\nfrom service.settings import Settings\n"
    "sys.exit(serve(Settings.from_env(), ready=lambda s: print(s.address, flush=True)))"
)


@contextmanager
def served(model: Path, guard: Path, **settings: str) -> Iterator[tuple[str, int]]:
    """Run a server process; give its address and process id."""
    named = {"MODEL": str(model), "GUARD": str(guard), "PORT": "0", "METRICS_PORT": "none",
             "THREADS": "1", "LOG_LEVEL": "WARNING"} | settings  # fmt: skip
    environ = os.environ | {f"RELUGUARD_{name}": value for name, value in named.items()}
    command = [sys.executable, "-c", _MAIN]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip(), server.pid
        finally:
            server.terminate()
            server.wait()


def request_of(spec: InputSpec, rows: int) -> bytes:
    """Return one serialised request of random pixels."""
    shape = (rows, spec.height, spec.width, spec.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    n, h, w, c = shape
    pixels = pb.Pixels(count=n, height=h, width=w, channels=c, data=images.tobytes())
    return pb.InspectRequest(pixels=pixels).SerializeToString()


def spread(latencies: list[float]) -> Report:
    """Return p50 and p99 in milliseconds."""
    if not latencies:
        return {"p50_ms": None, "p99_ms": None}
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    return {"p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2)}


async def closed_loop(address: str, callers: int, data: bytes, rows: int, seconds: float) -> Report:
    """Return what so many callers get, each asking again as soon as it is answered."""
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        ask = channel.unary_unary("/reluguard.v1.Guard/Inspect", None, None)
        await ask(data)
        end = time.perf_counter() + seconds

        async def caller() -> None:
            while (started := time.perf_counter()) < end:
                await ask(data)
                latencies.append(time.perf_counter() - started)

        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        took = time.perf_counter() - started
    return {
        "callers": callers,
        "rows": rows,
        "images_per_s": round(len(latencies) * rows / took),
        **spread(latencies),
    }


async def open_loop(address: str, rate: float, data: bytes, seconds: float) -> Report:
    """Return what happens at this rate, whatever the server can take."""
    accepted: list[float] = []
    refused: list[float] = []
    odd: dict[str, int] = {}
    async with grpc.aio.insecure_channel(address) as channel:
        ask = channel.unary_unary("/reluguard.v1.Guard/Inspect", None, None)
        await ask(data)

        async def call(due: float) -> None:
            sent = time.perf_counter()
            try:
                await ask(data, timeout=10)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    refused.append(time.perf_counter() - sent)
                else:
                    odd[error.code().name] = odd.get(error.code().name, 0) + 1
            else:
                accepted.append(time.perf_counter() - due)

        tasks = []
        start = time.perf_counter()
        for i in range(int(rate * seconds)):
            due = start + i / rate
            if due > time.perf_counter():
                await asyncio.sleep(due - time.perf_counter())
            tasks.append(asyncio.create_task(call(due)))
        sent_in = time.perf_counter() - start
        await asyncio.gather(*tasks)
        ended = time.perf_counter()
        await ask(data, timeout=10)
        recovery = time.perf_counter() - ended
    return {
        "asked_per_s": round(len(tasks) / sent_in),
        "accepted": len(accepted),
        "refused": len(refused),
        "other": odd,
        "accepted_latency": spread(accepted),
        "refusal_latency": spread(refused),
        "first_answer_afterwards_ms": round(recovery * 1000, 2),
    }


def bare(model: Path, guard: Guard, rows: int, seconds: float) -> Report:
    """Return images/s of `session.run` alone, plain and guarded."""
    shape = (rows, *guard.spec.tensor_shape)
    tensor = np.random.default_rng(0).random(shape, np.float32).astype(guard.spec.dtype)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    plain = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    report: Report = {"rows": rows}
    for name, run in (
        ("plain", lambda: plain.run(None, {guard.spec.name: tensor})),
        ("guarded", lambda: guard.run(tensor)),
    ):
        run()
        count, start = 0, time.perf_counter()
        while time.perf_counter() < start + seconds:
            run()
            count += 1
        report[f"{name}_images_per_s"] = round(count * rows / (time.perf_counter() - start))
    return report


def client_process(*arguments: object) -> Report:
    """Run one of the loops in a process of its own, as callers do."""
    done = subprocess.run(
        [sys.executable, __file__, "--as-client", json.dumps([str(a) for a in arguments])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    report: Report = json.loads(done.stdout)
    return report


def _as_client(kind: str, address: str, number: str, spec: str, rows: str, seconds: str) -> Report:
    data = request_of(InputSpec.from_json(json.loads(spec)), int(rows))
    if kind == "closed":
        return asyncio.run(closed_loop(address, int(number), data, int(rows), float(seconds)))
    return asyncio.run(open_loop(address, float(number), data, float(seconds)))


def main() -> None:
    """Run all three parts and print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--guard", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--as-client", help=argparse.SUPPRESS)
    parser.add_argument("--set", action="append", default=[], help="server setting NAME=VALUE")
    options = parser.parse_args()
    if options.as_client:
        print(json.dumps(_as_client(*json.loads(options.as_client))))
        return
    guard = Guard.open(options.model, options.guard, threads=1)
    spec = json.dumps(guard.spec.to_json())
    settings = dict(item.split("=", 1) for item in options.set)
    report: Report = {"cores": len(os.sched_getaffinity(0)), "settings": settings}
    report["bare"] = [bare(options.model, guard, rows, options.seconds / 2) for rows in (1, 32)]
    with served(options.model, options.guard, **settings) as (address, _):
        report["closed_loop"] = [
            client_process("closed", address, callers, spec, rows, options.seconds)
            for callers, rows in ((1, 1), (8, 1), (64, 1), (4, 32))
        ]
        capacity = max(part["images_per_s"] for part in report["closed_loop"] if part["rows"] == 1)
        report["overload"] = client_process(
            "open", address, 10 * capacity, spec, 1, options.seconds
        )
        with Client(address) as client:
            client.describe()
    text = json.dumps(report, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
