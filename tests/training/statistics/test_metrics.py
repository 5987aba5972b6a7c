"""AUROC, rates and their intervals."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from reluguard.training.errors import DataError
from reluguard.training.statistics.metrics import (
    Interval,
    auroc,
    auroc_interval,
    detected_below,
    rate_above,
    rate_interval,
)

# few distinct values, so that most draws have ties
scores = st.lists(st.integers(-4, 4), min_size=1, max_size=40).map(
    lambda values: np.array(values, np.float32)
)


@given(scores, scores)
def test_auroc_is_sklearns(clean: NDArray[np.float32], attacked: NDArray[np.float32]) -> None:
    """The rank form agrees with scikit-learn's curve, ties included."""
    truth = np.repeat([0, 1], [len(clean), len(attacked)])
    reference = roc_auc_score(truth, np.concatenate([clean, attacked]))
    assert auroc(clean, attacked) == pytest.approx(reference, abs=1e-12)


@given(scores, scores)
def test_auroc_is_antisymmetric(clean: NDArray[np.float32], attacked: NDArray[np.float32]) -> None:
    """Exchanging the sides mirrors the value, and only the order of scores counts."""
    value = auroc(clean, attacked)
    assert auroc(attacked, clean) == pytest.approx(1 - value, abs=1e-12)
    assert auroc(clean**3 - 7, attacked**3 - 7) == value


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_rate_interval_is_wilsons(counts: tuple[int, int]) -> None:
    """The interval solves |p - hits / n| = z sqrt(p (1 - p) / n)."""
    hits, n = counts
    z = 1.959963984540054
    p = hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    interval = rate_interval(hits, n)
    assert interval.value == p
    assert interval.n == n
    assert interval.low == pytest.approx(max(0.0, middle - half), abs=1e-9)
    assert interval.high == pytest.approx(min(1.0, middle + half), abs=1e-9)
    assert interval.low <= p + 1e-12
    assert interval.high >= p - 1e-12


def test_a_score_at_the_threshold_is_not_above() -> None:
    """A threshold kept as a double compares as the single-precision score it came from."""
    values = np.array([0.1, 0.2, 0.3], np.float32)
    assert rate_above(values, float(values[1])).value == pytest.approx(1 / 3)
    assert rate_above(values, 0.2).value == pytest.approx(1 / 3)


def sides(seed: int, n: int = 60) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, n).round(1), rng.normal(1, 1, n).round(1)


@pytest.mark.parametrize("seed", range(4))
def test_bootstrap_repeats_and_holds_the_value(seed: int) -> None:
    """The same seed gives the same interval, which contains the value; another seed another."""
    clean, attacked = sides(seed)
    sources = np.arange(60)
    first, again, other = (
        auroc_interval(clean, sources, attacked, sources, seed=s, draws=300) for s in (1, 1, 2)
    )
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)
    assert first.low < first.value < first.high
    assert first.value == auroc(clean, attacked)
    assert first.n == 60


def test_resampling_goes_by_source() -> None:
    """Five copies of every image add no certainty; as images of their own they would."""
    clean, attacked = sides(5)
    sources = np.arange(60)
    once = auroc_interval(clean, sources, attacked, sources, seed=0, draws=300)
    many = [np.tile(x, 5) for x in (clean, sources, attacked, sources)]
    copies = auroc_interval(*many, seed=0, draws=300)
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high), abs=1e-12)
    own = np.arange(300)
    believed = auroc_interval(many[0], own, many[2], own, seed=0, draws=300)
    assert believed.high - believed.low < 0.6 * (once.high - once.low)


def test_twins_are_drawn_together() -> None:
    """Scores that rise for every image alike are certain, though images differ widely."""
    rng = np.random.default_rng(0)
    level = rng.normal(0, 1, 80)
    sources = np.arange(80)
    paired = auroc_interval(level, sources, level + 0.3, sources, seed=0, draws=400)
    apart = auroc_interval(level, sources, level + 0.3, sources + 80, seed=0, draws=400)
    assert paired.high - paired.low < 0.5 * (apart.high - apart.low)


def test_a_missing_side_has_no_auroc() -> None:
    """Nothing to compare is an error, not a number."""
    none, some = np.zeros(0, np.float32), np.zeros(3, np.float32)
    with pytest.raises(DataError, match="images on both sides, got 0 and 3"):
        auroc(none, some)
    with pytest.raises(DataError, match="images on both sides, got 3 and 0"):
        auroc_interval(some, np.arange(3), none, np.arange(0), seed=0)
    with pytest.raises(DataError, match="at least one image to count a rate on"):
        rate_above(none, 0.0)


def test_an_interval_reads_well() -> None:
    """Text for people, plain values for JSON."""
    interval = Interval(0.5, 0.25, 0.75, 8)
    assert str(interval) == "0.500 [0.250, 0.750]"
    assert interval.to_json() == {"value": 0.5, "low": 0.25, "high": 0.75, "n": 8}


@given(st.tuples(*[st.floats(-1, 1)] * 3), st.integers(0, 1000))
def test_an_interval_comes_back_from_its_plain_values(
    ends: tuple[float, float, float], n: int
) -> None:
    """What is stored of an interval is all of it, whatever is stored beside."""
    interval = Interval(*ends, n)
    assert Interval.from_json({**interval.to_json(), "word": "ahead"}) == interval


def test_a_stored_interval_reads_as_it_did_before() -> None:
    """Tables print stored intervals as the interval prints itself, differences with their sign."""
    stored = Interval(0.25, 0.125, 0.5, 8).to_json()
    assert str(Interval.from_json(stored)) == "0.250 [0.125, 0.500]"
    assert format(Interval.from_json(stored), "+.2f") == "+0.25 [+0.12, +0.50]"


@given(seed=st.integers(0, 2**31), rate=st.sampled_from([0.01, 0.1, 0.5, 1.0]))
@settings(max_examples=25, deadline=None)
def test_found_below_a_rate_is_partial_auroc(seed: int, rate: float) -> None:
    """Over all rates it is AUROC; over few it is what summing detection step by step gives."""
    rng = np.random.default_rng(seed)
    clean = rng.integers(0, 40, 200).astype(np.float64)
    attacked = rng.integers(10, 60, 70).astype(np.float64)
    found = detected_below(clean, attacked, rate=rate)
    assert 0 <= found <= 1
    if rate == 1.0:
        assert found == pytest.approx(auroc(clean, attacked))
    strict = np.sort(clean)[::-1][: round(rate * 200)]
    steps = [(attacked > c).mean() + (attacked == c).mean() / 2 for c in strict]
    assert found == pytest.approx(np.mean(steps))


def test_a_tail_can_differ_where_auroc_does_not() -> None:
    """A few clean images above all attacks cost everything below their share."""
    clean, attacked = np.arange(1000.0), np.full(50, 980.5)
    assert auroc(clean, attacked) > 0.98
    assert detected_below(clean, attacked, rate=0.01) == 0
    assert detected_below(clean, attacked, rate=0.04) == pytest.approx(21 / 40)
    with pytest.raises(DataError, match=r"false-positive rate in \(0, 1\], got 0"):
        detected_below(clean, attacked, rate=0)
    with pytest.raises(DataError, match="images on both sides, got 1000 and 0"):
        detected_below(clean, attacked[:0], rate=0.01)
