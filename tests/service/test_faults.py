"""What faults and load brought to light, and the exercises themselves in short."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from detector.images import Images
from detector.runtime import Guard
from service.client import Client
from service.server import running

ROOT = Path(__file__).parents[2]


class _Nice:
    """A real guard that writes down how nice the thread is that runs it."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self.seen: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guard, name)

    def run(self, tensor: NDArray[np.float32]) -> Any:
        """Run the real guard."""
        self.seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return self._guard.run(tensor)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have their own priority on Linux")
def test_the_model_gives_way_to_the_event_loop(guard: Guard, mixed: Images) -> None:
    """Under overload the loop refuses in time because model threads have a lower priority."""
    nice: Any = _Nice(guard)
    with running(nice) as server, Client(server.address) as client:
        client.inspect(mixed[:1])
    assert min(nice.seen) > os.getpriority(os.PRIO_PROCESS, 0)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["soak"])
def test_exercise(name: str) -> None:
    """Every goal of the exercise is met, in its short form."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", name, "--short", "--json", "-"],
        cwd=ROOT, capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    findings = json.loads(done.stdout)
    assert [row for row in findings if not row["met"]] == []
    assert done.returncode == 0
