"""Draws of source images: the same ones for everybody, so that differences are sharp."""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from reluguard.training.statistics.bootstrap import Resampling, interval, word
from reluguard.training.statistics.metrics import auroc, auroc_interval


def sides(seed: int, n: int = 50) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, n).round(1), rng.normal(1, 1, n).round(1)


def test_a_draw_is_the_auroc_of_the_drawn_images() -> None:
    """Repeating each image as often as it was drawn gives the draw's value, ties included."""
    clean, attacked = sides(0)
    sources = np.arange(50)
    drawn = Resampling(sources, seed=3, draws=20)
    found = drawn.auroc(clean, sources, attacked, sources)
    times = np.random.default_rng(3).multinomial(50, np.full(50, 1 / 50), size=20)
    expected = [auroc(np.repeat(clean, t), np.repeat(attacked, t)) for t in times]
    assert_allclose(found, expected, atol=1e-12)


def test_it_agrees_with_the_interval_of_a_single_figure() -> None:
    """Other draws of the same images give nearly the same interval."""
    clean, attacked = sides(1)
    sources = np.arange(50)
    known = auroc_interval(clean, sources, attacked, sources, seed=0, draws=2000)
    drawn = Resampling(sources, seed=1, draws=2000).auroc(clean, sources, attacked, sources)
    found = interval(known.value, drawn, 50)
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=0.01)


def test_copies_of_an_image_add_no_certainty() -> None:
    """Resampling goes by source: five copies of every image change nothing."""
    clean, attacked = sides(2)
    sources = np.arange(50)
    drawn = Resampling(sources, seed=0, draws=200)
    once = drawn.auroc(clean, sources, attacked, sources)
    many = drawn.auroc(*(np.tile(x, 5) for x in (clean, sources, attacked, sources)))
    assert_allclose(many, once, atol=1e-12)


def test_a_paired_difference_is_sharper_than_its_sides() -> None:
    """Two detectors that differ by little on all images are told apart by the same draws."""
    clean, attacked = sides(4, 200)
    sources = np.arange(200)
    rng = np.random.default_rng(0)
    draws = [Resampling(sources, seed=seed, draws=400) for seed in (0, 1)]
    worse = attacked - 0.25 + rng.normal(0, 0.1, 200)
    ours, theirs = (draws[0].auroc(clean, sources, x, sources) for x in (attacked, worse))
    other = draws[1].auroc(clean, sources, worse, sources)
    value = auroc(clean, attacked) - auroc(clean, worse)
    paired, apart = interval(value, ours - theirs, 200), interval(value, ours - other, 200)
    assert paired.high - paired.low < 0.5 * (apart.high - apart.low)
    assert word(paired) == "ahead"
    assert word(interval(-value, theirs - ours, 200)) == "behind"
    assert word(apart) == "level"


def test_draws_without_a_side_are_left_out() -> None:
    """One attacked image is often not drawn: those draws have no AUROC and don't count."""
    clean, _ = sides(5)
    sources = np.arange(50)
    drawn = Resampling(sources, seed=0, draws=200).auroc(clean, sources, clean[:1] + 9, sources[:1])
    assert 0.2 < np.isnan(drawn).mean() < 0.5
    assert interval(1.0, drawn, 1).low == 1.0
    again = Resampling(sources, seed=0, draws=200).auroc(clean, sources, clean[:1] + 9, sources[:1])
    assert_array_equal(drawn, again)
