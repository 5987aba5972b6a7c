"""Has production left what the guard was calibrated on? Read from the weighted captures.

`ks` and `psi` compare the scores of all traffic with calibration; `bulk_ks` only what lies below
the threshold; `verdict_rate` is the share above it, `class_mix` how far the predicted classes moved
between the older and the newer half (total variation). Moved clean inputs shift the bulk:
recalibrate. Something new lies above the threshold while the bulk stays where it was: label what
was captured and retrain. N captured images, n calibration scores.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from detector.runtime import Guard
from service.capture import index

__all__ = ["STATISTICS", "Advice", "Drift", "measure", "read_drift"]

Advice = Literal["wait", "none", "recalibrate", "retrain"]
STATISTICS = ("ks", "psi", "bulk_ks", "verdict_rate", "verdict_excess", "class_mix")
_NEWEST = 20_000
_LEAST_SAMPLES = 100  # below this nothing is said
_LEAST_SHIFT = 0.1  # a smaller KS distance is of no consequence, however certain
_CERTAIN = 1.95  # Kolmogorov's quantile at 0.001
_SIGMAS = 3.3  # the normal's at 0.0005
_BINS = 10

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How far production is from calibration.

    Attributes:
        samples: effective number: that of equally weighted images which would say as much.
        statistics: by name.
        advice: what to do; `wait` while there are too few samples.
    """

    samples: float
    statistics: Mapping[str, float]
    advice: Advice


def read_drift(folder: Path, guard: Guard) -> Drift:
    """Return the drift of the newest captures that this guard scored.

    Raises:
        sqlite3.Error: the index is locked or damaged.
    """
    with index(folder) as connection:
        rows = connection.execute(
            "SELECT score, weight, prediction FROM captures WHERE guard = ? "
            "ORDER BY time DESC, row DESC LIMIT ?",
            (guard.artifact.digest, _NEWEST),
        ).fetchall()
    columns = np.array(rows, np.float64).reshape(-1, 3)[::-1]
    return measure(
        columns[:, 0],
        columns[:, 1],
        columns[:, 2],
        clean=guard.artifact.head.clean_scores.astype(np.float64),
        threshold=float(np.float32(guard.threshold)),
        fpr=guard.fpr,
    )


def measure(
    score: Floats,
    weight: Floats,
    prediction: Floats,
    *,
    clean: Floats,
    threshold: float,
    fpr: float,
) -> Drift:
    """Return how far these captures are from calibration.

    Args:
        score: (N,), oldest first.
        weight: (N,). One over the chance with which each was kept.
        prediction: (N,).
        clean: ascending, (n,).
        threshold: above it an image is adversarial.
        fpr: the share of clean images that may be.
    """
    samples = _effective(weight)
    if samples < _LEAST_SAMPLES:
        return Drift(samples=samples, statistics={}, advice="wait")
    above = score > threshold
    rate = float(weight[above].sum() / weight.sum())
    below, clean_below = ~above, clean[clean <= threshold]
    bulk = _ks(score[below], weight[below], clean_below)
    half = len(score) // 2
    statistics = {
        "ks": _ks(score, weight, clean),
        "psi": _psi(score, weight, clean),
        "bulk_ks": bulk,
        "verdict_rate": rate,
        "verdict_excess": rate - fpr,
        "class_mix": _variation(prediction, weight, half),
    }
    pooled = 1 / max(_effective(weight[below]), 1.0) + 1 / max(len(clean_below), 1)
    moved = bulk > max(_LEAST_SHIFT, _CERTAIN * math.sqrt(pooled))
    noise = math.sqrt(fpr * (1 - fpr) * (1 / samples + 1 / len(clean)))
    many = rate - fpr > max(fpr / 2, _SIGMAS * noise)
    advice: Advice = "recalibrate" if moved else "retrain" if many else "none"
    return Drift(samples=samples, statistics=statistics, advice=advice)


def _effective(weight: Floats) -> float:
    """Kish's effective sample size."""
    return float(weight.sum() ** 2 / (weight**2).sum()) if len(weight) else 0.0


def _ks(score: Floats, weight: Floats, clean: Floats) -> float:
    """The largest distance between the weighted distribution and that of calibration."""
    if not len(score) or not len(clean):
        return 0.0
    order = np.argsort(score)
    total = np.concatenate([[0.0], np.cumsum(weight[order])])
    at = np.unique(np.concatenate([score, clean]))
    ours = total[np.searchsorted(score[order], at, side="right")] / total[-1]
    theirs = np.searchsorted(clean, at, side="right") / len(clean)
    return float(np.abs(ours - theirs).max())


def _psi(score: Floats, weight: Floats, clean: Floats) -> float:
    """Population stability index over the deciles of calibration."""
    edges = np.quantile(clean, np.linspace(0, 1, _BINS + 1)[1:-1])
    ours = np.bincount(np.searchsorted(edges, score), weight, _BINS) / weight.sum()
    theirs = np.bincount(np.searchsorted(edges, clean), minlength=_BINS) / len(clean)
    ours, theirs = np.maximum(ours, 1e-4), np.maximum(theirs, 1e-4)
    return float(((ours - theirs) * np.log(ours / theirs)).sum())


def _variation(prediction: Floats, weight: Floats, half: int) -> float:
    classes = prediction.astype(np.int64)
    size = int(classes.max()) + 1
    old = np.bincount(classes[:half], weight[:half], size) / weight[:half].sum()
    new = np.bincount(classes[half:], weight[half:], size) / weight[half:].sum()
    return float(np.abs(old - new).sum() / 2)
