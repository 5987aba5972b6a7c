"""What happens to a picture on its way: blur, sharpening, light, small moves. N images."""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from PIL import Image
from scipy import ndimage

from reluguard.detector.images import Images
from reluguard.training.changes.base import (
    Change,
    Floats,
    check_positive,
    check_share,
    each_picture,
    rounded,
    sides,
)
from reluguard.training.errors import AttackError

__all__ = ["Blur", "Brightness", "Contrast", "Flip", "Pixelate", "Sharpen", "Shift"]


@dataclass(frozen=True, kw_only=True)
class Blur(Change):
    """Gaussian blur of deviation `sigma` pixels."""

    sigma: float = 0.6

    def __post_init__(self) -> None:
        check_positive(self.sigma, "sigma")

    @property
    def name(self) -> str:
        """As `blur-0.6`."""
        return f"blur-{self.sigma:g}"

    def for_images(self, height: int, width: int) -> Self:
        """The root of as many pixels: twice the side, 1.4 times.

        CIFAR-10-C's two mildest, .4 and .6, are 1 and 2 in ImageNet-C, seven times the side: 2.5
        and 3.3 times. In proportion to the side, no mild blur would be left.
        """
        return replace(self, sigma=rounded(self.sigma * math.sqrt(sides(height, width))))

    def apply(self, images: Images, generator: np.random.Generator) -> Floats:
        """Blur rows and columns."""
        del generator
        deviations = (0, self.sigma, self.sigma, 0)
        pixels = images.astype(np.float32)
        return np.asarray(ndimage.gaussian_filter(pixels, deviations, mode="nearest"))


@dataclass(frozen=True, kw_only=True)
class Sharpen(Change):
    """Unsharp mask: each value's distance from its Gaussian blur, `amount` times on top.

    `radius` is the blur's deviation in pixels, as in Pillow's `UnsharpMask`, whose 150 percent are
    an amount of 1.5.
    """

    amount: float = 1.0
    radius: float = 0.5

    def __post_init__(self) -> None:
        check_positive(self.radius, "radius")
        if not self.amount >= 0:
            raise AttackError(f"expected an amount of 0 or more, got {self.amount}")

    @property
    def name(self) -> str:
        """As `sharpen-1-0.5`: amount and radius."""
        return f"sharpen-{self.amount:g}-{self.radius:g}"

    def for_images(self, height: int, width: int) -> Self:
        """The radius grows as that of `Blur`."""
        return replace(self, radius=rounded(self.radius * math.sqrt(sides(height, width))))

    def apply(self, images: Images, generator: np.random.Generator) -> Floats:
        """Add what the blur takes away."""
        soft = Blur(sigma=self.radius).apply(images, generator)
        sharp: Floats = images + np.float32(self.amount) * (images - soft)
        return sharp


@dataclass(frozen=True, kw_only=True)
class Brightness(Change):
    """The value of HSV, with pixels in [0, 1], raised by `amount`, or lowered if it is negative."""

    amount: float = 0.1

    def __post_init__(self) -> None:
        if not -1 <= self.amount <= 1:
            raise AttackError(f"expected an amount of brightness in [-1, 1], got {self.amount}")

    @property
    def name(self) -> str:
        """As `brightness-0.1`."""
        return f"brightness-{self.amount:g}"

    def apply(self, images: Images, generator: np.random.Generator) -> Floats:
        """Raise the largest channel by the amount, the others in proportion: the hue stays."""
        del generator
        pixels = images.astype(np.float32) / 255
        value = pixels.max(axis=3, keepdims=True)
        raised = np.clip(value + self.amount, 0, 1)
        grey = np.broadcast_to(raised, pixels.shape)
        return 255 * np.where(value > 0, pixels * raised / np.maximum(value, 1e-6), grey)


@dataclass(frozen=True, kw_only=True)
class Contrast(Change):
    """Each image's distance from its mean per channel, multiplied by `factor`."""

    factor: float = 0.75

    def __post_init__(self) -> None:
        check_positive(self.factor, "factor")

    @property
    def name(self) -> str:
        """As `contrast-0.75`."""
        return f"contrast-{self.factor:g}"

    def apply(self, images: Images, generator: np.random.Generator) -> Floats:
        """Scale about the mean."""
        del generator
        mean = images.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
        scaled: Floats = (images - mean) * self.factor + mean
        return scaled


@dataclass(frozen=True, kw_only=True)
class Shift(Change):
    """Moved down and right by whole pixels, the gap filled from the edge or by reflection."""

    down: int = 1
    right: int = 1
    padding: Literal["edge", "reflect"] = "reflect"

    def __post_init__(self) -> None:
        if self.padding not in {"edge", "reflect"}:
            raise AttackError(f"expected padding edge or reflect, got {self.padding!r}")

    @property
    def name(self) -> str:
        """As `shift-1-1`; filled from the edge, it says so."""
        return f"shift-{self.down}-{self.right}{'-edge' if self.padding == 'edge' else ''}"

    def for_images(self, height: int, width: int) -> Self:
        """The same shares of the sides, in whole pixels."""
        down, right = (
            round(n * sides(s, s)) for n, s in ((self.down, height), (self.right, width))
        )
        return replace(self, down=down, right=right)

    def apply(self, images: Images, generator: np.random.Generator) -> Images:
        """Pad all sides and cut out."""
        del generator
        h, w = images.shape[1:3]
        reach = max(abs(self.down), abs(self.right))
        if reach >= min(h, w):
            raise AttackError(f"expected a shift below {min(h, w)} pixels, got {reach}")
        sides = ((0, 0), (reach, reach), (reach, reach), (0, 0))
        padded = np.pad(images, sides, mode=self.padding)
        top, left = reach - self.down, reach - self.right
        return padded[:, top : top + h, left : left + w]


@dataclass(frozen=True, kw_only=True)
class Flip(Change):
    """Left and right swapped."""

    @property
    def name(self) -> str:
        """`flip`."""
        return "flip"

    def apply(self, images: Images, generator: np.random.Generator) -> Images:
        """Mirror each row."""
        del generator
        return images[:, :, ::-1]


@dataclass(frozen=True, kw_only=True)
class Pixelate(Change):
    """Shrunk to `share` of the side and enlarged again, by boxes."""

    share: float = 0.9

    def __post_init__(self) -> None:
        check_share(self.share)

    @property
    def name(self) -> str:
        """As `pixelate-0.9`."""
        return f"pixelate-{self.share:g}"

    def apply(self, images: Images, generator: np.random.Generator) -> Images:
        """Resize each image twice."""
        del generator
        h, w = images.shape[1:3]
        small = (max(1, int(w * self.share)), max(1, int(h * self.share)))
        box = Image.Resampling.BOX
        return each_picture(images, lambda picture: picture.resize(small, box).resize((w, h), box))
