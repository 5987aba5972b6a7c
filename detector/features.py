"""What a guard computes from firing rates and logits. N images, F rates, L taps, K classes.

The NumPy side of the features; `compile` writes the same arithmetic as ONNX operators, and a test
holds the two together. In the order of the columns of `transform`:

- the F firing rates;
- confidence: log of the largest probability, margin of the two largest logits, largest logit,
  log-sum-exp of the logits, entropy;
- identity, for models of few classes: which class is the answer, which the runner-up, and all
  probabilities, 3 K numbers, so that rates are judged by what is usual for that answer;
- profile: for each tap, four numbers that put its pattern in relation to the answer, from a linear
  discriminant analysis of its rates (one Gaussian per class, one covariance for all): the log
  posterior of the answer, that of the runner-up, the posterior's entropy, and the log of the
  squared Mahalanobis distance to the answer's class.

Chosen by measurement on ResNet-20, 18 attacks: rates alone .917 mean AUROC, with confidence and
profile .947, with identity .951; near-flip counts, 2 x 2 grids of rates, spatial spread, maxima,
global distances and consistency between neighbouring taps added nothing.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.errors import GuardError

__all__ = ["CONFIDENCE", "IDENTITY", "PROFILE", "FeatureMap", "Floats", "confidence"]

Floats = NDArray[np.float32]

CONFIDENCE = ("log_top", "margin", "top", "energy", "entropy")
PROFILE = ("answer", "runner_up", "entropy", "far_answer")
IDENTITY = ("answer", "runner_up", "probability")
LOG_FLOOR = -30.0  # a log posterior below this says no more


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMap:
    """The arrays between firing rates and a head.

    Attributes:
        columns: int64, (F,). Which of the harvested rates are read.
        column_taps: int64, (F,). The tap each of them belongs to.
        taps: L.
        classes: K, 0 where the class profile is left out.
        whiten: float32, (F, P). Whitens each tap's rates by its within-class covariance, up to a
            factor per tap that makes its posteriors calibrated.
        whiten_bias: float32, (P,).
        whiten_taps: int64, (P,). The tap each whitened direction belongs to.
        class_means: float32, (P, K). The classes' means in whitened coordinates.
        center: float32, (X,). Subtracted from the features.
        spread: float32, (X,). Divided by after that.
        limit: standardised features are cut to [-limit, limit].
        identities: K, 0 where the identity features are left out.
    """

    columns: NDArray[np.int64]
    column_taps: NDArray[np.int64]
    taps: int
    classes: int
    whiten: Floats
    whiten_bias: Floats
    whiten_taps: NDArray[np.int64]
    class_means: Floats
    center: Floats
    spread: Floats
    limit: float = 5.0
    identities: int = 0

    def __post_init__(self) -> None:
        f, p, x = len(self.columns), len(self.whiten_bias), self.width
        expected = {
            "column_taps": (f,),
            "whiten": (f, p),
            "whiten_taps": (p,),
            "class_means": (p, self.classes),
            "center": (x,),
            "spread": (x,),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise GuardError(
                    f"expected {name} of shape {shape}, got {getattr(self, name).shape}"
                )

    @property
    def width(self) -> int:
        """X, how many features come out."""
        profile = len(PROFILE) * self.taps if self.classes else 0
        identity = len(IDENTITY) * self.identities
        return len(self.columns) + len(CONFIDENCE) + identity + profile

    @property
    def feature_taps(self) -> NDArray[np.int64]:
        """int64, (X,): the tap of each feature, -1 for those of the answer alone."""
        no_tap = len(CONFIDENCE) + len(IDENTITY) * self.identities
        parts = [self.column_taps, np.full(no_tap, -1)]
        if self.classes:
            parts += [np.arange(self.taps)] * len(PROFILE)
        return np.concatenate(parts)

    def class_weights(self) -> tuple[Floats, Floats]:
        """Return the product that scores every class at every tap, and its bias.

        Returns:
            float32 (F, L * K) and (L * K,): `rates @ weights + bias` is y.m - |m|^2 / 2 per tap
            and class, y the whitened rates and m the class mean.
        """
        by_tap = self.whiten_taps[:, None] == np.arange(self.taps)
        spread = (by_tap[:, :, None] * self.class_means[:, None, :]).reshape(
            len(self.whiten_taps), self.taps * self.classes
        )
        norms = by_tap.T.astype(np.float32) @ (self.class_means**2)
        weights = self.whiten @ spread
        bias = self.whiten_bias @ spread - norms.reshape(-1) / 2
        return weights.astype(np.float32), bias.astype(np.float32)

    def transform(self, rates: NDArray[Any], logits: NDArray[Any]) -> Floats:
        """Return standardised features: float32, (N, X).

        Args:
            rates: (N, D). Every harvested firing rate.
            logits: (N, classes of the model).
        """
        read = rates[:, self.columns].astype(np.float32)
        scores = logits.astype(np.float32)
        top, second = _two_largest(scores)
        answers = ((scores == top).astype(np.float32), (scores == second).astype(np.float32))
        parts = [read, confidence(scores)]
        if self.identities:
            parts += [*answers, np.exp(scores - _log_sum_exp(scores))]
        if self.classes:
            parts += self._profile(read, *answers)
        x = np.concatenate(parts, axis=1)
        standard = (x - self.center) / self.spread
        cut: Floats = np.clip(standard, -self.limit, self.limit).astype(np.float32)
        return cut

    def _profile(self, rates: Floats, answer: Floats, runner_up: Floats) -> list[Floats]:
        weights, bias = self.class_weights()
        s = (rates @ weights + bias).reshape(len(rates), self.taps, self.classes)
        whitened = rates @ self.whiten + self.whiten_bias
        by_tap = (self.whiten_taps[:, None] == np.arange(self.taps)).astype(np.float32)
        length = whitened**2 @ by_tap
        log_posterior = np.maximum(s - _log_sum_exp(s), LOG_FLOOR)
        s_answer = (s * answer[:, None, :]).sum(axis=2)
        return [
            (log_posterior * answer[:, None, :]).sum(axis=2),
            (log_posterior * runner_up[:, None, :]).sum(axis=2),
            -(np.exp(log_posterior) * log_posterior).sum(axis=2),
            np.log(np.maximum(length - 2 * s_answer, 0) + 1),
        ]


def confidence(logits: Floats) -> Floats:
    """Return the confidence features: float32, (N, 5), in the order of CONFIDENCE."""
    top, second = _two_largest(logits)
    energy = _log_sum_exp(logits)
    probability = np.exp(logits - energy)
    entropy = energy - (probability * logits).sum(axis=1, keepdims=True)
    return np.concatenate([top - energy, top - second, top, energy, entropy], axis=1)


def _two_largest(logits: Floats) -> tuple[Floats, Floats]:
    """Return the largest and second largest logit, each (N, 1)."""
    ordered = np.partition(logits, -2, axis=1)
    return ordered[:, -1:], ordered[:, -2:-1]


def _log_sum_exp(x: Floats) -> Floats:
    """Return log(sum(exp(x))) over the last axis, kept."""
    top = x.max(axis=-1, keepdims=True)
    summed: Floats = top + np.log(np.exp(x - top).sum(axis=-1, keepdims=True))
    return summed
