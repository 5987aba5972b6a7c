"""The guard's own head: on the rows the baselines get, and on floats in place of bits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from reluguard.detector.head import Head
from reluguard.training.evaluation.baselines.base import Baseline, Context, Material, Scores
from reluguard.training.harvest.readings import Readings
from reluguard.training.head.fit import fit_head

__all__ = ["Bits", "Floats"]


@dataclass
class Bits(Baseline):
    """Our own head on the rows the baselines are fitted on."""

    name: ClassVar[str] = "bits, same rows"
    head: Head | None = None

    def fit(self, groups: Sequence[Material], context: Context) -> None:
        """Fit a head as the guard's was."""
        self.head = fit_head(
            [group.readings for group in groups],
            taps=context.taps,
            settings=context.settings,
            seed=context.seed,
        )

    def score(self, material: Material) -> Scores:
        """Return the head's score."""
        assert self.head is not None
        scores = self.head.score(material.readings.rates, material.readings.logits).score
        return scores.astype(np.float64)


@dataclass
class Floats(Baseline):
    """The guard's head on each channel's mean output in place of its firing rates."""

    name: ClassVar[str] = "float activations"
    note: ClassVar[str] = "mean per channel of the same taps, same head, same rows"
    head: Head | None = None

    def fit(self, groups: Sequence[Material], context: Context) -> None:
        """Fit a head on means."""
        taps = [replace(tap, levels=(0.0,)) for tap in context.taps]
        self.head = fit_head(
            [_with_means(group) for group in groups],
            taps=taps,
            settings=context.settings,
            seed=context.seed,
        )

    def score(self, material: Material) -> Scores:
        """Return the head's score."""
        assert self.head is not None
        scores = self.head.score(material.means, material.readings.logits).score
        return scores.astype(np.float64)


def _with_means(group: Material) -> Readings:
    # a Readings holds half precision for bits; means keep theirs
    values: Mapping[str, Any] = {"rates": group.means}
    return replace(group.readings, **values)
