"""Bit patterns: what is packed comes back, and distances are a metric."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from reluguard.detector.errors import SettingsError
from reluguard.training.analysis.pattern import hamming, pack, unpack

Bits = NDArray[np.bool_]

activity = hnp.arrays(np.bool_, st.tuples(st.integers(0, 6), st.integers(1, 70)))


@st.composite
def three_patterns(draw: st.DrawFn) -> tuple[Bits, Bits, Bits]:
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 40)))
    a, b, c = (draw(hnp.arrays(np.bool_, shape)) for _ in range(3))
    return a, b, c


@given(activity)
def test_unpack_undoes_pack(active: Bits) -> None:
    """Whatever was packed comes back bit for bit."""
    np.testing.assert_array_equal(unpack(pack(active), active.shape[1]), active)


@given(activity)
def test_packing_takes_an_eighth_and_pads_with_zeros(active: Bits) -> None:
    """W is ceil(B / 8), and bits past the last are off."""
    packed = pack(active)
    width = -(-active.shape[1] // 8)
    assert packed.shape == (len(active), width)
    np.testing.assert_array_equal(
        unpack(packed, 8 * width).sum(axis=1), active.sum(axis=1, dtype=np.int64)
    )


@given(three_patterns())
def test_hamming_is_a_metric(patterns: tuple[Bits, Bits, Bits]) -> None:
    """Zero for equal patterns, symmetric, and no way round is shorter."""
    a, b, c = (pack(pattern) for pattern in patterns)
    assert not hamming(a, a).any()
    np.testing.assert_array_equal(hamming(a, b), hamming(b, a))
    assert (hamming(a, c) <= hamming(a, b) + hamming(b, c)).all()


@given(three_patterns())
def test_hamming_counts_the_bits_that_differ(patterns: tuple[Bits, Bits, Bits]) -> None:
    """The packed distance is the unpacked one, also against a single row."""
    a, b, _ = patterns
    np.testing.assert_array_equal(hamming(pack(a), pack(b)), (a != b).sum(axis=1))
    np.testing.assert_array_equal(hamming(pack(a), pack(b[:1])), (a != b[:1]).sum(axis=1))


def test_an_example() -> None:
    """The first bit is the highest of the first byte."""
    active = np.array([[1, 0, 0, 0, 0, 0, 0, 1, 1]], np.bool_)
    np.testing.assert_array_equal(pack(active), [[0b10000001, 0b10000000]])
    np.testing.assert_array_equal(hamming(pack(active), np.zeros((1, 2), np.uint8)), [3])


def test_only_boolean_matrices_are_packed() -> None:
    """Values that are no bits are refused with what came."""
    with pytest.raises(SettingsError, match=r"expected bool bits of shape \(N, B\), got float64"):
        pack(np.zeros((2, 3)))  # type: ignore[arg-type]  # the wrong dtype is the point
    with pytest.raises(SettingsError, match=r"got bool \(3,\)"):
        pack(np.zeros(3, np.bool_))


def test_unpacking_needs_the_right_number_of_bits() -> None:
    """A count of bits that the bytes can't hold exactly is refused."""
    packed = pack(np.ones((2, 9), np.bool_))
    for bits in (8, 17):
        with pytest.raises(SettingsError, match=rf"bytes for {bits} bits, got 2"):
            unpack(packed, bits)
    with pytest.raises(SettingsError, match=r"expected packed uint8 patterns .* got int64"):
        unpack(np.zeros((2, 2), np.int64), 16)


def test_patterns_of_other_widths_have_no_distance() -> None:
    """Widths and rows must match up."""
    a, b = np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8)
    with pytest.raises(SettingsError, match=r"of one shape, got \(2, 2\) and \(2, 3\)"):
        hamming(a, b)
    with pytest.raises(SettingsError, match=r"of one shape, got \(3, 2\) and \(2, 2\)"):
        hamming(np.zeros((3, 2), np.uint8), a)
