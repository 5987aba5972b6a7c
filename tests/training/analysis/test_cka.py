from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.preprocessing import KernelCenterer

from reluguard.training.analysis import cka
from reluguard.training.analysis.pattern import pack
from reluguard.training.analysis.similarity import bit_counts, hamming_counts, overlaps
from reluguard.training.errors import ConstantError, ShapeError


def features(seed: int, n: int = 40, p: int = 6) -> NDArray[np.float64]:
    """Skewed random features, so that directions differ."""
    return np.random.default_rng(seed).normal(size=(n, p)) * np.arange(1, p + 1)


@pytest.mark.parametrize("measure", [cka.linear_cka, cka.rbf_cka], ids=["linear", "rbf"])
@given(seed=st.integers(0, 999), scale=st.floats(0.01, 100), shift=st.floats(-50, 50))
@settings(max_examples=25, deadline=None)
def test_rotation_scale_and_shift_change_nothing(
    measure: Callable[..., float], seed: int, scale: float, shift: float
) -> None:
    """CKA is blind to orthogonal maps, uniform scale and shift, and symmetric."""
    x, y = features(seed), features(seed + 1, p=4)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(6, 6)))[0]
    value = measure(x, y)
    assert 0 <= value <= 1
    assert measure(x @ turn * scale + shift, y) == pytest.approx(value, abs=1e-8)
    assert measure(y, x) == pytest.approx(value)
    assert measure(x, x @ turn * scale + shift) == pytest.approx(1)


@pytest.mark.parametrize("measure", [cka.linear_cka, cka.rbf_cka], ids=["linear", "rbf"])
def test_a_stretch_changes_it(measure: Callable[..., float]) -> None:
    """An invertible map that is no rotation must be seen."""
    x = features(3)
    assert measure(x, x * np.r_[50.0, np.ones(5)]) < 0.9


def test_gram_form_is_the_feature_form() -> None:
    """From Gram matrices, centred as scikit-learn does, comes the same number."""
    x, y = features(4), features(5, p=3) + 2
    assert cka.gram_cka(x @ x.T, y @ y.T) == pytest.approx(cka.linear_cka(x, y))
    centred = KernelCenterer().fit_transform(x @ x.T)
    assert np.allclose(cka.center_gram(x @ x.T), centred)


def test_bits_need_no_features() -> None:
    """Linear and Gaussian CKA of bits follow from Hamming counts."""
    rng = np.random.default_rng(6)
    a, b = rng.random((2, 30, 90)) < 0.4
    grams, kernels = [], []
    for active in (a, b):
        counts = hamming_counts(pack(active))
        grams.append(overlaps(counts, bit_counts(pack(active))))
        kernels.append(cka.rbf_gram(counts))
    assert cka.gram_cka(*grams) == pytest.approx(cka.linear_cka(a.astype(float), b.astype(float)))
    assert cka.gram_cka(*kernels) == pytest.approx(cka.rbf_cka(a.astype(float), b.astype(float)))


def test_gaussian_kernel_is_scikit_learns() -> None:
    """The kernel is scikit-learn's at the width of the median distance."""
    x = features(7)
    squared = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    median = np.median(squared[np.triu_indices(40, 1)])
    assert np.allclose(cka.rbf_gram(squared), rbf_kernel(x, gamma=1 / (2 * median)))


def test_minibatches_estimate_the_whole() -> None:
    """Unrelated features give about zero at any batch size, where the biased form does not."""
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(2, 4000, 30))
    batches = [(x[i : i + 20], y[i : i + 20]) for i in range(0, 4000, 20)]
    assert abs(cka.minibatch_cka(batches)) < 0.02
    assert np.mean([cka.linear_cka(a, b) for a, b in batches]) > 0.3
    related = x @ rng.normal(size=(30, 30))
    small = cka.minibatch_cka([(x[i : i + 20], related[i : i + 20]) for i in range(0, 4000, 20)])
    assert small == pytest.approx(cka.linear_cka(x, related), abs=0.03)
    assert cka.minibatch_cka([(a, a) for a, _ in batches]) == pytest.approx(1)


def test_errors_say_what_came() -> None:
    """Constant layers, other images and tiny batches are named."""
    x = features(9)
    with pytest.raises(ConstantError, match="constant"):
        cka.linear_cka(x, np.ones((40, 2)))
    with pytest.raises(ShapeError, match=r"one row per image in every array, got \[40, 39\]"):
        cka.linear_cka(x, x[:39])
    with pytest.raises(ShapeError, match="four or more"):
        cka.minibatch_cka([(x[:3], x[:3])])
    with pytest.raises(ShapeError, match="one or more batches"):
        cka.minibatch_cka([])
    with pytest.raises(ConstantError, match="distance zero"):
        cka.rbf_gram(np.zeros((4, 4)))
    with pytest.raises(ConstantError, match="constant"):
        cka.gram_cka(np.ones((4, 4)), np.eye(4))
