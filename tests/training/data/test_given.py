"""However images are given, they are the same data set."""

from pathlib import Path

import numpy as np
import pytest

from reluguard.training.data.dataset import Dataset, save_dataset
from reluguard.training.data.given import ARRAYS, Data, given_data
from reluguard.training.errors import DataError


def test_a_place_arrays_and_a_data_set_are_the_same(digits: Dataset, tmp_path: Path) -> None:
    """One digest, whichever way they came."""
    few = digits.take(np.arange(20))
    file = tmp_path / "few.npz"
    save_dataset(few, file)
    ways: list[Data] = [file, str(file), few, (few.images, few.labels)]
    assert {given_data(way).digest for way in ways} == {few.digest}
    assert given_data((few.images, few.labels)).source == ARRAYS


def test_what_is_no_data_is_told(digits: Dataset) -> None:
    """The error says what could have been given."""
    with pytest.raises(DataError, match="a pair of images and labels, or a Dataset, got int"):
        given_data(3)  # type: ignore[arg-type]  # what a caller without types may send
    with pytest.raises(DataError, match="one label per image, got 1797 images and 2 labels from"):
        given_data((digits.images, digits.labels[:2]))
