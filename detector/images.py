"""From pixels to the model's input tensor. N images, H rows, W columns, C channels.

Images in files and in our interfaces are uint8 (N, H, W, C). `InputSpec` is the only place that
knows how a production model wants them: layout, value range, normalisation.
"""

import math
from dataclasses import asdict, dataclass
from types import NoneType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.errors import ImageError, SettingsError
from reluguard.detector.pixels.decoding import MAX_PIXELS, SERVED
from reluguard.detector.pixels.pipeline import Pipeline, Resize
from reluguard.detector.pixels.resampling import Images

__all__ = ["Images", "InputSpec", "Layout", "check_images", "decode_image"]

Layout = Literal["NCHW", "NHWC", "flat"]
_DTYPES = ("float32", "float16", "float64", "uint8")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """How one production model wants its images: tensor = (pixel * scale - mean) / std.

    `height`, `width` and `channels` describe the image; `layout` says how it lies in the tensor,
    where "flat" is (N, C * H * W) in CHW order. `batch` is the model's fixed batch, None if free.
    `files` says how encoded images become such pixels; None stretches them, as guards of before it
    did. Arrays of pixels are taken to be after resize and crop, so they pass as they are.
    """

    name: str
    height: int
    width: int
    channels: int
    layout: Layout = "NCHW"
    dtype: str = "float32"
    batch: int | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False
    files: Pipeline | None = None

    def __post_init__(self) -> None:
        self._check_sizes()
        size = None if self.files is None else self.files.size
        if size not in {None, (self.height, self.width)}:
            raise SettingsError(
                f"expected files to become images of {self.height} x {self.width} as the model "
                f"takes them, resize and crop make {size[0]} x {size[1]}"
            )
        if self.layout not in {"NCHW", "NHWC", "flat"}:
            raise SettingsError(f"expected layout NCHW, NHWC or flat, got {self.layout!r}")
        if self.dtype not in _DTYPES:
            raise SettingsError(f"expected dtype one of {', '.join(_DTYPES)}, got {self.dtype!r}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise SettingsError(f"expected a positive scale, got {self.scale}")
        for label, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in {1, self.channels} or not all(map(math.isfinite, values)):
                wanted = (
                    f"1 or 3 finite {label} values"
                    if self.channels == 3
                    else f"1 finite {label} value of grey images"
                )
                raise SettingsError(f"expected {wanted}, got {list(values)}")
        if any(value <= 0 for value in self.std):
            raise SettingsError(f"expected positive std values, got {list(self.std)}")
        if self.dtype == "uint8" and not self.is_identity:
            raise SettingsError(
                "a uint8 model input takes pixels as they are: leave scale, mean, std"
            )

    def _check_sizes(self) -> None:
        sizes = [self.height, self.width, self.channels]
        if not all(type(size) is int for size in sizes) or type(self.batch) not in {int, NoneType}:
            raise SettingsError(f"expected whole sizes, got {sizes} and a batch of {self.batch}")
        if min(sizes) < 1:
            size = f"{self.height} x {self.width} x {self.channels}"
            raise SettingsError(f"expected a positive image size, got {size}")
        if self.channels not in {1, 3}:
            raise SettingsError(f"expected 1 or 3 channels, got {self.channels}")
        if self.batch is not None and self.batch < 1:
            raise SettingsError(f"expected a batch of 1 or more, got {self.batch}")

    @property
    def is_identity(self) -> bool:
        """Whether pixels reach the model unscaled."""
        return self.scale == 1.0 and set(self.mean) == {0.0} and set(self.std) == {1.0}

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """The shape of one image in the model's tensor, without the batch."""
        h, w, c = self.height, self.width, self.channels
        return {"NCHW": (c, h, w), "NHWC": (h, w, c), "flat": (c * h * w,)}[self.layout]

    @property
    def pipeline(self) -> Pipeline:
        """What happens to an encoded image before it is a row of pixels."""
        return self.files or Pipeline(resize=Resize(height=self.height, width=self.width))

    def to_tensor(self, images: Images) -> NDArray[Any]:
        """Return the model's input tensor for these images.

        Args:
            images: uint8, (N, H, W, C), RGB or grey.

        Raises:
            ImageError: dtype, rank or size is not the model's.
        """
        check_images(images, height=self.height, width=self.width, channels=self.channels)
        pixels = images[..., ::-1] if self.bgr else images
        if self.layout != "NHWC":
            pixels = pixels.transpose(0, 3, 1, 2)
        if self.dtype == "uint8":
            return np.ascontiguousarray(pixels).reshape(len(images), *self.tensor_shape)
        # float32 throughout: the same arithmetic that a twin does on the same pixels
        x = np.ascontiguousarray(pixels, dtype=np.float32)
        if self.scale != 1.0:
            # divide, as ToTensor does: x * (1 / 255) and x / 255 differ in the last bit
            x /= np.float32(1 / self.scale)
        if set(self.mean) != {0.0} or set(self.std) != {1.0}:
            shape = (1, 1, 1, -1) if self.layout == "NHWC" else (1, -1, 1, 1)
            x -= np.asarray(self._ordered(self.mean), np.float32).reshape(shape)
            x /= np.asarray(self._ordered(self.std), np.float32).reshape(shape)
        return x.reshape(len(images), *self.tensor_shape).astype(self.dtype, copy=False)

    def _ordered(self, values: tuple[float, ...]) -> tuple[float, ...]:
        return values[::-1] if self.bgr else values

    def check_tensor(self, tensor: NDArray[Any]) -> None:
        """Raise ImageError unless this is a finite tensor of the model's dtype and shape."""
        if self._fits(tensor):
            if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
                raise ImageError("expected finite values, got NaN or infinity in the tensor")
            return
        text = f"({', '.join(map(str, ('N', *self.tensor_shape)))})"
        if not isinstance(tensor, np.ndarray):
            raise ImageError(f"expected a {self.dtype} tensor of shape {text}, got {type(tensor)}")
        if tensor.dtype != np.dtype(self.dtype):
            raise ImageError(
                f"expected a {self.dtype} tensor of shape {text}, got {tensor.dtype} {tensor.shape}"
            )
        if tensor.ndim == 0 or tensor.shape[1:] != self.tensor_shape:
            raise ImageError(f"expected a {self.dtype} tensor of shape {text}, got {tensor.shape}")
        raise ImageError("expected at least one image, got an empty batch")

    def _fits(self, tensor: NDArray[Any]) -> bool:
        return (
            isinstance(tensor, np.ndarray)
            and tensor.dtype == self.dtype
            and tensor.ndim > 0
            and tensor.shape[1:] == self.tensor_shape
            and len(tensor) > 0
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the manifest; without `files` where they are stretched."""
        values = asdict(self)
        if self.files is None:
            del values["files"]  # as it was written before there was anything to say
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "InputSpec":
        """Undo `to_json`.

        Raises:
            SettingsError: a key is unknown or missing, or a value has no meaning.
        """
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise SettingsError(f"unknown input settings: {', '.join(unknown)}")
        try:
            files = values.get("files")
            read = {
                "mean": tuple(values["mean"]),
                "std": tuple(values["std"]),
                "files": None if files is None else Pipeline.from_json(files),
            }
            return cls(**{**values, **read})
        except (KeyError, TypeError) as error:
            raise SettingsError(f"the input specification is incomplete: {error}") from error


def check_images(
    images: NDArray[Any],
    *,
    height: int | None = None,
    width: int | None = None,
    channels: int | None = None,
) -> None:
    """Raise ImageError unless images are uint8 (N, H, W, C), of the given size where given."""
    text = f"(N, {height or 'H'}, {width or 'W'}, {channels or 'C'})"
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4:
        what = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images)
        raise ImageError(f"expected uint8 images of shape {text}, got {what}")
    if len(images) == 0:
        raise ImageError("expected at least one image, got an empty batch")
    for axis, size in ((1, height), (2, width), (3, channels)):
        if size is not None and images.shape[axis] != size:
            raise ImageError(f"expected uint8 images of shape {text}, got {images.shape}")


def decode_image(
    data: bytes,
    spec: InputSpec,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = SERVED,
) -> Images:
    """Return one encoded image as uint8 (H, W, C) in the size the model wants.

    It goes the way of the specification's `files`. The header is read before any pixel, so an image
    of a claimed enormous size costs nothing.

    Args:
        data: the whole file.
        spec: how the model wants its images.
        max_pixels: an image may have at most, on its way too.
        formats: Pillow's names of those that are read; JPEG, PNG and WebP by default.

    Raises:
        ImageError: none of these formats, broken, or of another size than it must have.
        ImageTooLargeError: more than `max_pixels` pixels.
    """
    image = spec.pipeline.decode(
        data, channels=spec.channels, max_pixels=max_pixels, formats=formats
    )
    if image.shape[:2] != (spec.height, spec.width):
        raise ImageError(
            f"expected images that are {spec.height} x {spec.width} after resize and crop, "
            f"got {image.shape[0]} x {image.shape[1]}"
        )
    return image
