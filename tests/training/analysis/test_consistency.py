import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.metrics.pairwise import cosine_similarity

from reluguard.training.analysis import consistency as con
from reluguard.training.analysis.pattern import pack
from reluguard.training.errors import LabelError, ShapeError


def test_level_is_one_for_a_class_neuron_and_chance_for_none() -> None:
    """A channel that answers to one class has level 1, one blind to classes about 1 / K."""
    rng = np.random.default_rng(0)
    labels = np.arange(2000) % 5
    codes = np.stack([(labels == 2) + rng.random(2000) * 0.1, rng.random(2000)], axis=1)
    level = con.level_of_consistency(codes, labels, top=200)
    assert level[0] == 1
    assert level[1] == pytest.approx(0.2, abs=0.05)


def test_level_counts_pairs() -> None:
    """Of three favourites with labels 1, 1, 0 one pair of three agrees."""
    codes = np.array([[9.0], [8.0], [7.0], [0.0]])
    assert con.level_of_consistency(codes, np.array([1, 1, 0, 0]), top=3) == pytest.approx(1 / 3)


def test_tied_favourites_count_by_chance() -> None:
    """The level of a dead channel is that of any choice, and no order of the images changes it."""
    labels = np.repeat([0, 1, 2], 4)  # in order of class: the first images would be of one
    dead = np.zeros((12, 1))
    assert con.level_of_consistency(dead, labels, top=3) == pytest.approx(3 * 4 * 3 / (12 * 11))
    codes = np.random.default_rng(4).integers(0, 3, (12, 5)).astype(float)
    level = con.level_of_consistency(codes, labels, top=5)
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(4000):
        order = rng.permutation(12)
        best = np.argsort(-codes[order], axis=0, kind="stable")[:5]
        hits = np.stack([(labels[order][best] == c).sum(axis=0) for c in range(3)])
        drawn.append((hits * (hits - 1)).sum(axis=0) / 20)
    assert_allclose(level, np.mean(drawn, axis=0), atol=0.02)
    order = rng.permutation(12)
    assert_allclose(con.level_of_consistency(codes[order], labels[order], top=5), level)


def test_cosines_are_scikit_learns() -> None:
    """A code is most like itself; centred cosines agree with scikit-learn's."""
    rng = np.random.default_rng(1)
    clean, attacked = rng.random((2, 20, 6)) + 3
    assert_allclose(con.twin_cosine(clean, clean), 1)
    center = clean.mean(axis=0)
    expected = np.diagonal(cosine_similarity(clean - center, attacked - center))
    assert_allclose(con.twin_cosine(clean, attacked), expected)


def test_prototypes_draw_their_own() -> None:
    """Codes are most like, and nearest to, the prototype of the class they came from."""
    rng = np.random.default_rng(2)
    labels = np.arange(60) % 3
    codes = rng.normal(size=(3, 5))[labels] * 4 + rng.normal(size=(60, 5)) * 0.1
    prototypes = con.class_prototypes(codes, labels, 3)
    assert_allclose(prototypes[1], codes[labels == 1].mean(axis=0))
    own = con.class_cosine(codes, labels, prototypes)
    other = con.class_cosine(codes, (labels + 1) % 3, prototypes)
    assert own.min() > 0.98 > other.max()
    assert con.distance_ratio(codes, labels, (labels + 1) % 3, prototypes).max() < 1
    assert_allclose(con.distance_ratio(codes, labels, labels, prototypes), 1)


def test_flips_are_counted_per_channel() -> None:
    """A channel whose bits all flip has rate 1, an untouched one 0, whichever axis it lies on."""
    clean = np.random.default_rng(3).random((40, 3, 2, 2)) < 0.5
    attacked = clean.copy()
    attacked[:, 1] ^= True
    attacked[:10, 2, 0, 0] ^= True
    a, b = (pack(x.reshape(40, -1)) for x in (clean, attacked))
    assert_allclose(con.flip_rates(a, b, (3, 2, 2)), [0, 1, 10 / 40 / 4])
    assert_allclose(con.flip_rates(a, a, (3, 2, 2)), 0)
    last = [np.moveaxis(x, 1, 3).reshape(40, -1) for x in (clean, attacked)]
    assert_allclose(con.flip_rates(pack(last[0]), pack(last[1]), (2, 2, 3), 2), [0, 1, 1 / 16])


def test_errors_say_what_came() -> None:
    """Too few images, a missing class and unequal sets are named."""
    with pytest.raises(ShapeError, match="2 to 4 favourites among 4 images, got 9"):
        con.level_of_consistency(np.ones((4, 2)), np.zeros(4, np.int64), top=9)
    with pytest.raises(LabelError, match=r"all 3 classes, got none of \[1\]"):
        con.class_prototypes(np.ones((4, 2)), np.array([0, 2, 2, 0]), 3)
    with pytest.raises(ShapeError, match=r"got \[4, 3\] rows"):
        con.twin_cosine(np.ones((4, 2)), np.ones((3, 2)))
