"""What the guard says of a batch. N images, L taps, D rates, K classes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Challenge", "Readings", "Verdict", "Verdicts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the guard says of one image.

    `score` is log-odds, higher is more adversarial. `likelihood` is the calibrated probability at
    the guard's stated prevalence. `p_value` is the share of clean images that look at least as
    adversarial: among clean inputs, P(p_value <= a) <= a. `evidence` is each tap's own log-odds,
    first tap first.
    """

    prediction: int
    score: float
    likelihood: float
    p_value: float
    is_adversarial: bool
    evidence: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """What the head read: rates float32 (N, D) and logits float32 (N, K)."""

    rates: NDArray[np.float32]
    logits: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """What a challenger says of the same images, to be counted and shown to no caller.

    `score` is float32, (N,), `is_adversarial` bool, (N,), at the challenger's own threshold.
    """

    score: NDArray[np.float32]
    is_adversarial: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """Verdicts on a batch as arrays, one row per image in the order they came.

    Attributes:
        prediction: int64, (N,). The model's own answer.
        score: float32, (N,).
        likelihood: float32, (N,), in [0, 1].
        p_value: float64, (N,), in (0, 1].
        is_adversarial: bool, (N,).
        evidence: float32, (N, L).
        outputs: the production model's own outputs, untouched, by name.
        readings: what the head read, if the guard was opened for it.
        challenge: what the challenger says, if there is one.
    """

    prediction: NDArray[np.int64]
    score: NDArray[np.float32]
    likelihood: NDArray[np.float32]
    p_value: NDArray[np.float64]
    is_adversarial: NDArray[np.bool_]
    evidence: NDArray[np.float32]
    outputs: Mapping[str, NDArray[Any]]
    readings: Readings | None = None
    challenge: Challenge | None = None

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, index: int) -> Verdict:
        """Return one image's verdict."""
        return Verdict(
            prediction=int(self.prediction[index]),
            score=float(self.score[index]),
            likelihood=float(self.likelihood[index]),
            p_value=float(self.p_value[index]),
            is_adversarial=bool(self.is_adversarial[index]),
            evidence=tuple(map(float, self.evidence[index])),
        )

    def __iter__(self) -> Iterator[Verdict]:
        return (self[i] for i in range(len(self)))
