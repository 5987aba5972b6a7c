"""Attacked images that somebody brings, read for a retraining. N images."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.arrays import read_arrays
from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.captures import INDEX
from reluguard.detector.images import Images
from reluguard.detector.runtime import Reader
from reluguard.training.data.case import read_rates
from reluguard.training.data.classes import Classes, Known, with_classes
from reluguard.training.data.dataset import Dataset, load_data
from reluguard.training.data.folder import is_shown
from reluguard.training.data.pictures import Pictures, find_pictures
from reluguard.training.data.reading import Reading
from reluguard.training.errors import DataError
from reluguard.training.harvest.workspace import Again
from reluguard.training.retraining.fresh import Fresh, checked_name, hashed, likely_class

__all__ = ["read_attacked"]

LOOSE = 64  # pictures that are decoded at a time


def read_attacked(
    path: Path,
    reader: Reader,
    known: Known | None = None,
    classes: Classes | None = None,
    *,
    artifact: GuardArtifact | None = None,
    again: Reader | None = None,
) -> list[Fresh]:
    """Return the readings of attacked images: one group per file, named after it.

    Loose pictures have no labels: each is taken to fool the model, and its true class to be what
    the guard's own probe holds likeliest besides the answer, as of captures.

    Args:
        path: an npz with `images` uint8 (N, H, W, C), `labels` int64 (N,), the true classes, and
            optionally `sources` int64 (N,), what image each was made from; a folder of such; a
            folder with one folder of images per true class; or a folder of pictures, a picture or
            a pattern of such, all of them attacked.
        reader: of the model.
        known: what the guard knows of classes.
        classes: which class each folder of images is; by default what the guard knows.
        artifact: the guard, without which loose pictures are refused.
        again: reads a second look.

    Raises:
        DataError: no such file, a name that can't be used, no telling which class a folder is, or
            no image that fools the model.
    """
    if artifact is not None and (loose := find_pictures(str(path))) is not None:
        return [_read_loose(path, loose, reader, artifact, again)]
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if files:
        return [_read_file(file, reader, again) for file in files]
    if not any(entry.is_dir() and is_shown(entry.name) for entry in path.iterdir()):
        raise DataError(
            f"expected .npz files of attacked images, pictures, a folder of them per class, or "
            f"{INDEX}, in {path}"
        )
    data = load_data(str(path), Reading.of(reader.spec))
    rates, logits = read_rates(reader, data.images)
    data = with_classes(data, None, logits.shape[1], classes, known)
    return [_fooling(path, data, rates, logits, None, again)]


def _read_loose(
    path: Path,
    files: list[Path],
    reader: Reader,
    artifact: GuardArtifact,
    again: Reader | None,
) -> Fresh:
    """Return the readings of pictures without labels, all of which are taken to be attacks."""
    pictures = Pictures(files, Reading.of(reader.spec))
    images: Images = np.concatenate(list(pictures.batches(LOOSE)))
    rates, logits = read_rates(reader, images)
    return Fresh(
        name=checked_name(path.name if path.is_dir() else files[0].resolve().parent.name),
        kind="attack",
        rates=rates.astype(np.float16),
        logits=logits,
        labels=likely_class(artifact, rates, logits, "attack"),
        ids=hashed([image.tobytes() for image in images]),
        source=str(path),
        again=_read_again(again, images),
        is_loose=True,
    )


def _read_file(file: Path, reader: Reader, again: Reader | None) -> Fresh:
    spec = reader.spec
    data = load_data(str(file))
    if data.images.shape[1:] != (spec.height, spec.width, spec.channels):
        expected = (spec.height, spec.width, spec.channels)
        raise DataError(f"expected images {expected} in {file}, got {data.images.shape[1:]}")
    sources = read_arrays(file, error=DataError, optional=("sources",)).get("sources")
    if sources is not None and (
        sources.shape != data.labels.shape or sources.dtype.kind not in "iu"
    ):
        got = f"{sources.dtype} {sources.shape}"
        raise DataError(f"expected one source per image in {file}, a whole number, got {got}")
    rates, logits = read_rates(reader, data.images)
    if data.labels.max() >= logits.shape[1]:
        raise DataError(f"expected labels below {logits.shape[1]} in {file}")
    return _fooling(file, data, rates, logits, sources, again)


def _fooling(
    file: Path,
    data: Dataset,
    rates: NDArray[np.float32],
    logits: NDArray[np.float32],
    sources: NDArray[Any] | None,
    again: Reader | None,
) -> Fresh:
    """Return the rows that the model answers wrong."""
    fools = logits.argmax(axis=1) != data.labels
    if not fools.any():
        raise DataError(f"the model answers every image of {file} right: none is an attack")
    texts = (
        [image.tobytes() for image in data.images]
        if sources is None
        else [f"{file.stem}/{int(source)}".encode() for source in sources]
    )
    return Fresh(
        name=checked_name(file.stem),
        kind="attack",
        rates=rates[fools].astype(np.float16),
        logits=logits[fools],
        labels=data.labels[fools],
        ids=hashed(texts)[fools],
        source=str(file),
        dropped={"answered right": int((~fools).sum())},
        again=_read_again(again, data.images[fools]),
    )


def _read_again(reader: Reader | None, images: Images) -> Again | None:
    """Return what a second look reads of images."""
    if reader is None:
        return None
    rates, logits = read_rates(reader, images)
    return Again(rates=rates.astype(np.float16), logits=logits, seen=np.ones(len(images), np.bool_))
