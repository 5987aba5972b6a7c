import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import ortho_group

from reluguard.training.analysis.spectra import first_least, largest_axes, nearest, settle


@given(rows=st.integers(3, 12), columns=st.integers(2, 3), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_no_turn_of_a_space_changes_its_basis(rows: int, columns: int, seed: int) -> None:
    """Whatever basis of a space a solver hands over, mirrored too, the settled one is the same."""
    rng = np.random.default_rng(seed)
    space = np.linalg.qr(rng.standard_normal((rows, columns)))[0]
    turn = ortho_group.rvs(columns, random_state=rng)
    basis = settle(space)
    assert_allclose(settle(space @ turn), basis, atol=1e-8)
    assert_allclose(basis.T @ basis, np.eye(columns), atol=1e-8)
    assert_allclose(basis @ basis.T, space @ space.T, atol=1e-8)
    assert np.abs(basis).max(axis=0) == pytest.approx(basis.max(axis=0), rel=1e-5)


def test_the_first_of_equal_rows_decides_the_sign() -> None:
    """Two components of one size up to rounding: the first is positive, both signs in."""
    vector = np.array([[-1 + 1e-15], [1.0], [1e-13]]) / np.sqrt(2)
    for sign in (1, -1):
        assert_allclose(settle(sign * vector)[:, 0], [0.5**0.5, -(0.5**0.5), 0])
        assert settle(sign * vector)[2, 0] == 0


def test_axes_are_the_largest_and_settled() -> None:
    """A double eigenvalue gives the axes of its plane that lie furthest along the coordinates."""
    turn = ortho_group.rvs(4, random_state=1)
    matrix = turn @ np.diag([5.0, 2.0, 2.0, 1.0]) @ turn.T
    values, vectors = largest_axes(matrix, 2)
    assert_allclose(values, [5, 2])
    assert_allclose(matrix @ vectors, vectors * values, atol=1e-9)
    values, vectors = largest_axes(np.diag([1.0, 3.0, 3.0]), 2)
    assert_array_equal(vectors, [[0, 0], [1, 0], [0, 1]])


def test_all_that_tie_with_the_last_are_near() -> None:
    """The nearest are as many as asked for, and those that tie with the last of them."""
    similarity = np.array([[3, 2, 2, 1], [1, 1, 1, 1], [4, 3, 2, 1]])
    assert_array_equal(nearest(similarity, 2), [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]])


def test_a_rounding_error_is_no_reason_to_come_first() -> None:
    """The first of the least is taken, rounding aside."""
    distances = np.array([[2.0, 1 + 1e-14, 1.0], [1.0, 0.5, 0.4]])
    assert_array_equal(first_least(distances, 4), [1, 2])
