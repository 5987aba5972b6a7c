"""Labelled images from data sets of other libraries: torch's, Hugging Face's, any rows of both.

Whole 8-bit pixels come out, whatever a transform left of them: a float image as `ToTensor` makes it
is its pixels over 255, and one that was normalised is refused.

N images, H rows, W columns, C channels.
"""

import io
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reluguard.detector.arrays import DAMAGE
from reluguard.detector.images import Images
from reluguard.detector.pixels.decoding import OFFLINE
from reluguard.training.data.dataset import Dataset
from reluguard.training.data.mapped import empty_array
from reluguard.training.data.reading import Reading, stretched_words
from reluguard.training.errors import DataError

__all__ = ["Rows", "is_rows", "pixels_of", "read_rows"]

MAX_PIXELS = 2**28
_IMAGES = ("image", "images", "img", "pixel_values", "picture", "x")
_LABELS = ("label", "labels", "target", "targets", "fine_label", "class", "y")
_NEAR, _HALF_NEAR = 2e-3, 0.1  # of a pixel: what float32 and float16 leave of whole ones
_GREY = {"1", "L", "LA", "La"}


@runtime_checkable
class Rows(Protocol):
    """A data set that gives a row by its place, as torch's and Hugging Face's do."""

    def __getitem__(self, index: Any, /) -> Any:
        """Return a row: an image and its label, or a mapping with both."""


def is_rows(data: Any) -> bool:
    """Return whether this is a data set of rows, or gives batches of them."""
    return isinstance(data, (Iterable, Rows)) and not isinstance(data, (str, bytes, np.ndarray))


def read_rows(data: Any, reading: Reading, source: str) -> Dataset:
    """Return the labelled images of a data set.

    Labels are taken as they are: places among the model's classes. A shuffling `DataLoader` is read
    in the data set's own order, so that the same images are the same data set next time.

    Args:
        data: a torch `Dataset` or `DataLoader`, a Hugging Face data set with a column of images and
            one of labels, or any rows of image and label. Images are PIL's, uint8 or as `ToTensor`
            leaves them.
        reading: how pictures become pixels; arrays of the model's size pass as they are.
        source: what they are called.

    Raises:
        DataError: rows are no images with labels, images were normalised or otherwise changed
            beyond pixels, or have several sizes.
    """
    rows = _Collected(reading)
    labels: list[int] = []
    for image, label in _pairs(data):
        rows.add(image)
        labels.append(_label(label, len(labels)))
    if not labels:
        raise DataError(f"expected labelled images, got none from {source}")
    images = rows.whole()
    words = stretched_words(rows.stretched, len(images), images.shape[1:3], "image")
    return Dataset(
        images=images, labels=np.array(labels, np.int64), source=source, words=tuple(words)
    )


def pixels_of(images: Any) -> Any:
    """Return a batch of images as pixels, uint8 (N, H, W, C), where it is a tensor of torch.

    Raises:
        DataError: its values are no pixels.
    """
    if not _is_tensor(images):
        return images
    rows = _Collected(Reading())
    for image in images:
        rows.add(image)
    return rows.whole()


@dataclass
class _Collected:
    """Images one by one, as pixels.

    A float image of zeros and ones alone may be `ToTensor`'s or pixels already: the others tell.
    """

    reading: Reading
    images: list[Images] = field(default_factory=list)
    either: list[int] = field(default_factory=list)
    shares: int | None = None  # a row whose values lie in [0, 1]
    whole_floats: int | None = None  # one whose values are pixels
    stretched: int = 0  # how many

    def add(self, image: Any) -> None:
        """Take one more."""
        pixels = self._pixels(image)
        wanted = self.reading.size or self.reading.pipeline.size
        if wanted is not None and pixels.shape[:2] != wanted:
            self.stretched += self.reading.files is None
            pixels = self.reading.pipeline.apply(pixels, max_pixels=pixels.size + MAX_PIXELS)
        self.images.append(pixels)

    def whole(self) -> Images:
        """Return all, uint8 (N, H, W, C)."""
        if self.shares is not None and self.whole_floats is not None:
            raise DataError(
                f"expected values either in [0, 1] or in 0 to 255, image {self.shares} has the one "
                f"and image {self.whole_floats} the other"
            )
        if self.whole_floats is not None:
            for row in self.either:
                self.images[row] //= 255
        channels = max(image.shape[2] for image in self.images)
        shape = (*self.images[0].shape[:2], channels)
        found: Images = empty_array((len(self.images), *shape), np.uint8)
        for row, image in enumerate(self.images):
            if image.shape[:2] != shape[:2]:
                raise DataError(
                    f"expected images of one size, image 0 has {shape[0]} x {shape[1]} and image "
                    f"{row} {image.shape[0]} x {image.shape[1]}: say which size to resize to, by a "
                    "preprocessing"
                )
            found[row] = image  # a grey one among colours has three equal channels
        return found

    def _pixels(self, image: Any) -> Images:
        """Return one image as pixels, (H, W, C), of any size."""
        if isinstance(image, Mapping):  # as Hugging Face has a file
            return self._decoded(image.get("bytes") or Path(image["path"]).read_bytes())
        if isinstance(image, Image.Image):
            if image.mode in {"CMYK", "YCbCr", "LAB", "HSV"}:
                image = image.convert("RGB")
            buffer = io.BytesIO()
            image.save(buffer, "PNG", compress_level=1, exif=image.getexif())
            return self._decoded(buffer.getvalue())
        is_tensor = _is_tensor(image)
        values = np.asarray(image.detach().float().cpu() if is_tensor else image)
        if is_tensor and image.dtype.itemsize == 1 and not image.dtype.is_floating_point:
            values = image.detach().cpu().numpy()
        if values.ndim == 2:
            values = values[..., None]
        if values.ndim != 3 or values.dtype.kind not in "uif":
            raise DataError(
                f"expected an image, got {type(image).__name__} of shape {values.shape} and "
                f"{values.dtype} as image {len(self.images)}"
            )
        first = is_tensor or values.shape[2] not in {1, 3}
        if first and values.shape[0] in {1, 3}:
            values = values.transpose(1, 2, 0)
        if values.dtype == np.uint8:
            return values
        half = str(image.dtype) in {"float16", "torch.float16"}
        return self._rounded(values, _HALF_NEAR if half else _NEAR)

    def _decoded(self, data: bytes) -> Images:
        channels = self.reading.channels
        try:
            if channels is None:
                with Image.open(io.BytesIO(data)) as opened:
                    grey = opened.mode in _GREY or opened.mode.startswith("I")
                channels = 1 if grey else 3
            return self.reading.pipeline.decode(
                data, channels=channels, max_pixels=MAX_PIXELS, formats=OFFLINE
            )
        except DAMAGE as error:
            raise DataError(f"image {len(self.images)} does not decode") from error

    def _rounded(self, values: NDArray[Any], near: float) -> Images:
        """Return whole pixels of numbers that stand for them."""
        row, low, high = len(self.images), float(values.min()), float(values.max())
        if not (np.isfinite(values).all() and low >= 0 and high <= 255):
            raise DataError(
                f"expected pixels, or values in [0, 1] as ToTensor makes them, image {row} has "
                f"{low:.3g} to {high:.3g}: it was normalised. Give images as they are before "
                "Normalize and say that as preprocessing; the guard does it itself"
            )
        shares = high <= 1
        steps = values.astype(np.float64) * (255 if shares else 1)
        whole = np.rint(steps)
        if np.abs(steps - whole).max() > near:
            raise DataError(
                f"expected whole 8-bit pixels, the values of image {row}, {low:.3g} to {high:.3g}, "
                "lie between them, as resizing or changing tensors leaves it: do that with "
                "pictures, before ToTensor, or say it as preprocessing"
            )
        if shares and set(np.unique(whole)) <= {0.0, 255.0}:
            self.either.append(row)
        elif shares:
            self.shares = row
        else:
            self.whole_floats = row
        found: Images = whole.astype(np.uint8)
        return found


def _pairs(data: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every image with its label."""
    torch = sys.modules.get("torch")  # who gives a loader has loaded it
    if torch is not None and isinstance(data, torch.utils.data.DataLoader):
        for batch in _in_order(torch, data):
            images, labels = _split(batch)
            yield from zip(images, labels, strict=True)
    elif hasattr(data, "features") and hasattr(data, "column_names"):
        image, label = _columns(data)
        for row in _undecoded(data, image):
            yield row[image], row[label]
    elif isinstance(data, Mapping):
        raise _several(data)
    elif hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        for place in range(len(data)):
            yield _split(data[place])
    else:
        for row in data:
            yield _split(row)


def _several(parts: Iterable[Any]) -> DataError:
    named = ", ".join(map(str, parts)) or "nothing"
    return DataError(f"expected one part of a data set, got several: {named}; give one of them")


def _in_order(torch: Any, loader: Any) -> Any:
    """Return a loader of the same images that does not shuffle them."""
    sampler = loader.sampler
    every = getattr(sampler, "num_samples", None) == len(loader.dataset) if sampler else False
    if not isinstance(sampler, torch.utils.data.RandomSampler) or sampler.replacement or not every:
        return loader
    return torch.utils.data.DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
    )


def _split(row: Any) -> tuple[Any, Any]:
    """Return image and label of a row, or images and labels of a batch."""
    if isinstance(row, Mapping):
        return row[_named(row, _IMAGES, "image")], row[_named(row, _LABELS, "label")]
    if isinstance(row, (tuple, list)) and len(row) >= 2:
        return row[0], row[1]
    raise DataError(
        f"expected rows of an image and its label, or with both by name, got {type(row).__name__}"
    )


def _named(row: Iterable[Any], names: tuple[str, ...], what: str) -> str:
    names_there = list(row)
    found = [name for name in names if name in names_there]
    if not found:
        there = ", ".join(map(str, names_there)) or "none"
        raise DataError(
            f"expected a column named {', '.join(names[:-1])} or {names[-1]} for the {what}, got "
            f"{there}: rename it"
        )
    return found[0]


def _columns(data: Any) -> tuple[str, str]:
    """Return the columns of images and labels of a Hugging Face data set."""
    if isinstance(data.column_names, Mapping):
        raise _several(data.column_names)
    kinds = {name: type(kind).__name__ for name, kind in (data.features or {}).items()}
    names = list(data.column_names or kinds)
    chosen = []
    for wanted, known, what in (("Image", _IMAGES, "image"), ("ClassLabel", _LABELS, "label")):
        typed = [name for name, kind in kinds.items() if kind == wanted]
        if len(typed) > 1:
            raise DataError(
                f"expected one column of {what}s, got {', '.join(typed)}: leave the others out "
                "with select_columns"
            )
        chosen.append(typed[0] if typed else _named(names, known, what))
    return chosen[0], chosen[1]


def _undecoded(data: Any, column: str) -> Any:
    """Return the data set with files as they are, to be decoded as the guard's own are."""
    kind: Any = (data.features or {}).get(column)
    plain = getattr(data, "format", {"type": None}).get("type") is None
    if plain and getattr(kind, "decode", False) and hasattr(data, "cast_column"):
        return data.cast_column(column, type(kind)(decode=False))
    return data


def _label(label: Any, row: int) -> int:
    value = np.asarray(label.detach().cpu() if _is_tensor(label) else label)
    if value.size != 1 or value.dtype.kind not in "iu":
        raise DataError(
            f"expected a whole number as the label of image {row}, got {value.dtype} of shape "
            f"{value.shape}"
        )
    return int(value.reshape(()))


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
