"""What a camera, a phone's filter or an editor does to light and colour. N images."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.images import Images
from reluguard.training.changes.base import Change, Floats, check_positive
from reluguard.training.errors import AttackError

__all__ = ["Gain", "Gamma", "Grey", "Hue", "Saturation", "WhiteBalance"]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow and torchvision
# Source: the NTSC colour space; the rows below brightness span the plane of hues.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


@dataclass(frozen=True, kw_only=True)
class Gain(Change):
    """Every value multiplied by `factor`: an editor's brightness, a longer exposure."""

    factor: float = 1.5

    def __post_init__(self) -> None:
        check_positive(self.factor, "factor")

    @property
    def name(self) -> str:
        """As `gain-1.5`."""
        return f"gain-{self.factor:g}"

    def apply(self, images: Images, generator: np.random.Generator) -> Floats:
        """Multiply."""
        del generator
        return images.astype(np.float32) * np.float32(self.factor)


@dataclass(frozen=True, kw_only=True)
class Gamma(Change):
    """Every value, from 0 to 1, to the power `gamma`: below one the shadows are lit."""

    gamma: float = 0.8

    def __post_init__(self) -> None:
        check_positive(self.gamma, "gamma")

    @property
    def name(self) -> str:
        """As `gamma-0.8`."""
        return f"gamma-{self.gamma:g}"

    def apply(self, images: Images, generator: np.random.Generator) -> Images:
        """Look each value up."""
        del generator
        curve = np.rint(255 * (np.arange(256) / 255) ** self.gamma).astype(np.uint8)
        changed: Images = curve[images]
        return changed


@dataclass(frozen=True, kw_only=True)
class Saturation(Change):
    """Each value's distance from the pixel's grey, multiplied by `factor`.

    Source: Pillow's `ImageEnhance.Color`, torchvision's `adjust_saturation`.
    """

    factor: float = 1.5

    def __post_init__(self) -> None:
        if not self.factor >= 0:
            raise AttackError(f"expected a factor of 0 or more, got {self.factor}")

    @property
    def name(self) -> str:
        """As `saturation-1.5`."""
        return f"saturation-{self.factor:g}"

    @property
    def needs_colour(self) -> bool:
        """Grey has no saturation."""
        return True

    def apply(self, images: Images, generator: np.random.Generator) -> Floats:
        """Scale about the grey."""
        del generator
        grey = _grey(images)
        scaled: Floats = grey + np.float32(self.factor) * (images - grey)
        return scaled


@dataclass(frozen=True, kw_only=True)
class Grey(Change):
    """The colour taken out: each channel is the pixel's grey."""

    @property
    def name(self) -> str:
        """`grey`."""
        return "grey"

    @property
    def needs_colour(self) -> bool:
        """Grey is grey already."""
        return True

    def apply(self, images: Images, generator: np.random.Generator) -> Floats:
        """Weigh the channels."""
        del generator
        return np.broadcast_to(_grey(images), images.shape)


@dataclass(frozen=True, kw_only=True)
class Hue(Change):
    """All hues turned by `degrees` about grey, in the YIQ colour space: brightness stays."""

    degrees: float = 8.0

    @property
    def name(self) -> str:
        """As `hue-8`."""
        return f"hue-{self.degrees:g}"

    @property
    def needs_colour(self) -> bool:
        """Grey has no hue."""
        return True

    def apply(self, images: Images, generator: np.random.Generator) -> Floats:
        """Turn each pixel."""
        del generator
        if images.shape[3] == 1:
            return images.astype(np.float32)
        angle = math.radians(self.degrees)
        turn = np.eye(3)
        turn[1:, 1:] = [
            [math.cos(angle), -math.sin(angle)],
            [math.sin(angle), math.cos(angle)],
        ]
        matrix: NDArray[np.float32] = (np.linalg.inv(_YIQ) @ turn @ _YIQ).astype(np.float32)
        turned: Floats = images.astype(np.float32) @ matrix.T
        return turned


@dataclass(frozen=True, kw_only=True)
class WhiteBalance(Change):
    """Red raised and blue lowered by the share `warmth`, or the other way round below zero."""

    warmth: float = 0.1

    def __post_init__(self) -> None:
        if not -1 < self.warmth < 1:
            raise AttackError(f"expected a warmth between -1 and 1, got {self.warmth}")

    @property
    def name(self) -> str:
        """As `balance-0.1`."""
        return f"balance-{self.warmth:g}"

    @property
    def needs_colour(self) -> bool:
        """Grey has no cast."""
        return True

    def apply(self, images: Images, generator: np.random.Generator) -> Floats:
        """Scale the first and last channel."""
        del generator
        if images.shape[3] == 1:
            return images.astype(np.float32)
        cast = np.array([1 + self.warmth, 1, 1 - self.warmth], np.float32)
        return images.astype(np.float32) * cast


def _grey(images: Images) -> Floats:
    """Return each pixel's grey: float32, (N, H, W, 1)."""
    pixels = images.astype(np.float32)
    grey: Floats = pixels if images.shape[3] == 1 else (pixels @ _LUMA)[..., None]
    return grey
