"""What all studies read. N images, P of them attacked and compared pairwise, L taps, K classes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.errors import SettingsError
from reluguard.detector.images import Images, InputSpec
from reluguard.detector.model import Production
from reluguard.detector.taps import Tap
from reluguard.training.analysis.checks import Ints, check_labels, check_memory, check_varies
from reluguard.training.analysis.rdm import balanced_order
from reluguard.training.analysis.recording import Recorder, Recording
from reluguard.training.analysis.similarity import (
    Counts,
    bit_counts,
    hamming_counts,
    hamming_similarity,
)
from reluguard.training.attacks import attack_named
from reluguard.training.attacks.victim import Victim
from reluguard.training.data.dataset import Dataset
from reluguard.training.data.dataset import check_labels as check_label_range
from reluguard.training.errors import AnalysisError
from reluguard.training.progress import Progress
from reluguard.training.twin.twin import Twin

__all__ = [
    "Distances",
    "Material",
    "arrays_of",
    "check_budget",
    "choose_rows",
    "gathered",
    "measure_distances",
]


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


def check_budget(taps: Sequence[Tap], n: int, p: int, attacks: int) -> None:
    """Raise OutOfMemoryError where an analysis would take more memory than is free.

    Args:
        taps: of the network.
        n: images.
        p: of these, attacked and compared pair by pair.
        attacks: how many.
    """
    bits = sum(tap.bits for tap in taps)
    batch = 64 * bits * 6
    distances = 12 * len(taps) * p * p
    graphs = 24 * len(taps) * min(p, 500) ** 2
    codes = 8 * (n + (attacks + 1) * p) * sum(tap.channels for tap in taps)
    needed = batch + distances + graphs + codes
    check_memory(needed, f"an analysis of {n} images, {p} of them pairwise, at {len(taps)} taps")


def gathered(
    production: Production,
    recorder: Recorder,
    data: Dataset,
    rows: Ints,
    *,
    attacks: Sequence[str],
    twins: Callable[[], Sequence[Twin | None]],
    class_names: Sequence[str],
    work: Path,
    seed: int,
    progress: Progress,
) -> Material:
    """Return what all studies read.

    Args:
        production: the network.
        recorder: of its bits.
        data: N labelled images.
        rows: int64, (P,). Those that are attacked.
        attacks: slugs, the main one first.
        twins: gives the network's own twin, then those of surrogates, once there is something to
            attack.
        class_names: one per class; of none, numbers.
        work: a folder for bits.
        seed: of every random choice.
        progress: told of each image.

    Raises:
        DataError: a label is out of range.
        ConstantError: a tap says the same of every image.
        AnalysisError: the main attack never fools the network.
        SettingsError: names of other classes than the network has.
    """
    progress.stage("read bits", len(data))
    clean = recorder.record(data.images, folder=work / "clean", progress=progress.advance)
    check_label_range(data, clean.logits.shape[1])
    for tap, patterns in zip(recorder.taps, clean.patterns, strict=True):
        check_varies(patterns, f"the tap {tap.name}")
    own, *others = twins()  # once it is clear that there is something to attack
    victim = Victim(
        predict=lambda images: recorder.record(images).logits,
        twin=own,
        surrogates=tuple(twin for twin in others if twin is not None),
    )
    images, labels = data.images[rows], data.labels[rows]
    attacked_images: dict[str, Images] = {}
    success: dict[str, NDArray[np.bool_]] = {}
    attacked: dict[str, Recording] = {}
    noise: dict[str, Recording] = {}
    as_large: dict[int, Recording] = {}
    for slug in attacks:
        progress.stage(slug, len(rows))
        result = attack_named(slug)(images, labels, victim, seed=seed, progress=progress.so_far())
        attacked_images[slug] = result.images
        success[slug] = (result.clean_prediction == labels) & (result.prediction != labels)
        attacked[slug] = recorder.record(result.images, folder=work / slug)
        size = max(1, round(float(np.median(result.linf))))
        if size not in as_large:
            noisy = _noisy(images, size, seed)
            as_large[size] = recorder.record(noisy, folder=work / f"noise-{size}")
        noise[slug] = as_large[size]
    if not success[attacks[0]].any():
        raise AnalysisError(
            f"expected {attacks[0]} to fool the model at least once in {len(rows)} "
            "images, it never did: choose a stronger attack"
        )
    progress.stage("distances", 1)
    distances = measure_distances(clean.take(rows), attacked[attacks[0]])
    progress.advance(1)
    names = tuple(class_names) or tuple(str(i) for i in range(clean.logits.shape[1]))
    if len(names) != clean.logits.shape[1]:
        raise SettingsError(f"expected {clean.logits.shape[1]} class names, got {len(names)}")
    return Material(
        production=production,
        spec=recorder.spec,
        taps=recorder.taps,
        images=data.images,
        labels=data.labels,
        clean=clean,
        rows=rows,
        attacked=attacked,
        attacked_images=attacked_images,
        success=success,
        noise=noise,
        distances=distances,
        class_names=names,
        seed=seed,
    )


def _noisy(images: Images, size: int, seed: int) -> Images:
    """Every pixel value up or down by what the attack changes, at random: harmless, as large."""
    signs = np.random.default_rng(seed).integers(0, 2, images.shape) * 2 - 1
    noisy: Images = np.clip(images + signs * size, 0, 255).astype(np.uint8)
    return noisy


def arrays_of(prefix: str, value: Any) -> dict[str, NDArray[Any]]:
    """Return a study's arrays by name, "prefix/field"; what is no array is left out."""
    assert is_dataclass(value)
    found = {field.name: getattr(value, field.name) for field in fields(value)}
    return {f"{prefix}/{k}": v for k, v in found.items() if isinstance(v, np.ndarray)}
