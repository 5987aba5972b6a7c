"""Engines: the same files from anywhere, and a lost actor costs one shard."""

import hashlib
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reluguard.detector.errors import SettingsError
from reluguard.detector.model import infer_spec, load_production
from reluguard.detector.taps import find_taps
from reluguard.training.attacks import FGSM
from reluguard.training.changes import GaussianNoise
from reluguard.training.data.dataset import Dataset
from reluguard.training.harvest.engine import check_engine
from reluguard.training.harvest.harvest import harvest
from reluguard.training.harvest.orders import Job, Orders, plan_jobs

SOURCES = {"fit": np.arange(0, 600), "test": np.arange(600, 640)}
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'reluguard[ray]'"
)


@pytest.fixture
def order(digits: Dataset, digits_model: Path, tmp_path: Path) -> Callable[[str], Orders]:
    """Orders for 640 digits: clean, FGSM and noise."""
    production = load_production(digits_model)
    spec = infer_spec(production, (8, 8, 1))
    made = Orders(
        model=digits_model,
        output=production.answer,
        spec=spec,
        taps=find_taps(production, spec),
        twin="auto",
        dataset=digits.take(np.arange(640)),
        changes={c.name: c for c in (FGSM(size=40.0), GaussianNoise(sigma=9.0))},
        workspace=tmp_path,
        seed=3,
        threads=1,
    )
    return lambda folder: replace(made, workspace=tmp_path / folder)


def jobs() -> list[Job]:
    return [
        *plan_jobs("clean", "clean", SOURCES),
        *plan_jobs("fgsm-linf-40", "attack", SOURCES),
        *plan_jobs("gaussian-9", "benign", SOURCES),
    ]


def digests(orders: Orders) -> dict[str, str]:
    files = {job.file: orders.workspace / job.file for job in jobs()}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def test_an_unknown_engine_is_refused(order: Callable[[str], Orders]) -> None:
    """Before anything is opened, with the names there are."""
    with pytest.raises(SettingsError, match="expected an engine of local, ray, got 'spark'"):
        harvest(jobs(), order("work"), workers=1, engine="spark")


def test_ray_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install; local needs nothing."""
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(SettingsError, match=r"pip install 'reluguard\[ray\]'"):
        check_engine("ray")
    assert check_engine("local") == "local"


@pytest.mark.slow
@needs_ray
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_writes_the_same_files_though_an_actor_is_killed(
    order: Callable[[str], Orders],
) -> None:
    """Bit for bit what this process writes; of what was made before the kill nothing is remade."""
    local, ray = order("local"), order("ray")
    harvest(jobs(), local, workers=1)
    stamps: dict[str, int] = {}

    def kill_one(_: Job) -> None:
        if not stamps:
            made = [job.file for job in jobs() if (ray.workspace / job.file).is_file()]
            stamps.update({name: (ray.workspace / name).stat().st_mtime_ns for name in made})
            actors = [pid for pid in _children() if "RayActor" in _title(pid)]
            assert actors
            os.kill(actors[0], signal.SIGKILL)

    told: list[str] = []

    def progress(job: Job) -> None:
        told.append(job.file)
        kill_one(job)

    harvest(jobs(), ray, workers=2, engine="ray", progress=progress)
    assert stamps
    assert sorted(told) == sorted(job.file for job in jobs())
    assert digests(local) == digests(ray)
    for name, stamp in stamps.items():
        assert (ray.workspace / name).stat().st_mtime_ns == stamp
    assert len(list(ray.workspace.rglob(".*.npz*"))) <= 1  # what the killed actor was writing


def _children() -> list[int]:
    """Return every process that descends from this one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found, frontier = [], {os.getpid()}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier}
        found += sorted(frontier)
    return found


def _title(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
