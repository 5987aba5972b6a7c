"""Which images a guard has never seen. N images."""

import numpy as np
from numpy.typing import NDArray

from detector.artifact import Manifest
from training.data import Dataset, split_sources
from training.errors import DataError

__all__ = ["unseen_rows"]


def unseen_rows(dataset: Dataset, manifest: Manifest) -> NDArray[np.int64]:
    """Return the rows that took no part in fitting or calibrating a guard, ascending.

    Of the data set the guard was fitted on, that is the test split, drawn again as the fit drew it;
    of any other, every row, and that the images differ is the caller's word.

    Args:
        dataset: N images.
        manifest: of the guard.

    Raises:
        DataError: the guard was fitted on this data set and does not say how it was split.
    """
    provenance = manifest.provenance
    if provenance.get("data", {}).get("sha256") != dataset.digest:
        return np.arange(len(dataset))
    try:
        shares, seed = dict(provenance["recipe"]["splits"]), int(provenance["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            "expected the guard to say how its images were split, it does not: give images it was "
            "not fitted on"
        ) from error
    return split_sources(dataset.labels, shares, seed)["test"]
