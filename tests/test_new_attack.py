"""The exercise of benchmarks/new_attack.py on digits, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_a_guard_in_production_learns_an_attack_it_has_never_seen(tmp_path: Path) -> None:
    """Labels, retraining, gate, promotion under load, detection doubled, rolled back."""
    command = [sys.executable, "benchmarks/new_attack.py", "--json", "--requests", "3000"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stdout, done.stderr
    (report,) = json.loads(done.stdout)
    assert done.returncode == 0, report["gate"]
    assert report["traffic"]["calm_advice"] == "none"
    assert report["labels"]["taken"] == 200
    before, after = report["before"], report["after"]
    goal = min(0.9, 2 * before["detected_at_5_percent"])
    assert after["detected_at_5_percent"] >= goal
    assert after["false_positive_rate"] < 0.12
    assert report["gate"]["old_worst"][1] >= -0.01
    assert report["failed_requests"] == 0
    assert report["promoted"]["answered"] > 20
    assert report["after_rollback"] == before
    assert report["ceiling"] is None  # the recipe of the digits has no patches
    poisoned = report["poisoned"]
    assert poisoned["stopped"]
    assert any("contradict the rest" in reason for reason in poisoned["gate"]["reasons"])


@pytest.mark.slow
def test_the_exercise_says_what_it_does() -> None:
    """--help names the options and runs nothing."""
    command = [sys.executable, "benchmarks/new_attack.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    for option in ("--attack", "--labels", "--share", "--harvest", "--generator", "--json"):
        assert option in done.stdout
