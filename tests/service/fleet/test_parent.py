"""A server of several processes over real ports: watched, added up, told and stopped as one."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from reluguard.detector.captures import index
from reluguard.detector.images import Images
from reluguard.service.captures.claim import Claim
from reluguard.service.errors import StartError
from reluguard.service.protocols.pb import open_inference as oip
from reluguard.service.protocols.pb import reluguard_v1 as pb
from reluguard.service.security import Scope, token_entry
from tests.waiting import until

ROOT = Path(__file__).parents[3]
MAIN = """
import sys
from reluguard.service.process import serve
from reluguard.service.settings import Settings
say = lambda server: print(server.address, server.metrics_address, flush=True)
sys.exit(serve(Settings.from_env(), ready=say))
"""
INSPECT, DESCRIBE = "/reluguard.v1.Guard/Inspect", "/reluguard.v1.Guard/Describe"
CHANNELS = 16  # that all go to one of two processes: a chance of 1 in 30,000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """A server process with its children."""

    parent: subprocess.Popen[str]
    address: str
    web: str

    def children(self) -> list[int]:
        """Return the processes that answer, by number."""
        tasks = Path(f"/proc/{self.parent.pid}/task").glob("*/children")
        return sorted(int(child) for task in tasks for child in task.read_text().split())

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels."""
        with urllib.request.urlopen(f"http://{self.web}/metrics", timeout=10) as reply:
            families = list(text_string_to_metric_families(reply.read().decode()))
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def status(self) -> dict[str, Any]:
        """Return the status page as JSON."""
        with urllib.request.urlopen(f"http://{self.web}/status.json", timeout=10) as reply:
            document: dict[str, Any] = json.load(reply)
        return document

    def stop(self) -> list[dict[str, Any]]:
        """Return the log after SIGTERM and a clean end."""
        self.parent.send_signal(signal.SIGTERM)
        assert self.parent.stderr is not None
        log = [json.loads(line) for line in self.parent.stderr]
        assert self.parent.wait(20) == 0
        return log


@contextmanager
def fleet(pair: Any, **changes: str) -> Iterator[Fleet]:
    """Start a server of several processes and wait until all serve."""
    settings = {
        "MODEL": str(pair.model), "GUARD": str(pair.guard), "PORT": "0", "METRICS_PORT": "0",
        "THREADS": "1", "NAME": "tiny", "RELOAD_S": "0", "PROCESSES": "2",
    } | changes  # fmt: skip
    environ = os.environ | {f"RELUGUARD_{name}": value for name, value in settings.items()}
    with subprocess.Popen(
        [sys.executable, "-c", MAIN],
        cwd=ROOT, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        try:
            said = parent.stdout.readline().split()
            assert said, parent.communicate()[1]
            yield Fleet(parent=parent, address=said[0], web=said[1])
        finally:
            parent.kill()


@contextmanager
def channels(address: str, count: int = CHANNELS) -> Iterator[list[grpc.Channel]]:
    """Open connections of their own, which the kernel spreads over the processes."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 100)]
    with ExitStack() as stack:
        yield [stack.enter_context(grpc.insecure_channel(address, options)) for _ in range(count)]


def pixels(images: Images) -> bytes:
    n, h, w, c = images.shape
    shape = {"count": n, "height": h, "width": w, "channels": c}
    return pb.InspectRequest(pixels=pb.Pixels(data=images.tobytes(), **shape)).SerializeToString()


def describe(channel: grpc.Channel, token: str = "") -> Any:
    metadata = [("authorization", f"Bearer {token}")] if token else None
    reply = channel.unary_unary(DESCRIBE)(b"", timeout=30, metadata=metadata, wait_for_ready=True)
    return pb.DescribeResponse.FromString(reply)


@pytest.fixture(scope="module")
def two(pair: Any) -> Iterator[Fleet]:
    with fleet(pair) as server:
        yield server


def test_a_killed_process_costs_only_what_it_was_answering(two: Fleet, mixed: Images) -> None:
    """Callers of the others notice nothing; it is started again and counted; no counter falls."""
    data = pixels(mixed[:2])
    killed, ended = Event(), Event()

    def ask(channel: grpc.Channel, begun: Event) -> Counter[str]:
        codes: Counter[str] = Counter()
        call = channel.unary_unary(INSPECT)
        while not ended.is_set():
            try:
                call(data, timeout=30)
                codes["after" if killed.is_set() else "before"] += 1
                begun.set()
            except grpc.RpcError as error:
                codes[error.code().name] += 1
                ended.wait(0.05)
        return codes

    before = two.children()
    restarts = two.metric("reluguard_process_restarts_total")
    with channels(two.address) as opened, ThreadPoolExecutor(CHANNELS) as threads:
        begun = [Event() for _ in opened]
        asked = [threads.submit(ask, *pair) for pair in zip(opened, begun, strict=True)]
        until(lambda: all(event.is_set() for event in begun))
        counted = two.metric("reluguard_batch_size_count")
        os.kill(before[0], signal.SIGKILL)
        killed.set()
        until(lambda: two.metric("reluguard_processes") == 2 and two.children() != before)
        ended.wait(0.5)
        ended.set()
        codes = [one.result(60) for one in asked]
    assert all(code["before"] and code["after"] for code in codes), codes
    hit = [code for code in codes if code["UNAVAILABLE"]]
    assert 0 < len(hit) < CHANNELS
    assert set().union(*codes) <= {"before", "after", "UNAVAILABLE"}
    assert two.metric("reluguard_process_restarts_total") == restarts + 1
    assert two.metric("reluguard_batch_size_count") >= counted
    assert set(before[1:]) < set(two.children())


def test_what_they_show_is_of_all(two: Fleet, mixed: Images) -> None:
    """Metrics and the status page count each image once, whichever process answered."""
    before = two.metric("reluguard_verdicts_total"), two.status()["models"][0]["hour"]["images"]
    with channels(two.address) as opened:
        for channel in opened:
            channel.unary_unary(INSPECT)(pixels(mixed[:3]), timeout=30)
        limits = describe(opened[0]).limits
    asked = 3 * CHANNELS
    assert two.metric("reluguard_verdicts_total") == before[0] + asked
    status = two.status()
    assert status["state"] == "serving"
    assert status["models"][0]["hour"]["images"] == before[1] + asked
    assert two.metric("reluguard_processes") == two.metric("reluguard_processes_wanted") == 2
    assert limits.memory_bytes == status["room"]["memory_bytes"]
    with urllib.request.urlopen(f"http://{two.web}/", timeout=10) as reply:
        assert b"tiny" in reply.read()


@pytest.mark.slow
def test_all_take_a_new_guard_and_leave_a_model_at_one_word(
    tmp_path: Path, pairs: Callable[..., Any], new_guard: Callable[..., Path], mixed: Images
) -> None:
    """SIGHUP, load and unload reach every process, those that start later too; SIGTERM as well.

    What they captured lies in one folder that no other server gets, what they decided in one file,
    and a caller's quota is one.
    """
    pair = pairs(tmp_path)
    tokens, log, folder = tmp_path / "t.toml", tmp_path / "decisions.jsonl", tmp_path / "captures"
    scopes = {"admin": Scope.ADMIN, "few": Scope.INFER}
    entries = [token_entry(name, name=name, scopes=[scope]) for name, scope in scopes.items()]
    tokens.write_text("".join(entries) + "rows_per_s = 0.1\n")
    changes = {"TOKENS": str(tokens), "REPOSITORY_CONTROL": "true", "CAPTURE": str(folder),
               "DECISION_LOG": str(log), "CAPTURE_SHARE": "1.0"}  # fmt: skip
    admin = [("authorization", "Bearer admin")]
    with fleet(pair, **changes) as server, channels(server.address) as opened:
        before = describe(opened[0], "admin").guard
        new_guard(pair, tag="new", shift=1.0)
        server.parent.send_signal(signal.SIGHUP)
        until(lambda: all(describe(channel, "admin").guard != before for channel in opened))
        for at, channel in enumerate(opened):
            channel.unary_unary(INSPECT)(pixels(mixed[2 * at : 2 * at + 2]), 30, metadata=admin)
        codes = Counter(code_of(channel, pixels(mixed[:1]), "few") for channel in opened)
        assert codes == {"OK": 1, "RESOURCE_EXHAUSTED": CHANNELS - 1}

        control = "/inference.GRPCInferenceService/RepositoryModel"
        unload = oip.RepositoryModelUnloadRequest(model_name="tiny").SerializeToString()
        opened[0].unary_unary(control + "Unload")(unload, 30, metadata=admin)
        assert {code_of(channel, b"", "admin", DESCRIBE) for channel in opened} == {"UNAVAILABLE"}
        until(lambda: rows_in(folder)[0] == 2 * CHANNELS + 1)  # a kill loses what is not written
        os.kill(server.children()[0], signal.SIGKILL)
        until(lambda: server.metric("reluguard_process_restarts_total") == 1)
        until(lambda: server.metric("reluguard_processes") == 2)
        for channel in opened:
            assert code_of(channel, b"", "admin", DESCRIBE) == "UNAVAILABLE"
        assert server.metric("reluguard_guard_info") == 0
        load = oip.RepositoryModelLoadRequest(model_name="tiny").SerializeToString()
        opened[0].unary_unary(control + "Load")(load, 30, metadata=admin, wait_for_ready=True)
        assert all(describe(channel, "admin").guard != before for channel in opened)

        second = refused_start(pair, {"CAPTURE": str(folder), "PROCESSES": "1"})
        assert "another process" in second or f"process {server.parent.pid}" in second
        second = refused_start(pair, {"PORT": server.address.rpartition(":")[2], "PROCESSES": "2"})
        assert "the port is in use" in second

        assert not is_free(folder)
        kept, written = rows_in(folder)
        away = folder.rename(tmp_path / "away")
        until(lambda: folder.is_dir() and is_free(away) and not is_free(folder))
        for channel in opened:
            channel.unary_unary(INSPECT)(pixels(mixed[:2]), 30, metadata=admin)
        until(lambda: rows_in(folder)[0] == 2)  # the same two of one caller, whichever process

        began = time.monotonic()
        said = [line["message"] for line in server.stop()]
        assert time.monotonic() - began < 20 + 1
    assert said[-1] == "all processes stopped"
    assert said.count("stopped") == 2
    told = [json.loads(line) for line in log.read_text().splitlines()]
    assert sum(line["caller"] == "admin" for line in told) == 4 * CHANNELS
    assert rows_in(folder)[0] == 2
    assert kept == 2 * CHANNELS + 1
    assert written >= 2


def is_free(folder: Path) -> bool:
    """Return whether a server could take this capture folder."""
    try:
        Claim(folder).release()
    except StartError:
        return False
    return True


def rows_in(folder: Path) -> tuple[int, int]:
    """Return how many images and how many shards were captured: none before there is a table."""
    with index(folder) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'captures'").fetchone():
            return 0, 0
        found: tuple[int, int] = connection.execute(
            "SELECT COUNT(*), COUNT(DISTINCT shard) FROM captures"
        ).fetchone()
    return found


def code_of(channel: grpc.Channel, data: bytes, token: str, method: str = INSPECT) -> str:
    """Return how a call ended."""
    try:
        channel.unary_unary(method)(data, 30, metadata=[("authorization", f"Bearer {token}")])
    except grpc.RpcError as error:
        name: str = error.code().name
        return name
    return "OK"


def refused_start(pair: Any, changes: dict[str, str]) -> str:
    """Return what a server says that must not start."""
    settings = {"MODEL": str(pair.model), "GUARD": str(pair.guard), "PORT": "0",
                "METRICS_PORT": "none"} | changes  # fmt: skip
    environ = os.environ | {f"RELUGUARD_{name}": value for name, value in settings.items()}
    done = subprocess.run(
        [sys.executable, "-c", MAIN], cwd=ROOT, env=environ, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_start_that_one_process_refuses_is_an_error(tmp_path: Path, pair: Any) -> None:
    """One line, as of a lone server."""
    changes = {"PROCESSES": "2", "GUARD": str(tmp_path)}
    assert refused_start(pair, changes) == (
        f"reluguard: expected a guard in {tmp_path}, it has no file manifest.json"
    )


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_children_end_with_their_parent(pair: Any, mixed: Images, end: signal.Signals) -> None:
    """Calls in flight are answered, callers hear UNAVAILABLE at worst, and nothing is left."""
    with fleet(pair, DRAIN_S="2") as server, channels(server.address) as opened:
        data = pixels(np.repeat(mixed[:1], 64, axis=0))

        def ask(channel: grpc.Channel) -> Counter[str]:
            codes: Counter[str] = Counter()
            while not codes["UNAVAILABLE"]:
                codes[code_of(channel, data, "none")] += 1
            return codes

        with ThreadPoolExecutor(CHANNELS) as threads:
            asked = [threads.submit(ask, channel) for channel in opened]
            until(lambda: server.metric("reluguard_batch_size_count") > 2 * CHANNELS)
            children = server.children()
            began = time.monotonic()
            server.parent.send_signal(end)
            server.parent.wait(20)
            until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
            took = time.monotonic() - began
            codes = sum((one.result(30) for one in asked), Counter[str]())
    assert took < 2 + 1 + 1  # a second more for a machine that is busy
    assert set(codes) <= {"OK", "UNAVAILABLE", "RESOURCE_EXHAUSTED"}
