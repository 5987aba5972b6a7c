"""One captured image as a labeller wants to see it: what was said of it, why, and its pixels."""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.captures import index, read_shard
from reluguard.detector.errors import CapturesError
from reluguard.detector.reference import layer_rates
from reluguard.service.captures.label import Row, list_captures
from reluguard.service.errors import LabelError

__all__ = ["Shown", "show_capture", "write_image"]

_LEAST_SIDE = 256  # small images are enlarged to be looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One captured image.

    Attributes:
        row: what the index says of it.
        evidence: log-odds that each layer gives, by layer; none without a guard.
        layer_rates: the share of ReLUs that fired, by layer; none without a guard.
        raw: the input as it came, if it was kept: uint8 (H, W, C) or the model's own tensor.
    """

    row: Row
    evidence: Mapping[str, float]
    layer_rates: Mapping[str, float]
    raw: NDArray[Any] | None

    def to_json(self) -> dict[str, Any]:
        """Return all but the raw input as plain values."""
        return {
            **self.row.to_json(),
            "evidence": dict(self.evidence),
            "layer_rates": dict(self.layer_rates),
        }


def show_capture(folder: Path, name: str, guard: GuardArtifact | None = None) -> Shown:
    """Return one captured image.

    Args:
        folder: of the captures.
        name: its id.
        guard: of the model it was captured from; with one, its evidence is shown.

    Raises:
        LabelError: no such capture, its shard is damaged, or the guard reads other taps.
    """
    (row,) = list_captures(folder, only=name)
    try:
        with index(folder) as connection:
            shard, at = connection.execute(
                "SELECT shard, row FROM captures WHERE id = ?", (name,)
            ).fetchone()
        kept = read_shard(folder, shard)
        rates, logits = kept.rates[[at]], kept.logits[[at]]
        raw = None if kept.raw is None else kept.raw[at]
    except (CapturesError, IndexError, TypeError, sqlite3.Error) as error:
        raise LabelError(f"the shard of {name[:96]!r} can't be read: {error}") from error
    if guard is None:
        return Shown(row=row, evidence={}, layer_rates={}, raw=raw)
    taps = guard.manifest.taps
    if rates.shape[1] != sum(tap.rates for tap in taps):
        raise LabelError(f"expected captures of the taps that {guard.path} reads, got others")
    scores = guard.head.score(rates, logits)
    names = [tap.name for tap in taps]
    return Shown(
        row=row,
        evidence=dict(zip(names, scores.evidence[0].tolist(), strict=True)),
        layer_rates=dict(zip(names, layer_rates(rates, taps)[0].tolist(), strict=True)),
        raw=raw,
    )


def write_image(raw: NDArray[Any], out: Path) -> None:
    """Write pixels as a picture, small ones enlarged.

    Raises:
        LabelError: they are not pixels but a model's tensor.
    """
    if raw.dtype != np.uint8 or raw.ndim != 3:
        raise LabelError(f"expected captured pixels to draw, got a tensor {raw.dtype} {raw.shape}")
    picture = Image.fromarray(raw[..., 0] if raw.shape[2] == 1 else raw)
    factor = max(1, -(-_LEAST_SIDE // min(picture.size)))
    size = (picture.width * factor, picture.height * factor)
    picture.resize(size, Image.Resampling.NEAREST).save(out)
