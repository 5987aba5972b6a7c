"""Resizing as four libraries do it, to the last bit where they count in whole numbers.

H rows, W columns, C channels, S rows or columns of the source, K of them that make one of the
result, R values in a row.

Two libraries that say "bilinear" mean different pixels: Pillow averages over all that shrinks into
one pixel and rounds at 22 bits, torchvision's tensors do so at 15, OpenCV looks at two neighbours
however much is skipped, and TensorFlow does that in floating point.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reluguard.detector.errors import SettingsError

__all__ = ["LIBRARIES", "METHODS", "Images", "Library", "Method", "check_resampling", "resample"]

Images = NDArray[np.uint8]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Library = Literal["pillow", "torch", "opencv", "tensorflow"]
Method = Literal["nearest", "nearest-exact", "bilinear", "bicubic", "lanczos", "area", "hamming"]

LIBRARIES: tuple[Library, ...] = ("pillow", "torch", "opencv", "tensorflow")
METHODS: tuple[Method, ...] = (
    "nearest",
    "nearest-exact",
    "bilinear",
    "bicubic",
    "lanczos",
    "area",
    "hamming",
)
_KNOWN: Mapping[tuple[Library, bool], frozenset[Method]] = {
    ("pillow", True): frozenset({"nearest", "bilinear", "bicubic", "lanczos", "area", "hamming"}),
    ("torch", True): frozenset({"nearest", "nearest-exact", "bilinear", "bicubic", "lanczos"}),
    ("torch", False): frozenset({"nearest", "nearest-exact", "bilinear", "bicubic"}),
    ("opencv", False): frozenset({"nearest", "bilinear", "bicubic", "lanczos", "area"}),
    ("tensorflow", True): frozenset({"nearest", "bilinear", "bicubic", "lanczos", "area"}),
    ("tensorflow", False): frozenset({"nearest", "bilinear", "bicubic", "lanczos", "area"}),
}
_PILLOW: Mapping[Method, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
_OPENCV_BITS = 11


def check_resampling(library: Library, method: Method, *, antialias: bool) -> None:
    """Raise SettingsError unless this library resizes so."""
    if library not in LIBRARIES:
        raise SettingsError(f"expected to resize as one of {', '.join(LIBRARIES)}, got {library!r}")
    known = _KNOWN.get((library, antialias), frozenset())
    if method not in known:
        other = _KNOWN.get((library, not antialias), frozenset())
        if method in other:
            word = "without" if antialias else "with"
            raise SettingsError(f"{library} resizes by {method} only {word} antialiasing")
        there = ", ".join(sorted(known or other))
        raise SettingsError(f"expected one of {library}'s interpolations, {there}; got {method!r}")


def resample(
    image: Images, size: tuple[int, int], *, library: Library, method: Method, antialias: bool
) -> Images:
    """Return the image in another size, as a library resizes it.

    Pillow is the one that is installed: from version 13 on it goes down first and then across where
    that is less work, as in a narrow picture that is made wider and shorter; before it always went
    across first. Bilinear, that moves a pixel by 1.

    Equal to Pillow, to OpenCV's nearest, linear and area, and to torch on processors with AVX2 in
    every pixel; OpenCV's cubic and Lanczos differ by at most 1. TensorFlow leaves fractions, which
    are rounded here: off by at most .5.

    Args:
        image: uint8, (H, W, C).
        size: (height, width) of the result.
        library: which one.
        method: its interpolation.
        antialias: whether all that shrinks into a pixel counts: Pillow always does it, OpenCV never
            but for area.

    Raises:
        SettingsError: the library doesn't resize so.
    """
    check_resampling(library, method, antialias=antialias)
    if image.shape[:2] == size:
        return image
    if library == "pillow":
        return _pillow(image, size, method)
    if library == "torch":
        return _torch(image, size, method, antialias=antialias)
    if library == "opencv":
        return _opencv(image, size, method)
    return _tensorflow(image, size, method, antialias=antialias)


def _pillow(image: Images, size: tuple[int, int], method: Method) -> Images:
    grey = image.shape[2] == 1
    picture = Image.fromarray(image[:, :, 0] if grey else image)
    resized = np.asarray(picture.resize((size[1], size[0]), _PILLOW[method]), np.uint8)
    return cast("Images", resized.reshape(*size, image.shape[2]))


@dataclass(frozen=True, slots=True)
class Taps:
    """Which rows make each row of the result: those from `start[i]` on, by `weights[i]`."""

    start: Ints
    weights: tuple[NDArray[Any], ...]


def _triangle(x: Floats) -> Floats:
    return cast("Floats", np.maximum(1 - np.abs(x), 0))


def _cubic(a: float) -> Callable[[Floats], Floats]:
    def kernel(x: Floats) -> Floats:
        x = np.abs(x)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * a
        return cast("Floats", np.where(x < 1, near, np.where(x < 2, far, 0.0)))

    return kernel


def _lanczos(x: Floats) -> Floats:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


@functools.lru_cache(maxsize=256)
def _spread(source: int, wanted: int, method: Method) -> Taps:
    """Return the taps of all that shrinks into a pixel, as Pillow counts them: weights float64."""
    kernel, support = {
        "bilinear": (_triangle, 1.0),
        "bicubic": (_cubic(-0.5), 2.0),
        "lanczos": (_lanczos, 3.0),
    }[method]
    scale = source / wanted
    wide = max(scale, 1.0)
    center = (np.arange(wanted) + 0.5) * scale
    first = np.maximum((center - support * wide + 0.5).astype(np.int64), 0)
    last = np.minimum((center + support * wide + 0.5).astype(np.int64), source)
    weights = []
    for low, high, middle in zip(first, last, center, strict=True):
        w = kernel((np.arange(low, high) - middle + 0.5) / wide)
        weights.append(w / w.sum())
    return Taps(first, tuple(weights))


@functools.lru_cache(maxsize=256)
def _neighbours(source: int, wanted: int, method: Method) -> Taps:
    """Return the taps of the two or four nearest pixels, as torch finds them: weights float64."""
    scale = source / wanted
    real = (np.arange(wanted) + 0.5) * scale - 0.5
    if method == "bilinear":
        real = np.maximum(real, 0)
    cubic = method == "bicubic"
    offsets = np.arange(-1, 3) if cubic else np.arange(2)
    kernel = _cubic(-0.75) if cubic else _triangle
    floor = np.floor(real).astype(np.int64)
    starts, weights = [], []
    for low, place in zip(floor, real, strict=True):
        rows = low + offsets
        w = kernel(rows - place)
        rows = np.clip(rows, 0, source - 1)
        merged = np.zeros(rows[-1] - rows[0] + 1)
        np.add.at(merged, rows - rows[0], w)
        starts.append(rows[0])
        weights.append(merged)
    return Taps(np.array(starts), tuple(weights))


def _in_whole_numbers(taps: Taps) -> tuple[Taps, int]:
    """Return the taps in torch's 16-bit whole numbers, and how many of their bits are fraction."""
    largest = max(float(w.max()) for w in taps.weights)
    bits = 0
    while bits < 22 and int(0.5 + largest * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    whole = tuple(np.trunc(w * (1 << bits) + np.copysign(0.5, w)) for w in taps.weights)
    return Taps(taps.start, whole), bits


def _mixed(rows: NDArray[Any], taps: Taps) -> Floats:
    """Return the weighted sums of rows: (wanted, R), where rows are (S, R).

    Whole numbers below 2 ** 53 are exact in float64, and its products go through BLAS.
    """
    mixed = np.empty((len(taps.start), rows.shape[1]))
    for i, (start, weights) in enumerate(zip(taps.start, taps.weights, strict=True)):
        mixed[i] = weights @ rows[start : start + len(weights)].astype(np.float64)
    return mixed


def _columns_first(
    image: NDArray[Any], size: tuple[int, int], along: Callable[[NDArray[Any], int], NDArray[Any]]
) -> NDArray[Any]:
    """Return the image resized by `along(rows, wanted)`, across first and then down."""
    (h, w), (rows, columns), channels = image.shape[:2], size, image.shape[2]
    if w != columns:
        across = np.ascontiguousarray(image.transpose(1, 0, 2)).reshape(w, h * channels)
        image = along(across, columns).reshape(columns, h, channels).transpose(1, 0, 2)
    if h != rows:
        down = np.ascontiguousarray(image).reshape(h, columns * channels)
        image = along(down, rows).reshape(rows, columns, channels)
    return image


def _picked(image: Images, rows: Ints, columns: Ints) -> Images:
    return cast("Images", np.ascontiguousarray(image[rows][:, columns]))


def _torch(image: Images, size: tuple[int, int], method: Method, *, antialias: bool) -> Images:
    if method in {"nearest", "nearest-exact"}:
        places = [
            _torch_nearest(have, want, exact=method == "nearest-exact")
            for have, want in zip(image.shape[:2], size, strict=True)
        ]
        return _picked(image, *places)

    def along(rows: NDArray[Any], wanted: int) -> NDArray[Any]:
        make = _spread if antialias else _neighbours
        taps, bits = _in_whole_numbers(make(len(rows), wanted, method))
        exact = _mixed(rows, taps).astype(np.int64)
        whole = np.clip((exact + (1 << bits >> 1)) >> bits, 0, 255)
        return cast("Images", whole.astype(np.uint8))

    return _columns_first(image, size, along)


def _torch_nearest(source: int, wanted: int, *, exact: bool) -> Ints:
    scale = np.float32(source) / np.float32(wanted)
    shift = np.float32(0.5 if exact else 0.0)
    places = np.floor((np.arange(wanted, dtype=np.float32) + shift) * scale)
    return cast("Ints", np.minimum(places.astype(np.int64), source - 1))


def _opencv(image: Images, size: tuple[int, int], method: Method) -> Images:
    h, w = image.shape[:2]
    shrinks = size[0] <= h and size[1] <= w
    if method == "nearest":
        return _picked(image, _opencv_nearest(h, size[0]), _opencv_nearest(w, size[1]))
    if method == "area" and shrinks:
        return _opencv_area(image, size)
    if method == "bilinear" and (h, w) == (2 * size[0], 2 * size[1]):
        return _opencv_area(image, size)  # OpenCV's shortcut: of four pixels each counts a quarter
    return _opencv_neighbours(image, size, method)


def _opencv_nearest(source: int, wanted: int) -> Ints:
    step = 1.0 / (wanted / source)
    places = np.floor(np.arange(wanted) * step).astype(np.int64)
    return cast("Ints", np.minimum(places, source - 1))


def _opencv_area(image: Images, size: tuple[int, int]) -> Images:
    (h, w), c = image.shape[:2], image.shape[2]
    if h % size[0] == 0 and w % size[1] == 0:
        down, across = h // size[0], w // size[1]
        blocks = image.reshape(size[0], down, size[1], across, c)
        total = blocks.sum(axis=(1, 3), dtype=np.int64)
        if down == across == 2:
            return cast("Images", ((total + 2) >> 2).astype(np.uint8))
        return _rounded(total.astype(np.float32) * np.float32(1.0 / (down * across)))
    return _rounded(_columns_first(image, size, _opencv_area_along))


def _opencv_area_along(rows: NDArray[Any], wanted: int) -> NDArray[Any]:
    taps = _covered(len(rows), wanted)
    total = np.zeros((wanted, rows.shape[1]), np.float32)
    for k in range(max(map(len, taps.weights))):  # in OpenCV's order, so that it rounds alike
        some = [i for i, weights in enumerate(taps.weights) if k < len(weights)]
        weight = np.array([taps.weights[i][k] for i in some], np.float32)
        total[some] += weight[:, None] * rows[taps.start[some] + k]
    return total


@functools.lru_cache(maxsize=256)
def _covered(source: int, wanted: int) -> Taps:
    """Return how much of each pixel lies in one of the result, as OpenCV's area does: float32."""
    scale = 1.0 / (wanted / source)
    starts, weights = [], []
    for i in range(wanted):
        low, high = i * scale, i * scale + scale
        width = min(scale, source - low)
        first, last = math.ceil(low), min(math.floor(high), source - 1)
        first = min(first, last)
        cells = []
        start = first
        if first - low > 1e-3:
            start = first - 1
            cells.append((first - low) / width)
        cells += [1.0 / width] * (last - first)
        if high - last > 1e-3:
            cells.append(min(high - last, 1.0, width) / width)
        starts.append(start)
        weights.append(np.array(cells, np.float32))
    return Taps(np.array(starts), tuple(weights))


def _opencv_neighbours(image: Images, size: tuple[int, int], method: Method) -> Images:
    rows, down = _opencv_taps(image.shape[0], size[0], method)
    columns, across = _opencv_taps(image.shape[1], size[1], method)
    rows, columns = (
        np.clip(places, 0, source - 1)
        for places, source in zip((rows, columns), image.shape[:2], strict=True)
    )
    needed, where = np.unique(rows, return_inverse=True)
    where = where.reshape(rows.shape)
    source = image[needed].astype(across.dtype)
    wide = np.zeros((len(needed), size[1], image.shape[2]), across.dtype)
    for k in range(columns.shape[1]):
        wide += source[:, columns[:, k]] * across[:, k, None]
    total = np.zeros((*size, image.shape[2]), across.dtype)
    for k in range(rows.shape[1]):
        part = wide[where[:, k]]
        if method in {"bilinear", "area"}:
            # its vector code drops bits on the way so that products stay within 16
            total += ((part >> 4) * down[:, k, None, None]) >> 16
        else:
            total += part * down[:, k, None, None]
    if method == "bicubic":
        return _rounded(total)
    fraction = 2 if method in {"bilinear", "area"} else 2 * _OPENCV_BITS
    whole = (total + (1 << fraction >> 1)) >> fraction
    return cast("Images", np.clip(whole, 0, 255).astype(np.uint8))


@functools.lru_cache(maxsize=256)
def _opencv_taps(source: int, wanted: int, method: Method) -> tuple[Ints, NDArray[Any]]:
    """Return places and weights, each (wanted, K): of 11 bits, but float32 for Intel's cubic."""
    step = 1.0 / (wanted / source)
    index = np.arange(wanted)
    if method == "area":  # enlarging: linear between the edges of the pixels
        floor = np.floor(index * step).astype(np.int64)
        share = ((index + 1) - (floor + 1) / step).astype(np.float32)
        share = np.where(share <= 0, np.float32(0), share - np.floor(share))
    else:
        real = ((index + 0.5) * step - 0.5).astype(np.float32)
        floor = np.floor(real).astype(np.int64)
        share = real - floor.astype(np.float32)
    if method == "bicubic":
        return floor[:, None] + np.arange(-1, 3), _opencv_cubic(share)
    if method == "lanczos":
        weights, offsets = _opencv_lanczos(share), np.arange(-3, 5)
    else:
        weights, offsets = np.stack([1 - share, share], axis=1), np.array([0, 1])
    whole = np.rint(weights.astype(np.float32) * np.float32(1 << _OPENCV_BITS)).astype(np.int64)
    return floor[:, None] + offsets, whole


def _opencv_cubic(share: NDArray[np.float32]) -> NDArray[np.float32]:
    a = np.float32(-0.75)
    x, one = share, np.float32(1)
    first = ((a * (x + one) - 5 * a) * (x + one) + 8 * a) * (x + one) - 4 * a
    second = ((a + 2) * x - (a + 3)) * x * x + one
    third = ((a + 2) * (one - x) - (a + 3)) * (one - x) * (one - x) + one
    return np.stack([first, second, third, one - first - second - third], axis=1)


def _opencv_lanczos(share: NDArray[np.float32]) -> NDArray[np.float32]:
    x = share.astype(np.float64)[:, None]
    away = x + 3 - np.arange(8)
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.sinc(away) * np.sinc(away / 4)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights.astype(np.float32)


def _tensorflow(image: Images, size: tuple[int, int], method: Method, *, antialias: bool) -> Images:
    h, w = image.shape[:2]
    if method == "nearest":
        return _picked(image, *(_center(have, want) for have, want in ((h, size[0]), (w, size[1]))))

    def along(rows: NDArray[Any], wanted: int) -> NDArray[Any]:
        if method == "area":
            return _mixed(rows, _shared(len(rows), wanted))
        if method == "lanczos" or antialias:
            return _mixed(rows, _spans(len(rows), wanted, method, antialias))
        make = _neighbours if method == "bilinear" else _tabulated
        return _mixed(rows, make(len(rows), wanted, method))

    # halves that are off by a last bit, which one depends on the processor, become halves again
    return _rounded(np.round(_columns_first(image, size, along), 9))


def _center(source: int, wanted: int) -> Ints:
    scale = np.float32(source) / np.float32(wanted)
    places = np.floor((np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * scale)
    return cast("Ints", np.minimum(places.astype(np.int64), source - 1))


@functools.lru_cache(maxsize=256)
def _shared(source: int, wanted: int) -> Taps:
    """Return the share of each pixel in one of the result, as TensorFlow's area counts it."""
    scale = np.float32(source) / np.float32(wanted)
    starts, weights = [], []
    for i in range(wanted):
        low, high = float(np.float32(i) * scale), float(np.float32(i + 1) * scale)
        cells = np.arange(math.floor(low), math.ceil(high))
        inside = np.minimum(cells + 1, high) - np.maximum(cells, low)
        rows = np.clip(cells, 0, source - 1)
        merged = np.zeros(rows[-1] - rows[0] + 1)
        np.add.at(merged, rows - rows[0], inside / float(scale))
        starts.append(rows[0])
        weights.append(merged)
    return Taps(np.array(starts), tuple(weights))


@functools.lru_cache(maxsize=256)
def _spans(source: int, wanted: int, method: Method, antialias: bool) -> Taps:
    """Return the taps of TensorFlow's `scale_and_translate`."""
    kernel, support = {
        "bilinear": (_triangle, 1.0),
        "bicubic": (_cubic(-0.5), 2.0),
        "lanczos": (_lanczos, 3.0),
    }[method]
    scale = source / wanted
    wide = max(scale, 1.0) if antialias else 1.0
    starts, weights = [], []
    for i in range(wanted):
        middle = (i + 0.5) * scale
        low = min(max(math.ceil(middle - support * wide - 0.5), 0), source - 1)
        high = min(max(math.floor(middle + support * wide - 0.5), 0), source - 1)
        w = kernel((np.arange(low, high + 1, dtype=np.float64) + 0.5 - middle) / wide)
        starts.append(low)
        weights.append(w / w.sum())
    return Taps(np.array(starts), tuple(weights))


@functools.lru_cache(maxsize=256)
def _tabulated(source: int, wanted: int, method: Method) -> Taps:
    """Return the taps of TensorFlow's bicubic: its kernel from a table of 1,024 steps a pixel."""
    assert method == "bicubic"
    kernel = _cubic(-0.5)
    scale = np.float32(source) / np.float32(wanted)
    starts, weights = [], []
    for i in range(wanted):
        real = float((np.float32(i) + np.float32(0.5)) * scale - np.float32(0.5))
        floor = math.floor(real)
        share = np.rint((real - floor) * 1024) / 1024
        rows = floor + np.arange(-1, 3)
        there = (rows >= 0) & (rows < source)
        w = np.where(there, kernel(np.arange(-1, 3) - share), 0.0)[there]
        starts.append(int(rows[there][0]))
        weights.append(w / w.sum())
    return Taps(np.array(starts), tuple(weights))


def _rounded(values: NDArray[Any]) -> Images:
    return cast("Images", np.clip(np.rint(values), 0, 255).astype(np.uint8))
