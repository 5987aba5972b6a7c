"""What faults and load brought to light, and the exercises themselves in short."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.detector.shelf.shelf import promote, rollback
from reluguard.service.background import on_loop, running
from reluguard.service.client.client import Client
from reluguard.service.errors import StartError
from reluguard.service.settings import Settings

ROOT = Path(__file__).parents[2]


class _Nice:
    """A real guard that writes down how nice the thread is that runs it."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self.seen: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guard, name)

    def run_checked(self, tensor: NDArray[np.float32]) -> Any:
        """Run the real guard."""
        self.seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return self._guard.run_checked(tensor)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have their own priority on Linux")
def test_the_model_gives_way_to_the_event_loop(guard: Guard, mixed: Images) -> None:
    """Under overload the loop refuses in time because model threads have a lower priority.

    Lower than the server's own, whatever it was started with, where the system has a lower one.
    """
    own = os.getpriority(os.PRIO_PROCESS, 0)
    nice: Any = _Nice(guard)
    with running(nice) as server, Client(server.address) as client:
        client.inspect(mixed[:1])
    assert set(nice.seen) == {min(own + 10, 19)}


def test_a_start_beside_a_broken_newest_guard_serves_the_one_before(
    tmp_path: Path, pairs: Callable[..., Any], new_guard: Callable[..., Path], mixed: Images
) -> None:
    """A crash while a guard was being refused must not end in a server that can't start."""
    pair, shelf = pairs(tmp_path / "pair"), tmp_path / "shelf"
    second = new_guard(pair, tag="b", shift=1.0, path=tmp_path / "second")
    first, last = (
        promote(shelf, guard, who="us", why="test", force=True) for guard in (pair.guard, second)
    )
    (shelf / last.guard[:16] / "head.npz").write_bytes(b"cut")
    settings = Settings(model=pair.model, guard=shelf, port=0, metrics_port=0, reload_s=0)
    with running(settings) as server, Client(server.address) as client:
        assert client.describe().guard == first.guard
        assert len(client.inspect(mixed[:2])) == 2
        rollback(shelf, who="us", why="test")
        on_loop(server.server.reload())
        assert client.describe().guard == first.guard
    (shelf / first.guard[:16] / "head.npz").write_bytes(b"cut")
    with pytest.raises(StartError, match=r"head\.npz"), running(settings):
        pass


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "name", ["refusals", "rotation", "drain", "kill", "overload", "fuzz", "soak"]
)
def test_exercise(name: str) -> None:
    """The exercise in its short form; goals of time and memory are for a machine of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", name, "--short", "--json", "-"],
        cwd=ROOT, capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    findings = json.loads(done.stdout)
    assert findings, done.stderr
    assert [row for row in findings if not row["sound"]] == []
