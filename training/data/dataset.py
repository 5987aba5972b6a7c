"""Labelled images from disk. N images, H rows, W columns, C channels.

Three sources: a `.npz` file, a folder per class, and torchvision's CIFAR data sets already on disk.
Nothing is ever downloaded.
"""

import hashlib
import mmap
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reluguard.detector.arrays import DAMAGE, find_place, read_arrays, write_arrays
from reluguard.detector.images import Images
from reluguard.training.errors import DataError

__all__ = [
    "Dataset",
    "Labels",
    "check_classes",
    "check_enough",
    "check_labels",
    "load_data",
    "save_dataset",
    "split_sources",
]

Labels = NDArray[np.int64]

MAPPED_BYTES = 2**28

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp")
_TORCHVISION = ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST")
_BROKEN: tuple[type[Exception], ...] = (*DAMAGE, Image.DecompressionBombError)
_PARTS = ("fit", "calibrate", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Labelled images. Grey images of shape (N, H, W) are taken as one channel.

    Attributes:
        images: uint8, (N, H, W, C).
        labels: int64, (N,), not negative.
        source: where they came from, as the user named it.

    Raises:
        DataError: a shape or dtype does not fit, the lengths differ, or there is no image.
    """

    images: Images
    labels: Labels
    source: str

    def __post_init__(self) -> None:
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        if images.dtype == np.uint8 and images.ndim == 3:
            images = images[..., None]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in {1, 3}:
            raise DataError(
                f"expected uint8 images of shape (N, H, W, 1 or 3), "
                f"got {images.dtype} {images.shape} from {self.source}"
            )
        if labels.dtype.kind not in "iu" or labels.ndim != 1:
            raise DataError(
                f"expected whole-number labels of shape (N,), "
                f"got {labels.dtype} {labels.shape} from {self.source}"
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
        content.update(self.images.data)
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
        mapping = _mapping(self.images)
        if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapping._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]  # noqa: SLF001  (NumPy has no public name for it)

    def take(self, rows: NDArray[Any]) -> "Dataset":
        """Return these rows, by index or by mask."""
        return Dataset(images=self.images[rows], labels=self.labels[rows], source=self.source)


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


def load_data(text: str, *, size: tuple[int, int] | None = None) -> Dataset:
    """Return the labelled images a user named.

    Args:
        text: a `.npz` file with arrays `images` and `labels`, which are left on disk where they are
            256 MiB or more and not compressed (`np.savez`); a folder with one folder of images
            per class, labelled in alphabetical order; or `torchvision:CIFAR10:ROOT` for a data set
            torchvision already keeps under ROOT, its test part, or with `:train` at the end its
            training part.
        size: (height, width) to resize to, bilinearly. Needed for a folder of mixed sizes.

    Raises:
        DataError: nothing is there, or what is there is not labelled images.
    """
    if text.startswith("torchvision:"):
        data = _load_torchvision(text)
    elif Path(text).is_dir():
        return _load_folder(Path(text), size)
    elif Path(text).is_file():
        data = _load_npz(Path(text))
    else:
        raise DataError(f"expected a .npz file, a folder or torchvision:NAME:ROOT, got {text!r}")
    return data if size is None else _resized(data, size)


def _load_npz(path: Path) -> Dataset:
    place = find_place(path, "images", error=DataError, least_bytes=MAPPED_BYTES)
    if place is None:
        arrays = read_arrays(path, "images", "labels", error=DataError)
    else:
        arrays = {**read_arrays(path, "labels", error=DataError), "images": place.mapped()}
    return Dataset(images=arrays["images"], labels=arrays["labels"], source=str(path))


def _load_folder(root: Path, size: tuple[int, int] | None) -> Dataset:
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    files = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((root / name).rglob("*"))
        if file.suffix.lower() in _SUFFIXES
    ]
    if not files:
        raise DataError(f"expected one folder of images per class in {root}, got no images")
    decoded = [_decode(file, size) for file, _ in files]
    shapes = sorted({image.shape for image in decoded})
    if len({shape[2] for shape in shapes}) > 1:
        decoded = [np.repeat(image, 3, 2) if image.shape[2] == 1 else image for image in decoded]
        shapes = sorted({image.shape for image in decoded})
    if len(shapes) > 1:
        raise DataError(
            f"expected images of one size in {root}, got {shapes[0]} and {shapes[-1]}: "
            "say which size to resize to"
        )
    labels = np.array([label for _, label in files], dtype=np.int64)
    return Dataset(images=np.stack(decoded), labels=labels, source=str(root))


def _decode(file: Path, size: tuple[int, int] | None) -> Images:
    try:
        with Image.open(file) as image:
            pixels = image.convert("L" if image.mode in {"1", "L", "I;16"} else "RGB")
    except _BROKEN as error:
        raise DataError(f"expected an image, {file} does not decode") from error
    decoded = _resize(pixels, size)
    return decoded[..., None] if decoded.ndim == 2 else decoded


def _resize(image: Image.Image, size: tuple[int, int] | None) -> Images:
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8)


def _resized(data: Dataset, size: tuple[int, int]) -> Dataset:
    if data.images.shape[1:3] == size:
        return data
    grey = data.images.shape[3] == 1
    pictures = (Image.fromarray(image[..., 0] if grey else image) for image in data.images)
    images = np.stack([_resize(picture, size) for picture in pictures])
    return Dataset(images=images, labels=data.labels, source=data.source)


def _load_torchvision(text: str) -> Dataset:
    _, name, *rest = text.split(":")
    train = len(rest) > 1 and rest[-1] == "train"
    root = ":".join(rest[:-1] if len(rest) > 1 and rest[-1] in {"train", "test"} else rest)
    if name not in _TORCHVISION or not root:
        raise DataError(
            f"expected torchvision:NAME:ROOT with NAME one of {', '.join(_TORCHVISION)}, "
            f"got {text!r}"
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
            f"got {data.labels.max()} from {data.source}"
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


def _dealt(part: str) -> tuple[int, str]:
    """Return a part's place in the order of dealing."""
    return (_PARTS.index(part) if part in _PARTS else len(_PARTS), part)


def split_sources(
    labels: Labels, fractions: Mapping[str, float], seed: int
) -> dict[str, NDArray[np.int64]]:
    """Return disjoint parts of the source images by name, as sorted row numbers.

    Stratified: every class is dealt out in the given shares, off by less than one image per class
    and part. The same labels, fractions and seed give the same parts, in whatever order the
    fractions come: a manifest sorts its keys.

    Args:
        labels: int64, (N,).
        fractions: each part's share, positive, together at most 1. What is left is in no part.
        seed: of the shuffle.

    Raises:
        DataError: the fractions are not shares, or a part would stay empty.
    """
    total = sum(fractions.values())
    if not fractions or min(fractions.values()) <= 0 or total > 1 + 1e-9:
        raise DataError(f"expected positive fractions of at most 1 in all, got {dict(fractions)}")
    fractions = {name: fractions[name] for name in sorted(fractions, key=_dealt)}
    generator = np.random.default_rng(seed)
    # Deal a class-sorted random order out along one line: cut by cumulative share within a class,
    # with a per-class random offset so that rounding favours no part.
    edges = np.cumsum([0.0, *fractions.values()])
    parts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in fractions}
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        cuts = np.floor(edges * len(rows) + generator.random()).astype(np.int64)
        cuts[0] = 0
        if total > 1 - 1e-9:
            cuts[-1] = len(rows)
        for name, low, high in zip(fractions, cuts[:-1], cuts[1:], strict=True):
            parts[name].append(rows[low : min(high, len(rows))])
    split = {name: np.sort(np.concatenate(rows)) for name, rows in parts.items()}
    empty = [name for name, rows in split.items() if len(rows) == 0]
    if empty:
        raise DataError(
            f"expected enough images for every part, got {len(labels)} and none for "
            f"{', '.join(empty)}"
        )
    return split
