import numpy as np
import pytest

from reluguard.training.analysis.claims.claim import claim, judge
from reluguard.training.analysis.claims.graphs import matching, matching_asides
from reluguard.training.analysis.seeds import SeedStudy
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


def study(networks: int) -> SeedStudy:
    """Networks whose layers GBS finds always, CKA on spatial means half, on all features never."""
    pairs = np.array([(a, b) for a in range(networks) for b in range(a + 1, networks)])
    rates = {
        name: np.full(len(pairs), rate)
        for name, rate in (
            ("gbs", 1.0), ("gbs_bits", 1.0), ("gbs_near", 0.25), ("cka_averaged", 0.5), ("cka", 0.0)
        )
    }  # fmt: skip
    table = np.eye(3)
    return SeedStudy(
        networks=networks, layers=3, accuracy=np.full(networks, 0.9), pairs=pairs,
        gbs_table=table, cka_table=table, **rates,
    )  # fmt: skip


def test_gbs_is_judged_beside_the_authors_cka_with_networks_enough() -> None:
    """CKA on spatial means decides, CKA on all features stands beside; few networks can't tell."""
    assert [line.holds for line in matching(study(5), 0)] == ["holds", "fails"]
    assert [line.ours.value for line in matching_asides(study(5), 0) if line.ours] == [1.0, 0.25]
    for line in matching(study(4), 0):
        assert line.holds == "can't be told here"
        assert line.why == "4 networks are too few to resample, 5 are asked for"
    (line,) = matching(None, 0)
    assert (line.holds, line.ours) == ("can't be told here", None)
    assert "--papers" in line.why
