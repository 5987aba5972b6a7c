import numpy as np
import pytest
from scipy.stats import bootstrap, spearmanr

from reluguard.training.errors import ShapeError
from reluguard.training.statistics import intervals


def test_mean_interval_is_scipys() -> None:
    """The percentile bootstrap of a mean agrees with SciPy's, and holds the mean."""
    values = np.random.default_rng(0).exponential(size=200)
    ours = intervals.mean_of(values)
    theirs = bootstrap((values,), np.mean, method="percentile", rng=1).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.high, abs=0.02)
    assert intervals.mean_of(values, seed=3) == intervals.mean_of(values, seed=3)
    assert intervals.mean_of(values, seed=3) != intervals.mean_of(values, seed=4)


def test_pair_interval_draws_classes() -> None:
    """One odd class widens the interval of a pair mean more than one odd pair does."""
    one_class, one_pair = np.ones((2, 8, 8))
    one_class[0, :] = one_class[:, 0] = 0
    one_pair[0, 1] = one_pair[1, 0] = 0
    wide, narrow = map(intervals.class_pair_mean, (one_class, one_pair))
    assert wide.value == pytest.approx(0.75)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_network_pairs_are_drawn_by_network() -> None:
    """One odd network widens the interval more than one odd pair, and pairs keep their order."""
    pairs = np.array([(a, b) for a in range(8) for b in range(a + 1, 8)])
    one_network = np.where((pairs == 0).any(axis=1), 0.0, 1.0)
    one_pair = np.where((pairs == [0, 1]).all(axis=1), 0.0, 1.0)
    wide, narrow = (intervals.network_pair_mean(v, pairs) for v in (one_network, one_pair))
    assert wide.value == pytest.approx(one_network.mean()) == pytest.approx(0.75)
    assert wide.n == 8
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    mixed = np.random.default_rng(0).normal(size=len(pairs))
    order = np.random.default_rng(1).permutation(len(pairs))
    again = intervals.network_pair_mean(mixed[order], pairs[order])
    assert intervals.network_pair_mean(mixed, pairs) == again
    with pytest.raises(ShapeError, match=r"expected pairs of shape \(3, 2\), got \(28, 2\)"):
        intervals.network_pair_mean(mixed[:3], pairs)


def test_trend_is_spearmans_rho_of_the_mean_profile() -> None:
    """A rising profile has rho 1, a mixed one SciPy's rho."""
    rising = np.arange(6) + np.random.default_rng(1).normal(0, 0.01, (9, 6))
    assert intervals.rank_trend(rising).value == pytest.approx(1)
    mixed = np.random.default_rng(2).normal(size=(9, 6))
    expected = spearmanr(np.arange(6), mixed.mean(axis=0)).statistic
    assert intervals.rank_trend(mixed).value == pytest.approx(expected)


def test_errors_say_what_came() -> None:
    """Nothing to average and too few layers are named."""
    with pytest.raises(ShapeError, match="one or more finite values"):
        intervals.mean_of(np.array([np.nan]))
    with pytest.raises(ShapeError, match="one or more things to resample, got 0"):
        intervals.bootstrap(lambda _: 0.0, 0)
    with pytest.raises(ShapeError, match=r"three or more layers, got \(4, 2\)"):
        intervals.rank_trend(np.ones((4, 2)))
