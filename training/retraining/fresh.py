"""Readings of images that are new to a harvest, wherever they come from. N images, D rates."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import GuardArtifact
from reluguard.training.errors import DataError
from reluguard.training.harvest.readings import Kind, Readings
from reluguard.training.harvest.workspace import Again

__all__ = ["SPLITS", "Fresh", "checked_name", "hashed", "likely_class"]

SPLITS = 1000  # an id's remainder says whether it is held out
HASHED = 1 << 62  # ids of images from outside: apart from the row numbers of the data set
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """Readings of new images: rates float16 (N, D), logits (N, K), true classes and ids (N,).

    `dropped` counts what was left out, by reason. `again` is what a second look read of them.
    `is_captured` tells what people labelled from what was attacked on purpose, `is_loose` pictures
    whose true class nobody said.
    """

    name: str
    kind: Kind
    rates: NDArray[np.float16]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]
    source: str
    dropped: Mapping[str, int] = field(default_factory=dict)
    again: Again | None = None
    is_captured: bool = False
    is_loose: bool = False

    @property
    def seen_twice(self) -> int:
        """How many of them a second look read too."""
        return 0 if self.again is None else int(self.again.seen.sum())

    def readings(self) -> Readings:
        """Return the same as a group of a harvest."""
        return Readings(
            name=self.name,
            kind=self.kind,
            rates=self.rates,
            logits=self.logits,
            sources=self.ids,
            labels=self.labels,
        )


def likely_class(
    artifact: GuardArtifact, rates: NDArray[Any], logits: NDArray[np.float32], kind: Kind
) -> NDArray[np.int64]:
    """Return the likeliest true classes, int64 (N,), of images that nobody labelled.

    Of an attack what the guard's own probe holds likeliest besides the answer, else the answer.
    """
    answer: NDArray[np.int64] = logits.argmax(axis=1)
    features = artifact.head.features
    if kind != "attack" or not features.probes:
        return answer
    scores = features.probe_scores(rates)[:, 0]  # the first probe reads all taps
    scores[np.arange(len(scores)), answer] = -np.inf
    likely: NDArray[np.int64] = scores.argmax(axis=1)
    return likely


def hashed(texts: Sequence[bytes]) -> NDArray[np.int64]:
    """Return an id for each of these, int64 (N,), the same wherever and whenever it comes."""
    numbers = [int.from_bytes(hashlib.sha256(text).digest()[:7]) for text in texts]
    return np.array(numbers, np.int64) | HASHED


def checked_name(name: str) -> str:
    """Return the name of an attack; raise DataError where it can be none."""
    if not _NAME.fullmatch(name):
        raise DataError(f"expected an attack's name of letters, digits, . _ and -, got {name!r}")
    return name
