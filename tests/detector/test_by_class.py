"""Thresholds by class: what is promised holds within each class, in every form of a guard."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reluguard.detector.artifact import read_guard
from reluguard.detector.errors import GuardError, SettingsError
from reluguard.detector.head import Head
from reluguard.detector.looks.judging import Looks
from reluguard.detector.runtime import Guard
from reluguard.detector.session import open_session
from tests.conftest import images
from tests.looking import going_by_class, looking_twice

PICTURES = images(60, seed=77)


@pytest.fixture(scope="module")
def pooled(tiny_guard: Path) -> Head:
    """A head that compares an image with all calibration images."""
    return read_guard(tiny_guard).head


def by_class(head: Head, scores: np.ndarray, answers: np.ndarray, groups: list[int]) -> Head:
    """Return the head with these clean scores and groups of classes."""
    return head.calibrated(scores.astype(np.float32), answers, np.array(groups, np.int64))


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 2)), min_size=4, max_size=9),
    st.sampled_from([[0, 0, 0], [0, 1, 1], [2, 0, 1]]),
)
def test_of_images_of_one_group_each_is_as_likely_on_top(
    pooled: Head, drawn: list[tuple[int, int]], groups: list[int]
) -> None:
    """P(p <= a) <= a in each group: whichever of its images is the fresh one."""
    scores = np.array([score for score, _ in drawn], np.float32)
    answers = np.array([answer for _, answer in drawn])
    of = np.array(groups)[answers]
    for group in np.unique(of):
        members = np.flatnonzero(of == group)
        ranks = []
        for fresh in members:
            rest = np.arange(len(scores)) != fresh
            if set(of[rest]) != set(groups):
                return  # a group without any calibration image is refused
            head = by_class(pooled, scores[rest], answers[rest], groups)
            p = head.p_values(scores[[fresh]], answers[[fresh]])[0]
            ranks.append(round(p * len(members)))
        for rank in range(1, len(members) + 1):
            share = Fraction(sum(one <= rank for one in ranks), len(members))
            assert share <= Fraction(rank, len(members))


def test_each_class_keeps_the_rate_on_fresh_images(pooled: Head) -> None:
    """Where classes differ, one threshold flags some far too often, and one for each does not."""
    rng = np.random.default_rng(0)
    flagged = {"pooled": np.zeros(3), "by class": np.zeros(3)}
    for _ in range(200):
        answers = rng.integers(0, 3, 600)
        scores = (rng.normal(size=600) + np.array([0.0, 1.0, 3.0])[answers]).astype(np.float32)
        clean, fresh = slice(0, 360), slice(360, None)
        for name, groups in (("pooled", []), ("by class", [0, 1, 2])):
            head = by_class(pooled, scores[clean], answers[clean], groups)
            flags = head.flags(scores[fresh], answers[fresh], 0.05)
            p = head.p_values(scores[fresh], answers[fresh])
            np.testing.assert_array_equal(flags, p <= 0.05 + 1e-12)
            flagged[name] += [flags[answers[fresh] == c].mean() / 200 for c in range(3)]
    assert flagged["pooled"][2] > 0.1
    assert (flagged["by class"] < 0.055).all()
    assert (flagged["by class"] > 0.035).all()


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_levelled_scores_are_flagged_by_one_threshold(pooled: Head, seed: int) -> None:
    """At each of the rates as by class, and in the class's order."""
    rng = np.random.default_rng(seed)
    answers = rng.integers(0, 3, 300)
    scores = (rng.normal(size=300) * 3 + answers).astype(np.float32)
    head = by_class(pooled, scores[:200], answers[:200], [0, 1, 1])
    rates = [0.05, 0.1, 0.3]
    found = head.levelled(scores[200:], answers[200:], rates)
    all_of = head.calibrated(scores[:200], answers[:200], np.zeros(0, np.int64))
    for rate in rates:
        limit = all_of.limits(rate)[0]
        np.testing.assert_array_equal(found > limit, head.flags(scores[200:], answers[200:], rate))
    for group in (0, 1):
        mine = head.groups_of(answers[200:]) == group
        order = np.argsort(scores[200:][mine], kind="stable")
        assert (np.diff(found[mine][order]) >= -1e-5).all()
    np.testing.assert_array_equal(all_of.levelled(scores, answers, rates), scores)


def test_every_form_of_the_guard_says_the_same(
    tiny_model: Path, tiny_guard: Path, tmp_path: Path
) -> None:
    """On disk and back, in verdicts, and in the exported graph, where each class has its limit."""
    folder = going_by_class(tiny_model, tiny_guard, tmp_path / "guard")
    guard = Guard.open(tiny_model, folder, threads=1)
    head = guard.artifact.head
    assert head.is_by_class
    found, plain = guard.inspect(PICTURES), Guard.open(tiny_model, tiny_guard).inspect(PICTURES)
    np.testing.assert_array_equal(found.score, plain.score)
    np.testing.assert_array_equal(found.p_value, head.p_values(found.score, found.prediction))
    np.testing.assert_array_equal(found.is_adversarial, found.p_value <= guard.fpr + 1e-12)
    assert (found.p_value != plain.p_value).any()
    session = open_session(guard.exported())
    tensor = guard.spec.to_tensor(PICTURES)
    (flags,) = session.run(["reluguard_is_adversarial"], {guard.spec.name: tensor})
    np.testing.assert_array_equal(flags, found.is_adversarial)
    shadowed = Guard.open(tiny_model, tiny_guard, challenger=folder, threads=1).inspect(PICTURES)
    assert shadowed.challenge is not None
    np.testing.assert_array_equal(shadowed.challenge.is_adversarial, found.is_adversarial)
    with pytest.raises(SettingsError, match="needs 999 clean calibration images"):
        Guard.open(tiny_model, folder, fpr=0.001)


@pytest.mark.parametrize("looks", ["suspicious", "always"])
def test_two_looks_go_by_class_too(
    looks: Looks, tiny_model: Path, tiny_guard: Path, tmp_path: Path
) -> None:
    """Their order stands within each group, and the exported file flags what it does."""
    twice = looking_twice(tiny_model, tiny_guard, tmp_path / "twice")
    folder = going_by_class(tiny_model, twice, tmp_path / "guard")
    guard = Guard.open(tiny_model, folder, threads=1, looks=looks, fpr=0.1)
    found = guard.inspect(PICTURES)
    second, first = guard.artifact.second, found.first
    assert second is not None
    assert first is not None
    groups = second.head.groups_of(found.prediction)
    order = second.order(looks)
    for group in (0, 1):
        mine = groups == group
        own = order.of_group(group)
        wanted = own.p_values(first.score[mine], found.score[mine], found.look[mine] == 2)
        np.testing.assert_array_equal(found.p_value[mine], wanted)
        np.testing.assert_array_equal(found.is_adversarial[mine], own.flags(wanted, 0.1))
    session = open_session(guard.exported())
    tensor = guard.spec.to_tensor(PICTURES)
    (flags,) = session.run(["reluguard_is_adversarial"], {guard.spec.name: tensor})
    np.testing.assert_array_equal(flags, found.is_adversarial)


def test_groups_that_do_not_fit_are_refused(pooled: Head) -> None:
    """A class without a group of its own images can promise nothing."""
    with pytest.raises(GuardError, match="expected a group for each class and for each of"):
        by_class(pooled, np.arange(4), np.array([0, 0, 1, 1]), [0, 1, 2])
    with pytest.raises(GuardError, match="expected groups from 0 to 1"):
        by_class(pooled, np.arange(4), np.array([0, 0, 1, 1]), [0, 7])
