"""What every harmless change shares. N images.

Same shape as an attack, without a victim: whole 8-bit pixels in and out, all chance from the seed.
"""

from abc import ABC, abstractmethod
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.images import Images, check_images
from reluguard.training.errors import AttackError

__all__ = ["Change", "Floats", "check_positive"]

Floats = NDArray[np.floating[Any]]


class Change(ABC):
    """One harmless change with its settings: `change(images, seed=0) -> images`."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Short and unique among changes, like `gaussian-8`."""

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
