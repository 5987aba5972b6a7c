"""Firing rates at one byte each: exact where a byte can be, and read from disk like an array."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from reluguard.detector.arrays import find_place
from reluguard.detector.artifact import write_file
from reluguard.detector.taps import Tap
from reluguard.training.data.mapped import empty_array
from reluguard.training.errors import DataError
from reluguard.training.harvest.rates import (
    StoredRates,
    decode,
    encode,
    places,
    stored,
)

TAPS = (
    Tap(name="a", op="Relu", shape=(3, 32, 32)),
    Tap(name="b", op="Relu", shape=(2, 15, 17), levels=(0.0, 0.5)),
    Tap(name="c", op="Relu", shape=(4,)),
    Tap(name="d", op="Relu", shape=(2, 9, 9), stride=2),
)
COUNTS = [1024] * 3 + [255] * 4 + [1] * 4 + [25] * 2


def readings(rows: int = 40, seed: int = 0) -> NDArray[np.float32]:
    """Return rates as a network gives them: whole counts by the number of places."""
    rng = np.random.default_rng(seed)
    counts = np.array(COUNTS)
    rates: NDArray[np.float32] = (rng.integers(0, counts + 1, (rows, len(counts))) / counts).astype(
        np.float32
    )
    return rates


def write(folder: Path, name: str, rates: NDArray[np.float32]) -> StoredRates:
    file = folder / name
    arrays = stored(rates, places(TAPS))
    write_file(file, npz={"before": np.zeros(3), **arrays}, compress=False)
    place = find_place(file, "rates", error=DataError)
    assert place is not None
    return StoredRates.at(place, arrays["steps"])


def test_places_are_what_a_rate_is_the_share_of() -> None:
    """Rows by columns, every stride-th of them, once per level."""
    assert_array_equal(places(TAPS), COUNTS)


@given(st.lists(st.integers(1, 255), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_up_to_255_places_lose_nothing(counts: list[int], seed: int) -> None:
    """Encoding and decoding a share of so many places gives the very float back."""
    rng = np.random.default_rng(seed)
    rates = (rng.integers(0, np.array(counts) + 1, (20, len(counts))) / counts).astype(np.float32)
    coded = encode(rates, np.array(counts))
    assert coded is not None
    assert_array_equal(decode(*coded), rates)


def test_more_places_are_rounded_to_the_nearest_step() -> None:
    """Off by half a step at most, exact at both ends."""
    rates = np.linspace(0, 1, 1025, dtype=np.float32)[:, None]
    coded = encode(rates, np.array([1024]))
    assert coded is not None
    back = decode(*coded)
    assert_allclose(back, rates, atol=0.5 / 255 + 1e-6)
    assert_array_equal(back[[0, -1]], rates[[0, -1]])


def test_what_is_no_whole_count_has_all_steps() -> None:
    """A mean of other values than bits keeps the resolution of a byte."""
    rates = np.array([[0.1, 0.5], [0.123, 0.25]], np.float32)
    coded = encode(rates, np.array([4, 4]))
    assert coded is not None
    assert coded[1].tolist() == [255, 4]
    assert_allclose(decode(*coded), rates, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan])
def test_what_is_no_share_is_kept_in_half_precision(value: float) -> None:
    """Nothing is cut to [0, 1] without a word."""
    kept = stored(np.full((2, 1), value, np.float32), np.array([9]))
    assert kept.keys() == {"rates"}
    assert_array_equal(kept["rates"], np.full((2, 1), value, np.float16))


def test_stored_rates_are_indexed_like_an_array(tmp_path: Path) -> None:
    """Any rows, in any order, of several shards and an array, and any columns."""
    first, second = readings(40), readings(30, seed=1)
    plain = readings(10, seed=2).astype(np.float16)
    parts: list[Any] = [
        write(tmp_path, "one.npz", first),
        plain,
        write(tmp_path, "two.npz", second),
    ]
    whole = StoredRates.joined(parts)
    table = np.concatenate([np.asarray(part, np.float32) for part in parts])
    assert whole.shape == table.shape == (80, len(COUNTS))
    assert_array_equal(np.asarray(whole), table)
    rows = np.random.default_rng(0).permutation(80)[:50]
    columns = np.array([5, 0, 9])
    mask = np.arange(80) % 3 == 0
    for key in (slice(7, 60), rows, mask, slice(0, 0)):
        assert_array_equal(whole[key].astype(np.float32), table[key])
        assert_array_equal(whole[key][:, columns], table[key][:, columns])
        assert_array_equal(whole[key, columns], table[key][:, columns])
    assert_array_equal(whole[rows][mask[:50]].astype(np.float32), table[rows][mask[:50]])
    again = StoredRates.joined([whole.only(columns), whole[rows].only(columns)])
    assert_array_equal(np.asarray(again), np.concatenate([table, table[rows]])[:, columns])


def test_chosen_columns_stay_a_byte_each(tmp_path: Path) -> None:
    """Joining what reads some columns copies codes, not numbers of four bytes."""
    whole = write(tmp_path, "one.npz", readings(40))
    columns, rows = np.array([0, 5, 9]), np.array([33, 2, 2, 17])
    joined = StoredRates.joined([whole[rows].only(columns), whole.only(columns)])
    assert_array_equal(joined.astype(np.float32), whole[np.append(rows, np.arange(40)), columns])
    parts, _ = joined.pieces()
    assert [part.kept(0, part.rows).dtype for part in parts] == [np.uint8, np.uint8]
    assert [(part.rows, part.width) for part in parts] == [(4, 3), (40, 3)]


def test_rates_in_a_file_are_given_back_and_stay() -> None:
    """An array that lies on disk is read again after its memory went back to the system."""
    mapped = empty_array((40, len(COUNTS)), np.float32, mapped_bytes=0)
    mapped[:] = readings(40)
    stored_in_file = StoredRates.joined([mapped])
    for _ in range(2):
        assert_array_equal(stored_in_file.astype(np.float32), readings(40))


def test_a_shard_that_became_shorter_is_told(tmp_path: Path) -> None:
    """Rates that are not there any more are no zeros."""
    rates = write(tmp_path, "one.npz", readings())
    file = tmp_path / "one.npz"
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(DataError, match=r"a shard, .*one\.npz was cut: remove it"):
        rates.astype(np.float32)


def test_a_compressed_array_has_no_place(tmp_path: Path) -> None:
    """What can't be read where it lies is read in another way."""
    file = tmp_path / "packed.npz"
    write_file(file, npz={"rates": np.zeros((9, 9), np.uint8)})
    assert find_place(file, "rates", error=DataError) is None
