"""What a user's own program does with a file before the model sees it, as a value.

H rows, W columns, C channels.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar, cast, get_args

import numpy as np

from reluguard.detector.errors import ImageTooLargeError, SettingsError
from reluguard.detector.pixels.decoding import MAX_PIXELS, SERVED, decode
from reluguard.detector.pixels.resampling import (
    Images,
    Library,
    Method,
    check_resampling,
    resample,
)

__all__ = ["Colour", "Crop", "Fit", "Pipeline", "Resize"]

Colour = tuple[int, int, int]
Fit = Literal["exact", "shortest", "longest"]
Rounding = Literal["down", "even"]
_T = TypeVar("_T")
MOST = 16_384  # pixels along a side that a pipeline may ask for


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """To which size, and by which library's rules.

    Attributes:
        height: of the result.
        width: of the result.
        fit: "exact" stretches to it; "shortest" keeps the shape and covers it, "longest" keeps the
            shape and stays within it.
        rounding: of the side that follows from the other: "down" as torchvision and Hugging Face,
            "even", to the nearest, as timm's ResizeKeepRatio.
        library: whose arithmetic.
        method: its interpolation.
        antialias: whether all that shrinks into a pixel counts.
    """

    height: int
    width: int
    fit: Fit = "exact"
    rounding: Rounding = "down"
    library: Library = "pillow"
    method: Method = "bilinear"
    antialias: bool = True

    def __post_init__(self) -> None:
        _check_size("resize", self.height, self.width)
        if self.fit not in get_args(Fit):
            raise SettingsError(f"expected fit exact, shortest or longest, got {self.fit!r}")
        _check_rounding(self.rounding)
        check_resampling(self.library, self.method, antialias=self.antialias)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return (H, W) that an image of this size gets."""
        if self.fit == "exact":
            return self.height, self.width
        ratios = height / self.height, width / self.width
        ratio = min(ratios) if self.fit == "shortest" else max(ratios)
        if self.rounding == "even":
            return max(1, round(height / ratio)), max(1, round(width / ratio))
        if ratios[0] == ratio:
            return self.height, max(1, int(self.height * width / height))
        return max(1, int(self.width * height / width)), self.width

    def apply(self, image: Images, *, max_pixels: int) -> Images:
        """Return the resized image.

        Raises:
            ImageTooLargeError: it would have more than `max_pixels` pixels.
        """
        height, width = self.size(*image.shape[:2])
        if height * width > max(max_pixels, self.height * self.width):
            raise ImageTooLargeError(
                f"expected at most {max_pixels} pixels, an image of {image.shape[1]} x "
                f"{image.shape[0]} would become {width} x {height}"
            )
        return resample(
            image,
            (height, width),
            library=self.library,
            method=self.method,
            antialias=self.antialias,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """The middle of an image; where the image is smaller, it is padded.

    Attributes:
        height: of the result.
        width: of the result.
        rounding: of a half pixel at the edge that is cut: "even" as torchvision, "down" as Hugging
            Face. Padding is always rounded down above and on the left.
        fill: the colour of the padding.
    """

    height: int
    width: int
    rounding: Rounding = "even"
    fill: Colour = (0, 0, 0)

    def __post_init__(self) -> None:
        _check_size("crop", self.height, self.width)
        _check_rounding(self.rounding)
        _check_colour("fill", self.fill)

    def apply(self, image: Images) -> Images:
        """Return the crop."""
        missing = [max(0, want - have) for want, have in zip(self._size, image.shape, strict=False)]
        if any(missing):
            image = self._padded(image, missing)
        h, w = image.shape[:2]
        top, left = (
            round(left / 2) if self.rounding == "even" else left // 2
            for left in (h - self.height, w - self.width)
        )
        return np.ascontiguousarray(image[top : top + self.height, left : left + self.width])

    @property
    def _size(self) -> tuple[int, int]:
        return self.height, self.width

    def _padded(self, image: Images, missing: Sequence[int]) -> Images:
        h, w, c = image.shape
        red, green, blue = self.fill
        grey = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16  # as Pillow converts
        padded = np.empty((h + missing[0], w + missing[1], c), np.uint8)
        padded[:] = self.fill if c == 3 else grey
        padded[missing[0] // 2 :, missing[1] // 2 :][:h, :w] = image
        return padded


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """From a file's bytes to the pixels a model takes.

    Attributes:
        orientation: whether images are turned as their EXIF data says.
        background: what transparent pixels lie over; None leaves alpha out, as most loaders do.
        resize: None where files must have the size already.
        crop: None where nothing is cut or padded.
    """

    orientation: bool = False
    background: Colour | None = None
    resize: Resize | None = None
    crop: Crop | None = None

    def __post_init__(self) -> None:
        if self.background is not None:
            _check_colour("background", self.background)

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of every result; None where it depends on the file."""
        if self.crop is not None:
            return self.crop.height, self.crop.width
        if self.resize is not None and self.resize.fit == "exact":
            return self.resize.height, self.resize.width
        return None

    def apply(self, image: Images, *, max_pixels: int = MAX_PIXELS) -> Images:
        """Return the resized and cropped image: uint8 (H, W, C)."""
        if self.resize is not None:
            image = self.resize.apply(image, max_pixels=max_pixels)
        return image if self.crop is None else self.crop.apply(image)

    def decode(
        self,
        data: bytes,
        *,
        channels: int,
        max_pixels: int = MAX_PIXELS,
        formats: tuple[str, ...] = SERVED,
    ) -> Images:
        """Return a file's pixels after resize and crop: uint8 (H, W, C).

        Raises:
            ImageError: it does not decode.
            ImageTooLargeError: it has, or would get, more than `max_pixels` pixels.
        """
        image = decode(
            data,
            channels=channels,
            orientation=self.orientation,
            background=self.background,
            library="pillow" if self.resize is None else self.resize.library,
            max_pixels=max_pixels,
            formats=formats,
        )
        return self.apply(image, max_pixels=max_pixels)

    def words(self) -> str:
        """Return what happens, for people."""
        steps = ["turned as EXIF says"] if self.orientation else []
        if self.background is not None:
            steps.append(f"alpha over {self.background}")
        if self.resize is not None:
            to = f"{self.resize.height} x {self.resize.width}"
            kind = {"exact": "stretched to", "shortest": "shrunk to cover", "longest": "fitted in"}
            how = f"{self.resize.method} as {self.resize.library} does it"
            steps.append(f"{kind[self.resize.fit]} {to} ({how})")
        if self.crop is not None:
            steps.append(f"centre {self.crop.height} x {self.crop.width}")
        return ", ".join(steps) or "as they are"

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> "Pipeline":
        """Undo `to_json`.

        Raises:
            SettingsError: a key is unknown or missing, or a value has no meaning.
        """
        if not isinstance(values, dict):
            raise SettingsError(f"expected a pipeline's settings by name, got {type(values)}")
        made = dict(values)
        for name, kind in (("resize", Resize), ("crop", Crop)):
            if made.get(name) is not None:
                made[name] = _made(kind, made[name])
        return _made(cls, made)


def _made(kind: type[_T], values: Any) -> _T:
    if not isinstance(values, dict):
        raise SettingsError(f"expected {kind.__name__.lower()} settings by name, got {values!r}")
    known = {field.name for field in fields(cast("Any", kind))}
    unknown = sorted(set(values) - known)
    if unknown:
        raise SettingsError(f"unknown {kind.__name__.lower()} settings: {', '.join(unknown)}")
    colours = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    try:
        return kind(**{**values, **colours})
    except TypeError as error:
        raise SettingsError(f"the {kind.__name__.lower()} is incomplete: {error}") from error


def _check_size(what: str, height: Any, width: Any) -> None:
    if not all(type(side) is int and 1 <= side <= MOST for side in (height, width)):
        raise SettingsError(
            f"expected a {what} to whole sizes from 1 to {MOST}, got {height} x {width}"
        )


def _check_rounding(rounding: Any) -> None:
    if rounding not in get_args(Rounding):
        raise SettingsError(f"expected rounding down or even, got {rounding!r}")


def _check_colour(what: str, colour: Any) -> None:
    parts = colour if isinstance(colour, tuple) else ()
    if len(parts) != 3 or not all(type(part) is int and 0 <= part <= 255 for part in parts):
        raise SettingsError(f"expected a {what} of three values from 0 to 255, got {colour!r}")
