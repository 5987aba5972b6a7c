"""What was captured from production and labelled since, read for a retraining."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.captures import INDEX, Labelled, Shard, labelled, read_shard
from reluguard.detector.errors import CapturesError, ImageError
from reluguard.detector.images import InputSpec
from reluguard.detector.runtime import Reader
from reluguard.training.errors import DataError
from reluguard.training.harvest.readings import Kind
from reluguard.training.harvest.workspace import Again
from reluguard.training.retraining.fresh import SPLITS, Fresh, checked_name, hashed, likely_class

__all__ = ["MOST_PER_SOURCE", "read_captured"]

LABELLED_CLEAN = "labelled-clean"
MOST_PER_SOURCE = 250


def read_captured(
    folder: Path,
    artifact: GuardArtifact,
    *,
    most_per_source: int = MOST_PER_SOURCE,
    again: Reader | None = None,
) -> list[Fresh]:
    """Return what was captured from production and labelled since, one group per label.

    Rates suffice, no image is needed; a second look reads those that were captured with theirs. The
    true class is not known: of an image labelled clean it is taken to be the model's answer, of an
    attack what the guard's own probe holds likeliest besides. An image that came again counts once:
    it must not be both fitted on and judged by.

    Args:
        folder: of the captures.
        artifact: the guard whose taps they must be of.
        most_per_source: rows of one caller under one label, at most: whoever sends most does not
            decide what the next guard is.
        again: reads a second look.

    Raises:
        DataError: the index is locked, damaged or of another model, a label is none, or nothing is
            left.
    """
    try:
        rows = labelled(folder)
    except CapturesError as error:
        raise DataError(str(error)) from error
    if not rows:
        raise DataError(f"expected labelled captures in {folder / INDEX}, none has a label")
    model = artifact.manifest.model_sha256
    foreign = {row.model for row in rows} - {model}
    if foreign:
        raise DataError(
            f"expected captures of the model {model[:16]}, some are of {min(foreign)[:16]}"
        )
    groups = []
    for label in sorted({row.label for row in rows}):
        ours = [row for row in rows if row.label == label]
        kept = _capped(ours, most_per_source)
        found = _labelled(folder, artifact, label, kept, again)
        over = {"over its caller's share": len(ours) - len(kept)}
        groups.append(replace(found, dropped={**found.dropped, **over}))
    return groups


def _capped(rows: Sequence[Labelled], most: int) -> list[Labelled]:
    """Return at most so many rows of each source, whichever by hash of their ids, in order."""
    by_source: dict[str, list[Labelled]] = {}
    for row in rows:
        by_source.setdefault(row.source, []).append(row)
    kept = [
        row
        for own in by_source.values()
        for row in sorted(own, key=lambda row: hashlib.sha256(row.id.encode()).digest())[:most]
    ]
    return sorted(kept, key=lambda row: row.id)


def _labelled(
    folder: Path,
    artifact: GuardArtifact,
    label: str,
    rows: Sequence[Labelled],
    again: Reader | None,
) -> Fresh:
    kind: Kind = "benign" if label == "clean" else "attack"
    if kind == "attack" and not label.startswith("attack:"):
        raise DataError(f"expected the label clean or attack:NAME, got {label[:64]!r}")
    name = LABELLED_CLEAN if kind == "benign" else checked_name(label.removeprefix("attack:"))
    expected = (
        sum(tap.rates for tap in artifact.manifest.taps),
        artifact.head.features.classes,
    )
    shards: dict[str, Shard | None] = {}
    rates, logits, ids = [], [], []
    taken: list[tuple[Shard, int]] = []
    dropped = {"shard damaged": 0, "other taps": 0, "seen before": 0}
    seen: set[bytes] = set()
    for one in rows:
        row = one.row
        if one.shard not in shards:
            shards[one.shard] = _read_shard(folder, one.shard)
        found = shards[one.shard]
        if found is None or not 0 <= row < len(found.rates):
            dropped["shard damaged"] += 1
        elif found.rates.shape[1] != expected[0] or found.logits.shape[1] != (
            expected[1] or found.logits.shape[1]
        ):
            dropped["other taps"] += 1
        elif (key := found.rates[row].astype(np.float16).tobytes()) in seen:
            dropped["seen before"] += 1
        else:
            seen.add(key)
            rates.append(found.rates[row])
            logits.append(found.logits[row])
            ids.append(one.id.encode())
            taken.append((found, row))
    if not ids:
        raise DataError(f"no capture labelled {label!r} can be used: {dropped}")
    read, answered = np.stack(rates), np.stack(logits).astype(np.float32)
    return Fresh(
        name=name,
        kind=kind,
        rates=read.astype(np.float16),
        logits=answered,
        labels=likely_class(artifact, read, answered, kind),
        ids=_together(ids),
        source=str(folder),
        dropped=dropped,
        again=None if again is None else _captured_again(again, taken),
        is_captured=True,
    )


def _captured_again(reader: Reader, taken: Sequence[tuple[Shard, int]]) -> Again | None:
    """Return what a second look reads of captured rows, None where none came with its image."""
    spec = reader.spec
    found = [_raw_tensor(spec, shard, row) for shard, row in taken]
    seen = np.array([one is not None for one in found])
    if not seen.any():
        return None
    rates: NDArray[Any] = np.zeros((0, 0))
    logits = np.zeros((0, 0), np.float32)
    for i, one in enumerate(found):
        if one is None:
            continue
        read, answered = reader.read_tensor(one)
        if not rates.size:
            rates = np.zeros((len(taken), read.shape[1]), np.float16)
            logits = np.zeros((len(taken), answered.shape[1]), np.float32)
        rates[i], logits[i] = read[0], answered[0]
    return Again(rates=rates, logits=logits, seen=seen)


def _raw_tensor(spec: InputSpec, shard: Shard, row: int) -> NDArray[Any] | None:
    """Return a captured row as the model's own input, None where it has none that fits."""
    if shard.raw is None:
        return None
    one = shard.raw[row : row + 1]
    try:
        tensor = spec.to_tensor(one) if shard.kind == "images" else one
        spec.check_tensor(tensor)
    except ImageError:
        return None
    return tensor


def _read_shard(folder: Path, name: str) -> Shard | None:
    try:
        shard = read_shard(folder, name)
    except CapturesError:
        return None
    return shard if np.isfinite(shard.logits).all() else None


def _together(ids: Sequence[bytes]) -> NDArray[np.int64]:
    """Return a number per captured image, held out or not together with its request.

    Images of one request may all but be copies; an id is REQUEST:ROW.
    """
    requests = hashed([name.rpartition(b":")[0] or name for name in ids])
    return hashed(ids) // SPLITS * SPLITS + requests % SPLITS
