"""What another network thinks of the answer. N images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from reluguard.training.errors import DataError
from reluguard.training.evaluation.baselines.base import Baseline, Context, Material, Scores

__all__ = ["Auxiliary"]


@dataclass
class Auxiliary(Baseline):
    """How little probability another network of the same classes gives to the model's answer.

    The first of the other networks; nothing is learned.

    Source: PID, 2025, arXiv 2506.03765: an auxiliary network's confidence in the answer.
    """

    name: ClassVar[str] = "PID (another network)"
    note: ClassVar[str] = "confidence of the first other network in the model's answer"
    needs_fit: ClassVar[bool] = False
    needs_other: ClassVar[bool] = True
    context: Context | None = None

    def fit(self, groups: Sequence[Material], context: Context) -> None:
        """Keep the other network."""
        del groups
        if not context.others:
            raise DataError("expected another network of the same classes, got none")
        self.context = context

    def score(self, material: Material) -> Scores:
        """Return minus the log-probability of the answer."""
        assert self.context is not None
        answers = material.readings.predictions
        logits = np.asarray(self.context.others[0](material.images), np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        total = np.log(np.exp(shifted).sum(axis=1))
        scores: Scores = total - shifted[np.arange(len(answers)), answers]
        return scores
