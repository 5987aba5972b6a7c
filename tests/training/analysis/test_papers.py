import pytest

from reluguard.training.analysis.claims.claim import claim, judge
from reluguard.training.statistics.metrics import Interval


@pytest.mark.parametrize(
    ("low", "value", "high", "level", "verdict"),
    [
        (0.96, 0.97, 0.98, False, "holds"),
        (0.94, 0.97, 0.98, False, "can't be told here"),
        (0.90, 0.93, 0.95, False, "fails"),
        (0.80, 0.85, 0.90, False, "fails"),
        (0.95, 0.97, 0.98, False, "can't be told here"),
        (0.95, 0.97, 0.98, True, "holds"),
        (0.90, 0.93, 0.95, True, "can't be told here"),
        (0.90, 0.93, 0.94, True, "fails"),
    ],
    ids=str,
)
def test_a_claim_holds_with_its_whole_interval(
    low: float, value: float, high: float, level: bool, verdict: str
) -> None:
    """A claim holds above its target, fails at or below it, and can't be told across it.

    Where as much as the target is enough, it holds at the target too.
    """
    holds, why = judge(Interval(value, low, high, 10), 0.95, level=level)
    assert holds == verdict
    assert "0.95" in why


@pytest.mark.parametrize("ours", [None, Interval(float("nan"), 0, 1, 3)], ids=str)
def test_what_was_not_measured_is_not_judged(ours: Interval | None) -> None:
    """No figure, or one that is not a number, neither holds nor fails, and says why."""
    line = claim(
        "A", "x", theirs="y", setup="s", measure="m", ours=ours, target=0.5, note="no second tap"
    )
    assert (line.holds, line.why) == ("can't be told here", "not measured; no second tap")
