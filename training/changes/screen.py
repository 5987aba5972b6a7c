"""A picture of a picture: photographed from a screen. N images, H rows, W columns."""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from reluguard.detector.images import Images
from reluguard.training.changes.base import Change, Floats, rounded, sides
from reluguard.training.changes.files import JPEG
from reluguard.training.changes.optics import Blur
from reluguard.training.errors import AttackError

__all__ = ["Screen"]

# At strength 1. Moire and vignette as in screen-shooting noise models: Wengrowski & Dana 2019,
# arXiv 1809.09701; the amounts are ours, of a phone held before a monitor.
_MOIRE = 7.0  # 8-bit steps
_WAVES = (6.0, 20.0)  # of moire across the picture
_VIGNETTE = 0.25  # darkening of the corners
_CAST = 0.06  # largest gain of a channel
_GLARE = 10.0  # 8-bit steps that black is lifted by
_BLUR = 0.35  # pixels at 32 a side
_QUALITY = 80


@dataclass(frozen=True, kw_only=True)
class Screen(Change):
    """Glare, a colour cast, dark corners, moire and blur, and saved as JPEG of quality 80.

    Angle, phase and cast are drawn for each image. `strength` multiplies all of them, and at zero
    nothing happens; `blur` is the deviation at strength 1, in pixels.
    """

    strength: float = 1.0
    blur: float = _BLUR

    def __post_init__(self) -> None:
        if not self.strength >= 0 or not self.blur >= 0:
            raise AttackError(
                f"expected strength and blur of 0 or more, got {self.strength} and {self.blur}"
            )

    @property
    def name(self) -> str:
        """As `screen-1`."""
        return f"screen-{self.strength:g}"

    def for_images(self, height: int, width: int) -> Self:
        """Blurred as `Blur` is; all else is in shares of the picture."""
        return replace(self, blur=rounded(self.blur * math.sqrt(sides(height, width))))

    def apply(self, images: Images, generator: np.random.Generator) -> Floats | Images:
        """Photograph each image."""
        if self.strength == 0:
            return images
        n, h, w, c = images.shape
        down, across = np.meshgrid(_centred(h), _centred(w), indexing="ij")
        darker = self.strength * _VIGNETTE * (down**2 + across**2) / 2
        angle, waves, phase, cast = (
            generator.random((n, size, 1, 1), dtype=np.float32) for size in (2, 2, c, c)
        )
        across_it = np.float32(math.pi / 2) * (_WAVES[0] + (_WAVES[1] - _WAVES[0]) * waves)
        turn = np.float32(math.pi) * angle
        way = across_it * (np.cos(turn) * down + np.sin(turn) * across)
        # two gratings, sensor and screen, beat; channels lie apart on both
        beat = np.sin(way[:, :1] + 2 * phase) * np.cos(way[:, 1:])
        gain = 1 + self.strength * (_CAST * (2 * cast - 1) - darker)
        lifted = self.strength * (_GLARE + _MOIRE * beat)
        seen = images * np.moveaxis(gain, 1, 3) + np.moveaxis(lifted, 1, 3)
        whole = np.clip(np.rint(seen), 0, 255).astype(np.uint8)
        if self.blur:
            whole = Blur(sigma=self.strength * self.blur)(whole, seed=0)
        return JPEG(quality=_QUALITY)(whole, seed=0)


def _centred(side: int) -> Floats:
    """Return the places of a side from -1 to 1: float32."""
    return ((np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1).astype(np.float32)
