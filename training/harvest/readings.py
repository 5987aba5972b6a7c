"""What a compiled model gave on one kind of images. N images, D rates, K classes."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.runtime import Reader
from reluguard.training.data.case import read_rates
from reluguard.training.data.dataset import Dataset
from reluguard.training.provenance import Kind

__all__ = ["CLEAN", "Kind", "Readings", "clean_readings"]

CLEAN = "clean"  # the name of the group of images as they came
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """What the compiled model gave on one kind of images: rates (N, D), logits (N, K) and whence.

    Attributes:
        name: "clean", or the slug of the attack or benign change.
        kind: which side it is on: only "attack" is positive.
        rates: floats, (N, D), or `StoredRates`, which are read when they are indexed.
        logits: float32, (N, K).
        sources: int64, (N,). Index of the image it was made from.
        labels: int64, (N,). True class of the source.
        weight: how much the group counts among its kind.
    """

    name: str
    kind: Kind
    rates: Any
    logits: Floats
    sources: NDArray[np.int64]
    labels: NDArray[np.int64]
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def predictions(self) -> NDArray[np.int64]:
        """int64, (N,)."""
        answers: NDArray[np.int64] = self.logits.argmax(axis=1)
        return answers

    @property
    def answered_right(self) -> NDArray[np.bool_]:
        """bool, (N,)."""
        right: NDArray[np.bool_] = self.predictions == self.labels
        return right

    def rows(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> "Readings":
        """Return these rows only."""
        return replace(
            self,
            rates=self.rates[chosen],
            logits=self.logits[chosen],
            sources=self.sources[chosen],
            labels=self.labels[chosen],
        )


def clean_readings(reader: Reader, dataset: Dataset, rows: NDArray[np.int64]) -> Readings:
    """Return what some images of a data set give in full precision, as serving sees them."""
    rates, logits = read_rates(reader, dataset.images, rows)
    labels = dataset.labels[rows]
    return Readings(
        name=CLEAN, kind="clean", rates=rates, logits=logits, sources=rows, labels=labels
    )
