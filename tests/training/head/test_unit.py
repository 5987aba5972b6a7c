"""A hidden unit of its own for a new attack, on made-up readings."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from reluguard.detector.head import Head
from reluguard.training.errors import DataError
from reluguard.training.harvest.readings import Readings
from reluguard.training.head.fit import fit_head
from reluguard.training.head.unit import add_unit, without_accidents
from reluguard.training.statistics.metrics import auroc
from tests.training.head.test_fit import SETTINGS, TAPS, group, groups

SOURCES = np.arange(1000, 1120)
CLEAN = group("clean", np.arange(6000, 6300), seed=60)  # held out


def new_attack(shift: float = 0.35, count: int = 120, seed: int = 9) -> Readings:
    """Return attacked readings whose last rates are moved: no old attack does that."""
    made = group("attack", SOURCES[:count], seed=seed, name="new")
    rates = made.rates.copy()
    rates[:, -3:] += np.float16(shift)
    return replace(made, rates=rates)


@pytest.fixture(scope="module")
def head() -> Head:
    return fit_head(groups(shift=0.3), taps=TAPS, settings=SETTINGS, seed=0)


def score(head: Head, readings: Readings) -> np.ndarray:
    return head.score(readings.rates, readings.logits).score


def test_the_new_attack_is_told_and_the_old_one_not_forgotten(head: Head) -> None:
    """On fresh readings of both."""
    taught, unit = add_unit(head, new_attack(), groups(shift=0.3), clean=CLEAN, fpr=0.05, seed=0)
    clean = group("clean", np.arange(5000, 5400), seed=70)
    old = group("attack", np.arange(5000, 5400), seed=71, shift=0.3)
    fresh = new_attack(seed=72)
    before, after = (auroc(score(h, clean), score(h, fresh)) for h in (head, taught))
    assert after > before + 0.2
    lost = auroc(score(head, clean), score(head, old)) - auroc(
        score(taught, clean), score(taught, old)
    )
    assert lost < 0.02
    assert unit.name == "new"
    assert unit.after > unit.before


def test_a_unit_only_ever_raises_scores_and_leaves_most_as_they_are(head: Head) -> None:
    """What does not reach its level has the champion's own score, to rounding."""
    taught, unit = add_unit(head, new_attack(), groups(shift=0.3), clean=CLEAN, fpr=0.05, seed=0)
    clean = group("clean", np.arange(5000, 5400), seed=70)
    raised = score(taught, clean) - score(head, clean)
    assert raised.min() > -1e-4
    assert (raised > 1e-4).mean() < 4 * unit.reached + 0.02
    assert taught.weights[0].shape[1] == head.weights[0].shape[1] + 1
    assert taught.features is head.features
    assert_array_equal(taught.weights[0][:, :-1], head.weights[0])
    assert_array_equal(Head.from_arrays(taught.to_arrays()).weights[0], taught.weights[0])


def test_the_same_seed_gives_the_same_unit(head: Head) -> None:
    """There is no other chance in it."""
    first, second = (
        add_unit(head, new_attack(), groups(shift=0.3), clean=CLEAN, fpr=0.05, seed=3)[0]
        for _ in range(2)
    )
    assert_array_equal(first.weights[0], second.weights[0])


def test_what_harmless_images_show_too_is_bounded(head: Head) -> None:
    """A harmless change like the new attack is not flagged much more often than before."""
    alike = replace(new_attack(seed=30), kind="benign", name="alike")
    alike = replace(alike, labels=alike.predictions)
    taught, _ = add_unit(
        head, new_attack(), [*groups(shift=0.3), alike], clean=CLEAN, fpr=0.05, seed=0
    )
    clean = group("clean", np.arange(5000, 5400), seed=70)
    flagged = [
        (score(h, alike) > np.quantile(score(h, clean), 0.95)).mean() for h in (head, taught)
    ]
    assert flagged[1] - flagged[0] < 0.1


def test_accidents_teach_nothing() -> None:
    """Harmless changes that the model answers wrong are left out; other groups stay whole."""
    benign = group("benign", np.arange(40), seed=1)
    wrong = replace(benign, labels=(benign.labels + np.r_[np.ones(10, int), np.zeros(30, int)]) % 3)
    assert len(without_accidents(wrong)) == 30
    attack = group("attack", np.arange(40), seed=1)
    assert without_accidents(attack) is attack


def test_bad_input_is_named(head: Head) -> None:
    """Too few new images, or a head of another depth."""
    with pytest.raises(DataError, match="at least 5 new images of new, got 4"):
        add_unit(head, new_attack(count=4), groups(shift=0.3), clean=CLEAN, fpr=0.05, seed=0)
    inputs = head.features.width
    flat = replace(
        head,
        weights=(np.ones((inputs, 1), np.float32),),
        biases=(np.zeros(1, np.float32),),
    )
    with pytest.raises(DataError, match="a head of one hidden layer, got 0"):
        add_unit(flat, new_attack(), groups(shift=0.3), clean=CLEAN, fpr=0.05, seed=0)
