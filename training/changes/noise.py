"""Noise without intent. N images."""

from dataclasses import dataclass

import numpy as np

from reluguard.detector.images import Images
from reluguard.training.changes.base import Change, Floats, check_positive, check_share

__all__ = ["GaussianNoise", "ImpulseNoise", "ShotNoise", "SignNoise", "UniformNoise"]


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Change):
    """Normal noise of deviation `sigma`, in 8-bit steps."""

    sigma: float = 8.0

    def __post_init__(self) -> None:
        check_positive(self.sigma, "sigma")

    @property
    def name(self) -> str:
        """As `gaussian-8`."""
        return f"gaussian-{self.sigma:g}"

    def apply(self, images: Images, generator: np.random.Generator) -> Floats:
        """Add the noise."""
        noise = generator.standard_normal(images.shape, dtype=np.float32)
        return images + np.float32(self.sigma) * noise


@dataclass(frozen=True, kw_only=True)
class SignNoise(Change):
    """Each value up or down by exactly `size` 8-bit steps: the Linf twin of FGSM."""

    size: float = 4.0

    def __post_init__(self) -> None:
        check_positive(self.size, "size")

    @property
    def name(self) -> str:
        """As `sign-4`."""
        return f"sign-{self.size:g}"

    def apply(self, images: Images, generator: np.random.Generator) -> Floats:
        """Add the noise."""
        signs = generator.integers(0, 2, images.shape, dtype=np.int8).astype(np.float32) * 2 - 1
        return images + np.float32(self.size) * signs


@dataclass(frozen=True, kw_only=True)
class UniformNoise(Change):
    """Each value moved evenly by at most `size` 8-bit steps."""

    size: float = 4.0

    def __post_init__(self) -> None:
        check_positive(self.size, "size")

    @property
    def name(self) -> str:
        """As `uniform-4`."""
        return f"uniform-{self.size:g}"

    def apply(self, images: Images, generator: np.random.Generator) -> Floats:
        """Add the noise."""
        noise = 2 * generator.random(images.shape, dtype=np.float32) - 1
        return images + np.float32(self.size) * noise


@dataclass(frozen=True, kw_only=True)
class ShotNoise(Change):
    """Photon noise: Poisson counts of `photons` at full brightness."""

    photons: float = 250.0

    def __post_init__(self) -> None:
        check_positive(self.photons, "number of photons")

    @property
    def name(self) -> str:
        """As `shot-250`."""
        return f"shot-{self.photons:g}"

    def apply(self, images: Images, generator: np.random.Generator) -> Floats:
        """Draw the counts."""
        return generator.poisson(images / 255.0 * self.photons) / self.photons * 255.0


@dataclass(frozen=True, kw_only=True)
class ImpulseNoise(Change):
    """A share of the values turned to black or white."""

    share: float = 0.02

    def __post_init__(self) -> None:
        check_share(self.share)

    @property
    def name(self) -> str:
        """As `impulse-0.02`."""
        return f"impulse-{self.share:g}"

    def apply(self, images: Images, generator: np.random.Generator) -> Images:
        """Replace the values."""
        draw = generator.random(images.shape, dtype=np.float32)
        changed = np.where(draw < self.share / 2, np.uint8(0), images)
        return np.where(draw > 1 - self.share / 2, np.uint8(255), changed)
