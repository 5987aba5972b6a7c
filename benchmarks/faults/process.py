"""A real `reluguard serve` process, and what the system says of it.

FAULTS_PROCESSES=N has every exercise served by N processes and the one that watches them.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.pair import Pair

__all__ = ["ROOT", "Process", "Usage", "raise_file_limit", "served"]

ROOT = Path(__file__).resolve().parents[2]
_START_S = 60.0
_KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What processes hold: resident memory in MiB, open file descriptors, threads."""

    rss_mib: float
    files: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A server that is SERVING.

    Attributes:
        popen: the process.
        address: host:port of gRPC.
        metrics: host:port of the HTTP side.
        log: file of its JSON log.
    """

    popen: "subprocess.Popen[bytes]"
    address: str
    metrics: str
    log: Path

    @property
    def port(self) -> int:
        """The gRPC port."""
        return int(self.address.rpartition(":")[2])

    def usage(self) -> Usage:
        """Return what the server holds now: this process, or all where several answer."""
        parts = [_usage(pid) for pid in self._pids()]
        return Usage(
            rss_mib=sum(part.rss_mib for part in parts),
            files=sum(part.files for part in parts),
            threads=sum(part.threads for part in parts),
        )

    def _pids(self) -> list[int]:
        """Return this process, and those that it watches where it is not alone."""
        return [self.popen.pid, *_watched(self.popen.pid)]

    def cpu_s(self) -> float:
        """Return the processor time it used, user and system, in seconds."""
        ticks = 0
        for pid in self._pids():
            fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2]
            ticks += sum(map(int, fields.split()[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def scrape(self) -> str:
        """Return the metrics page."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as reply:
            text: str = reply.read().decode()
        return text

    def messages(self) -> list[dict[str, Any]]:
        """Return the log so far, one object per line."""
        return _lines(self.log)

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.popen.send_signal(number)

    def kill(self) -> None:
        """End it at once, as a machine that loses power would."""
        _end(self.popen)


def _processes() -> int:
    return int(os.environ.get("FAULTS_PROCESSES", "1"))


def _watched(parent: int) -> list[int]:
    """Return the processes that answer where several do."""
    if _processes() == 1:
        return []
    tasks = (Path("/proc") / str(parent) / "task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _end(popen: "subprocess.Popen[bytes]") -> None:
    pids = [] if popen.poll() is not None else _watched(popen.pid)
    popen.kill()
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    popen.wait(10)


def _usage(pid: int) -> Usage:
    proc = Path("/proc") / str(pid)
    status = dict(
        line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line
    )
    return Usage(
        rss_mib=int(status["VmRSS"].split()[0]) / _KIB,
        files=len(list((proc / "fd").iterdir())),
        threads=int(status["Threads"]),
    )


def _lines(log: Path) -> list[dict[str, Any]]:
    lines = []
    for text in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            line = {"level": "TEXT", "message": text}
        lines.append(line)
    return lines


@contextmanager
def served(
    pair: Pair,
    *,
    cpus: set[int] | None = None,
    settings: Mapping[str, Any] | None = None,
    patience_s: float = _START_S,
) -> Iterator[Process]:
    """Run `reluguard serve` until the block ends, on free ports.

    Args:
        pair: what it serves, under the name "small".
        cpus: the cores it may use; all of ours if None.
        settings: any setting of `reluguard.service.settings.Settings`.
        patience_s: longest wait for SERVING.

    Raises:
        RuntimeError: it did not come up.
    """
    named = {"model": pair.model, "guard": pair.guard, "name": "small", "port": 0,
             "metrics_port": 0, "reload_s": 0, "processes": _processes()
             } | dict(settings or {})  # fmt: skip
    environ = {name: value for name, value in os.environ.items() if "RELUGUARD" not in name}
    environ |= {f"RELUGUARD_{name.upper()}": str(value) for name, value in named.items()}
    with tempfile.TemporaryDirectory(prefix="reluguard-log-") as folder:
        log = Path(folder) / "log.jsonl"
        with (
            log.open("wb") as stream,
            subprocess.Popen(
                [sys.executable, "-m", "reluguard", "serve"],
                cwd=ROOT, env=environ, stdout=stream, stderr=stream,
            ) as popen,
        ):  # fmt: skip
            if cpus is not None:
                os.sched_setaffinity(popen.pid, cpus)  # before it has threads
            try:
                yield _wait(popen, log, time.monotonic() + patience_s)
            finally:
                _end(popen)


def _wait(popen: "subprocess.Popen[bytes]", log: Path, until: float) -> Process:
    while time.monotonic() < until:
        for line in _lines(log):
            message = line.get("message", "")
            if message.startswith("serving on ") and "process" not in line:
                address, metrics = message.removeprefix("serving on ").split(", metrics on ")
                return Process(popen=popen, address=address, metrics=metrics, log=log)
        if popen.poll() is not None:
            break
        time.sleep(0.02)
    raise RuntimeError(f"the server did not come up: {log.read_text()[-2000:]}")


def raise_file_limit(needed: int) -> int:
    """Raise the soft limit of open files as far as needed and allowed; return what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, needed) if hard == resource.RLIM_INFINITY else min(max(soft, needed), hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
