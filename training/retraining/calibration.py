"""What is read of a guard's calibration images, kept on disk so that they may go after this."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import write_file
from reluguard.training.data.dataset import Dataset
from reluguard.training.errors import DataError
from reluguard.training.harvest.workspace import read_shard
from reluguard.training.retraining.kept import Kept
from reluguard.training.retraining.original import Original

__all__ = ["kept_readings"]

Read = Callable[[Dataset, NDArray[np.int64]], Mapping[str, NDArray[Any]]]


def kept_readings(
    kept: Kept,
    original: Original,
    read: Read,
    names: Sequence[str],
    *,
    name: str,
    told: str,
    need: str,
    instead: str = "",
) -> tuple[Path, dict[str, Any]]:
    """Return where arrays lie that were read of the calibration images, and the arrays.

    Args:
        kept: the harvest.
        original: the images of the first fit, which are loaded only where nothing is kept.
        read: what is read of rows of a data set, by name.
        names: of the arrays.
        name: of the file, without its ending.
        told: all that what is read depends on.
        need: why the images are needed, for the message where they are gone.
        instead: what else can be done then than to give them.

    Raises:
        DataError: neither the arrays nor the images are there.
    """
    key = hashlib.sha256(told.encode()).hexdigest()[:8]
    file = kept.workspace.folder / f"{name}-{key}.npz"
    if not file.is_file():
        try:
            rows = original.splits["calibrate"]
        except DataError as error:
            raise DataError(
                f"{need}, and the calibration images are out of reach: {error}. Give --data with "
                f"the images of the first fit{instead}"
            ) from error
        write_file(file, npz=dict(read(original.dataset, rows)))
    return file, read_shard(file, *names)
