"""Has production left what the guard was calibrated on? Read from the weighted captures.

- `ks`, `psi`, `p_value_ks`: scores and p-values of all traffic against calibration;
- `bulk_ks`: scores of only what lies below the threshold;
- `layer_psi`: the layer whose firing rate moved furthest, below the threshold; all are in `layers`;
- `verdict_rate`, `verdict_excess`, `band_rate`: the share above the threshold, what it has over the
  target, and the share in the band below it;
- `tail_excess`: what the share above a fifth of the target's rate has over that;
- `caller_ks`: how far the p-values of one caller, the one least like calibration, lie below it;
- `class_mix`: how far the predicted classes are from calibration's (total variation).

Moved clean inputs shift the bulk or the layers: recalibrate. Something new lies far above the
threshold, or comes from one caller, while the bulk stays where it was: label what was captured and
retrain.

Scores of a guard that goes by class, or that looks twice, have no common measure: there an image
is compared by its p-value, which says where it stands among the calibration images of its own class
and in the order of both looks. How many calibration images stand behind a figure then hangs on
which classes were asked about.

N captured images, n calibration images, L layers, K classes, G groups of classes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.captures import index
from reluguard.detector.head import NO_GROUPS, conformal_p_values
from reluguard.detector.reference import Reference, read_reference
from reluguard.detector.runtime import Guard

__all__ = [
    "STATISTICS",
    "Advice",
    "Calibration",
    "Drift",
    "Sample",
    "beta_binomial_tail",
    "measure",
    "read_drift",
]

Advice = Literal["wait", "none", "recalibrate", "retrain"]
STATISTICS = (
    "ks", "psi", "p_value_ks", "bulk_ks", "layer_psi", "verdict_rate", "verdict_excess",
    "band_rate", "tail_excess", "caller_ks", "class_mix",
)  # fmt: skip
_NEWEST = 20_000
_RECENT = 4_000  # an attack that began just now is not drowned in what came before
_LEAST_SAMPLES = 100  # below this nothing is said
_LEAST_SHIFT = 0.1  # a smaller KS distance is of no consequence, however certain
_LEAST_PSI = 0.25  # the usual reading of the index: above it, another population
_LEAST_GROWTH = 1.25  # as many times the calibrated share must lie above a level to be news
_CERTAIN = 1.95  # Kolmogorov's quantile at 0.001
_RARE = 1e-4  # how often calm traffic may look like an attack, per look
_TAILS = (1.0, 0.2, 0.04)  # levels looked at, as shares of the target false-positive rate
_LEAST_OF_CALLER = 30
_BINS = 10
_LAYER_BINS = 20  # the index of two samples of one population is near bins / size

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Captured images, oldest first.

    Attributes:
        score: (N,). Higher is more adversarial.
        p_value: (N,).
        weight: (N,). One over the chance with which each was kept.
        prediction: (N,).
        layers: (N, L). Layer rates, NaN where they were not kept.
        source: (N,). Who sent it.
    """

    score: Floats
    p_value: Floats
    weight: Floats
    prediction: NDArray[np.int64]
    layers: Floats
    source: NDArray[np.str_]

    def rows(self, chosen: Any) -> "Sample":
        """Return these rows only, by mask or slice."""
        return Sample(
            score=self.score[chosen],
            p_value=self.p_value[chosen],
            weight=self.weight[chosen],
            prediction=self.prediction[chosen],
            layers=self.layers[chosen],
            source=self.source[chosen],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How far production is from calibration.

    Attributes:
        samples: effective number: that of equally weighted images which would say as much.
        statistics: by name; none while there are too few samples to say it.
        sizes: the number of images behind each statistic.
        layers: population stability index by layer.
        advice: what to do; `wait` while there are too few samples.
        suspect: the caller whose requests are unlike calibration beyond chance, if there is one.
    """

    samples: float
    statistics: Mapping[str, float]
    advice: Advice
    sizes: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[str, float] = field(default_factory=dict)
    suspect: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What captures are compared with.

    Attributes:
        clean: (n,), ascending. What calibration images scored.
        threshold: above it an image is adversarial.
        fpr: the share of clean images that may be.
        group_of_class: (K,). Which calibration images an image is compared with, by the class the
            model answers. Empty: with all.
        group_sizes: (G,). How many calibration images are of each group, empty likewise.
    """

    clean: Floats
    threshold: float
    fpr: float
    group_of_class: NDArray[np.int64] = field(default_factory=lambda: NO_GROUPS)
    group_sizes: Floats = field(default_factory=lambda: np.zeros(0))

    def behind(self, sample: Sample) -> float:
        """Return how many calibration images stand behind these captures' p-values.

        All n where images are compared with all, or where traffic has the classes of calibration;
        only those of one class where all of it is of that class.

        Source: Kish's effective sample size, of calibration images weighted by the traffic.
        """
        if not self.group_of_class.size or not len(sample.weight):
            return float(len(self.clean))
        groups = np.take(self.group_of_class, sample.prediction, mode="clip")
        traffic = np.bincount(groups, sample.weight, len(self.group_sizes)) / sample.weight.sum()
        asked = traffic > 0
        return float(1 / (traffic[asked] ** 2 / self.group_sizes[asked]).sum())


def calibration_of(guard: Guard) -> tuple[Calibration, bool]:
    """Return what captures of a guard are compared with, and whether that is by p-value."""
    thresholds, again = guard.thresholds, guard.again
    if again is None and not thresholds.is_by_class:
        clean = guard.artifact.head.clean_scores.astype(np.float64)
        return Calibration(clean=clean, threshold=thresholds.single, fpr=guard.fpr), False
    if again is None:
        head = guard.artifact.head
        parts = [
            conformal_p_values(own, own) for own in map(head.clean_of, np.unique(head.class_groups))
        ]
        p_values = np.concatenate(parts)
    else:
        head, order = again.second.head, again.order
        looked = order.is_suspicious(order.first)
        groups = head.clean_groups if head.is_by_class else None
        p_values = order.p_values(order.first, order.second, looked, groups)
    sizes = np.bincount(head.clean_groups) if head.is_by_class else np.zeros(0)
    return (
        Calibration(
            clean=np.sort(-p_values),
            threshold=float(np.nextafter(-guard.fpr, -np.inf)),  # flagged at the rate itself too
            fpr=guard.fpr,
            group_of_class=head.class_groups,
            group_sizes=sizes.astype(np.float64),
        ),
        True,
    )


def read_drift(folder: Path, guard: Guard) -> Drift:
    """Return the drift of the newest captures that this guard scored.

    Raises:
        sqlite3.Error: the index is locked or damaged.
        GuardError: the guard's reference is damaged.
    """
    manifest = guard.artifact.manifest
    with index(folder) as connection:
        rows = connection.execute(
            "SELECT score, p_value, weight, prediction, source, layers FROM captures "
            "WHERE guard = ? ORDER BY rowid DESC LIMIT ?",
            (guard.artifact.digest, _NEWEST),
        ).fetchall()
    columns = np.array([row[:4] for row in rows], np.float64).reshape(-1, 4)[::-1]
    layers = np.full((len(rows), len(manifest.taps)), np.nan)
    for at, (*_, stored) in enumerate(reversed(rows)):
        if stored is not None and len(stored) == 4 * layers.shape[1]:
            layers[at] = np.frombuffer(stored, "<f4")
    calibration, by_p_value = calibration_of(guard)
    return measure(
        Sample(
            score=-columns[:, 1] if by_p_value else columns[:, 0],
            p_value=columns[:, 1],
            weight=columns[:, 2],
            prediction=columns[:, 3].astype(np.int64),
            layers=layers,
            source=np.array([row[4] for row in reversed(rows)], np.str_),
        ),
        calibration,
        reference=read_reference(manifest.provenance, manifest.taps),
        names=[tap.name for tap in manifest.taps],
    )


def measure(
    sample: Sample,
    calibration: Calibration,
    *,
    reference: Reference | None = None,
    names: list[str] | None = None,
) -> Drift:
    """Return how far these captures are from calibration.

    Args:
        sample: N captured images.
        calibration: what they are compared with.
        reference: of the layers and classes; without one neither is compared.
        names: of the L layers.
    """
    clean, fpr = calibration.clean, calibration.fpr
    samples = _effective(sample.weight)
    requests = float(sample.weight.sum())
    if requests < _LEAST_SAMPLES:
        return Drift(samples=samples, statistics={}, advice="wait")
    p, weight = sample.p_value, sample.weight
    shares = {
        "verdict_rate": _share(p <= fpr, weight),
        "band_rate": _share((p > fpr) & (p <= 2 * fpr), weight),
    }
    shares["verdict_excess"] = shares["verdict_rate"] - fpr
    shares["tail_excess"] = _share(p <= fpr / 5, weight) - fpr / 5
    suspect, distance, size = _suspect(sample, calibration)
    many = bool(suspect) or any(
        _is_news(part, calibration.behind(part), fpr)
        for part in (sample, sample.rows(slice(-_RECENT, None)))
    )
    sizes = dict.fromkeys(shares, requests)
    if size:
        shares["caller_ks"], sizes["caller_ks"] = distance, size
    if samples < _LEAST_SAMPLES:  # rates above the threshold are known well, the bulk is not
        advice: Advice = "retrain" if many else "wait"
        return Drift(
            samples=samples, statistics=shares, advice=advice, sizes=sizes, suspect=suspect
        )
    below = sample.rows(sample.score <= calibration.threshold)
    clean_below = clean[clean <= calibration.threshold]
    bulk, size = _ks(below.score, below.weight, clean_below), _effective(below.weight)
    statistics = {
        "ks": _ks(sample.score, weight, clean),
        "psi": _psi(sample.score, weight, clean),
        "p_value_ks": _uniform_ks(p, weight),
        "bulk_ks": bulk,
        **shares,
    }
    sizes |= dict.fromkeys(("ks", "psi", "p_value_ks"), samples) | {"bulk_ks": size}
    behind = calibration.behind(below) * len(clean_below) / max(len(clean), 1)
    pooled = 1 / max(size, 1.0) + 1 / max(behind, 1.0)
    moved = bulk > max(_LEAST_SHIFT, _CERTAIN * math.sqrt(pooled))
    layers: dict[str, float] = {}
    if reference is not None:
        statistics["class_mix"] = _variation(sample.prediction, weight, reference.classes)
        sizes["class_mix"] = samples
        known = below.rows(np.isfinite(below.layers).all(axis=1))
        seen = _effective(known.weight)
        if seen >= _LEAST_SAMPLES:
            found = [
                _index(layer.count(known.layers[:, i], known.weight), layer.shares)
                for i, layer in enumerate(reference.layers)
            ]
            layers = dict(zip(names or map(str, range(len(found))), found, strict=True))
            statistics["layer_psi"], sizes["layer_psi"] = max(found), seen
            chance = 3 * _LAYER_BINS * (1 / seen + 1 / reference.images)
            moved = moved or max(found) > max(_LEAST_PSI, chance)
    advice = "recalibrate" if moved else "retrain" if many else "none"
    return Drift(
        samples=samples,
        statistics=statistics,
        advice=advice,
        sizes=sizes,
        layers=layers,
        suspect=suspect,
    )


def _is_news(sample: Sample, calibrated: float, fpr: float) -> bool:
    """Whether more lies above some level than calibration allows, its own chance counted in.

    With the level at the r-th largest of n calibration scores, the number above it among m further
    clean images is beta-binomial with parameters r and n + 1 - r.

    Source: Vovk 2012, Conditional validity of inductive conformal predictors.
    """
    weight = sample.weight
    spread = math.sqrt(float((weight * (weight - 1)).sum()))  # of the estimated number of requests
    requests = math.ceil(float(weight.sum()) + 3 * spread)
    for tail in _TAILS:
        rank = math.floor(fpr * tail * (calibrated + 1) + 1e-9)
        above = int((sample.p_value <= fpr * tail).sum())  # all of them are kept
        if rank < 1 or above < _LEAST_GROWTH * requests * rank / (calibrated + 1):
            continue
        if beta_binomial_tail(above, requests, rank, calibrated + 1 - rank) < _RARE / len(_TAILS):
            return True
    return False


def _suspect(sample: Sample, calibration: Calibration) -> tuple[str, float, float]:
    """Return the caller least like calibration if that is beyond chance, its distance and size.

    An attack that is two percent of the traffic is most of what its sender sends. The distance is
    one-sided: p-values that are too small.

    Source: Smirnov's two-sample test; the number of callers is allowed for (Bonferroni).
    """
    callers = np.unique(sample.source)
    worst, distance, size, surest = "", 0.0, 0.0, -1.0
    for caller in callers:
        own = sample.rows(sample.source == caller)
        n = _effective(own.weight)
        if n < _LEAST_OF_CALLER:
            continue
        at = np.unique(own.p_value)
        found = float((_cumulated(own.p_value, own.weight, at) - at).max())
        behind = calibration.behind(own)
        sure = 2 * max(found, 0.0) ** 2 / (1 / n + 1 / behind)  # minus the log of the chance
        if sure > surest:
            worst, distance, size, surest = str(caller), found, n, sure
    certain = surest > math.log(len(callers) / _RARE) if len(callers) else False
    return (worst if certain and distance > _LEAST_SHIFT else ""), distance, size


def beta_binomial_tail(least: int, trials: int, alpha: float, beta: float) -> float:
    """Return the chance of `least` successes or more in so many trials."""
    at = np.arange(trials, dtype=np.float64)
    steps = np.log(trials - at) + np.log(alpha + at) - np.log(at + 1)
    steps -= np.log(beta + trials - at - 1)
    first = (
        math.lgamma(beta + trials)
        - math.lgamma(alpha + beta + trials)
        + math.lgamma(alpha + beta)
        - math.lgamma(beta)
    )
    log_mass = first + np.concatenate([[0.0], np.cumsum(steps)])
    return float(np.exp(log_mass[least:]).sum()) if least <= trials else 0.0


def _share(chosen: NDArray[np.bool_], weight: Floats) -> float:
    return float(weight[chosen].sum() / weight.sum())


def _effective(weight: Floats) -> float:
    """Kish's effective sample size."""
    return float(weight.sum() ** 2 / (weight**2).sum()) if len(weight) else 0.0


def _ks(score: Floats, weight: Floats, clean: Floats) -> float:
    """The largest distance between the weighted distribution and that of calibration."""
    if not len(score) or not len(clean):
        return 0.0
    at = np.unique(np.concatenate([score, clean]))
    theirs = np.searchsorted(clean, at, side="right") / len(clean)
    return float(np.abs(_cumulated(score, weight, at) - theirs).max())


def _uniform_ks(p_value: Floats, weight: Floats) -> float:
    """The largest distance of the p-values' distribution from the uniform one."""
    at = np.unique(p_value)
    return float(np.abs(_cumulated(p_value, weight, at) - at).max())


def _cumulated(values: Floats, weight: Floats, at: Floats) -> Floats:
    order = np.argsort(values, kind="stable")
    total = np.concatenate([[0.0], np.cumsum(weight[order])])
    shares: Floats = total[np.searchsorted(values[order], at, side="right")] / total[-1]
    return shares


def _psi(score: Floats, weight: Floats, clean: Floats) -> float:
    """Population stability index over the deciles of calibration."""
    edges = np.quantile(clean, np.linspace(0, 1, _BINS + 1)[1:-1])
    theirs = np.bincount(np.searchsorted(edges, clean), minlength=_BINS) / len(clean)
    return _index(_shares(score, weight, edges), theirs)


def _shares(values: Floats, weight: Floats, edges: Floats) -> Floats:
    counts = np.bincount(np.searchsorted(edges, values), weight, len(edges) + 1)
    shares: Floats = counts / weight.sum()
    return shares


def _index(ours: Floats, theirs: Floats) -> float:
    ours, theirs = np.maximum(ours, 1e-4), np.maximum(theirs, 1e-4)
    return float(((ours - theirs) * np.log(ours / theirs)).sum())


def _variation(prediction: NDArray[np.int64], weight: Floats, classes: Floats) -> float:
    size = max(len(classes), int(prediction.max()) + 1)
    ours = np.bincount(prediction, weight, size) / weight.sum()
    theirs = np.pad(classes, (0, size - len(classes)))
    return float(np.abs(ours - theirs).sum() / 2)
