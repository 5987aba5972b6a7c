import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from sklearn.naive_bayes import BernoulliNB

from reluguard.training.analysis.pattern import pack
from reluguard.training.analysis.voting import fit_voter, gather_bits, name_channels
from reluguard.training.errors import ConstantError, ShapeError


def planted(n: int, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Clean and attacked bits that differ at places 3 (on) and 17 (off) of 40 only."""
    rng = np.random.default_rng(seed)
    clean, attacked = rng.random((2, n, 40)) < 0.5
    clean[:, 3], attacked[:, 3] = rng.random((2, n)) < np.array([[0.1], [0.9]])
    clean[:, 17], attacked[:, 17] = rng.random((2, n)) < np.array([[0.8], [0.1]])
    return clean, attacked


def test_planted_bits_are_found_and_vote_right() -> None:
    """The two bits that differ are named with their direction, and rank fresh images."""
    clean, attacked = planted(500, 0)
    voter = fit_voter(pack(clean), pack(attacked), 40, voters=2)
    assert_array_equal(voter.indices, [3, 17])
    assert_array_equal(voter.on_means_attacked, [True, False])
    assert voter.margins[0] >= voter.margins[1] > 0.5
    fresh_clean, fresh_attacked = planted(500, 1)
    assert voter.score(pack(fresh_attacked)).mean() > 0.85
    assert voter.score(pack(fresh_clean)).mean() < 0.2


def test_swapping_the_groups_turns_every_vote() -> None:
    """Who is called attacked only turns the score around."""
    clean, attacked = map(pack, planted(200, 2))
    one, other = fit_voter(clean, attacked, 40), fit_voter(attacked, clean, 40)
    assert_array_equal(one.indices, other.indices)
    moved = one.margins > 0
    assert_array_equal(one.on_means_attacked[moved], ~other.on_means_attacked[moved])


def test_vote_ranks_as_naive_bayes_with_equal_weights() -> None:
    """With voters of one margin the vote is a monotone function of Bernoulli naive Bayes."""
    clean, attacked = planted(800, 3)
    voter = fit_voter(pack(clean), pack(attacked), 40, voters=2)
    x = np.concatenate([clean, attacked])
    bayes = BernoulliNB().fit(x[:, voter.indices], np.arange(1600) >= 800)
    odds = np.diff(bayes.predict_log_proba(x[:, voter.indices]), axis=1)[:, 0]
    votes = voter.score(pack(x))
    assert odds[votes == 1].min() > odds[votes == 0.5].max() > odds[votes == 0].max()


def test_gather_reads_the_bits_that_were_packed() -> None:
    """Chosen bits come back in the order asked for."""
    active = np.random.default_rng(4).random((9, 77)) < 0.5
    chosen = np.array([76, 0, 8, 7, 33])
    assert_array_equal(gather_bits(pack(active), chosen), active[:, chosen])


def test_channels_are_named_by_votes() -> None:
    """Bits are counted by the channel they lie in, most first."""
    assert name_channels(np.array([0, 5, 4, 11]), (3, 2, 2)) == [(1, 2), (0, 1), (2, 1)]
    assert name_channels(np.array([0, 3, 4]), (2, 3), channel_axis=1) == [(0, 2), (1, 1)]


def test_errors_say_what_came() -> None:
    """No difference, no voter and wrong widths are named."""
    same = np.zeros((3, 2), np.uint8)
    with pytest.raises(ConstantError, match="none of its 16 bits differs by group"):
        fit_voter(same, same, 16)
    with pytest.raises(ShapeError, match="one or more voters, got 0"):
        fit_voter(same, same, 16, voters=0)
    voter = fit_voter(same, same + 1, 16)
    assert_allclose(voter.margins[:2], 1)
    with pytest.raises(ShapeError, match="2 bytes for 16 bits, got 3"):
        voter.score(np.zeros((3, 3), np.uint8))
    with pytest.raises(ShapeError, match="expected bits below 16, got 16"):
        gather_bits(same, np.array([16]))
