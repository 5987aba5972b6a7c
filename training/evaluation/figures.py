"""Figures that every report card has: shares at thresholds, and what they are worth in practice."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from reluguard.detector.head import images_needed
from reluguard.detector.metrics import Interval, Rates
from reluguard.detector.plain import UNSAID, Plain
from reluguard.training.statistics.metrics import rate_above, rate_interval

__all__ = [
    "FEW",
    "Clean",
    "Precision",
    "Promise",
    "Tried",
    "by_answer",
    "clean_figures",
    "few",
    "flagged",
    "precision",
    "prevalence_table",
    "promises",
    "rarest_last",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise(Plain):
    """What a promised rate of false alarms can come to, by how many calibration images there are.

    Attributes:
        needed: clean calibration images that the rate needs.
        low, high: what the rate comes to on fresh clean images, in 95 of 100 draws of the
            calibration images; None where they are too few to promise it.
    """

    needed: int
    low: float | None = field(default=None, metadata=UNSAID)
    high: float | None = field(default=None, metadata=UNSAID)


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


def promises(images: int, rates: Iterable[float]) -> dict[str, Promise]:
    """Return what each promised rate can come to, lowest first.

    The realised rate of the threshold at rank k of n calibration images has the law
    Beta(k, n + 1 - k), whatever the scores.

    Args:
        images: n.
        rates: promised, in (0, 1).

    Source: Vovk 2012, Conditional validity of inductive conformal predictors, proposition 2.
    """
    found = {}
    for rate in sorted(rates):
        needed = images_needed(rate)
        low = high = None
        if images >= needed:
            rank = int(np.floor(rate * (images + 1) + 1e-9))
            law = stats.beta(rank, images + 1 - rank)
            low, high = float(law.ppf(0.025)), float(law.ppf(0.975))
        found[f"{rate:g}"] = Promise(needed=needed, low=low, high=high)
    return found


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


def rarest_last(found: Mapping[str, Precision]) -> list[str]:
    """Return at which shares of attacks precision is told, as it names them, rarest last.

    JSON puts names in the order of their letters: 0.001, 0.01, 1e-05.
    """
    first = next(iter(found.values()))
    return sorted(first.precision, key=float, reverse=True)
