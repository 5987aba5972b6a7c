"""What a guard computes from firing rates and logits.

N images, F rates, L taps, K classes, G probes.

The NumPy side of the features; `compile` writes the same arithmetic as ONNX operators, and a test
holds the two together. In the order of the columns of `transform`:

- the F firing rates;
- confidence: log of the largest probability, margin of the two largest logits, largest logit,
  log-sum-exp of the logits, entropy;
- identity: which class is the answer, which the runner-up, and all probabilities, so that rates
  are judged by what is usual for that answer: 3 K numbers;
- evidence of the probes: a probe is a linear classifier on the rates of a run of taps, asked
  of which class the image was *before* anything was done to it. For each, the log-probability it
  gives to the answer and to the runner-up, the answer's lead over the best other class, its entropy
  and its agreement with the probabilities, G numbers each; then all log-probabilities, G K numbers.

Chosen by measurement on ResNet-20 over 25 attacks, one hidden layer: rates alone .917 mean AUROC;
with confidence and a discriminant analysis per tap .947; with identity .955; probes in place of the
discriminant analysis .956 at half the false alarms on noise, and with rates at a second level .965.
Near-flip counts, 2 x 2 grids of rates, spatial spread, maxima, global distances and consistency
between neighbouring taps added nothing.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.errors import GuardError

__all__ = [
    "CONFIDENCE",
    "EVIDENCE",
    "IDENTITY",
    "FeatureMap",
    "Floats",
    "confidence",
    "feature_width",
]

Floats = NDArray[np.float32]

CONFIDENCE = ("log_top", "margin", "top", "energy", "entropy")
IDENTITY = ("answer", "runner_up", "probability")
EVIDENCE = ("answer", "runner_up", "lead", "entropy", "agreement")
LOG_FLOOR = -30.0  # a log-probability below this says no more
FAR = 1e6  # taken off the answer's score when the best other class is looked for


def feature_width(columns: int, classes: int, probes: int) -> int:
    """Return X, how many features come of so many rates, classes (0 for none) and probes."""
    known = len(IDENTITY) * classes + probes * (len(EVIDENCE) + classes)
    return columns + len(CONFIDENCE) + (known if classes else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMap:
    """The arrays between firing rates and a head.

    Attributes:
        columns: int64, (F,). Which of the harvested rates are read.
        column_taps: int64, (F,). The tap each of them belongs to.
        taps: L.
        classes: K, 0 where identity and probes are left out.
        probe_weights: float32, (F, G * K). The probes side by side.
        probe_bias: float32, (G * K,).
        center: float32, (X,). Subtracted from the features.
        spread: float32, (X,). Divided by after that.
        limit: standardised features are cut to [-limit, limit].
    """

    columns: NDArray[np.int64]
    column_taps: NDArray[np.int64]
    taps: int
    classes: int
    probe_weights: Floats
    probe_bias: Floats
    center: Floats
    spread: Floats
    limit: float = 5.0

    def __post_init__(self) -> None:
        if self.taps < 1 or self.classes < 0:
            raise GuardError(f"expected taps and classes, got {self.taps} and {self.classes}")
        outputs, x = self.probes * self.classes, self.width
        expected = {
            "column_taps": (len(self.columns),),
            "probe_weights": (len(self.columns), outputs),
            "probe_bias": (outputs,),
            "center": (x,),
            "spread": (x,),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise GuardError(
                    f"expected {name} of shape {shape}, got {getattr(self, name).shape}"
                )
        if not (self.spread > 0).all() or not self.limit > 0:
            raise GuardError("expected a positive spread and limit of the features")

    @property
    def probes(self) -> int:
        """G."""
        return self.probe_bias.size // self.classes if self.classes else 0

    @property
    def width(self) -> int:
        """X, how many features come out."""
        return feature_width(len(self.columns), self.classes, self.probes)

    @property
    def feature_taps(self) -> NDArray[np.int64]:
        """int64, (X,): the tap of each feature, -1 for those that are no single tap's."""
        shared = np.full(self.width - len(self.columns), -1)
        return np.concatenate([self.column_taps, shared])

    def transform(self, rates: NDArray[Any], logits: NDArray[Any]) -> Floats:
        """Return standardised features: float32, (N, X).

        Args:
            rates: (N, D). Every harvested firing rate.
            logits: (N, classes of the model).
        """
        read = rates[:, self.columns].astype(np.float32)
        scores = logits.astype(np.float32)
        parts = [read, confidence(scores)]
        if self.classes:
            top, second = _two_largest(scores)
            answer, runner_up = ((scores == value).astype(np.float32) for value in (top, second))
            probability = np.exp(scores - _log_sum_exp(scores))
            parts += [answer, runner_up, probability]
            parts += self._evidence(read, answer, runner_up, probability)
        x = np.concatenate(parts, axis=1)
        standard = (x - self.center) / self.spread
        cut: Floats = np.clip(standard, -self.limit, self.limit).astype(np.float32)
        return cut

    def probe_classes(self, rates: NDArray[Any]) -> Floats:
        """Return the log-probability each probe gives to each class: float32, (N, G, K).

        Args:
            rates: (N, D). Every harvested firing rate.
        """
        return self._log_probabilities(rates[:, self.columns].astype(np.float32))

    def _log_probabilities(self, read: Floats) -> Floats:
        s = (read @ self.probe_weights + self.probe_bias).reshape(
            len(read), self.probes, self.classes
        )
        floored: Floats = np.maximum(s - _log_sum_exp(s), np.float32(LOG_FLOOR))
        return floored

    def _evidence(
        self, read: Floats, answer: Floats, runner_up: Floats, probability: Floats
    ) -> list[Floats]:
        log_q = self._log_probabilities(read)
        q = np.exp(log_q)
        of_answer = (log_q * answer[:, None]).sum(axis=2)
        other = (log_q - np.float32(FAR) * answer[:, None]).max(axis=2)
        return [
            of_answer,
            (log_q * runner_up[:, None]).sum(axis=2),
            of_answer - other,
            -(q * log_q).sum(axis=2),
            (q * probability[:, None]).sum(axis=2),
            log_q.reshape(len(read), -1),
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
