"""Tests for figures told in the right number and the right order."""

import io
from typing import Any

import pytest
from rich.console import Console

from reluguard.detector.metrics import Interval
from reluguard.training.evaluation.figures import Precision
from reluguard.training.pages.evaluation import precision_table
from reluguard.training.pages.red_team_words import attack_legend, pair_sentences
from reluguard.training.pages.report_card_text import print_precision
from reluguard.training.red_team.aware_attacks import (
    CombinedLogit,
    Lagrangian,
    Mimicry,
    Orthogonal,
    Selective,
)
from reluguard.training.red_team.report import BEST, SEARCH, Pair

# as JSON gives it back, its names in the order of their letters
SHARES = {"0.001": 0.2, "0.01": 0.7, "1e-05": 0.1}
FOUND = {"0.05": Precision(mean_detected=0.5, false_positive_rate=0.05, precision=SHARES)}


def test_common_attacks_come_first() -> None:
    """On the terminal and on the page: 1 request in 100, in 1,000, in 100,000."""
    stream = io.StringIO()
    print_precision(Console(file=stream, width=200), FOUND)
    for text in (stream.getvalue(), precision_table(FOUND)):
        assert text.index("in 100<" if "<" in text else "in 100 ") < text.index("in 1,000")
        assert text.index("in 1,000") < text.index("in 100,000")
        assert text.index("0.7") < text.index("0.2") < text.index("0.1")


@pytest.mark.parametrize(
    ("change", "said"),
    [(1.0, "one 8-bit step in Linf"), (2.0, "two 8-bit steps in Linf"), (0.5, "0.5 8-bit steps")],
)
def test_one_step_is_one(change: float, said: str) -> None:
    """One step is told as one, several as several."""
    half = Interval(value=1.0, low=0.9, high=1.1, n=12)
    pair = Pair(
        images=12, rate="0.05", guarded_change=change, bare_change=1.0, ratio=half, guarded=half,
        bare=half, unnoticed=None,
    )  # fmt: skip
    report: Any = type("Report", (), {"smallest": {"linf": pair}, "asking_only": {}})
    assert said in pair_sentences(report)[0]


def test_every_attack_of_the_red_team_is_explained_once() -> None:
    """The table's names have a legend, and none that is not in the table."""
    kinds = (Selective, Orthogonal, CombinedLogit, Lagrangian, Mimicry)
    names = [*(kind.label for kind in kinds), SEARCH, BEST]
    legend = attack_legend(names * 2)
    assert [line.partition(":")[0] for line in legend] == names
    assert attack_legend(["mine:attack"]) == []


def test_rare_precision_is_written_out() -> None:
    """No reader has to know what 9e-05 means."""
    found = {
        "0.05": Precision(mean_detected=0.5, false_positive_rate=0.05, precision={"1e-05": 9e-5})
    }
    assert "0.00009" in precision_table(found)
