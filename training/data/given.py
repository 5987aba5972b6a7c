"""Labelled images as a caller gives them: a place on disk, two arrays, or a data set. N images."""

from pathlib import Path

import numpy as np

from reluguard.detector.images import Images
from reluguard.training.data.dataset import Dataset, Labels, load_data
from reluguard.training.data.reading import Reading
from reluguard.training.errors import DataError

__all__ = ["ARRAYS", "Data", "given_data"]

# what stands for a place on disk where there is none; provenance keeps it
ARRAYS = "arrays in memory"

Data = str | Path | Dataset | tuple[Images, Labels]


def given_data(data: Data, reading: Reading | None = None) -> Dataset:
    """Return labelled images however they were given.

    Args:
        data: a place as `load_data` takes it, a pair of images uint8 (N, H, W, C) and labels (N,)
            of whole numbers, or a data set as it is.
        reading: how files become images.

    Raises:
        DataError: they can't be read, or arrays don't fit each other.
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, (str, Path)):
        return load_data(str(data), reading)
    if not isinstance(data, tuple) or len(data) != 2:
        raise DataError(
            "expected a place of labelled images, a pair of images and labels, or a Dataset, got "
            f"{type(data).__name__}"
        )
    images, labels = data
    return Dataset(images=np.asarray(images), labels=np.asarray(labels), source=ARRAYS)
