"""A work folder belongs to one process at a time: two would write the same shards."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reluguard.commands.app import app
from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.errors import HeldError
from reluguard.detector.lock import LOCK, hold
from reluguard.training.errors import DataError
from reluguard.training.evaluate import evaluate
from reluguard.training.redteam import redteam
from tests.training.fitting import Order

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[[Order, Path, Path], object]


def fit(settings: Order, guard: Path, work: Path) -> None:
    del guard
    replace(settings, out=work.parent / "new", work=work).run()


def judge(settings: Order, guard: Path, work: Path) -> None:
    evaluate(settings.model, guard, settings.data, out=work.parent, work=work, limit=8, threads=1)


def attack(settings: Order, guard: Path, work: Path) -> None:
    redteam(settings.model, guard, settings.data, out=work.parent, limit=8, threads=1)


def learn(settings: Order, guard: Path, work: Path) -> None:
    command = ["retrain", "--guard", guard, "--model", settings.model, "--work", work]
    command += ["--out", work.parent / "new", "--attack", "pgd-linf-8", "--threads", 1, "--json"]
    CliRunner().invoke(app, [str(word) for word in command], catch_exceptions=False)


@pytest.mark.parametrize("command", [fit, judge, attack, learn])
def test_what_another_process_works_in_is_left_alone(
    command: Command, fitted: GuardArtifact, fit_settings: Order, tmp_path: Path
) -> None:
    """The refusal names the folder and the process, and not a file has changed."""
    work = tmp_path / "work"
    shutil.copytree(fit_settings.shards, work)
    with hold(work):
        before = {file: file.stat().st_mtime_ns for file in work.rglob("*")}
        told = f"expected {re.escape(str(work))} for this process alone, process {os.getpid()} on"
        with pytest.raises(HeldError, match=told):
            command(fit_settings, fitted.path, work)
        assert {file: file.stat().st_mtime_ns for file in work.rglob("*")} == before
    assert [file.name for file in tmp_path.iterdir()] == ["work"]


def test_retraining_makes_no_work_folder(
    fitted: GuardArtifact, fit_settings: Order, tmp_path: Path
) -> None:
    """A harvest that is not there is said to be missing, not held."""
    with pytest.raises(DataError, match="expected the harvest of"):
        learn(fit_settings, fitted.path, tmp_path / "work")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_second_fit_is_refused_until_the_first_is_killed(
    fit_settings: Order, tmp_path: Path
) -> None:
    """Two commands at once: the later one ends in a line that names the earlier one's process."""
    command = [
        *(sys.executable, "-m", "reluguard", "fit", "--recipe", "quick", "--json"),
        *("--model", str(fit_settings.model), "--data", fit_settings.data),
        *("--out", str(tmp_path / "g"), "--threads", "1", "--workers", "2"),
    ]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as first:
        while first.poll() is None and not list(tmp_path.glob("g.work/*/*.npz")):
            os.sched_yield()
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert first.poll() is None
        os.kill(first.pid, signal.SIGKILL)
    assert second.returncode == 1
    *notes, last = second.stderr.splitlines()
    assert all(note.startswith("reluguard: note: ") for note in notes)
    assert f"{tmp_path / 'g.work'} for this process alone, process {first.pid} on" in last
    with hold(tmp_path / "g.work"):  # workers of the killed one may live a moment longer
        assert (tmp_path / "g.work" / LOCK).is_file()
