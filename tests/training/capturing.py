"""Captures as the server writes them, for what learns from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from reluguard.detector.artifact import read_guard
from reluguard.detector.captures import Entry, add, prepare
from reluguard.detector.images import Images
from reluguard.detector.model import load_production
from reluguard.detector.runtime import Reader


class Fitted(Protocol):
    """A model and its guard."""

    @property
    def model(self) -> Path:
        """The production model."""

    @property
    def guard(self) -> Path:
        """The guard's folder."""


def write_captures(
    folder: Path,
    case: Fitted,
    rows: Sequence[tuple[Images, str | None]],
    *,
    in_request: int = 5,
    of_model: str | None = None,
    images: bool = False,
) -> Path:
    """Write captured images and their labels as the server does: one shard, one index.

    Args:
        folder: for them.
        case: whose guard read them.
        rows: each an image, uint8 (H, W, C), and its label.
        in_request: images of one request.
        of_model: digest of the model that they are said to be of, by default of this one.
        images: whether the images are kept too.
    """
    manifest = read_guard(case.guard).manifest
    production = load_production(case.model)
    pictures = np.stack([image for image, _ in rows])
    reader = Reader(production, manifest.input, manifest.taps, threads=1)
    rates, logits = reader.read(pictures)
    entries = [
        Entry(
            id=f"request-{i // in_request}:{i % in_request}",
            time=0.0,
            guard="",
            model=of_model or production.sha256,
            score=0.0,
            p_value=1.0,
            prediction=0,
            stratum="uniform",
            weight=1.0,
            source="me",
            label=label,
        )
        for i, (_, label) in enumerate(rows)
    ]
    prepare(folder)
    raw = {"images": pictures} if images else {}
    arrays: dict[str, Any] = {"rates": rates.astype(np.float16), "logits": logits, **raw}
    add(folder, "0.npz", arrays, entries)
    return folder
