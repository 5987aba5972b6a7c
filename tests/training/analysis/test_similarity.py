from random import Random

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from reluguard.training.analysis import similarity as sim
from reluguard.training.analysis.checks import check_memory
from reluguard.training.analysis.pattern import hamming, pack
from reluguard.training.errors import (
    ConstantError,
    LabelError,
    OutOfMemoryError,
    ShapeError,
)

matrices = st.tuples(st.integers(2, 12), st.integers(1, 70)).flatmap(
    lambda shape: arrays(np.bool_, shape)
)


@given(matrices)
@settings(max_examples=60, deadline=None)
def test_hamming_is_a_metric(active: NDArray[np.bool_]) -> None:
    """Counts are symmetric, zero on the diagonal and obey the triangle inequality."""
    counts = sim.hamming_counts(pack(active))
    assert_array_equal(counts, counts.T)
    assert not np.diagonal(counts).any()
    assert (counts[:, :, None] + counts[None, :, :] >= counts[:, None, :]).all()


@given(matrices)
@settings(max_examples=60, deadline=None)
def test_all_measures_are_those_of_scipy_and_numpy(active: NDArray[np.bool_]) -> None:
    """Hamming, Jaccard, cosine and overlaps are those of the textbook on unpacked bits."""
    packed, bits = pack(active), active.shape[1]
    counts, on = sim.hamming_counts(packed), sim.bit_counts(packed)
    assert_array_equal(counts, np.rint(cdist(active, active, "hamming") * bits))
    assert_allclose(
        sim.jaccard_similarity(counts, on), 1 - cdist(active, active, "jaccard"), atol=1e-6
    )
    x = active.astype(float)
    assert_array_equal(sim.overlaps(counts, on), x @ x.T)
    norms = np.linalg.norm(x, axis=1)
    with np.errstate(invalid="ignore"):
        cosine = np.nan_to_num(x @ x.T / np.outer(norms, norms))
    assert_allclose(sim.cosine_similarity(counts, on), cosine, atol=1e-6)


@given(matrices, st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_permuting_images_permutes_the_matrix(active: NDArray[np.bool_], random: Random) -> None:
    """The order of the images is nothing but an order."""
    order = np.array(random.sample(range(len(active)), len(active)))
    counts = sim.hamming_counts(pack(active))
    assert_array_equal(sim.hamming_counts(pack(active[order])), counts[np.ix_(order, order)])


@pytest.mark.parametrize("bits", [64, 4096, 70_000], ids=str)
@pytest.mark.parametrize("images", [3, 300], ids=str)
def test_tiles_and_mirrors_leave_no_seam(images: int, bits: int) -> None:
    """Sizes around tiles and blocks count as rows one by one do, against itself and another set."""
    rng = np.random.default_rng(0)
    a = pack(rng.random((images, bits)) < 0.3)
    b = pack(rng.random((7, bits)) < 0.6)
    own, other = sim.hamming_counts(a), sim.hamming_counts(a, b)
    for row in (0, images // 2, images - 1):
        assert_array_equal(own[row], hamming(a, a[row : row + 1]))
    for column in range(7):
        assert_array_equal(other[:, column], hamming(a, b[column : column + 1]))


def test_a_thing_is_most_alike_itself() -> None:
    """Every measure is one on the diagonal and nowhere above."""
    rng = np.random.default_rng(1)
    active = rng.random((20, 200)) < 0.4
    packed, labels = pack(active), np.arange(20) % 3
    counts, on = sim.hamming_counts(packed), sim.bit_counts(packed)
    weights = sim.class_weights(packed, 200, labels)
    for table in (
        sim.hamming_similarity(counts, 200),
        sim.jaccard_similarity(counts, on),
        sim.cosine_similarity(counts, on),
        sim.weighted_similarity(packed, 200, weights),
    ):
        assert_allclose(np.diagonal(table), 1, atol=1e-5)
        assert table.max() <= 1 + 1e-5
        assert table.min() >= 0


def test_weights_name_the_bit_that_knows_the_class() -> None:
    """A bit equal to the class takes nearly all weight, a constant bit none."""
    rng = np.random.default_rng(2)
    labels = np.arange(200) % 2
    active = np.stack([labels == 1, np.ones(200, bool), rng.random(200) < 0.5], axis=1)
    weights = sim.class_weights(pack(active), 3, labels)
    assert weights[0] > 0.95
    assert weights[1] == 0
    assert weights.sum() == pytest.approx(1)


def test_equal_weights_give_hamming_similarity() -> None:
    """Weighted similarity with the same weight for each bit is Hamming similarity."""
    rng = np.random.default_rng(3)
    packed = pack(rng.random((9, 133)) < 0.5)
    plain = sim.hamming_similarity(sim.hamming_counts(packed), 133)
    assert_allclose(sim.weighted_similarity(packed, 133, np.full(133, 1 / 133)), plain, atol=1e-5)


def test_bit_rates_are_column_means() -> None:
    """A bit's rate is the mean of its column."""
    active = np.random.default_rng(4).random((600, 21)) < 0.3
    assert_allclose(sim.bit_rates(pack(active), 21), active.mean(axis=0), atol=1e-6)


def test_errors_say_what_came() -> None:
    """Wrong widths, dtypes, weights, labels and sizes are named."""
    packed = np.zeros((4, 3), np.uint8)
    with pytest.raises(ShapeError, match=r"one width, got \(4, 3\) and \(4, 2\)"):
        sim.hamming_counts(packed, packed[:, :2])
    with pytest.raises(ShapeError, match=r"expected packed uint8 patterns.*bool"):
        sim.hamming_counts(np.zeros((4, 3), np.bool_))
    with pytest.raises(ShapeError, match="expected 2 bytes for 16 bits, got 3"):
        sim.bit_rates(packed, 16)
    with pytest.raises(LabelError, match=r"2 or more classes, got 1: \[7\]"):
        sim.class_weights(packed, 24, np.full(4, 7))
    with pytest.raises(ConstantError, match="constant: none of its 24 bits differs by class"):
        sim.class_weights(packed, 24, np.array([0, 0, 1, 1]))
    with pytest.raises(ShapeError, match="24 non-negative weights"):
        sim.weighted_similarity(packed, 24, np.full(24, -1.0))
    with pytest.raises(OutOfMemoryError, match=r"needs 8.0 GiB and 4.0 GiB are free: take fewer"):
        check_memory(8 * 2**30, "it", free=4 * 2**30)
