"""The head: from features to score, likelihood and evidence. N images, X features, L taps."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.errors import GuardError, SettingsError
from reluguard.detector.features import FeatureMap, Floats

__all__ = [
    "NO_SCORE",
    "Head",
    "Scores",
    "conformal_p_values",
    "images_needed",
    "is_scored",
    "threshold_at",
]

CODE = "code"  # of many classes: only guards that have one keep it
NO_SCORE = 1e4  # of a pass that overflowed to NaN: it must never count as clean


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What a head says of a batch: score (N,), likelihood (N,), evidence (N, L); float32."""

    score: Floats
    likelihood: Floats
    evidence: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A feature map, a small network over it and its calibration: arrays, no code.

    Attributes:
        features: what the network reads.
        weights: float32 (inputs, units) per layer, Relu between layers, the last of one unit. One
            layer is logistic regression.
        biases: float32 (units,) per layer.
        slope, intercept: likelihood = sigmoid(slope * score + intercept).
        evidence_weights: float32, (X,). Each tap's own log-odds sum its features' shares of this.
        evidence_bias: float32, (L,).
        clean_scores: float32, ascending. Scores of clean images no step of fitting saw: what
            p-values and thresholds are counted on. Only the few settings of a unit that retraining
            adds are chosen on them.
    """

    features: FeatureMap
    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]
    slope: float
    intercept: float
    evidence_weights: Floats
    evidence_bias: Floats
    clean_scores: Floats

    def __post_init__(self) -> None:
        width = self.features.width
        if not self.weights or len(self.weights) != len(self.biases):
            raise GuardError("expected one bias per layer of weights, and at least one layer")
        for w, b in zip(self.weights, self.biases, strict=True):
            if w.ndim != 2 or w.shape[0] != width or b.shape != (w.shape[1],):
                got = f"{w.shape} and {b.shape}"
                raise GuardError(f"expected weights and biases of {width} inputs, got {got}")
            width = w.shape[1]
        if width != 1:
            raise GuardError(f"expected a last layer of one unit, got {width}")
        expected = {
            "evidence_weights": (self.features.width,),
            "evidence_bias": (self.features.taps,),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise GuardError(
                    f"expected {name} of shape {shape}, got {getattr(self, name).shape}"
                )
        if (np.diff(self.clean_scores) < 0).any() or self.clean_scores.ndim != 1:
            raise GuardError("expected the clean calibration scores in ascending order")

    def score(self, rates: NDArray[Any], logits: NDArray[Any]) -> Scores:
        """Return what the head says: the reference that the compiled graph is held to.

        Args:
            rates: (N, D). Every harvested firing rate.
            logits: (N, classes).
        """
        x = self.features.transform(rates, logits)
        hidden = x
        for w, b in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = np.maximum(hidden @ w + b, 0)
        score = (hidden @ self.weights[-1] + self.biases[-1])[:, 0]
        score = np.where(np.isnan(score), np.float32(NO_SCORE), score)
        likelihood = 1 / (1 + np.exp(-(self.slope * score.astype(np.float64) + self.intercept)))
        by_tap = self.features.feature_taps[:, None] == np.arange(self.features.taps)
        evidence = (x * self.evidence_weights) @ by_tap.astype(np.float32) + self.evidence_bias
        evidence = np.where(np.isnan(evidence), np.float32(0), evidence)
        return Scores(
            score=score.astype(np.float32),
            likelihood=likelihood.astype(np.float32),
            evidence=evidence.astype(np.float32),
        )

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the head as named arrays, for `from_arrays`.

        An array whose values all fit half precision is stored in it: nothing is lost.
        """
        f = self.features
        arrays: dict[str, NDArray[Any]] = {
            field.name: np.asarray(getattr(f, field.name)) for field in fields(f)
        }
        if not f.code.size:
            del arrays[CODE]
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            arrays[f"weight_{i}"], arrays[f"bias_{i}"] = w, b
        arrays["slope"] = np.asarray(self.slope, np.float64)
        arrays["intercept"] = np.asarray(self.intercept, np.float64)
        for name in ("evidence_weights", "evidence_bias", "clean_scores"):
            arrays[name] = getattr(self, name)
        return {name: _compact(value) for name, value in arrays.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "Head":
        """Undo `to_arrays`.

        Raises:
            GuardError: an array is missing, unknown, of a wrong shape or not finite.
        """
        left = {name: _expand(name, value) for name, value in arrays.items()}
        layers = sum(name.startswith("weight_") for name in left)
        try:
            weights = tuple(left.pop(f"weight_{i}") for i in range(layers))
            biases = tuple(left.pop(f"bias_{i}") for i in range(layers))
            own: dict[str, Any] = {n: left.pop(n).item() for n in ("slope", "intercept")}
            own |= {n: left.pop(n) for n in ("evidence_weights", "evidence_bias", "clean_scores")}
            inner: dict[str, Any] = {
                field.name: left.pop(field.name)
                for field in fields(FeatureMap)
                if field.name != CODE or CODE in left
            }
            for name, kind in (
                ("taps", int),
                ("classes", int),
                ("limit", float),
            ):
                inner[name] = kind(inner[name].item())
        except (KeyError, ValueError) as error:
            raise GuardError(f"the head's arrays are incomplete: {error}") from error
        if left:
            raise GuardError(f"the head holds arrays nobody asked for: {', '.join(sorted(left))}")
        features = FeatureMap(**inner)
        return cls(features=features, weights=weights, biases=biases, **own)


def _compact(value: NDArray[Any]) -> NDArray[Any]:
    if value.dtype != np.float32:
        return value
    with np.errstate(over="ignore"):
        half = value.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), value) else value


def _expand(name: str, value: NDArray[Any]) -> NDArray[Any]:
    if value.dtype.kind not in "fi":
        raise GuardError(f"expected numbers in {name}, got {value.dtype}")
    if not np.isfinite(value).all():
        raise GuardError(f"expected finite numbers in {name}, got NaN or infinity")
    if value.dtype.kind == "i":
        return value.astype(np.int64)
    return value.astype(np.float32) if value.dtype == np.float16 else value


def is_scored(scores: Floats) -> NDArray[np.bool_]:
    """Return which rows have a score: not those whose pass overflowed."""
    return np.isfinite(scores) & (scores < NO_SCORE)


def images_needed(fpr: float) -> int:
    """Return how many clean calibration images a threshold at this false-positive rate needs."""
    if not 0 < fpr < 1:
        raise SettingsError(
            f"expected a false-positive rate between 0 and 1, got {fpr}"
            f"{f', where {fpr:g} % is {fpr / 100:g}' if 1 <= fpr < 100 else ''}"
        )
    return int(np.ceil(1 / fpr - 1e-9)) - 1


def threshold_at(fpr: float, clean_scores: Floats) -> float:
    """Return the score above which at most this share of clean images lies, in expectation.

    `score > threshold` is the same as `conformal_p_values(score) <= fpr`.

    Args:
        fpr: the share, in (0, 1).
        clean_scores: ascending, (n,).

    Raises:
        SettingsError: too few calibration images for so low a rate, or no such rate.

    Source: split conformal prediction, Vovk et al. 2005, chapter 4.
    """
    needed = images_needed(fpr)
    rank = int(np.floor(fpr * (len(clean_scores) + 1) + 1e-9))
    if rank < 1:
        raise SettingsError(
            f"a false-positive rate of {fpr} needs {needed} clean calibration images, "
            f"this guard has {len(clean_scores)}"
        )
    return float(clean_scores[len(clean_scores) - rank])


def conformal_p_values(scores: Floats, clean_scores: Floats) -> NDArray[np.float64]:
    """Return the share of clean images that score at least as high: float64, (N,), in (0, 1].

    Args:
        scores: (N,).
        clean_scores: ascending, (n,).
    """
    below = np.searchsorted(clean_scores, scores, side="left")
    above = (len(clean_scores) - below).astype(np.float64)
    p_values: NDArray[np.float64] = (1 + above) / (len(clean_scores) + 1)
    return p_values
