"""SIGKILL at the worst moments: the next start serves the last good guard and reads its capture.

- during reload, again and again at another moment;
- while the newest guard on the shelf is broken: the one before it serves;
- during `reluguard promote`: the shelf's pointer still names a whole guard;
- during capture: the index is whole and each of its rows has its shard.
"""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.faults.pair import Pair, make_guard, make_pair
from benchmarks.faults.process import Process, served
from benchmarks.faults.report import Finding, spread
from benchmarks.faults.rotation import Shelf, asking
from benchmarks.faults.traffic import NO_RETRIES, Ask, Callers, Kit
from reluguard.detector.captures import INDEX, shard_file
from reluguard.detector.shelf.shelf import current, promote

__all__ = ["run"]

REQUESTS = 32  # of a server that captures, before they come round again


def run(pair: Pair | None, folder: Path, *, short: bool) -> list[Finding]:  # noqa: ARG001 - needs several guards
    """Kill servers and promotions."""
    times = 5 if short else 25
    return [
        _reload(folder / "reload", times=times),
        _broken(folder / "broken"),
        _promotion(folder / "promotion", times=2 * times),
        _capture(folder / "capture", times=times),
    ]


async def _one(server: Process, shelf: Shelf) -> bytes:
    async with grpc.aio.insecure_channel(server.address, options=list(NO_RETRIES)) as channel:
        return await asking(shelf, channel)()


def _reload(folder: Path, *, times: int) -> Finding:
    shelf, rng = Shelf(folder), random.Random(0)
    right, starts, moments = 0, [], []
    for i in range(times):
        shelf.point("a")
        with served(shelf.pair) as server:
            shelf.point("b")
            server.send(signal.SIGHUP)
            moments.append(rng.uniform(0, 0.08))  # a reload takes about half of that
            time.sleep(moments[-1])
            server.kill()
        if i % 2:
            shelf.point("a")  # whoever promoted takes it back
        started = time.monotonic()
        with served(shelf.pair, settings={"port": server.port}) as again:
            starts.append(time.monotonic() - started)
            answer = asyncio.run(_one(again, shelf))
            with contextlib.suppress(AssertionError):
                shelf.check(answer)
                wanted = shelf.digests["a" if i % 2 else "b"].encode()
                right += wanted in answer
    return Finding(
        exercise="SIGKILL during reload",
        goal="the next start serves the current guard, right, at the same port",
        figures={"kills": times, "right_afterwards": right, "until_serving": spread(starts),
                 "killed_after_ms": [round(min(moments) * 1000), round(max(moments) * 1000)]},
        met=right == times,
    )  # fmt: skip


def _broken(folder: Path) -> Finding:
    """After a crash beside a guard that does not open, the one before it must serve."""
    pair = make_pair(folder / "pair")
    shelf = folder / "shelf"
    size = Kit(pair).spec.height
    good = [make_guard(pair.model, folder / str(seed), size=size, seed=seed) for seed in (1, 2)]
    digests = [promote(shelf, guard, who="us", why="exercise", force=True).guard for guard in good]
    (shelf / digests[1][:16] / "head.npz").write_bytes(b"cut short by a full disk")
    kit = Kit(Pair(model=pair.model, guard=shelf / digests[0][:16]))
    ask = kit.inspect_pixels(kit.images(2))
    figures: dict[str, Any] = {}
    with served(Pair(model=pair.model, guard=shelf)) as server:
        with grpc.insecure_channel(server.address) as channel:
            answer: bytes = channel.unary_unary(ask.method)(ask.data, timeout=20)
        figures["serves_the_one_before"] = digests[0].encode() in answer
        figures["said_in_the_log"] = any(
            line["level"] == "ERROR" and "refused" in line["message"] for line in server.messages()
        )
        figures["counted"] = 'outcome="refused"} 1.0' in server.scrape()
    return Finding(
        exercise="start with a broken newest guard",
        goal="serves the last good one, and says so",
        figures=figures,
        met=all(figures.values()),
    )


def _promotion(folder: Path, *, times: int) -> Finding:
    pair = make_pair(folder / "pair")
    shelf = folder / "shelf"
    size = Kit(pair).spec.height
    promote(shelf, pair.guard, who="us", why="first", force=True)
    rng = random.Random(0)
    whole = finished = 0
    for i in range(times):
        guard = make_guard(pair.model, folder / f"g{i}", size=size, seed=10 + i)
        command = [sys.executable, "-m", "reluguard", "promote", "--shelf", str(shelf),
                   "--guard", str(guard), "--why", "exercise", "--force"]  # fmt: skip
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as made:
            _until_busy(shelf, made)
            time.sleep(rng.uniform(0, 0.03))
            made.kill()
            finished += made.wait() == 0
        live = current(shelf)  # raises on anything but a whole guard
        whole += live is not None
    last = promote(shelf, pair.guard, who="us", why="last", force=True)
    ended = current(shelf)
    return Finding(
        exercise="SIGKILL during promote",
        goal="the pointer names a whole guard each time, and the next promotion works",
        figures={"kills": times - finished, "finished_before": finished, "whole": whole},
        met=whole == times and ended is not None and ended.digest == last.guard,
    )


def _until_busy(shelf: Path, process: "subprocess.Popen[bytes]") -> None:
    """Return when the promotion has begun to write."""
    before = {entry.name for entry in shelf.iterdir()}
    while process.poll() is None and {entry.name for entry in shelf.iterdir()} == before:
        time.sleep(0.0005)


def _capture(folder: Path, *, times: int) -> Finding:
    pair = make_pair(folder / "pair")
    store = folder / "store"
    kit, rng = Kit(pair), random.Random(0)
    settings = {"capture": store, "capture_share": 1.0, "capture_images": "true"}
    sound, rows = 0, []
    for _ in range(times):
        # other images each time: the same one of the same caller is kept once
        asks = [kit.inspect_pixels(kit.images(16)) for _ in range(REQUESTS)]
        with served(pair, settings=settings) as server:
            asyncio.run(_load(server, asks, seconds=rng.uniform(1.0, 2.2)))
            server.kill()
        rows.append(_rows(store))
        sound += rows[-1] >= (rows[-2] if len(rows) > 1 else 0)
    return Finding(
        exercise="SIGKILL during capture",
        goal="the index is whole, each row has its shard, the next start writes on",
        figures={"kills": times, "sound": sound, "rows_after_each": rows},
        met=sound == times and rows[-1] > rows[0] > 0,
    )


async def _load(server: Process, asks: Sequence[Ask], *, seconds: float) -> None:
    turns = itertools.cycle(asks)
    async with grpc.aio.insecure_channel(server.address, options=list(NO_RETRIES)) as channel:

        async def ask() -> bytes:
            one = next(turns)
            answer: bytes = await channel.unary_unary(one.method)(one.data, timeout=30)
            return answer

        async with Callers(ask=ask, count=4):
            await asyncio.sleep(seconds)
            os.kill(server.popen.pid, signal.SIGKILL)  # while they ask


def _rows(store: Path) -> int:
    """Return how many rows the index has, having read what each of them names.

    Raises:
        ValueError: the index or a shard is damaged.
    """
    with contextlib.closing(sqlite3.connect(store / INDEX)) as connection:
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
        if verdict != "ok":
            raise ValueError(f"the index is damaged: {verdict}")
        named = connection.execute("SELECT shard, max(row), count(*) FROM captures GROUP BY shard")
        total = 0
        for shard, last, count in named.fetchall():
            with np.load(shard_file(store, shard), allow_pickle=False) as arrays:
                if any(len(arrays[name]) <= last for name in arrays.files):
                    raise ValueError(f"{shard} has no row {last}")
            total += count
    return total
