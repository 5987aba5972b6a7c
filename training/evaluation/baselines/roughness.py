"""How rough the first layer's quietest channels are. N images, C channels, H rows, W columns."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from reluguard.training.data.case import chunk_of
from reluguard.training.evaluation.baselines.base import (
    Baseline,
    Context,
    Material,
    Scores,
    best_setting,
    clean_of,
)

__all__ = ["Roughness"]

SHARES = (0.1, 0.25, 0.5, 1.0)  # of the channels that are not dead; the package's own is .1
DEAD, TINY = 1e-4, 1e-6


@dataclass
class Roughness(Baseline):
    """Total variation of the first convolution's quietest channels, by their mean magnitude.

    How many channels count, and whether rough or smooth is suspicious, is chosen on the fitting
    rows; the package takes a tenth of them, and rough.

    Source: the package viyog 0.1.3 (2026).
    """

    name: ClassVar[str] = "Viyog (first layer's roughness)"
    note: ClassVar[str] = "share of the channels and sign chosen on the fitting rows"
    context: Context | None = None
    quiet: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    sign: float = 1.0

    def fit(self, groups: Sequence[Material], context: Context) -> None:
        """Rank channels on clean images, then choose how many count."""
        self.context = context
        sizes, _ = self._read(clean_of(groups))
        profile = sizes.mean(axis=0)
        alive = np.flatnonzero(profile > DEAD)
        alive = alive if len(alive) else np.arange(len(profile))
        ranked = alive[np.argsort(profile[alive], kind="stable")]
        rough = [self._read(group)[1] for group in groups]

        def scores(setting: tuple[float, float]) -> list[Scores]:
            share, sign = setting
            return [sign * self._mean(one, self._first(ranked, share)) for one in rough]

        settings = [(share, sign) for share in SHARES for sign in (1.0, -1.0)]
        share, self.sign = best_setting(groups, settings, scores)
        self.quiet = self._first(ranked, share)

    def score(self, material: Material) -> Scores:
        """Return the roughness, turned so that higher is more suspicious."""
        return self.sign * self._mean(self._read(material)[1], self.quiet)

    def _first(self, ranked: NDArray[np.int64], share: float) -> NDArray[np.int64]:
        return ranked[: max(1, int(len(ranked) * share))]

    def _mean(self, rough: Scores, channels: NDArray[np.int64]) -> Scores:
        found: Scores = rough[:, channels].mean(axis=1)
        return found

    def _read(self, material: Material) -> tuple[Scores, Scores]:
        """Return mean magnitude and roughness of each channel: (N, C) both."""
        assert self.context is not None
        sizes, rough = [], []
        step = chunk_of(material.images) if len(material) else 1
        for start in range(0, len(material), step):
            x = self.context.first(material.images[start : start + step]).astype(np.float64)
            x = x.reshape(*x.shape[:2], *(*x.shape[2:], 1, 1)[:2])
            size = np.abs(x).mean(axis=(2, 3))
            variation = sum(
                np.abs(np.diff(x, axis=axis)).mean(axis=(2, 3)) if x.shape[axis] > 1 else 0.0
                for axis in (2, 3)
            )
            sizes.append(size)
            rough.append(variation / (size + TINY))
        return np.concatenate(sizes), np.concatenate(rough)
