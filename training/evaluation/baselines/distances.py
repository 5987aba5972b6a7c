"""Distances to what is usual, tap by tap, and a logistic regression over them. N images."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from reluguard.training.evaluation.baselines.base import (
    Baseline,
    Context,
    Material,
    Matrix,
    Scores,
    clean_of,
    rows_of,
    targets,
    weights,
)

__all__ = ["LocalDimension", "Mahalanobis"]


@dataclass
class _Logistic(Baseline):
    """Logistic regression over a few numbers per tap, scaled on the fitting rows."""

    model: Any = None
    context: Context | None = None

    @abstractmethod
    def prepare(self, clean: Material, context: Context) -> None:
        """Learn what is usual from clean images."""

    @abstractmethod
    def describe(self, material: Material) -> NDArray[Any]:
        """Return numbers per image: (N, taps)."""

    def fit(self, groups: Sequence[Material], context: Context) -> None:
        """Learn what is usual, then how much each tap counts."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self.context = context
        self.prepare(clean_of(groups), context)
        x = np.concatenate([self.describe(group) for group in groups])
        self.model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        share = weights(groups, context.settings)
        self.model.fit(x, targets(groups), logisticregression__sample_weight=share)

    def score(self, material: Material) -> Scores:
        """Return log-odds."""
        scores: Scores = self.model.decision_function(self.describe(material))
        return scores


@dataclass
class Mahalanobis(_Logistic):
    """Distance per tap to the nearest class mean under one shared covariance.

    Source: Lee et al. 2018, arXiv 1807.03888, without its input noise.
    """

    name: ClassVar[str] = "Mahalanobis per layer"
    parts: list[tuple[NDArray[Any], NDArray[Any]]] = field(default_factory=list)

    def prepare(self, clean: Material, context: Context) -> None:
        """Take class means and a shrunk covariance of each tap."""
        from sklearn.covariance import ledoit_wolf

        labels = clean.readings.labels
        self.parts = []
        for block in context.blocks:
            x = clean.means[:, block].astype(np.float64)
            centers = np.stack([x[labels == label].mean(axis=0) for label in np.unique(labels)])
            own = centers[np.searchsorted(np.unique(labels), labels)]
            covariance, _ = ledoit_wolf(x - own)
            root = np.linalg.cholesky(np.linalg.inv(covariance + 1e-8 * np.eye(len(covariance))))
            self.parts.append((centers, root))

    def describe(self, material: Material) -> NDArray[Any]:
        """Return the distances."""
        assert self.context is not None
        columns = []
        for block, (centers, root) in zip(self.context.blocks, self.parts, strict=True):
            x = material.means[:, block] @ root
            y = centers @ root
            columns.append(((x[:, None] - y[None]) ** 2).sum(axis=2).min(axis=1))
        distances: NDArray[Any] = np.stack(columns, axis=1)
        return distances


@dataclass
class LocalDimension(_Logistic):
    """Local intrinsic dimension per tap among a fixed reference set of clean images.

    The reference set is apart from every row that is fitted on or judged, so no image meets its own
    clean twin, as it does in the published code.

    Source: Ma et al. 2018, arXiv 1801.02613, equation 4.
    """

    name: ClassVar[str] = "LID"
    neighbours: ClassVar[int] = 20
    reference_images: ClassVar[int] = 1000
    reference: Matrix = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def fit(self, groups: Sequence[Material], context: Context) -> None:
        """Set the reference images apart, by source, then fit."""
        clean = clean_of(groups)
        sources = np.random.default_rng(context.seed).permutation(np.unique(clean.readings.sources))
        kept = sources[: min(self.reference_images, len(sources) // 2)]
        self.reference = clean.means[np.isin(clean.readings.sources, kept)]
        rest = [rows_of(g, ~np.isin(g.readings.sources, kept)) for g in groups]
        super().fit([group for group in rest if len(group)], context)

    def prepare(self, clean: Material, context: Context) -> None:
        """Nothing more to learn."""

    def describe(self, material: Material) -> NDArray[Any]:
        """Return the dimensions."""
        assert self.context is not None
        k = min(self.neighbours, len(self.reference) - 1)
        columns = []
        for block in self.context.blocks:
            x, y = material.means[:, block], self.reference[:, block]
            square = (x**2).sum(1)[:, None] - 2 * x @ y.T + (y**2).sum(1)[None]
            near = np.sort(np.partition(square, k, axis=1)[:, :k], axis=1)
            distance = np.sqrt(np.maximum(near, 1e-12))
            ratio = np.log(distance / distance[:, -1:]).mean(axis=1)
            columns.append(-1 / np.minimum(ratio, -1e-6))
        dimensions: NDArray[Any] = np.log(np.stack(columns, axis=1))
        return dimensions
