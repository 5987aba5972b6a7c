"""Large arrays lie in a file; what is in them is the same."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from reluguard.detector.model import infer_spec, load_production
from reluguard.detector.runtime import Reader
from reluguard.detector.taps import find_taps
from reluguard.training.data import mapped
from reluguard.training.data.case import read_rates
from reluguard.training.data.dataset import Dataset
from reluguard.training.data.mapped import empty_array, is_temporary, release


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of temporary files, which holds every array of 1,000 bytes or more."""
    monkeypatch.setattr(mapped, "MAPPED_BYTES", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_large_arrays_have_a_file_for_as_long_as_they_live(
    temporary: Path, dtype: type[np.generic]
) -> None:
    """From the size on, in bytes; smaller ones are in memory."""
    size = np.dtype(dtype).itemsize
    small = empty_array((999 // size,), dtype)
    assert list(temporary.iterdir()) == []
    large = empty_array((1000 // size,), dtype)
    assert len(list(temporary.iterdir())) == 1
    assert small.dtype == large.dtype == dtype
    del large
    assert list(temporary.iterdir()) == []


def test_what_is_released_stays_readable(temporary: Path) -> None:
    """Through views too; an array in memory is left alone."""
    large = empty_array((40, 30), np.int64)
    large[:] = np.arange(1200).reshape(40, 30)
    release(large[:, ::-1])
    assert_array_equal(large, np.arange(1200).reshape(40, 30))
    small = np.arange(3)
    release(small)
    assert_array_equal(small, [0, 1, 2])
    assert len(list(temporary.iterdir())) == 1


def test_what_other_machines_don_t_have_is_told(temporary: Path) -> None:
    """A temporary file, and a view of it; not memory, and not a file of the user's."""
    large = empty_array((40, 30), np.int64)
    assert is_temporary(large)
    assert is_temporary(large[3:, ::-1])
    assert not is_temporary(np.zeros(3))
    np.save(temporary / "own.npy", large)
    assert not is_temporary(np.load(temporary / "own.npy", mmap_mode="r"))


def test_many_rates_lie_on_disk(digits: Dataset, digits_model: Path, temporary: Path) -> None:
    """They are those that are read at once."""
    production = load_production(digits_model)
    spec = infer_spec(production, (8, 8, 1))
    reader = Reader(production, spec, find_taps(production, spec), threads=1)
    rates, logits = reader.read(digits.images[:300])
    found, answers = read_rates(reader, digits.images[:300])
    assert len(list(temporary.iterdir())) == 1
    assert_array_equal(found, rates)
    np.testing.assert_allclose(answers, logits, rtol=1e-5, atol=1e-5)
