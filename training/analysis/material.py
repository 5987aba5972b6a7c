"""What all studies read. N images, P of them attacked and compared pairwise, L taps, K classes."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.images import Images, InputSpec
from reluguard.detector.model import Production
from reluguard.detector.taps import Tap
from reluguard.training.analysis.checks import Ints, check_labels, check_memory
from reluguard.training.analysis.rdm import balanced_order
from reluguard.training.analysis.recording import Recording
from reluguard.training.analysis.similarity import (
    Counts,
    bit_counts,
    hamming_counts,
    hamming_similarity,
)

__all__ = ["Distances", "Material", "arrays_of", "choose_rows", "measure_distances"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distances:
    """Hamming counts at every tap among the P images.

    Attributes:
        clean: per tap int32 (P, P).
        attacked: per tap int32 (P, P), among the attacked images.
        cross: per tap int32 (P, P), clean rows against attacked columns.
        on_clean: per tap int64 (P,), how many bits are on.
        on_attacked: likewise.
    """

    clean: tuple[Counts, ...]
    attacked: tuple[Counts, ...]
    cross: tuple[Counts, ...]
    on_clean: tuple[Ints, ...]
    on_attacked: tuple[Ints, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """One network, its images and what it did with them.

    Attributes:
        production: the network.
        spec: how images go into it.
        taps: its L gates.
        images: uint8, (N, H, W, C).
        labels: int64, (N,). What the images show.
        clean: the recording of all N images.
        rows: int64, (P,). Which of them were attacked, in order of class.
        attacked: per attack the recording of its P images, the main attack first.
        attacked_images: per attack uint8 (P, H, W, C).
        success: per attack bool (P,): answered right before and wrong after.
        noise: per attack the recording of the P images with harmless noise of its size.
        distances: among the P images, before and after the main attack.
        class_names: one per class of the network.
        seed: of every random choice.
    """

    production: Production
    spec: InputSpec
    taps: tuple[Tap, ...]
    images: Images
    labels: Ints
    clean: Recording
    rows: Ints
    attacked: Mapping[str, Recording]
    attacked_images: Mapping[str, Images]
    success: Mapping[str, NDArray[np.bool_]]
    noise: Mapping[str, Recording]
    distances: Distances
    class_names: tuple[str, ...]
    seed: int

    @property
    def main(self) -> str:
        """The attack that every study looks at."""
        return next(iter(self.attacked))

    @property
    def noisy(self) -> Recording:
        """The recording of the P images with noise of the main attack's size."""
        return self.noise[self.main]

    @property
    def row_labels(self) -> Ints:
        """int64, (P,): what the P images show."""
        return self.labels[self.rows]

    def similarity(self, tap: int, kind: str = "clean") -> NDArray[np.float32]:
        """Return Hamming similarity among the P images: "clean", "attacked" or "cross"."""
        return hamming_similarity(getattr(self.distances, kind)[tap], self.taps[tap].bits)


def choose_rows(labels: Ints, most: int, *, classes: int = 10, seed: int = 0) -> Ints:
    """Return which images are compared pairwise: up to `most`, as many of each class, in its order.

    Args:
        labels: int64, (N,).
        most: P.
        classes: only the most frequent ones, so that every class has enough images.
        seed: of the choice.

    Raises:
        LabelError: fewer than two classes.
    """
    found = check_labels(labels)
    counts = np.bincount(labels)[found]
    kept = np.sort(found[np.argsort(-counts, kind="stable")][:classes])
    candidates = np.flatnonzero(np.isin(labels, kept))
    per_class = max(3, most // len(kept))
    return candidates[balanced_order(labels[candidates], per_class, seed=seed)].astype(np.int64)


def measure_distances(clean: Recording, attacked: Recording) -> Distances:
    """Return all Hamming counts between P clean images and their attacked versions.

    Raises:
        OutOfMemoryError: they would not fit.
    """
    p = len(clean)
    check_memory(3 * 4 * len(clean.taps) * p * p, f"the distances of {p} images at every tap")
    return Distances(
        clean=tuple(hamming_counts(x) for x in clean.patterns),
        attacked=tuple(hamming_counts(x) for x in attacked.patterns),
        cross=tuple(
            hamming_counts(x, y) for x, y in zip(clean.patterns, attacked.patterns, strict=True)
        ),
        on_clean=tuple(bit_counts(x) for x in clean.patterns),
        on_attacked=tuple(bit_counts(x) for x in attacked.patterns),
    )


def arrays_of(prefix: str, value: Any) -> dict[str, NDArray[Any]]:
    """Return a study's arrays by name, "prefix/field"; what is no array is left out."""
    assert is_dataclass(value)
    found = {field.name: getattr(value, field.name) for field in fields(value)}
    return {f"{prefix}/{k}": v for k, v in found.items() if isinstance(v, np.ndarray)}
