"""Copies are found, and never stand in two parts; pictures that only look alike stay apart."""

import io

import numpy as np
import pytest
from PIL import Image

from reluguard.detector.images import Images
from reluguard.training.data.copies import find_copies
from reluguard.training.data.dataset import Dataset
from reluguard.training.data.splits import split_sources
from reluguard.training.errors import DataError

SHARES = {"fit": 0.5, "calibrate": 0.3, "test": 0.2}


def brighter(image: Images) -> Images:
    lighter: Images = np.clip(image.astype(int) + 12, 0, 255).astype(np.uint8)
    return lighter


def encoded_again(image: Images) -> Images:
    file = io.BytesIO()
    Image.fromarray(image[:, :, 0]).save(file, "JPEG", quality=92)
    return np.asarray(Image.open(file))[:, :, None]


@pytest.mark.parametrize("change", [np.copy, brighter, encoded_again])
def test_copies_are_found(change: object, digits: Dataset) -> None:
    """Equal, brighter, or encoded again: each is beside its picture, and nothing else is."""
    assert callable(change)
    images, labels = digits.images[:200], digits.labels[:200]
    more = np.stack([change(image) for image in images[:50]])
    found = find_copies(np.concatenate([images, more]), np.concatenate([labels, labels[:50]]))
    assert sorted(found) == [[row, 200 + row] for row in range(50)]


def test_digits_that_look_alike_are_no_copies(digits: Dataset) -> None:
    """Hundreds of hand-written digits of 8 x 8 pixels are all their own."""
    assert find_copies(digits.images, digits.labels) == []


def test_one_colour_is_no_copy_of_another() -> None:
    """Flat pictures have nothing to compare but their pixels."""
    images = (
        np.zeros((4, 8, 8, 1), np.uint8) + np.array([9, 9, 50, 80], np.uint8)[:, None, None, None]
    )
    assert find_copies(images, np.zeros(4, np.int64)) == [[0, 1]]


def test_copies_stay_in_one_part_and_count_once() -> None:
    """All of a picture's copies are fitted on, or one of them calibrates or tests."""
    labels = np.repeat(np.arange(5), 60)
    copies = [[row, row + 100, row + 200] for row in range(100)]
    parts = split_sources(labels, SHARES, 3, copies=copies)
    group = np.arange(300) % 100
    seen = {name: set(group[rows]) for name, rows in parts.items()}
    assert not seen["fit"] & (seen["calibrate"] | seen["test"])
    assert not seen["calibrate"] & seen["test"]
    assert len(parts["calibrate"]) == len(seen["calibrate"])
    assert len(parts["fit"]) == 3 * len(seen["fit"])
    assert set().union(*seen.values()) == set(range(100))


def test_without_copies_nothing_changes() -> None:
    """Guards of before copies were looked for draw their parts again."""
    labels = np.repeat(np.arange(3), 20)
    parts = split_sources(labels, SHARES, 0)
    again = split_sources(labels, SHARES, 0, copies=[])
    assert all(np.array_equal(parts[name], again[name]) for name in SHARES)
    with pytest.raises(DataError, match="expected copies among the 60 images"):
        split_sources(labels, SHARES, 0, copies=[[0, 60]])
