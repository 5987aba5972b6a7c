"""Streams replayed to the watch of the server, by a clock of their own. T questions."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.watching.streams import Stream
from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.images import Images
from reluguard.detector.runtime import Reader
from reluguard.service.watching.table import LEAST_BYTES, Table
from reluguard.service.watching.watch import Watch

__all__ = ["Read", "kept_streams", "weights_of"]

_KEY = b"the key of a benchmark, no secret"[:32]
_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """A stream as the network sees it: rates float32 (T, D), and its images (T, H, W, C)."""

    kind: str
    rates: NDArray[np.float32]
    images: Images


def kept_streams(
    work: Path | None, name: str, streams: Callable[[], Iterable[Stream]], reader: Reader
) -> list[Read]:
    """Return what a guard reads of each stream, as the folder has it or put there.

    Args:
        work: the folder; None to keep nothing.
        name: of the file in it.
        streams: makes them, where they are not kept.
        reader: reads them.
    """
    file = None if work is None else work / f"{name}.npz"
    if file is not None and file.is_file():
        with np.load(file) as kept:
            kinds, cuts = kept["kinds"].tolist(), np.cumsum(kept["lengths"])[:-1]
            rates, images = np.split(kept["rates"], cuts), np.split(kept["images"], cuts)
        return [
            Read(kind=kind, rates=read, images=asked)
            for kind, read, asked in zip(kinds, rates, images, strict=True)
        ]
    found = []
    for stream in streams():
        parts = [
            reader.read(stream.images[start : start + _BATCH])[0]
            for start in range(0, len(stream.images), _BATCH)
        ]
        found.append(Read(kind=stream.kind, rates=np.concatenate(parts), images=stream.images))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".part.npz")
        np.savez(
            aside,
            kinds=np.array([read.kind for read in found]),
            lengths=np.array([len(read.rates) for read in found]),
            rates=np.concatenate([read.rates for read in found]),
            images=np.concatenate([read.images for read in found]),
        )
        aside.rename(file)
    return found


def weights_of(
    read: Read,
    artifact: GuardArtifact,
    *,
    distance: float,
    half_life_s: float,
    pace_s: float,
    callers: int = 1,
) -> NDArray[np.float64]:
    """Return the heaviest weight so far of any caller after each question, float64 (T,).

    Args:
        read: the stream.
        artifact: the guard that read it.
        distance: of the watch, and so is the next.
        half_life_s: in which weights halve.
        pace_s: between two questions.
        callers: who ask in turn.
    """
    now = 0.0
    watch = Watch(
        Table(max(64, 4 * callers) * LEAST_BYTES, key=_KEY),
        key=_KEY,
        refuses=False,
        near=2**30,
        distance=distance,
        half_life_s=half_life_s,
        clock=lambda: now,
    )
    nothing = np.zeros(1, np.bool_)
    found = np.zeros(len(read.rates))
    for t in range(len(read.rates)):
        now = 1.0 + t * pace_s
        row = slice(t, t + 1)
        seen = watch.ask(
            f"caller {t % callers}", artifact, read.images[row], read.rates[row], nothing
        )
        found[t] = seen.near[0]
    return np.maximum.accumulate(found)
