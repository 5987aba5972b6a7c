"""Numbers to beat: a row says met only where it is."""

from typing import Any

import pytest

from benchmarks.goals import Figure, numbers_to_beat
from reluguard.training.attacks import attack_named
from reluguard.training.evaluation.threats import threat_of


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (0.97, 0.96, 0.98, "met"),
        (0.96, 0.94, 0.98, "met, within error"),
        (0.94, 0.92, 0.96, "short, within error"),
        (0.90, 0.88, 0.92, "short"),
    ],
)
def test_the_interval_says_how_sure_a_verdict_is(
    value: float, low: float, high: float, verdict: str
) -> None:
    """Against a bound below and, mirrored, against one above."""
    entry = {"value": value, "low": low, "high": high}
    assert Figure.of("x", entry, least=0.95).verdict == verdict
    mirrored = {"value": 1 - value, "low": 1 - high, "high": 1 - low}
    assert Figure.of("x", mirrored, most=0.05).verdict == verdict


def test_a_rate_must_be_neither_too_low_nor_too_high() -> None:
    """Flagging no clean image at all misses the rate as much as flagging too many."""
    for value, verdict in ((0.05, "met, within error"), (0.03, "short"), (0.07, "short")):
        entry = {"value": value, "low": value - 0.01, "high": value + 0.01}
        assert Figure.of("rate", entry, least=0.044, most=0.056).verdict == verdict


def interval(value: float, half: float = 0.004) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half, "n": 500}


def card(**attacks: float) -> dict[str, Any]:
    entries = {
        slug.replace("_", "-"): {"auroc": interval(area), "detected": {"0.01": interval(0.99)}}
        for slug, area in attacks.items()
    }
    return {
        "attacks": entries,
        "baselines": {},
        "clean": {"false_positive_rate": {"0.01": interval(0.01), "0.05": interval(0.05)}},
        "benign": {"sign-2": {"0.05": interval(0.04)}, "flip": {"0.05": interval(0.5)}},
        "severity": {"jpeg": {"1": {"0.05": interval(0.03)}, "5": {"0.05": interval(0.9)}}},
    }


def rows(found: dict[str, Any], metrics: dict[str, Any], size: int) -> dict[str, dict[str, Any]]:
    return {row["what"].split(" ")[0]: row for row in numbers_to_beat(found, metrics, size)}


def test_a_row_is_as_good_as_its_worst_figure() -> None:
    """One attack short makes its row short; what nobody measured does not."""
    table = numbers_to_beat(card(pgd_linf_2=0.98, pgd_linf_1=0.85), {}, 500)
    assert [row["verdict"] for row in table[:2]] == ["not measured", "short"]
    table = numbers_to_beat(card(pgd_linf_4=0.997, pgd_linf_2=0.98, pgd_linf_1=0.92), {}, 500)
    assert [row["verdict"] for row in table[:2]] == ["met, within error", "met"]


def test_only_mild_changes_are_held_to_ten_per_cent() -> None:
    """A mirror image or the strongest JPEG is in the curves, not in this row."""
    found = rows(card(), {}, 500)
    names = [figure["name"] for figure in found["harmless"]["figures"]]
    assert names == ["sign-2", "jpeg-c1"]
    assert found["harmless"]["verdict"] == "met"
    assert found["clean"]["verdict"] == "met, within error"


def test_what_lies_in_the_manifest_is_held_against_its_goal() -> None:
    """The red team's figures, the time of a fit that resumed nothing, and the size."""
    red_team = {
        "evaded": {"2.55": {"0.05": interval(0.97)}, "4": {"0.05": interval(1.0)}},
        "median_budget": {"l2": {"0.05": 0.12, "bare model": 0.10}},
    }
    metrics = {"red_team": red_team, "seconds": 600.0, "resumed": False}
    found = rows(card(), metrics, 2_000_000)
    assert found["attacker"]["verdict"] == "short"
    assert found["attacker"]["figures"][-1]["value"] == pytest.approx(1.2)
    assert found["time"]["verdict"] == "met"
    assert found["guard"]["verdict"] == "short"
    assert rows(card(), {"seconds": 30.0}, 9)["time"]["verdict"] == "not measured"


def test_threat_models_are_told_apart() -> None:
    """By what an attack is given, whatever it is called."""
    expected = {
        "pgd-linf-4": "white box",
        "deepfool-l2": "white box",
        "art-newtonfool": "white box",
        "square-linf-8": "black box",
        "hopskipjump-l2": "black box",
        "transfer-mifgsm-linf-8": "transfer",
        "ensemble-transfer": "transfer",
        "spatial": "place",
        "patch-6": "place",
    }
    assert {name: threat_of(attack_named(name)) for name in expected} == expected
