"""What a server says of guards that have no single threshold, asked by real callers."""

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from reluguard.detector.artifact import read_guard, write_guard
from reluguard.detector.runtime import Guard
from reluguard.service.background import Running, running
from reluguard.service.client.client import Client
from reluguard.service.web.fetched import in_words
from tests.conftest import guard_for, network
from tests.looking import going_by_class, looking_twice

FPR = 0.05
MANY = 1200


def fetch(server: Running, path: str) -> str:
    with urllib.request.urlopen(f"http://{server.metrics_address}{path}", timeout=30) as reply:
        return str(reply.read().decode())


def series(server: Running, prefix: str) -> dict[tuple[str, str], float]:
    """Return the values of series whose name begins so, by name and bound."""
    return {
        (sample.name, sample.labels.get("bound", "")): sample.value
        for family in text_string_to_metric_families(fetch(server, "/metrics"))
        for sample in family.samples
        if sample.name.startswith(prefix)
    }


@pytest.fixture(scope="module")
def by_class(
    tiny_model: Path, tiny_guard: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, Guard]]:
    folder = going_by_class(tiny_model, tiny_guard, tmp_path_factory.mktemp("by class") / "guard")
    guard = Guard.open(tiny_model, folder, challenger=folder, threads=1)  # in its own shadow
    with running(guard) as server:
        yield server, guard


def test_thresholds_by_class_are_described(by_class: tuple[Running, Guard]) -> None:
    """That they are, and each of them; no single one is claimed."""
    server, guard = by_class
    with Client(server.address) as client:
        said = client.describe()
    assert (said.is_by_class, said.looks, said.target_fpr) == (True, "first", FPR)
    assert np.isnan(said.thresholds[FPR])
    np.testing.assert_array_equal(said.thresholds_by_class[FPR], guard.artifact.head.limits(FPR))
    assert said.second_thresholds == {}


def test_page_json_command_and_metrics_tell_of_no_single_one(
    by_class: tuple[Running, Guard],
) -> None:
    """One plain line, the ends, and the promise; of the challenger too."""
    server, guard = by_class
    shown = guard.thresholds
    assert f"<th>Flags<td>{shown.words}" in fetch(server, "/")
    assert "5.00% false positives, of each class" in fetch(server, "/")
    document = json.loads(fetch(server, "/status.json"))
    (model,) = document["models"]
    for told in (model["guard"], model["challenger"]["guard"]):
        assert (told["threshold"], told["by_class"], told["flags"]) == (None, True, shown.words)
        assert (told["lowest"], told["highest"]) == (shown.lowest, shown.highest)
    assert f"  flags {shown.words}: 5.00% of clean images of each class" in in_words(document)
    ends = {"lowest": shown.lowest, "highest": shown.highest}
    for prefix in ("reluguard_threshold", "reluguard_challenger_threshold"):
        assert series(server, prefix) == {(f"{prefix}_bound", end): at for end, at in ends.items()}
    assert series(server, "reluguard_target_ratio") == {("reluguard_target_ratio", ""): FPR}
    assert 'thresholds="by_class"' in fetch(server, "/metrics")


@pytest.mark.parametrize("looks", ["suspicious", "always"])
def test_a_guard_that_looks_twice_says_which_score_decides(
    looks: Any, tiny_model: Path, tiny_guard: Path, tmp_path: Path
) -> None:
    """Describe has the second threshold, the page its line, and no metric claims a single one."""
    twice = looking_twice(tiny_model, tiny_guard, tmp_path / "twice")
    guard = Guard.open(tiny_model, twice, threads=1, looks=looks)
    with running(guard) as server:
        with Client(server.address) as client:
            said = client.describe()
        shown = guard.thresholds
        assert shown.second is not None
        assert (said.is_by_class, said.looks) == (False, looks)
        assert np.isnan(said.thresholds[FPR])
        np.testing.assert_array_equal(said.second_thresholds[FPR], shown.second)
        assert f"<th>Flags<td>{shown.words}" in fetch(server, "/")
        assert set(series(server, "reluguard_threshold")) == {
            ("reluguard_threshold_bound", "lowest"),
            ("reluguard_threshold_bound", "highest"),
        }
        assert f'looks="{looks}"' in fetch(server, "/metrics")


def test_a_thousand_classes_do_not_swell_what_is_said(tmp_path: Path) -> None:
    """Beyond 1,024 Describe gives the ends alone, and metrics have as many series as ever."""
    model = tmp_path / "model.onnx"
    onnx.save(network(classes=MANY), model)
    read = read_guard(guard_for(model, tmp_path / "drawn"))
    groups = np.arange(MANY, dtype=np.int64) % 2
    head = read.head
    of_clean = np.arange(len(head.clean_scores), dtype=np.int64) % 2
    by_two = replace(head, class_groups=groups, clean_groups=of_clean)
    guard = Guard.open(
        model,
        write_guard(
            tmp_path / "guard", manifest=read.manifest, head=by_two, golden=read.golden
        ).path,
        threads=1,
    )
    with running(guard) as server:
        with Client(server.address) as client:
            said = client.describe()
        assert said.is_by_class
        assert said.thresholds_by_class == {}
        assert len(series(server, "reluguard_threshold")) == 2
        assert "(2 thresholds)" in fetch(server, "/")
