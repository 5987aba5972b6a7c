"""What every harmless change shares. N images, H rows, W columns.

Same shape as an attack, without a victim: whole 8-bit pixels in and out, all chance from the seed.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reluguard.detector.images import Images, check_images
from reluguard.training.errors import AttackError

__all__ = [
    "PHOTOGRAPH",
    "Change",
    "Floats",
    "check_positive",
    "check_share",
    "each_picture",
    "rounded",
    "sides",
]

Floats = NDArray[np.floating[Any]]

PHOTOGRAPH = 64  # pixels a side, from which on an image is treated as one
WRITTEN_FOR = 32  # pixels a side


class Change(ABC):
    """One harmless change with its settings: `change(images, seed=0) -> images`."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Short and unique among changes, like `gaussian-8`."""

    @property
    def needs_colour(self) -> bool:
        """Whether it does nothing to grey images."""
        return False

    def for_images(self, height: int, width: int) -> Self:
        """Return the change as it suits images of this size; written for 32 x 32 pixels.

        Most don't depend on it: noise, light and shares of the side. One that counts pixels does,
        and stays as it is where images are smaller.
        """
        del height, width
        return self

    @abstractmethod
    def apply(self, images: Images, generator: np.random.Generator) -> Floats | Images:
        """Return changed pixels from 0 to 255, (N, H, W, C); any dtype, need not be in range."""

    @final
    def __call__(self, images: Images, *, seed: int) -> Images:
        """Return the changed images: uint8, (N, H, W, C), whole pixels in range.

        Args:
            images: uint8, (N, H, W, C).
            seed: of every random choice. An image's noise depends on its place in the batch.

        Raises:
            ImageError: the images are not uint8 of that shape.
        """
        check_images(images)
        changed = self.apply(images, np.random.default_rng(seed))
        return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


def check_positive(value: float, what: str) -> None:
    """Raise AttackError unless the value is above zero."""
    if not value > 0:
        raise AttackError(f"expected a positive {what}, got {value}")


def check_share(value: float) -> None:
    """Raise AttackError unless the value is in (0, 1]."""
    if not 0 < value <= 1:
        raise AttackError(f"expected a share in (0, 1], got {value}")


def sides(height: int, width: int) -> float:
    """Return how many times the side of 32 pixels an image's is, 1 where it is smaller."""
    return max(1.0, math.sqrt(height * width) / WRITTEN_FOR)


def rounded(value: float) -> float:
    """Return three digits of the value, so that a name is as exact as the strength it tells."""
    return float(f"{value:.3g}")


def each_picture(images: Images, change: Callable[[Image.Image], Image.Image]) -> Images:
    """Return the images, each taken through Pillow in grey or in colour.

    Args:
        images: uint8, (N, H, W, 1) or (N, H, W, 3).
        change: returns a picture of the same size and mode.
    """
    grey = images.shape[3] == 1
    pictures = (Image.fromarray(image[..., 0] if grey else image) for image in images)
    changed = [np.asarray(change(picture), dtype=np.uint8) for picture in pictures]
    return np.stack(changed).reshape(images.shape) if changed else images.copy()
