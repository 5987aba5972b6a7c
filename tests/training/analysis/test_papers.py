import pytest

from reluguard.training.analysis.papers import judge
from reluguard.training.statistics.metrics import Interval


@pytest.mark.parametrize(
    ("low", "value", "high", "verdict"),
    [
        (0.96, 0.97, 0.98, "yes"),
        (0.94, 0.97, 0.98, "unclear"),
        (0.90, 0.93, 0.95, "no"),
        (0.80, 0.85, 0.90, "no"),
    ],
    ids=str,
)
def test_a_claim_holds_with_its_whole_interval(
    low: float, value: float, high: float, verdict: str
) -> None:
    """A claim holds above its target, fails at or below it, and is unclear across it."""
    assert judge(Interval(value, low, high, 10), 0.95) == verdict


def test_what_was_not_measured_is_not_judged() -> None:
    """No figure, or one that is not a number, is neither yes nor no."""
    assert judge(None, 0.5) == "not measured"
    assert judge(Interval(float("nan"), 0, 1, 3), 0.5) == "not measured"
