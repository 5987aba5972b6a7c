"""Labelled images as a caller gives them: a place, two arrays, or a data set. N images."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from reluguard.detector.images import Images
from reluguard.training.data.dataset import Dataset, Labels, load_data
from reluguard.training.data.items import Rows, is_rows, pixels_of, read_rows
from reluguard.training.data.reading import Reading
from reluguard.training.errors import DataError

__all__ = ["ARRAYS", "Data", "given_data"]

# what stands for a place on disk where there is none; provenance keeps it
ARRAYS = "arrays in memory"

Data = str | Path | Dataset | tuple[Images, Labels] | tuple[Any, Any] | Rows | Iterable[Any]
"""A place on disk; images uint8 (N, H, W, C) and labels (N,), as arrays or tensors; a torch
`Dataset` or `DataLoader`; a Hugging Face data set; or any rows of image and label."""


def given_data(data: Data, reading: Reading | None = None) -> Dataset:
    """Return labelled images however they were given.

    Args:
        data: a place as `load_data` takes it, a pair of images uint8 (N, H, W, C) and labels (N,)
            of whole numbers, a data set as it is, or rows as `read_rows` takes them.
        reading: how files become images.

    Raises:
        DataError: they can't be read, or arrays don't fit each other.
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, (str, Path)):
        return load_data(str(data), reading)
    if isinstance(data, tuple) and len(data) == 2:
        images, labels = data
        pixels = np.asarray(pixels_of(images))
        return Dataset(images=pixels, labels=np.asarray(labels), source=ARRAYS)
    if not is_rows(data):
        raise DataError(
            "expected a place of labelled images, a pair of images and labels, or a Dataset, got "
            f"{type(data).__name__}"
        )
    return read_rows(data, reading or Reading(), ARRAYS)
