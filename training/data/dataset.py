"""Labelled images from disk. N images, H rows, W columns, C channels.

Three sources: a `.npz` file, a folder per class, and torchvision's CIFAR data sets already on disk.
Nothing is ever downloaded.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.arrays import DAMAGE, find_place, read_arrays, write_arrays
from reluguard.detector.errors import did_you_mean
from reluguard.detector.images import Images
from reluguard.detector.pixels.decoding import MAX_PIXELS
from reluguard.training.data.folder import Folder, read_folder
from reluguard.training.data.hints import (
    data_hint,
    from_one_hint,
    images_hint,
    labels_hint,
    npz_hint,
)
from reluguard.training.data.mapped import MAPPED_BYTES, empty_array, release
from reluguard.training.data.reading import Reading, stretched_words
from reluguard.training.errors import DataError

__all__ = [
    "Dataset",
    "Labels",
    "check_classes",
    "check_enough",
    "check_labels",
    "load_data",
    "save_dataset",
]

Labels = NDArray[np.int64]

DIGEST_ROWS = 256
_TORCHVISION = ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Labelled images. Grey images of shape (N, H, W) are taken as one channel.

    Attributes:
        images: uint8, (N, H, W, C).
        labels: int64, (N,), not negative.
        source: where they came from, as the user named it.
        folders: of a folder per class, the label of each; in alphabetical order as they are read.
        words: what people should know of how they were read.

    Raises:
        DataError: a shape or dtype does not fit, the lengths differ, or there is no image.
    """

    images: Images
    labels: Labels
    source: str
    folders: Mapping[str, int] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        if images.dtype == np.uint8 and images.ndim == 3:
            images = images[..., None]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in {1, 3}:
            raise DataError(
                f"expected uint8 images of shape (N, H, W, 1 or 3), "
                f"got {images.dtype} {images.shape} from {self.source}{images_hint(images)}"
            )
        if labels.dtype.kind not in "iu" or labels.ndim != 1:
            raise DataError(
                f"expected whole-number labels of shape (N,), "
                f"got {labels.dtype} {labels.shape} from {self.source}{labels_hint(labels)}"
            )
        if len(images) != len(labels):
            raise DataError(
                f"expected one label per image, got {len(images)} images and {len(labels)} labels "
                f"from {self.source}"
            )
        if len(images) == 0 or 0 in images.shape:
            raise DataError(f"expected at least one image with pixels, got none from {self.source}")
        if labels.min() < 0:
            raise DataError(f"expected labels of 0 or more, got {labels.min()} from {self.source}")
        object.__setattr__(self, "images", np.ascontiguousarray(images))
        object.__setattr__(self, "labels", np.ascontiguousarray(labels, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        """SHA-256 of shape, pixels and labels: the same content has the same digest anywhere."""
        content = hashlib.sha256(repr(self.images.shape).encode())
        for start in range(0, len(self), DIGEST_ROWS):
            content.update(self.images[start : start + DIGEST_ROWS].data)
            self.release()
        content.update(self.labels.astype("<i8").data)
        return content.hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        """Go to another process as a place on disk where that is all there is in memory."""
        mapping = _mapping(self.images)
        parts = (self.images, self.labels, self.source)
        if mapping is None:
            return _rebuilt, parts
        place = (mapping.filename, mapping.dtype.str, mapping.offset, mapping.shape)
        return _remapped, (place, self.labels, self.source)

    def release(self) -> None:
        """Let the system take back the memory of images that lie on disk; they stay readable."""
        release(self.images)

    def take(self, rows: NDArray[Any]) -> "Dataset":
        """Return these rows, by index or by mask."""
        return replace(self, images=self.images[rows], labels=self.labels[rows])


def _mapping(images: Images) -> np.memmap[Any, Any] | None:
    """Return the file that these images are, as a whole."""
    base: Any = images
    while base is not None and not isinstance(base, np.memmap):
        base = getattr(base, "base", None)
    return base if base is not None and base.shape == images.shape else None


def _rebuilt(images: Images, labels: Labels, source: str) -> Dataset:
    return Dataset(images=images, labels=labels, source=source)


def _remapped(place: tuple[str, str, int, tuple[int, ...]], labels: Labels, source: str) -> Dataset:
    file, dtype, offset, shape = place
    images = np.memmap(file, np.dtype(dtype), "r", offset, shape)
    return Dataset(images=images, labels=labels, source=source)


def load_data(text: str, reading: Reading | None = None) -> Dataset:
    """Return the labelled images a user named.

    Args:
        text: a `.npz` file with arrays `images` and `labels`, which are left on disk where they are
            32 MiB or more and not compressed (`np.savez`); a folder with one folder of images
            per class, hidden ones left out; or `torchvision:CIFAR10:ROOT` for a data set
            torchvision already keeps under ROOT, its test part, or with `:train` at the end its
            training part.
        reading: how files become images. Arrays are taken to be after resize and crop, so those of
            the size that the model takes pass as they are.

    Raises:
        DataError: nothing is there, or what is there is not labelled images.
    """
    reading = reading or Reading()
    if text.startswith("torchvision:"):
        data = _load_torchvision(text)
    elif Path(text).is_dir():
        return _load_folder(Path(text), reading)
    elif Path(text).is_file():
        data = _load_npz(Path(text))
    else:
        raise DataError(
            f"expected a .npz file, a folder or torchvision:NAME:ROOT, got {text!r}"
            f"{data_hint(text, among=_TORCHVISION)}"
        )
    return _brought(data, reading)


def _load_npz(path: Path) -> Dataset:
    remedy = npz_hint(path)
    place = find_place(path, "images", error=DataError, least_bytes=MAPPED_BYTES, remedy=remedy)
    if place is None:
        arrays = read_arrays(path, "images", "labels", error=DataError, remedy=remedy)
    else:
        arrays = {**read_arrays(path, "labels", error=DataError), "images": place.mapped()}
    return Dataset(images=arrays["images"], labels=arrays["labels"], source=str(path))


def _load_folder(root: Path, reading: Reading) -> Dataset:
    folder = Folder(root)
    images, words = read_folder(folder, reading)
    return Dataset(
        images=images,
        labels=np.array([place for _, place in folder.files], np.int64),
        source=str(root),
        folders={name: place for place, name in enumerate(folder.names)},
        words=words,
    )


def _brought(data: Dataset, reading: Reading) -> Dataset:
    """Return arrays in the size they must have: those of another one go the way of files."""
    pipeline = reading.pipeline
    wanted = reading.size or pipeline.size
    if wanted is None or wanted == data.images.shape[1:3]:
        return data
    first = pipeline.apply(data.images[0], max_pixels=data.images[0].size + MAX_PIXELS)
    images: Images = empty_array((len(data), *first.shape), np.uint8)
    for row, image in enumerate(data.images):
        images[row] = pipeline.apply(image, max_pixels=image.size + MAX_PIXELS)
    odd = len(data) if reading.files is None else 0
    return replace(data, images=images, words=tuple(stretched_words(odd, odd, wanted, "image")))


def _load_torchvision(text: str) -> Dataset:
    _, name, *rest = text.split(":")
    train = len(rest) > 1 and rest[-1] == "train"
    root = ":".join(rest[:-1] if len(rest) > 1 and rest[-1] in {"train", "test"} else rest)
    if name not in _TORCHVISION or not root:
        raise DataError(
            f"expected torchvision:NAME:ROOT with NAME one of {', '.join(_TORCHVISION)}, "
            f"got {text!r}{did_you_mean(name, _TORCHVISION)}"
        )
    from torchvision import datasets

    try:
        stored = getattr(datasets, name)(root, train=train, download=False)
    except DAMAGE as error:
        raise DataError(
            f"expected torchvision's {name} under {root}; nothing is downloaded here"
        ) from error
    images, labels = np.asarray(stored.data), np.asarray(stored.targets, dtype=np.int64)
    return Dataset(images=images, labels=labels, source=text)


def save_dataset(data: Dataset, path: Path) -> None:
    """Write a `.npz` that `load_data` reads, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            write_arrays(stream, {"images": data.images, "labels": data.labels})
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def check_labels(data: Dataset, classes: int) -> None:
    """Raise DataError unless every label is one of a model's classes."""
    if data.labels.max() >= classes:
        raise DataError(
            f"expected labels below {classes}, the number of the model's classes, "
            f"got {data.labels.max()} from {data.source}{from_one_hint(data.labels, classes)}"
        )


def check_classes(data: Dataset) -> None:
    """Raise DataError unless there are images of two classes or more."""
    found = np.unique(data.labels)
    if len(found) < 2:
        raise DataError(
            f"expected images of at least 2 classes, got only class {found[0]} from {data.source}"
        )


def check_enough(data: Dataset, least: int) -> None:
    """Raise DataError unless there are at least so many images."""
    if len(data) < least:
        raise DataError(f"expected at least {least} images, got {len(data)} from {data.source}")
