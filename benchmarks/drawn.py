"""Guards whose weights are drawn, not fitted: for speed, size and tests, not for detecting.

N images, L taps, D rates, F columns of them, K classes, X features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import Golden, Manifest, write_guard
from reluguard.detector.features import FeatureMap, feature_width
from reluguard.detector.head import Head, threshold_at
from reluguard.detector.images import Images
from reluguard.detector.model import infer_spec, load_production
from reluguard.detector.runtime import Reader
from reluguard.detector.taps import Tap, find_taps
from reluguard.training.data.case import with_blocks

__all__ = ["Drawing", "as_fitted", "draw_head", "write_drawn_guard"]

LEVELS = (0.2, 0.5, 0.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What kind of head is drawn.

    Attributes:
        seed: of every weight.
        units: of each hidden layer.
        most_columns: rates read, evenly chosen, at most; None for all.
        most_classes: a model of more has neither probes nor the identity of the answer, or a code.
        code: numbers of that code; 0 for none.
        probes: how many.
        probe_gain: factor on the weights of the probes.
        slope: of the calibration.
        intercept: of the calibration.
    """

    seed: int = 0
    units: tuple[int, ...] = (16,)
    most_columns: int | None = None
    most_classes: int = 64
    code: int = 0
    probes: int = 2
    probe_gain: float = 1.0
    slope: float = 1.0
    intercept: float = 0.0


def draw_head(
    taps: Sequence[Tap],
    rates: NDArray[np.float32],
    logits: NDArray[np.float32],
    drawing: Drawing = Drawing(),
) -> Head:
    """Return a head of random weights, standardised and calibrated on these readings.

    Args:
        taps: L of them.
        rates: (N, D).
        logits: (N, K).
        drawing: what kind of head.
    """
    rng = np.random.default_rng(drawing.seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.normal(0, 1 / np.sqrt(max(shape[0], 1)), shape).astype(np.float32)

    of_column = np.repeat(np.arange(len(taps)), [tap.rates for tap in taps])
    count = min(len(of_column), drawing.most_columns or len(of_column))
    columns = np.linspace(0, len(of_column) - 1, count).astype(np.int64)
    many = logits.shape[1] > drawing.most_classes
    numbers = drawing.code if many else 0
    classes = 0 if many and not numbers else logits.shape[1]
    outputs = drawing.probes * (numbers or classes)
    width = feature_width(count, classes, drawing.probes, numbers)
    features = FeatureMap(
        columns=columns,
        column_taps=of_column[columns],
        taps=len(taps),
        classes=classes,
        probe_weights=normal(count, outputs) * np.float32(drawing.probe_gain),
        probe_bias=normal(outputs),
        center=np.zeros(width, np.float32),
        spread=np.ones(width, np.float32),
        limit=1e30,
        code=normal(classes, numbers) if numbers else np.zeros((0, 0), np.float32),
    )
    raw = features.transform(rates, logits)
    features = replace(
        features,
        center=raw.mean(axis=0),
        spread=np.maximum(raw.std(axis=0), np.float32(0.05)),
        limit=8.0,
    )
    layers = list(pairwise((width, *drawing.units, 1)))
    head = Head(
        features=features,
        weights=tuple(normal(*layer) for layer in layers),
        biases=tuple(normal(units) for _, units in layers),
        slope=drawing.slope,
        intercept=drawing.intercept,
        evidence_weights=normal(width),
        evidence_bias=normal(len(taps)),
        clean_scores=np.zeros(0, np.float32),
    )
    return replace(head, clean_scores=np.sort(head.score(rates, logits).score))


def as_fitted(taps: Sequence[Tap]) -> tuple[Tap, ...]:
    """Return the taps read as a fit reads them: in blocks, each at levels of its own."""
    levels = [tuple(level + i / 1000 for level in LEVELS) for i in range(len(taps))]
    own = [replace(tap, levels=values) for tap, values in zip(taps, levels, strict=True)]
    return with_blocks(own)


def write_drawn_guard(
    model: Path | str,
    folder: Path | str,
    *,
    clean: Images,
    golden: Images,
    rates: Sequence[float],
    provenance: Mapping[str, object],
    drawing: Drawing = Drawing(),
    threads: int | None = 1,
    reports: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a guard of every tap, read as a fit would, with a drawn head; return its folder.

    Args:
        model: the ONNX file.
        folder: of the guard.
        clean: uint8, (N, H, W, C). What it is standardised and calibrated on.
        golden: uint8, (N, H, W, C). Kept in the guard with their scores.
        rates: false positive rates with a threshold; the last one is the guard's own.
        provenance: goes into the manifest.
        drawing: what kind of head.
        threads: of ONNX Runtime.
        reports: more files of the guard.
    """
    production = load_production(model)
    _, height, width, channels = clean.shape
    spec = infer_spec(production, (height, width, channels))
    taps = as_fitted(find_taps(production, spec))
    reader = Reader(production, spec, taps, threads=threads)
    head = draw_head(taps, *reader.read(clean), drawing)
    golden_rates, golden_logits = reader.read(golden)
    return write_guard(
        folder,
        manifest=Manifest(
            model_sha256=production.sha256,
            input=spec,
            answer=production.answer,
            taps=taps,
            fpr=rates[-1],
            thresholds={str(rate): threshold_at(rate, head.clean_scores) for rate in rates},
            calibration_images=len(head.clean_scores),
            created_at="2026-01-01T00:00:00+00:00",
            provenance=dict(provenance),
        ),
        head=head,
        golden=Golden(
            images=golden,
            rates=golden_rates,
            score=head.score(golden_rates, golden_logits).score,
            prediction=golden_logits.argmax(axis=1),
        ),
        reports=reports or {},
    ).path
