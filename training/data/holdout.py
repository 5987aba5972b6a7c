"""Which images a guard has never seen. N images."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import Manifest
from reluguard.detector.images import Images
from reluguard.training.data.copies import image_keys
from reluguard.training.data.dataset import Dataset, load_data
from reluguard.training.data.reading import Reading
from reluguard.training.data.splits import split_sources
from reluguard.training.errors import DataError
from reluguard.training.provenance import Provenance, provenance_of

__all__ = ["check_untrained", "unseen_rows"]


def unseen_rows(dataset: Dataset, manifest: Manifest) -> NDArray[np.int64]:
    """Return the rows that took no part in fitting or calibrating a guard, ascending.

    Of the data set the guard was fitted on, that is the test split, drawn again as the fit drew it;
    of any other, every row. An image that fitting or calibrating saw under another row is left out
    as well: of other data sets where the one fitted on still lies where it lay, and otherwise that
    the images differ is the caller's word.

    Args:
        dataset: N images.
        manifest: of the guard.

    Raises:
        DataError: the guard was fitted on this data set and does not say how it was split, or it
            has seen every image.
    """
    provenance = provenance_of(manifest)
    own = provenance.is_fitted_on(dataset.digest)
    fitted = dataset if own else _fitted_on(manifest, provenance, dataset)
    if fitted is None:
        return np.arange(len(dataset))
    recipe, seed = provenance.recipe, provenance.seed
    if recipe is None or not recipe.splits or seed is None:
        raise DataError(
            "expected the guard to say how its images were split, it does not: give images it was "
            "not fitted on"
        )
    copies = provenance.data.copies if provenance.data else ()
    parts = split_sources(fitted.labels, recipe.splits, seed, copies=copies)
    seen = np.concatenate([rows for part, rows in parts.items() if part != "test"])
    rows = parts["test"] if own else np.arange(len(dataset))
    left = rows[~_among(dataset.images[rows], fitted.images[seen])]
    if len(left) == 0:
        raise DataError(f"expected images the guard has not seen, {dataset.source} has none")
    return left


def check_untrained(dataset: Dataset, trained_on: Dataset) -> None:
    """Raise DataError if an image is among those the model was trained on.

    A model's own training images look cleaner than any image it will meet: judged on them, false
    positives are too few and attacks too easy to see.
    """
    if dataset.images.shape[1:] != trained_on.images.shape[1:]:
        return
    known = int(_among(dataset.images, trained_on.images).sum())
    if known:
        raise DataError(
            f"expected images the model was not trained on, {known} of {len(dataset)} in "
            f"{dataset.source} are in {trained_on.source} too"
        )


def _fitted_on(manifest: Manifest, provenance: Provenance, dataset: Dataset) -> Dataset | None:
    """Return the images a guard was fitted on, None where they are gone, changed or of other size.

    A folder of images is read as the fit read it.
    """
    known = provenance.data
    if known is None or not known.source or not Path(known.source).exists():
        return None
    try:
        found = load_data(known.source, Reading.of_guard(manifest))
    except DataError:
        return None
    same = found.digest == known.sha256 and found.images.shape[1:] == dataset.images.shape[1:]
    return found if same else None


def _among(images: Images, others: Images) -> NDArray[np.bool_]:
    """Return which images, pixel by pixel, are among others: bool, (N,)."""
    known = set(image_keys(others))
    return np.array([key in known for key in image_keys(images)], np.bool_)
