"""The benchmark of the server: its arithmetic, and that it runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.calls import share_of
from benchmarks.load import Load, arrivals
from benchmarks.serve_load import ideal, summary, table

ROOT = Path(__file__).resolve().parents[2]


def load(rate: float) -> Load:
    return Load(address="", method="", request="", seconds=200.0, rate=rate)


def runs(seconds_per_image: float) -> dict[str, Any]:
    """Return what a bare loop reports for a model that batches gain nothing on."""
    return {str(n): {"p50_ms": n * seconds_per_image * 1000} for n in (1, 8, 32)}


def test_arrivals_come_at_their_rate_and_are_the_same_again() -> None:
    """Poisson: ascending moments whose gaps have the rate's mean, by seed."""
    due = arrivals(50.0, 200.0, 1)
    assert (np.diff(due) >= 0).all()
    assert np.diff(due).mean() == pytest.approx(1 / 50, rel=0.05)
    np.testing.assert_array_equal(due, arrivals(50.0, 200.0, 1))
    assert (due != arrivals(50.0, 200.0, 2)).any()


def test_a_queue_that_is_hardly_used_takes_one_run() -> None:
    """Without company a request takes as long as the model does alone."""
    found = ideal(load(0.5), runs(0.01), 100.0)
    assert found["p50_ms"] == pytest.approx(10.0)


def test_waiting_grows_with_the_load() -> None:
    """The nearer to capacity, the longer half of the requests and the slowest ones take."""
    found = [ideal(load(rate), runs(0.01), 100.0) for rate in (20.0, 50.0, 80.0, 95.0)]
    for key in ("p50_ms", "p99_ms"):
        assert sorted(row[key] for row in found) == [row[key] for row in found]
    assert found[0]["p99_ms"] > 10.0


def test_runs_are_stretched_to_the_capacity() -> None:
    """A server of half the bare loop's speed takes twice as long at half the rate."""
    slow = ideal(
        Load(address="", method="", request="", seconds=400.0, rate=40.0), runs(0.01), 50.0
    )
    fast = ideal(load(80.0), runs(0.01), 100.0)
    assert slow["p50_ms"] == pytest.approx(2 * fast["p50_ms"], rel=0.01)


def found_with(share: float) -> dict[str, Any]:
    """Return a round in which every goal is reached and a thread got this share of its core."""
    asked = {"images_per_s": 99.0, "p50_ms": 1.0, "p99_ms": 1.5, "accepted": 9, "asked_per_s": 80.0}
    bare = {str(n): {"images_per_s": 100.0, "p50_ms": 0.9, "p99_ms": 1.0, "share": share}
            for n in (1, 8, 32)}  # fmt: skip
    kinds = ("open inference", "inspect")
    loaded = {f"{kind}, loaded{more}": asked for kind in kinds for more in ("", ", ideal")}
    return {"bare": bare, "callers_share": 1.0, **{kind: {"1": asked} for kind in kinds}, **loaded}


@pytest.mark.parametrize(("shares", "met"), [([0.99, 1.0], True), ([1.0, 0.6, 1.0], None)])
def test_nothing_is_met_or_missed_on_a_busy_machine(shares: list[float], met: bool | None) -> None:
    """One round in which another had the core is enough to say nothing."""
    network = {"network": "n", **summary([found_with(share) for share in shares], small=True)}
    for figures in network["figures"].values():
        assert {found["met"] for key, found in figures.items() if key != "ideal"} == {met}
    text = table({"rounds": len(shares), "networks": [network]})
    assert ("goal >= 0.8: met" in text) == bool(met)
    assert ("not measurable here: a busy thread got 60% of its core" in text) == (met is None)
    assert "MISSED" not in text


def test_a_share_is_of_the_time() -> None:
    """A thread that has a core to itself gets nearly all of it, and never more."""
    assert 0 < share_of(os.sched_getaffinity(0), seconds=0.05) <= 1.01


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="server and callers need a core each")
def test_the_benchmark_runs(tiny_model: Path, tiny_guard: Path) -> None:
    """Both protocols, closed and open, with every figure that has a goal."""
    command = [sys.executable, "-m", "benchmarks.serve_load", "--model", str(tiny_model), "--guard"]
    more = [str(tiny_guard), "--rounds", "1", "--seconds", "0.3", "--callers", "1", "2"]
    done = subprocess.run(
        [*command, *more, "--json", "-"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    report = json.loads(done.stdout)
    (network,) = report["networks"]
    assert set(network["figures"]) == {"open inference", "inspect"}
    for figures in network["figures"].values():
        assert {"throughput_ratio", "added_p50_ms", "loaded_p99_over_p50"} <= set(figures)
    (asked,) = network["rounds"]
    assert all(asked[who]["1"]["images_per_s"] > 0 for who in ("bare", "inspect"))
    assert asked["inspect, loaded"]["accepted"] > 0
    assert asked["inspect, loaded"]["other"] == {}
    assert "throughput / bare" in table(report)
