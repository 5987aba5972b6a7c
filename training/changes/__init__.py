"""Changes that are not attacks, by name: the controls of an honest evaluation.

An image changed like this is not adversarial, whatever the classifier makes of it.
"""

from collections.abc import Collection, Mapping
from types import MappingProxyType

from reluguard.training.changes.base import PHOTOGRAPH, Change
from reluguard.training.changes.colour import Gain, Gamma, Grey, Hue, Saturation, WhiteBalance
from reluguard.training.changes.files import JPEG, Chroma, Palette, Resaved, WebP
from reluguard.training.changes.noise import (
    GaussianNoise,
    ImpulseNoise,
    ShotNoise,
    SignNoise,
    UniformNoise,
)
from reluguard.training.changes.optics import (
    Blur,
    Brightness,
    Contrast,
    Flip,
    Pixelate,
    Sharpen,
    Shift,
)
from reluguard.training.changes.place import Crop, Pad, Resize, Rotate, Stretch
from reluguard.training.changes.screen import Screen
from reluguard.training.errors import AttackError
from reluguard.training.plugged import Shelf

__all__ = [
    "BENIGN",
    "JPEG",
    "Blur",
    "Brightness",
    "Change",
    "Chroma",
    "Contrast",
    "Crop",
    "Flip",
    "Gain",
    "Gamma",
    "GaussianNoise",
    "Grey",
    "Hue",
    "ImpulseNoise",
    "Pad",
    "Palette",
    "Pixelate",
    "Resaved",
    "Resize",
    "Rotate",
    "Saturation",
    "Screen",
    "Sharpen",
    "Shift",
    "ShotNoise",
    "SignNoise",
    "Stretch",
    "UniformNoise",
    "WebP",
    "WhiteBalance",
    "benign_named",
    "controls",
    "severity",
]

GROUP = "reluguard.harmless"

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
    # what no shipped recipe holds at just this strength: a report leaves out what the guard saw
    GaussianNoise(sigma=6.0),
    *(SignNoise(size=s) for s in (2.5, 5.0)),
    UniformNoise(size=6.0),
)

# What happens to photographs, at strengths that no shipped recipe holds
_FIELD: tuple[Change, ...] = (
    *(JPEG(quality=q) for q in (93, 70)),
    *(Resaved(qualities=q) for q in ((92, 80), (55, 70))),
    *(WebP(quality=q) for q in (85, 60)),
    Chroma(block=3),
    *(Resize(share=0.6, by=by) for by in ("nearest", "bilinear", "bicubic", "lanczos", "area")),
    Resize(share=1.5, by="bicubic"),
    *(Crop(keep=k) for k in (0.93, 0.84)),
    *(Pad(down=0.7, fill=fill) for fill in ("grey", "black", "white", "edge")),
    Pad(down=1.0, across=0.8, fill="grey"),
    Pad(down=0.85, across=0.85, fill="black"),
    *(Stretch(ratio=r) for r in (0.7, 1.25, 1.4)),
    *(Sharpen(amount=a, radius=r) for a, r in ((0.8, 0.6), (1.2, 0.4), (1.8, 0.5))),
    *(Gain(factor=f) for f in (0.7, 1.5)),
    *(Gamma(gamma=g) for g in (0.7, 1.4)),
    *(Saturation(factor=f) for f in (0.5, 1.5)),
    *(Hue(degrees=d) for d in (-7.0, 7.0)),
    *(WhiteBalance(warmth=w) for w in (-0.08, 0.08)),
    Grey(),
    *(Palette(colours=c) for c in (24, 48)),
    *(Rotate(degrees=d) for d in (-2.0, 2.5)),
    *(Screen(strength=s) for s in (0.7, 1.2)),
)

BENIGN: Mapping[str, Change] = MappingProxyType(
    {change.name: change for change in (*_CHANGES, *_FIELD)}
    | {
        f"{kind}-c{level}": change
        for kind, changes in _SEVERITIES.items()
        for level, change in enumerate(changes, 1)
    }
)


def benign_named(text: str) -> Change:
    """Return a harmless change by its name in `BENIGN`, by entry point, or as `module:Class`.

    Those of `BENIGN` go by their own name, or like `jpeg-c3` by severity.

    Raises:
        AttackError: there is none, or what is there is no harmless change.
    """
    own = {name: lambda change=change: change for name, change in BENIGN.items()}
    return Shelf(
        what="change",
        kind=Change,  # type: ignore[type-abstract]  # only asked whether something is one
        group=GROUP,
        own=own,
        refusal=AttackError,
    ).named(text)


def controls(
    height: int, width: int, channels: int, seen: Collection[str] = ()
) -> dict[str, Change]:
    """Return the changes that images of this shape are judged on where nobody names any.

    Those of `BENIGN`, as they suit the size; what only happens to photographs from 64 pixels a side
    on, and what needs colour on images that have it.

    Args:
        height: of the images.
        width: of them.
        channels: of them.
        seen: what the guard was fitted on, as `repr` writes it: none of these, strength for
            strength, is among the result.

    """
    field = {change.name for change in _FIELD} if min(height, width) < PHOTOGRAPH else set()
    known = "\n".join(seen)
    suited = {
        name: change.for_images(height, width)
        for name, change in BENIGN.items()
        if name not in field and not (channels == 1 and change.needs_colour)
    }
    return {
        change.name if name == BENIGN[name].name else name: change
        for name, change in suited.items()
        if repr(change) not in known
    }
