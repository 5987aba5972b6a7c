"""Figures that every report card has: shares at thresholds, and what they are worth in practice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.metrics import Interval, Rates
from reluguard.detector.plain import Plain
from reluguard.training.statistics.metrics import rate_above, rate_interval

__all__ = [
    "FEW",
    "Clean",
    "Precision",
    "Tried",
    "by_answer",
    "clean_figures",
    "few",
    "flagged",
    "precision",
    "prevalence_table",
]

PREVALENCES = (1e-2, 1e-3, 1e-5)
FEW = 30  # successes of an attack below which its figures say little


@dataclass(frozen=True, slots=True, kw_only=True)
class Clean(Plain):
    """Clean images: how often the model is right, and what the guard flags of them.

    `misclassified_flagged` is of those the model answers wrong, empty where there are none.
    """

    images: int
    accuracy: Interval
    false_positive_rate: Rates
    misclassified_flagged: Rates


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision(Plain):
    """What share of flagged requests are attacks, by their prevalence.

    `false_positive_rate` is what it was reckoned with: the promised rate, or the measured one where
    that is higher. A few clean images without an alarm don't prove that there are none.
    """

    mean_detected: float
    false_positive_rate: float
    precision: Mapping[str, float]


class Tried(Protocol):
    """An attack's figures, as far as every report card has them."""

    @property
    def succeeded(self) -> int:
        """How many images it fooled the model on."""

    @property
    def detected(self) -> Rates:
        """What is flagged of those, empty where there are none."""


def clean_figures(
    scores: NDArray[np.float32], right: NDArray[np.bool_], thresholds: Mapping[str, float]
) -> Clean:
    """Return the figures of clean images: scores (N,) and whether each is answered right."""
    return Clean(
        images=len(right),
        accuracy=rate_interval(int(right.sum()), len(right)),
        false_positive_rate=flagged(scores, thresholds),
        misclassified_flagged=flagged(scores[~right], thresholds),
    )


def flagged(scores: NDArray[np.floating[Any]], thresholds: Mapping[str, float]) -> Rates:
    """Return the share of scores (N,) above each threshold, by its rate; nothing where N is 0."""
    if not len(scores):
        return {}
    return {rate: rate_above(scores, limit) for rate, limit in thresholds.items()}


def by_answer(
    scores: NDArray[np.float32], answers: NDArray[np.int64], thresholds: Mapping[str, float]
) -> dict[str, Rates]:
    """Return for each class the model answers what is flagged of clean images."""
    return {
        str(answer): flagged(scores[answers == answer], thresholds) for answer in np.unique(answers)
    }


def few(attacks: Mapping[str, Tried]) -> Sequence[str]:
    """Return which attacks succeeded too seldom for their figures to say much, but did."""
    return [slug for slug, entry in attacks.items() if 0 < entry.succeeded < FEW]


def precision(clean: Clean, attacks: Mapping[str, Tried]) -> dict[str, Precision]:
    """Return at each threshold what share of flagged requests are attacks, by their prevalence.

    Args:
        clean: with the measured false-positive rates.
        attacks: with what is detected of each.
    """
    table = {}
    for rate, measured in clean.false_positive_rate.items():
        found = [entry.detected[rate].value for entry in attacks.values() if entry.detected]
        if found:
            detected, false = float(np.mean(found)), max(float(rate), measured.value)
            table[rate] = Precision(
                mean_detected=detected,
                false_positive_rate=false,
                precision=prevalence_table(detected, false),
            )
    return table


def prevalence_table(detected: float, fpr: float) -> dict[str, float]:
    """Return the positive predictive value at each prevalence of attacks among requests."""
    return {
        f"{p:g}": detected * p / (detected * p + fpr * (1 - p)) if detected else 0.0
        for p in PREVALENCES
    }
