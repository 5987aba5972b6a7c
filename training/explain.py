"""Why a guard said what it said of one image, as a picture. L taps, K classes, N references."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reluguard.detector.artifact import check_out
from reluguard.detector.errors import ImageError
from reluguard.detector.images import Images, decode_image
from reluguard.detector.model import load_production
from reluguard.detector.runtime import Guard, Reader
from reluguard.detector.taps import Tap
from reluguard.training.analysis.checks import Floats, Ints, check_rows
from reluguard.training.analysis.recording import Recorder
from reluguard.training.analysis.similarity import hamming_counts
from reluguard.training.data.classes import Classes, guard_data, known_classes
from reluguard.training.data.given import Data
from reluguard.training.errors import ShapeError
from reluguard.training.models.of_guard import guard_model
from reluguard.training.models.opened import ModelOrNone
from reluguard.training.pages.explanation import VOTERS, Explanation, draw_explanation

__all__ = ["Explanation", "explain", "explain_image"]

_CHANNELS = 12


def explain(
    model: ModelOrNone,
    guard: Path,
    data: Data,
    image: Path,
    out: Path,
    *,
    limit: int = 1000,
    neighbours: int = 5,
    class_names: Sequence[str] = (),
    classes: Classes | None = None,
    weights: Path | str | None = None,
    threads: int | None = None,
) -> Explanation:
    """Write the picture that explains one verdict, and return what it shows.

    Args:
        model: the production ONNX file; None for the export that `fit` put beside the guard; or
            what `fit` was given: then that export is used, once it is clear that both answer alike.
        guard: the guard's folder.
        data: clean labelled images to look for neighbours in, as `given_data` takes them.
        image: a JPEG, PNG or WebP.
        out: a .png, .svg or .pdf file; written aside and then renamed.
        limit: clean images, at most.
        neighbours: shown per tap.
        class_names: one per class; by default those that the guard knows.
        classes: which class each folder of images is, as `fit` takes it; by default what the guard
            knows.
        weights: of a network by name, as `fit` takes them.
        threads: of ONNX Runtime.

    Raises:
        ImageError: the image can't be read, or `out` is no picture.
        GuardError: the guard can't be read.
        ModelMismatchError: the guard was fitted to another model.
        DataError: the clean images can't be read.
    """
    if out.suffix not in {".png", ".svg", ".pdf"}:
        raise ImageError(f"expected a .png, .svg or .pdf to write to, got {out.name}")
    file = guard_model(model, guard, weights=weights)
    check_out(out, file, guard, image)
    guarded = Guard.open(file, guard, threads=threads, looks="first")
    try:
        pixels = decode_image(image.read_bytes(), guarded.spec)
    except OSError as error:
        raise ImageError(f"can't read the image {image}: {error.strerror}") from error
    references = guard_data(data, guarded, classes)
    class_names = class_names or known_classes(guarded.artifact.manifest).names
    found = explain_image(
        file,
        guarded,
        pixels,
        references.images[:limit],
        references.labels[:limit],
        neighbours=neighbours,
        threads=threads,
    )
    part = out.with_name(f".part-{out.name}")
    try:
        draw_explanation(found, part, class_names=class_names)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return found


def explain_image(
    model: Path,
    guarded: Guard,
    image: Images,
    references: Images,
    labels: Ints,
    *,
    neighbours: int = 5,
    threads: int | None = None,
) -> Explanation:
    """Return what led to the verdict on one image.

    Args:
        model: the production ONNX file the guard was opened with.
        guarded: the guard.
        image: uint8, (H, W, C).
        references: uint8, (N, H, W, C), clean.
        labels: int64, (N,).
        neighbours: n, per tap.
        threads: of ONNX Runtime.

    Raises:
        ShapeError: fewer references than neighbours.
        ImageError: images that don't fit the model.
    """
    n = check_rows(references, labels)
    if not 1 <= neighbours <= n:
        raise ShapeError(f"expected 1 to {n} neighbours among {n} images, got {neighbours}")
    manifest = guarded.artifact.manifest
    production = load_production(model, output=manifest.answer)
    recorder = Recorder(production, guarded.spec, manifest.taps, threads=threads)
    one, known = recorder.record(image[None]), recorder.record(references)
    k = one.logits.shape[1]
    nearest = np.empty((len(manifest.taps), neighbours), np.int64)
    shares = np.empty(nearest.shape)
    looks = np.zeros((len(manifest.taps), k))
    for i, tap in enumerate(manifest.taps):
        counts = hamming_counts(one.patterns[i], known.patterns[i])[0]
        order = np.argsort(counts, kind="stable")
        nearest[i], shares[i] = order[:neighbours], counts[order[:neighbours]] / tap.bits
        voters = labels[order[: min(VOTERS, n)]]
        looks[i] = np.bincount(voters, minlength=k)[:k] / len(voters)
    channels, contributions = _contributions(
        guarded, Reader(production, guarded.spec, manifest.taps, threads=threads), image
    )
    return Explanation(
        image=image,
        verdict=guarded.inspect(image[None])[0],
        threshold=float(guarded.threshold),
        taps=tuple(tap.name for tap in manifest.taps),
        looks_like=looks,
        neighbours=nearest,
        distances=shares,
        neighbour_images=references[nearest],
        neighbour_labels=labels[nearest],
        channels=channels,
        contributions=contributions,
    )


def _contributions(
    guarded: Guard, reader: Reader, image: Images
) -> tuple[tuple[tuple[int, int], ...], Floats]:
    """Return the channels that moved the evidence most, with their share of the log-odds."""
    head = guarded.artifact.head
    taps: Sequence[Tap] = guarded.artifact.manifest.taps
    rates, logits = reader.read(image[None])
    moved = head.features.transform(rates, logits)[0] * head.evidence_weights
    columns = head.features.columns
    starts = np.cumsum([0, *(tap.rates for tap in taps)])
    tap = np.searchsorted(starts, columns, side="right") - 1
    sizes = np.asarray([tap.channels for tap in taps])
    # a tap with levels gives all its channels' rates once for each, which count together
    places, of = np.unique(
        np.stack([tap, (columns - starts[tap]) % sizes[tap]], axis=1), axis=0, return_inverse=True
    )
    shares = np.zeros(len(places))
    np.add.at(shares, of.reshape(-1), moved[: len(columns)])
    chosen = np.argsort(-np.abs(shares), kind="stable")[:_CHANNELS]
    return tuple((int(t), int(c)) for t, c in places[chosen]), shares[chosen]
