"""Three replicas behind client-side round robin, one killed under load: does any caller notice?

    python -m benchmarks.replicas [--seconds S] [--callers N] [--model M --guard G] [--json OUT]

Callers of both clients, sync and asyncio, ask all the time; each answer is compared with what the
guard says in process. After S seconds one replica is killed (SIGKILL, as by a machine that loses
power), after S more it comes back on the same port, after S more the load ends. Retries are the
client's own. Exit code 0 if no call failed, none was lost and no answer was wrong.
"""

import argparse
import asyncio
import contextlib
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.pair import Pair, draw_images, make_pair
from benchmarks.faults.process import Process, served
from benchmarks.faults.report import Finding, add_options, given_pair, spread, tell
from reluguard.detector.images import Images
from reluguard.detector.verdict import Verdicts
from reluguard.service.client.client import AsyncClient, Client
from reluguard.service.errors import CallError

__all__ = ["run"]

_REPLICAS = 3
_PATIENCE_S = 60.0
_PHASES = ("all three", "one killed", "it came back")
_ROWS = 2
_SCORE_TOLERANCE = 1e-3  # rows of other callers in the same run add up in another order


@dataclass(slots=True)
class _Tally:
    """What happened to the calls that began in one phase, per kind of client."""

    asked: int = 0
    wrong: int = 0
    failed: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Calls that neither answered nor failed."""
        return self.asked - len(self.failed) - len(self.latencies)


class _Load:
    """Callers that ask until told to stop, and what they saw."""

    def __init__(self, address: str, images: Images, expected: Verdicts) -> None:
        self._address, self._images, self._expected = address, images, expected
        self._stop = threading.Event()
        self._phase = 0
        self._lock = threading.Lock()
        self.tallies = {(kind, p): _Tally() for kind in ("sync", "aio") for p in _PHASES}

    def next_phase(self) -> None:
        """Count calls that begin from now on under the next phase."""
        self._phase += 1

    def stop(self) -> None:
        """Let every caller finish its call."""
        self._stop.set()

    def _begin(self, kind: str) -> tuple[_Tally, float]:
        tally = self.tallies[kind, _PHASES[self._phase]]
        with self._lock:
            tally.asked += 1
        return tally, time.perf_counter()

    def _end(self, tally: _Tally, started: float, rows: slice, found: Verdicts | CallError) -> None:
        with self._lock:
            if isinstance(found, CallError):
                tally.failed.append(str(found))
                return
            tally.latencies.append(time.perf_counter() - started)
            want = self._expected
            same = np.array_equal(found.prediction, want.prediction[rows]) and np.allclose(
                found.score, want.score[rows], atol=_SCORE_TOLERANCE
            )
            tally.wrong += not same

    def _rows(self, turn: int) -> slice:
        start = turn * _ROWS % (len(self._images) - _ROWS)
        return slice(start, start + _ROWS)

    def ask(self, seed: int) -> None:
        """Be one caller of the sync client."""
        with Client(self._address) as client:
            turn = seed
            while not self._stop.is_set():
                rows, (tally, started) = self._rows(turn), self._begin("sync")
                try:
                    found: Verdicts | CallError = client.inspect(self._images[rows])
                except CallError as error:
                    found = error
                self._end(tally, started, rows, found)
                turn += 1

    async def _ask_async(self, client: AsyncClient, seed: int) -> None:
        turn = seed
        while not self._stop.is_set():
            rows, (tally, started) = self._rows(turn), self._begin("aio")
            try:
                found: Verdicts | CallError = await client.inspect(self._images[rows])
            except CallError as error:
                found = error
            self._end(tally, started, rows, found)
            turn += 1

    def ask_async(self, callers: int) -> None:
        """Be several callers of one asyncio client."""

        async def main() -> None:
            async with AsyncClient(self._address) as client:
                await asyncio.gather(*(self._ask_async(client, i) for i in range(callers)))

        asyncio.run(main())


def run(
    pair: Pair | None, folder: Path, *, seconds: float, callers: int = 4, size: int = 12
) -> list[Finding]:
    """Kill one of three replicas under load and return what the callers saw.

    Args:
        pair: what is served; a small network if None.
        folder: for that network.
        seconds: of each of the three phases.
        callers: of each kind of client.
        size: of the square input images of the pair.
    """
    pair = pair or make_pair(folder / "pair", size=size)
    guard = pair.open()
    spec = guard.spec
    images = draw_images(64, size=spec.height, seed=1)[..., : spec.channels]
    expected = guard.inspect(images)
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(served(pair, settings={"port": _free_port()}))
            for _ in range(_REPLICAS)
        ]
        load = _Load(_address(servers), images, expected)
        with ThreadPoolExecutor(callers + 1) as pool:
            calls = [pool.submit(load.ask, i) for i in range(callers)]
            calls.append(pool.submit(load.ask_async, callers))
            try:
                time.sleep(seconds)
                load.next_phase()
                servers[0].kill()
                time.sleep(seconds)
                load.next_phase()
                back = stack.enter_context(served(pair, settings={"port": servers[0].port}))
                time.sleep(seconds)
                patience = time.monotonic() + _PATIENCE_S
                while not _answered(back) and time.monotonic() < patience:
                    time.sleep(0.1)  # a busy machine comes back to it later
            finally:
                load.stop()
            for call in calls:
                call.result()
        answered = _answered(back)
    return [_finding(load, answered)]


def _free_port() -> int:
    """Return a port that no outgoing connection takes while its server is gone."""
    below = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in np.random.default_rng().permutation(np.arange(below // 2, below)).tolist():
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return int(port)
    raise RuntimeError("no free port below the ephemeral ones")


def _address(servers: Sequence[Process]) -> str:
    return f"ipv4:{','.join(server.address for server in servers)}"


def _answered(server: Process) -> int:
    name = 'grpc_server_handled_total{grpc_code="OK",grpc_method="Inspect"'
    lines = [line for line in server.scrape().splitlines() if line.startswith(name)]
    return int(sum(float(line.rpartition(" ")[2]) for line in lines))


def _finding(load: _Load, answered: int) -> Finding:
    figures: dict[str, Any] = {}
    for (kind, phase), tally in load.tallies.items():
        figures[f"{kind}, {phase}"] = {
            "calls": tally.asked,
            "failed": len(tally.failed),
            "lost": tally.lost,
            "wrong": tally.wrong,
            **spread(tally.latencies),
        }
    tallies = load.tallies.values()
    figures["first failures"] = [text for tally in tallies for text in tally.failed][:3]
    figures["answered by the one that came back"] = answered
    whole = all(t.asked and not (t.failed or t.lost or t.wrong) for t in tallies)
    return Finding(
        exercise="one of three replicas killed under load",
        goal="no call failed, lost or wrong; the one that comes back is used again",
        figures=figures,
        met=whole and answered > 0,
    )


def main() -> int:
    """Run it and print what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.replicas",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=20, help="of each phase [20]")
    parser.add_argument("--callers", type=int, default=4, help="of each client [4]")
    add_options(parser)
    options = parser.parse_args()
    given = given_pair(parser, options)
    with tempfile.TemporaryDirectory(prefix="reluguard-replicas-") as place:
        findings = run(given, Path(place), seconds=options.seconds, callers=options.callers)
    return tell(findings, options.json)


if __name__ == "__main__":
    sys.exit(main())
