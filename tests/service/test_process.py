"""The server as a process: signals, exit codes, logs."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from reluguard.detector.images import Images
from reluguard.service.client.client import Client
from reluguard.service.client.probe import is_healthy
from reluguard.service.errors import CallError
from tests.waiting import until

ROOT = Path(__file__).parents[2]
MAIN = """
import sys
from reluguard.service.process import serve
from reluguard.service.settings import Settings
sys.exit(serve(Settings.from_env(), ready=lambda server: print(server.address, flush=True)))
"""


@contextmanager
def process(pair: Any, **changes: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a server process and wait until it is SERVING."""
    settings = {
        "MODEL": str(pair.model), "GUARD": str(pair.guard), "PORT": "0", "METRICS_PORT": "0",
        "THREADS": "1", "NAME": "tiny", "RELOAD_S": "0",
    } | changes  # fmt: skip
    environ = os.environ | {f"RELUGUARD_{name}": value for name, value in settings.items()}
    with subprocess.Popen(
        [sys.executable, "-c", MAIN],
        cwd=ROOT, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        try:
            address = server.stdout.readline().strip()
            assert address, server.communicate()[1]
            yield server, address
        finally:
            server.kill()


def log_of(server: subprocess.Popen[str]) -> list[dict[str, Any]]:
    assert server.stderr is not None
    return [json.loads(line) for line in server.stderr]


def test_sigterm_under_load_loses_no_request(pair: Any, mixed: Images) -> None:
    """Callers at work when the signal comes move to the other replica without an error."""
    with (
        process(pair, DRAIN_DELAY_S="0.2") as (server, first),
        process(pair) as (_, second),
    ):
        started = threading.Barrier(5)
        gone = threading.Event()

        def ask() -> int:
            answered = 0
            with Client(f"ipv4:{first},{second}") as client:
                client.inspect(mixed[:1])
                started.wait(30)
                while not gone.is_set():
                    assert len(client.inspect(mixed[:4])) == 4
                    answered += 1
                assert len(client.inspect(mixed[:4])) == 4
            return answered

        with ThreadPoolExecutor(4) as threads:
            askers = [threads.submit(ask) for _ in range(4)]
            started.wait(30)
            server.send_signal(signal.SIGTERM)
            assert server.wait(20) == 0
            gone.set()
            assert all(asker.result(30) > 0 for asker in askers)
        messages = [line["message"] for line in log_of(server)]
        assert messages[-1] == "stopped"
        assert not [line for line in messages if "failed" in line]


def test_a_caller_of_the_only_server_is_told_it_is_unavailable(pair: Any, mixed: Images) -> None:
    """After its last answer nobody is there, and never is it an odd error."""
    with (
        process(pair) as (server, address),
        Client(address) as patient,
        Client(address, deadline_s=2) as client,
    ):
        patient.inspect(mixed[:1])
        server.send_signal(signal.SIGTERM)
        answers = iter(lambda: client.inspect(mixed[:1]), None)
        with pytest.raises(CallError, match=r"UNAVAILABLE|DEADLINE_EXCEEDED"):
            list(answers)
        assert server.wait(20) == 0


@pytest.mark.slow
def test_a_reload_that_is_asked_for_too_early_ends_nothing(pair: Any) -> None:
    """While libraries are loaded SIGHUP is ignored: whoever starts a server may ask at once."""
    given = ["--model", pair.model, "--guard", pair.guard, "--port", "0", "--metrics-port", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "reluguard", "serve", *map(str, given)],
        cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as server:  # fmt: skip
        try:
            status = Path(f"/proc/{server.pid}/status")
            until(lambda: is_ignored(status.read_text(), signal.SIGHUP))
            assert "onnxruntime" not in Path(f"/proc/{server.pid}/maps").read_text()
            server.send_signal(signal.SIGHUP)
            assert server.stderr is not None
            assert any("serving on" in line for line in server.stderr)
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()


def is_ignored(status: str, number: int) -> bool:
    """Read from /proc whether a process ignores a signal."""
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def scan_bomb(side: int = 8000, scans: int = 50) -> bytes:
    """Return a progressive JPEG of few bytes that takes a decoder seconds."""
    out = io.BytesIO()
    Image.new("L", (side, side)).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    begin = data.rindex(b"\xff\xda")
    return data[:begin] + data[begin:-2] * scans + b"\xff\xd9"


def test_the_drain_ends_in_its_time_whatever_runs(pair: Any) -> None:
    """Decoders at work and messages half sent hold it up no longer than they may."""
    settings = {"DRAIN_S": "0.5", "DECODE_S": "60", "MAX_MESSAGE_BYTES": "4000000"}
    with (
        process(pair, **settings) as (server, address),
        Client(address, deadline_s=60) as client,
        grpc.insecure_channel(address) as channel,
        ThreadPoolExecutor(4) as threads,
    ):
        client.describe()
        file = scan_bomb()
        bombs = [threads.submit(client.inspect_encoded, [file]) for _ in range(2)]
        never = threading.Event()
        half = channel.stream_unary("/reluguard.v1.Guard/Inspect").future(
            iter(lambda: never.wait(60), True)
        )
        tasks = Path(f"/proc/{server.pid}/task")
        while not any(children.read_text() for children in tasks.glob("*/children")):
            pass
        started = time.monotonic()
        server.send_signal(signal.SIGTERM)
        server.wait(20)
        took = time.monotonic() - started
        never.set()
        assert took < 0.5 + 1.0 + 1.0  # a second more for a machine that is busy
        for bomb in bombs:
            with pytest.raises(CallError):
                bomb.result(30)
        assert half.exception(30) is not None


def test_a_second_signal_ends_at_once(pair: Any) -> None:
    """Whoever can't wait for the drain needn't."""
    with process(pair, DRAIN_DELAY_S="60") as (server, address):
        server.send_signal(signal.SIGTERM)
        while is_healthy(address):
            pass
        server.send_signal(signal.SIGTERM)
        assert server.wait(5) == 1


def test_sighup_takes_a_new_guard(
    tmp_path: Path, pairs: Callable[..., Any], new_guard: Callable[..., Path]
) -> None:
    """The process goes on, with the new guard."""
    pair = pairs(tmp_path)
    with process(pair) as (server, address), Client(address) as client:
        before = client.describe().guard
        new_guard(pair, tag="new", shift=1.0)
        server.send_signal(signal.SIGHUP)
        while client.describe().guard == before:
            pass
        assert server.poll() is None


def test_a_killed_server_starts_again_with_the_last_good_guard(
    tmp_path: Path, pairs: Callable[..., Any]
) -> None:
    """SIGKILL leaves nothing that could hinder the next start."""
    pair = pairs(tmp_path)
    with process(pair) as (server, address), Client(address) as client:
        before = client.describe().guard
        port = address.rpartition(":")[2]
        server.kill()
        server.wait(5)
        with process(pair, PORT=port) as (_, again), Client(again) as second:
            assert second.describe().guard == before


def test_a_refused_start_is_an_error(tmp_path: Path, pair: Any) -> None:
    """Not a server that is never ready."""
    environ = {
        "RELUGUARD_MODEL": str(pair.model),
        "RELUGUARD_GUARD": str(tmp_path),
        "RELUGUARD_PORT": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", MAIN], cwd=ROOT, env=os.environ | environ, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.endswith(
        f"reluguard: expected a guard in {tmp_path}, it has no file manifest.json\n"
    )
    assert "Traceback" not in done.stderr


def test_logs_are_json_without_images(pair: Any) -> None:
    """Each line is an object with level, message and request id; a request's bytes never show.

    Nor does a line for each note that a file holds: whoever calls would fill the log.
    """
    image = np.full((1, 12, 12, 3), 65, np.uint8)  # all "A"
    with process(pair, LOG_LEVEL="DEBUG") as (server, address):
        with Client(address) as client:
            client.inspect(image)
            client.inspect_encoded([damaged_notes(20)])  # read by a thread
            client.inspect_encoded([damaged_notes(4000)])  # and by a process
        server.send_signal(signal.SIGTERM)
        server.wait(20)
        lines = log_of(server)
    assert {"time", "level", "logger", "message", "request_id"} <= set(lines[0])
    assert any(line["message"].startswith("serving on 127.0.0.1:") for line in lines)
    assert "AAAA" not in json.dumps(lines)
    assert not [line for line in lines if line["logger"].startswith(("py.warnings", "PIL"))]


def damaged_notes(count: int) -> bytes:
    """Return a JPEG with EXIF data whose every entry lies beyond its end."""
    head = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", count)
    rows = [struct.pack("<HHII", tag, 7, 9000, 9000) for tag in range(1, count + 1)]
    out = io.BytesIO()
    Image.new("RGB", (12, 12)).save(out, "JPEG", exif=head + b"".join(rows))
    return out.getvalue()


def test_importing_the_service_starts_nothing() -> None:
    """No thread, socket or training library comes with the import."""
    code = (
        "import sys, threading; import reluguard.service.process, reluguard.service.background;"
        "import reluguard.service.client.client;"
        "assert threading.active_count() == 1;"
        "assert not {'torch', 'sklearn', 'reluguard.training', 'tritonclient'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
