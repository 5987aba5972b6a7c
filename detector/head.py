"""The head: from features to score, likelihood and evidence. N images, X features, L taps."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.errors import GuardError, SettingsError
from reluguard.detector.features import FeatureMap, Floats

__all__ = [
    "NO_GROUPS",
    "NO_SCORE",
    "Head",
    "Scores",
    "conformal_p_values",
    "images_needed",
    "is_scored",
    "threshold_at",
]

Whole = NDArray[np.int64]
NO_GROUPS = np.zeros(0, np.int64)
_GROUPS = ("class_groups", "clean_groups")
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
        class_groups: int64, (K,). Which calibration images an image is compared with, by the class
            that the model answers: those whose answer is of the same group. Empty: with all.
        clean_groups: int64, (n,). The group of each clean score, empty likewise.
    """

    features: FeatureMap
    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]
    slope: float
    intercept: float
    evidence_weights: Floats
    evidence_bias: Floats
    clean_scores: Floats
    class_groups: Whole = field(default_factory=lambda: NO_GROUPS)
    clean_groups: Whole = field(default_factory=lambda: NO_GROUPS)

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
        _check_groups(self.class_groups, self.clean_groups, len(self.clean_scores))

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

    @property
    def is_by_class(self) -> bool:
        """Whether an image is compared with those of its own class, or group of classes."""
        return self.class_groups.size > 0

    def calibrated(self, scores: Floats, answers: Whole, class_groups: Whole) -> "Head":
        """Return the head with these clean scores.

        Args:
            scores: float32, (n,), in any order.
            answers: int64, (n,). What the model answers of these images.
            class_groups: as the attribute.
        """
        order = np.argsort(scores, kind="stable")
        of_clean = class_groups[answers][order] if class_groups.size else NO_GROUPS
        return replace(
            self,
            clean_scores=scores[order],
            class_groups=class_groups,
            clean_groups=of_clean,
        )

    def groups_of(self, answers: Whole) -> Whole:
        """Return the group of each answer: int64, (N,); all are of one where it goes by none."""
        if not self.is_by_class:
            return np.zeros(len(answers), np.int64)
        found: Whole = self.class_groups[answers]
        return found

    def clean_of(self, group: int) -> Floats:
        """Return the clean scores of a group, ascending."""
        if not self.is_by_class:
            return self.clean_scores
        of_group: Floats = self.clean_scores[self.clean_groups == group]
        return of_group

    @property
    def fewest_clean(self) -> int:
        """How many clean scores the smallest group has: what decides which rates can be kept."""
        if not self.is_by_class:
            return len(self.clean_scores)
        return int(np.bincount(self.clean_groups)[np.unique(self.class_groups)].min())

    def p_values(self, scores: Floats, answers: Whole) -> NDArray[np.float64]:
        """Return the share of clean images of the same group that score as high: float64, (N,).

        Among clean images of one group, P(p <= a) <= a.

        Args:
            scores: (N,).
            answers: int64, (N,). What the model answers.

        Source: Mondrian conformal prediction, Vovk et al. 2005, section 4.5.
        """
        if not self.is_by_class:
            return conformal_p_values(scores, self.clean_scores)
        groups = self.groups_of(answers)
        found = np.ones(len(scores))
        for group in np.unique(groups):
            mine = groups == group
            found[mine] = conformal_p_values(scores[mine], self.clean_of(group))
        return found

    def limits(self, fpr: float) -> Floats:
        """Return the score above which an image is flagged, by the class answered: float32, (K,).

        One number alone where it goes by no class.

        Raises:
            SettingsError: too few clean scores for so low a rate.
        """
        groups = self.class_groups if self.is_by_class else np.zeros(1, np.int64)
        of_group = {g: threshold_at(fpr, self.clean_of(g)) for g in np.unique(groups).tolist()}
        return np.array([of_group[g] for g in groups.tolist()], np.float32)

    def flags(self, scores: Floats, answers: Whole, fpr: float) -> NDArray[np.bool_]:
        """Return which images are flagged at a rate: bool, (N,). For arguments see `p_values`."""
        limits = self.limits(fpr)
        flagged: NDArray[np.bool_] = scores > (limits[answers] if self.is_by_class else limits)
        return flagged

    def levelled(self, scores: Floats, answers: Whole, rates: Iterable[float]) -> Floats:
        """Return scores that one threshold a rate suffices for: float32, (N,).

        At each rate, if all images' thresholds differ from rate to rate, an image's is above
        `threshold_at(rate, clean_scores)` where `flags` says so; in between, a class's order is
        kept. The scores themselves where it goes by no class.

        Args:
            scores: (N,).
            answers: int64, (N,).
            rates: that the clean scores of every group suffice for.
        """
        if not self.is_by_class or not len(scores):
            return scores
        chosen = sorted(rates, reverse=True)
        wanted = np.array([threshold_at(rate, self.clean_scores) for rate in chosen], np.float32)
        groups, found = self.groups_of(answers), np.empty(len(scores), np.float32)
        for group in np.unique(groups):
            mine = groups == group
            clean = self.clean_of(group)
            own = np.array([threshold_at(rate, clean) for rate in chosen], np.float32)
            found[mine] = _moved(scores[mine], own, wanted)
        return found

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the head as named arrays, for `from_arrays`.

        An array whose values all fit half precision is stored in it: nothing is lost.
        """
        f = self.features
        arrays: dict[str, NDArray[Any]] = {
            one.name: np.asarray(getattr(f, one.name)) for one in fields(f)
        }
        if not f.code.size:
            del arrays[CODE]
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            arrays[f"weight_{i}"], arrays[f"bias_{i}"] = w, b
        arrays["slope"] = np.asarray(self.slope, np.float64)
        arrays["intercept"] = np.asarray(self.intercept, np.float64)
        for name in ("evidence_weights", "evidence_bias", "clean_scores"):
            arrays[name] = getattr(self, name)
        if self.is_by_class:
            arrays |= {name: getattr(self, name) for name in _GROUPS}
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
            own |= {n: left.pop(n) for n in _GROUPS if n in left}
            inner: dict[str, Any] = {
                one.name: left.pop(one.name)
                for one in fields(FeatureMap)
                if one.name != CODE or CODE in left
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


def _check_groups(of_class: Whole, of_clean: Whole, count: int) -> None:
    """Raise GuardError unless every class has a group, and every group clean scores."""
    if not of_class.size and not of_clean.size:
        return
    kinds = of_class.dtype == of_clean.dtype == np.int64 and of_class.ndim == of_clean.ndim == 1
    if not kinds or len(of_clean) != count or set(of_class.tolist()) != set(of_clean.tolist()):
        raise GuardError(
            f"expected a group for each class and for each of {count} clean scores, each group "
            f"with some, got {of_class.dtype} {of_class.shape} and {of_clean.dtype} "
            f"{of_clean.shape}"
        )
    if of_class.min() < 0 or of_class.max() >= len(of_class):
        raise GuardError(f"expected groups from 0 to {len(of_class) - 1}, got others")


def _moved(scores: Floats, own: Floats, wanted: Floats) -> Floats:
    """Return scores moved so that ascending limits of theirs come to lie at others, ascending."""
    above = np.searchsorted(own, scores, side="left")  # how many limits each is above
    low, high = np.maximum(above - 1, 0), np.minimum(above, len(own) - 1)
    x = scores.astype(np.float64)
    gap = np.where(high > low, own[high].astype(np.float64) - own[low], 1)
    share = np.where(high > low, (x - own[low]) / np.where(gap > 0, gap, 1), 0)
    between = wanted[low] + share * (wanted[high].astype(np.float64) - wanted[low])
    outside = np.where(above == 0, wanted[0] + (x - own[0]), wanted[-1] + (x - own[-1]))
    inside = (above > 0) & (above < len(own))
    moved = np.where(inside, between, outside).astype(np.float32)
    least = np.where(above > 0, np.nextafter(wanted[low], np.float32(np.inf)), np.float32(-np.inf))
    most = np.where(above < len(own), wanted[high], np.float32(np.inf))
    kept: Floats = np.clip(moved, least, np.maximum(most, least)).astype(np.float32)
    return kept


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
