"""Two looks calibrated as one: the promise holds whatever the bound and the heads."""

import re
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reluguard.detector.errors import SettingsError
from reluguard.detector.looks.judging import LOOKS, Order, looks_named

scores = st.lists(st.integers(-4, 4), min_size=1, max_size=7)


@given(scores, st.data(), st.floats(-5, 5))
def test_each_of_as_many_is_as_likely_to_stand_on_top(
    first: list[int], data: st.DataObject, bound: float
) -> None:
    """P(p <= a) <= a: of images that are alike, whichever one is judged against the others.

    That is the whole of the promise: fresh and calibration images are exchangeable, so each of
    them is the fresh one as often.
    """
    count = len(first)
    second = data.draw(st.lists(st.integers(-4, 4), min_size=count, max_size=count))
    one, two = np.array(first, np.float32), np.array(second, np.float32)
    found = []
    for fresh in range(count):
        rest = np.arange(count) != fresh
        order = Order(one[rest], two[rest], bound)
        mine = slice(fresh, fresh + 1)
        looked = order.is_suspicious(one[mine])
        found.append(order.p_values(one[mine], two[mine], looked)[0])
    ranks = np.rint(np.array(found) * count)
    for rank in range(1, count + 1):
        assert Fraction(int((ranks <= rank).sum()), count) <= Fraction(rank, count)


def test_it_holds_on_fresh_images_of_any_heads() -> None:
    """Of clean images at most the promised share is flagged, by a blind second head too."""
    rng = np.random.default_rng(0)
    for bound in (-np.inf, -0.5, 1.0, 2.5, np.inf):
        flagged = []
        for _ in range(400):
            one, two = rng.normal(size=(2, 219)).astype(np.float32)
            two += one * rng.normal()
            order = Order(one[:199], two[:199], bound)
            looked = order.is_suspicious(one[199:])
            p = order.p_values(one[199:], two[199:], looked)
            flagged.append(order.flags(p, 0.05).mean())
        assert 0.042 < np.mean(flagged) < 0.058, bound


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.01, 0.05, 0.1, 0.3, 0.9]))
def test_the_cuts_flag_what_the_p_values_do(seed: int, fpr: float) -> None:
    """A server that compares scores and a caller who compares p-values agree, ties among them."""
    rng = np.random.default_rng(seed)
    one, two = rng.integers(-6, 7, (2, 60)).astype(np.float32)
    order = Order(one[:40], two[:40], float(rng.integers(-6, 7)) + 0.5)
    looked = order.is_suspicious(one[40:])
    flags = order.flags(order.p_values(one[40:], two[40:], looked), fpr)
    calm, high = order.cut(fpr)
    np.testing.assert_array_equal(flags, np.where(looked, two[40:] > high, one[40:] > calm))


def test_the_suspicious_stand_above_the_others() -> None:
    """The lowest second score of a suspicious image stands above every image that is none."""
    order = Order(
        np.array([0, 1, 2, 3], np.float32), np.array([9, 9, -5, 5], np.float32), bound=1.5
    )
    first = np.array([1.5, 1.6, 9, 9, -1], np.float32)
    second = np.array([99, -9, -5, 6, 99], np.float32)
    looked = order.is_suspicious(first)
    np.testing.assert_array_equal(looked, [False, True, True, True, False])
    found = order.p_values(first, second, looked) * 5
    np.testing.assert_allclose(found, [3, 3, 3, 1, 5])
    assert order.share == 0.5


def test_always_is_the_order_of_the_second_scores() -> None:
    """With no bound the first score has no say."""
    second = np.array([1, 2, 3], np.float32)
    for first in permutations(second):
        order = Order(np.array(first, np.float32), second, -np.inf)
        p = order.p_values(second, second, np.ones(3, np.bool_))
        np.testing.assert_allclose(p, [1, 3 / 4, 2 / 4])


def test_an_unknown_way_to_look_is_refused() -> None:
    """The message lists what there is."""
    assert [looks_named(name) for name in LOOKS] == list(LOOKS)
    expected = "expected looks of first, suspicious, always, got 'twice'"
    with pytest.raises(SettingsError, match=re.escape(expected)):
        looks_named("twice")
