"""Detectors that look at the answer alone, or at nothing. N images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.features import confidence
from reluguard.training.evaluation.baselines.base import (
    Baseline,
    Context,
    Material,
    Scores,
    targets,
    weights,
)

__all__ = ["Confidence", "FeatureSqueezing", "RandomScore"]


@dataclass
class RandomScore(Baseline):
    """Chance."""

    name: ClassVar[str] = "random score"
    needs_fit: ClassVar[bool] = False
    seed: int = 0

    def fit(self, groups: Sequence[Material], context: Context) -> None:
        """Keep the seed."""
        del groups
        self.seed = context.seed

    def score(self, material: Material) -> Scores:
        """Draw."""
        entropy = [self.seed, *material.readings.name.encode()]
        return np.random.default_rng(entropy).random(len(material))


@dataclass
class Confidence(Baseline):
    """Boosted trees on top probability, margin, top logit, energy and entropy."""

    name: ClassVar[str] = "confidence only"
    model: Any = None

    def fit(self, groups: Sequence[Material], context: Context) -> None:
        """Fit the trees, rows weighed as the guard weighs them."""
        from sklearn.ensemble import HistGradientBoostingClassifier

        x = np.concatenate([confidence(group.readings.logits) for group in groups])
        self.model = HistGradientBoostingClassifier(
            max_iter=100, max_leaf_nodes=8, random_state=context.seed
        ).fit(x, targets(groups), sample_weight=weights(groups, context.settings))

    def score(self, material: Material) -> Scores:
        """Return log-odds."""
        scores: Scores = self.model.decision_function(confidence(material.readings.logits))
        return scores


@dataclass
class FeatureSqueezing(Baseline):
    """How far the answer moves on a median-filtered and on a coarser image.

    Largest L1 distance of probabilities over a 2 x 2 median and 5 bits per value. The non-local
    means of the original needs OpenCV and is left out.

    Source: Xu et al. 2018, arXiv 1704.01155.
    """

    name: ClassVar[str] = "feature squeezing"
    note: ClassVar[str] = "2 x 2 median and 5 bits; without non-local means"
    needs_fit: ClassVar[bool] = False
    context: Context | None = None

    def fit(self, groups: Sequence[Material], context: Context) -> None:
        """Keep the model."""
        del groups
        self.context = context

    def score(self, material: Material) -> Scores:
        """Return the distances."""
        from scipy.ndimage import median_filter

        assert self.context is not None
        squeezed = (
            median_filter(material.images, size=(1, 2, 2, 1), mode="reflect"),
            (np.rint(material.images / 255 * 31) / 31 * 255).round().astype(np.uint8),
        )
        plain = _softmax(material.readings.logits)
        moved = [np.abs(_softmax(self.context.predict(s)) - plain).sum(axis=1) for s in squeezed]
        largest: Scores = np.max(moved, axis=0).astype(np.float64)
        return largest


def _softmax(logits: NDArray[Any]) -> NDArray[Any]:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[Any] = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities
