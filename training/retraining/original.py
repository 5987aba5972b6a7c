"""The images of a guard's first fit, which retraining and rounds draw from again."""

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import GuardArtifact
from reluguard.training.data.classes import Classes, known_classes, with_classes
from reluguard.training.data.dataset import Dataset
from reluguard.training.data.given import Data, given_data
from reluguard.training.data.reading import Reading
from reluguard.training.data.splits import split_sources
from reluguard.training.errors import DataError
from reluguard.training.provenance import origin_of

__all__ = ["Original"]


class Original:
    """The data set of the first fit, loaded when it is needed.

    Args:
        champion: the guard.
        data: where the images lie now; by default where the guard says they lay.
        classes: which class each folder of images is; by default what the guard knows.

    Raises:
        DataError: the guard does not say how it was fitted.
    """

    def __init__(
        self,
        champion: GuardArtifact,
        data: Data | None = None,
        *,
        classes: Classes | None = None,
    ) -> None:
        origin = origin_of(champion)
        self._reading = Reading.of_guard(champion.manifest)
        self._known, self._classes = known_classes(champion.manifest), classes
        self._count = champion.head.features.classes or None
        self._digest = origin.data.sha256
        self._data = origin.data.source if data is None else data
        self._shares, self._seed = origin.recipe.splits, origin.seed
        self._copies = origin.data.copies
        self._loaded: Dataset | None = None

    @property
    def dataset(self) -> Dataset:
        """The images.

        Raises:
            DataError: they are gone, or others.
        """
        if self._loaded is None:
            loaded = given_data(self._data, self._reading)
            if loaded.folders:
                loaded = with_classes(loaded, None, self._count, self._classes, self._known)
            if loaded.digest != self._digest:
                raise DataError(
                    f"expected the images the guard was fitted on, SHA-256 {self._digest[:16]}…, "
                    f"{loaded.source} holds others"
                )
            self._loaded = loaded
        return self._loaded

    @property
    def splits(self) -> dict[str, NDArray[np.int64]]:
        """Its parts, drawn again as the fit drew them."""
        labels = self.dataset.labels
        return split_sources(labels, self._shares, self._seed, copies=self._copies)
