"""Changes that are not attacks, by name: the controls of an honest evaluation.

An image changed like this is not adversarial, whatever the classifier makes of it.
"""

from collections.abc import Mapping
from types import MappingProxyType

from reluguard.training.changes.base import Change
from reluguard.training.changes.noise import (
    GaussianNoise,
    ImpulseNoise,
    ShotNoise,
    SignNoise,
    UniformNoise,
)
from reluguard.training.changes.optics import (
    JPEG,
    Blur,
    Brightness,
    Contrast,
    Flip,
    Pixelate,
    Shift,
)
from reluguard.training.errors import AttackError

__all__ = [
    "BENIGN",
    "JPEG",
    "Blur",
    "Brightness",
    "Change",
    "Contrast",
    "Flip",
    "GaussianNoise",
    "ImpulseNoise",
    "Pixelate",
    "Shift",
    "ShotNoise",
    "SignNoise",
    "UniformNoise",
    "benign_named",
    "severity",
]

# Severities 1 to 5 for 32-pixel images. Source: Hendrycks & Dietterich 2019, arXiv 1903.12261, the
# script that made CIFAR-10-C.
_SEVERITIES: Mapping[str, tuple[Change, ...]] = MappingProxyType(
    {
        "gaussian": tuple(GaussianNoise(sigma=255 * s) for s in (0.04, 0.06, 0.08, 0.09, 0.10)),
        "shot": tuple(ShotNoise(photons=p) for p in (500, 250, 100, 75, 50)),
        "impulse": tuple(ImpulseNoise(share=s) for s in (0.01, 0.02, 0.03, 0.05, 0.07)),
        "jpeg": tuple(JPEG(quality=q) for q in (80, 65, 58, 50, 40)),
        "brightness": tuple(Brightness(amount=a) for a in (0.05, 0.1, 0.15, 0.2, 0.3)),
        "contrast": tuple(Contrast(factor=f) for f in (0.75, 0.5, 0.4, 0.3, 0.15)),
        "blur": tuple(Blur(sigma=s) for s in (0.4, 0.6, 0.7, 0.8, 1.0)),
        "pixelate": tuple(Pixelate(share=s) for s in (0.95, 0.9, 0.85, 0.75, 0.65)),
    }
)


def severity(kind: str, level: int) -> Change:
    """Return a change as strong as CIFAR-10-C's level 1 to 5.

    Raises:
        AttackError: no such kind or level.
    """
    if kind not in _SEVERITIES or not 1 <= level <= 5:
        raise AttackError(
            f"expected one of {', '.join(_SEVERITIES)} at level 1 to 5, got {kind!r} at {level}"
        )
    return _SEVERITIES[kind][level - 1]


_CHANGES: tuple[Change, ...] = (
    *(GaussianNoise(sigma=s) for s in (2.0, 4.0, 8.0)),
    *(SignNoise(size=s) for s in (1.0, 2.0, 4.0, 8.0)),
    *(UniformNoise(size=s) for s in (4.0, 8.0)),
    *(JPEG(quality=q) for q in (90, 75, 50)),
    *(Blur(sigma=s) for s in (0.5, 0.8)),
    *(Brightness(amount=a) for a in (-0.1, 0.1)),
    *(Contrast(factor=f) for f in (0.75, 1.25)),
    *(Shift(down=d, right=r) for d, r in ((1, 0), (0, 1), (-2, 2))),
    Flip(),
    Pixelate(share=0.9),
    ShotNoise(photons=500),
    ImpulseNoise(share=0.01),
)

BENIGN: Mapping[str, Change] = MappingProxyType(
    {change.name: change for change in _CHANGES}
    | {
        f"{kind}-c{level}": change
        for kind, changes in _SEVERITIES.items()
        for level, change in enumerate(changes, 1)
    }
)


def benign_named(text: str) -> Change:
    """Return a harmless change by its name in `BENIGN`: its own, or like `jpeg-c3` by severity.

    Raises:
        AttackError: no such change.
    """
    if text not in BENIGN:
        raise AttackError(f"expected a change of {', '.join(BENIGN)}, got {text!r}")
    return BENIGN[text]
