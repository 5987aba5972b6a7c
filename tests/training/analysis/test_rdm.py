import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform
from scipy.stats import kendalltau, spearmanr

from reluguard.training.analysis import rdm
from reluguard.training.errors import ConstantError, LabelError, ShapeError


@given(
    st.integers(2, 15).flatmap(
        lambda n: arrays(np.float32, n * (n - 1) // 2, elements=st.floats(0, 9, width=32))
    )
)
@settings(max_examples=50, deadline=None)
def test_expand_undoes_condense(values: NDArray[np.float32]) -> None:
    """An RDM is symmetric with a zero diagonal, and its condensed form loses nothing."""
    square = rdm.expand(values)
    assert_array_equal(square, square.T)
    assert not np.diagonal(square).any()
    assert_array_equal(rdm.condense(square), values)
    assert_array_equal(square, squareform(values).astype(np.float32))


@given(arrays(np.float64, 28, elements=st.floats(-5, 5), unique=True), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_rank_correlations_are_scipys_and_blind_to_monotone_change(
    a: NDArray[np.float64], seed: int
) -> None:
    """Spearman and Kendall agree with SciPy and don't see a monotone rescaling."""
    b = np.random.default_rng(seed).permutation(a)
    assert rdm.spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-5)
    assert rdm.kendall(a, b) == pytest.approx(kendalltau(a, b).statistic, abs=1e-9)
    assert rdm.spearman(a, np.arange(28.0)[np.argsort(np.argsort(a))] * 3 - 7) == pytest.approx(
        1, abs=1e-5
    )


def test_self_comparison_is_maximal() -> None:
    """A layer is most like itself."""
    rng = np.random.default_rng(0)
    rdms = np.stack([pdist(rng.random((12, 5))) for _ in range(4)])
    table = rdm.compare_rdms(rdms)
    assert_array_equal(np.diagonal(table), 1)
    assert (table <= 1).all()
    assert_allclose(table, table.T)
    assert table[0, 1] == pytest.approx(spearmanr(rdms[0], rdms[1]).statistic, abs=1e-5)


def test_category_model_is_blocks() -> None:
    """The category model is 0 within and 1 between classes; ordering makes it blocks."""
    labels = np.array([1, 0, 1, 0, 2])
    square = rdm.expand(rdm.category_model(labels))
    assert_array_equal(square, labels[:, None] != labels[None, :])
    order = rdm.class_order(labels)
    assert_array_equal(labels[order], [0, 0, 1, 1, 2])
    assert_array_equal(order, [1, 3, 0, 2, 4])


def test_balanced_order_takes_as_many_of_each() -> None:
    """As many random images of every class, in order of class, the same for the same seed."""
    labels = np.repeat([2, 0, 5], [30, 8, 3])
    chosen = rdm.balanced_order(labels, 5, seed=1)
    assert_array_equal(labels[chosen], [0] * 5 + [2] * 5 + [5] * 3)
    assert_array_equal(chosen, rdm.balanced_order(labels, 5, seed=1))
    assert (chosen != rdm.balanced_order(labels, 5, seed=2)).any()


def test_errors_say_what_came() -> None:
    """Crooked matrices, one class and constant layers are named."""
    with pytest.raises(ShapeError, match="symmetric"):
        rdm.condense(np.array([[0, 1], [2, 0]]))
    with pytest.raises(ShapeError, match="zeros on the diagonal"):
        rdm.condense(np.ones((3, 3)))
    with pytest.raises(ShapeError, match=r"expected a square matrix.*\(2, 3\)"):
        rdm.condense(np.ones((2, 3)))
    with pytest.raises(ShapeError, match=r"N \(N - 1\) / 2 values"):
        rdm.expand(np.zeros(4))
    with pytest.raises(LabelError, match=r"2 or more classes, got 1"):
        rdm.category_model(np.zeros(5, np.int64))
    with pytest.raises(ConstantError, match="constant"):
        rdm.spearman(np.ones(3), np.arange(3.0))
    with pytest.raises(ConstantError, match="constant"):
        rdm.kendall(np.ones(3), np.arange(3.0))
    with pytest.raises(ShapeError, match="one length"):
        rdm.spearman(np.arange(3.0), np.arange(4.0))
