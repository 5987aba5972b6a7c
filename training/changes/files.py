"""What saving a picture as a file does to it: compression, a palette, coarse colour. N images."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from reluguard.detector.images import Images
from reluguard.training.changes.base import Change, each_picture
from reluguard.training.errors import AttackError

__all__ = ["JPEG", "Chroma", "Palette", "Resaved", "WebP"]


@dataclass(frozen=True, kw_only=True)
class JPEG(Change):
    """Saved as JPEG of a quality from 1 to 95, and read again."""

    quality: int = 75

    def __post_init__(self) -> None:
        _check_quality(self.quality, "JPEG", 95)

    @property
    def name(self) -> str:
        """As `jpeg-75`."""
        return f"jpeg-{self.quality}"

    def apply(self, images: Images, generator: np.random.Generator) -> Images:
        """Compress each image."""
        del generator
        return each_picture(images, lambda picture: _through("JPEG", picture, self.quality))


@dataclass(frozen=True, kw_only=True)
class Resaved(Change):
    """Saved as JPEG again and again on its way, once at each quality."""

    qualities: tuple[int, ...] = (90, 75)

    def __post_init__(self) -> None:
        for quality in self.qualities:
            _check_quality(quality, "JPEG", 95)

    @property
    def name(self) -> str:
        """As `resaved-90-75`."""
        return "-".join(["resaved", *map(str, self.qualities)])

    def apply(self, images: Images, generator: np.random.Generator) -> Images:
        """Compress each image at every quality in turn."""
        del generator

        def resave(picture: Image.Image) -> Image.Image:
            for quality in self.qualities:
                picture = _through("JPEG", picture, quality)
            return picture

        return each_picture(images, resave)


@dataclass(frozen=True, kw_only=True)
class WebP(Change):
    """Saved as lossy WebP of a quality from 1 to 100, and read again."""

    quality: int = 80

    def __post_init__(self) -> None:
        _check_quality(self.quality, "WebP", 100)

    @property
    def name(self) -> str:
        """As `webp-80`."""
        return f"webp-{self.quality}"

    def apply(self, images: Images, generator: np.random.Generator) -> Images:
        """Compress each image; WebP knows no grey, so that goes through colour."""
        del generator
        return each_picture(images, lambda picture: _through("WEBP", picture, self.quality))


@dataclass(frozen=True, kw_only=True)
class Palette(Change):
    """Reduced to so many colours of its own, as a GIF or a PNG with a palette holds, undithered.

    The colours are Pillow's median cut.
    """

    colours: int = 64

    def __post_init__(self) -> None:
        if not 2 <= self.colours <= 256:
            raise AttackError(f"expected 2 to 256 colours, got {self.colours}")

    @property
    def name(self) -> str:
        """As `palette-64`."""
        return f"palette-{self.colours}"

    def apply(self, images: Images, generator: np.random.Generator) -> Images:
        """Reduce each image to its palette."""
        del generator

        def reduce(picture: Image.Image) -> Image.Image:
            dither = Image.Dither.NONE
            few = picture.convert("RGB").quantize(
                self.colours, Image.Quantize.MEDIANCUT, dither=dither
            )
            return few.convert("RGB").convert(picture.mode)

        return each_picture(images, reduce)


@dataclass(frozen=True, kw_only=True)
class Chroma(Change):
    """Colour kept only once for each block of `block` by `block` pixels: 2 is 4:2:0.

    Full range YCbCr of ITU-R BT.601, as in JPEG files; brightness stays as sharp as it was.
    """

    block: int = 2

    def __post_init__(self) -> None:
        if self.block < 1:
            raise AttackError(f"expected a block of 1 or more pixels, got {self.block}")

    @property
    def name(self) -> str:
        """As `chroma-2`."""
        return f"chroma-{self.block}"

    @property
    def needs_colour(self) -> bool:
        """Grey has none to lose."""
        return True

    def apply(self, images: Images, generator: np.random.Generator) -> Images:
        """Shrink and enlarge the two planes of colour."""
        del generator
        if self.block == 1 or images.shape[3] == 1:
            return images
        h, w = images.shape[1:3]
        few = (-(-w // self.block), -(-h // self.block))

        def coarsen(picture: Image.Image) -> Image.Image:
            light, *colour = picture.convert("YCbCr").split()
            box, line = Image.Resampling.BOX, Image.Resampling.BILINEAR
            planes = [plane.resize(few, box).resize((w, h), line) for plane in colour]
            return Image.merge("YCbCr", [light, *planes]).convert("RGB")

        return each_picture(images, coarsen)


def _check_quality(quality: int, what: str, most: int) -> None:
    if not 1 <= quality <= most:
        raise AttackError(f"expected a {what} quality of 1 to {most}, got {quality}")


def _through(form: str, picture: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, form, quality=quality)
    with Image.open(stream) as decoded:
        return decoded.convert(picture.mode)
