"""The bench: what is timed is what runs."""

import itertools
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from reluguard.detector import bench
from reluguard.detector.artifact import read_guard
from reluguard.detector.bench import bench_guard, pair_ratio, plain_seconds
from reluguard.detector.errors import ModelMismatchError
from reluguard.detector.model import infer_spec, load_production


def test_times_are_the_clock_s(
    tiny_model: Path, tiny_guard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that is a second on whenever it is asked, every run takes one second."""
    monkeypatch.setattr(bench, "perf_counter", itertools.count().__next__)
    (row,) = bench_guard(tiny_model, tiny_guard, batches=[4], rounds=5, challenger=tiny_guard)[
        "batches"
    ]
    assert row.pop("batch") == 4
    assert row.pop("overhead_quartiles") == [1, 1]
    assert set(row.values()) == {1}


def test_every_batch_size_has_its_ratio(tiny_model: Path, tiny_guard: Path) -> None:
    """One row per batch size, each with positive times and a ratio between its quartiles."""
    result = bench_guard(tiny_model, tiny_guard, batches=[1, 4], rounds=20)
    assert (result["taps"], result["rounds"], result["threads"]) == (2, 20, 1)
    assert result["nodes_added"] > 0
    assert set(result["overhead_p50"]) == {"1", "4"}
    for row in result["batches"]:
        low, high = row["overhead_quartiles"]
        assert 0 < low <= row["overhead_p50"] <= high
        assert row["plain_p50_s"] > 0
        assert row["guarded_p50_s"] > 0


def test_a_challenger_is_timed_beside(
    tmp_path: Path, tiny_model: Path, tiny_guard: Path, make_guard: Callable[..., Path]
) -> None:
    """Its ratio is to the guarded model, in the same turns."""
    rival = make_guard(tiny_model, tmp_path / "rival", seed=3)
    result = bench_guard(tiny_model, tiny_guard, batches=[1, 4], rounds=20, challenger=rival)
    for row in result["batches"]:
        assert row["challenger_overhead_p50"] > 0
        assert row["overhead_p50"] > 0
    alone = bench_guard(tiny_model, tiny_guard, batches=[1], rounds=1)
    assert "challenger_overhead_p50" not in alone["batches"][0]


def test_a_fixed_batch_is_the_only_one_timed(
    tmp_path: Path,
    make_network: Callable[..., onnx.ModelProto],
    make_guard: Callable[..., Path],
) -> None:
    """A model that takes six images at once is timed at six."""
    model = tmp_path / "six.onnx"
    onnx.save(make_network(batch=6), model)
    result = bench_guard(model, make_guard(model, tmp_path / "guard"), batches=[1, 2], rounds=3)
    assert set(result["overhead_p50"]) == {"6"}


def test_a_guard_of_another_model_is_refused(
    tmp_path: Path, tiny_guard: Path, make_network: Callable[..., onnx.ModelProto]
) -> None:
    """Nothing is timed that could not be served."""
    onnx.save(make_network(seed=9), tmp_path / "other.onnx")
    with pytest.raises(ModelMismatchError, match="was fitted to the model"):
        bench_guard(tmp_path / "other.onnx", tiny_guard, batches=[1], rounds=1)


def test_choices_are_timed_by_the_clock(
    tiny_model: Path, tiny_guard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that is a second on whenever it is asked, a guard costs nothing."""
    monkeypatch.setattr(bench, "perf_counter", itertools.count().__next__)
    production = load_production(tiny_model)
    spec = infer_spec(production, (8, 8, 1))
    guard = read_guard(tiny_guard)
    taps, head = guard.manifest.taps, guard.head
    assert pair_ratio(production, spec, taps, head, batch=2, rounds=3, threads=2) == 1
    assert plain_seconds(production, spec, batch=2, rounds=3, threads=2) == 1
