"""The harmless changes of the shipped recipes, in families: each image gets one of a family's."""

from reluguard.training.changes import (
    JPEG,
    Blur,
    Brightness,
    Chroma,
    Contrast,
    Crop,
    Gain,
    Gamma,
    GaussianNoise,
    Hue,
    ImpulseNoise,
    Pad,
    Palette,
    Pixelate,
    Resaved,
    Resize,
    Rotate,
    Saturation,
    Screen,
    Sharpen,
    Shift,
    ShotNoise,
    SignNoise,
    Stretch,
    UniformNoise,
    WebP,
    WhiteBalance,
)
from reluguard.training.changes.mixture import Mixture
from reluguard.training.changes.place import Fill, Filter
from reluguard.training.recipes.recipe import Portion

__all__ = ["families", "field_families", "harmless", "in_the_field"]


def harmless(share: float) -> tuple[Portion, ...]:
    """Return the harmless changes, each on this share of the images, its strength varying."""
    # noise is what a guard most easily takes for an attack
    weights = {"gaussian": 2.0, "sign": 4.0, "uniform": 2.0, "impulse": 2.0, "brightness": 2.0}
    return tuple(Portion(m, share, weight=weights.get(m.name, 1.0)) for m in families())


def families() -> tuple[Mixture, ...]:
    """Return the harmless changes by family, one mixture of strengths each."""
    shifts = [(2, 2), (-2, 2), (2, -2), (-2, -2), (1, 0), (0, -1), (3, 0), (0, 3)]
    return (
        Mixture("gaussian", tuple(GaussianNoise(sigma=s) for s in (1.0, 2.0, 4.0, 8.0, 12.0))),
        Mixture("gaussian-strong", tuple(GaussianNoise(sigma=s) for s in (10.0, 16.0, 25.0))),
        Mixture("sign", tuple(SignNoise(size=s) for s in (1.0, 2.0, 3.0, 4.0, 6.0, 8.0))),
        Mixture("uniform", tuple(UniformNoise(size=s) for s in (2.0, 4.0, 8.0, 14.0))),
        Mixture("shot", tuple(ShotNoise(photons=p) for p in (500.0, 250.0, 100.0))),
        Mixture("impulse", tuple(ImpulseNoise(share=s) for s in (0.002, 0.005, 0.01, 0.03))),
        Mixture("jpeg", tuple(JPEG(quality=q) for q in (95, 85, 75, 60))),
        Mixture("blur", tuple(Blur(sigma=s) for s in (0.3, 0.4, 0.6, 0.8))),
        Mixture("pixelate", tuple(Pixelate(share=s) for s in (0.95, 0.85))),
        Mixture("brightness", tuple(Brightness(amount=a) for a in (-0.15, -0.08, 0.08, 0.15))),
        Mixture("contrast", tuple(Contrast(factor=f) for f in (0.5, 0.75, 1.25))),
        Mixture("shift", tuple(Shift(down=d, right=r) for d, r in shifts)),
    )


def in_the_field(share: float) -> tuple[Portion, ...]:
    """Return what happens to photographs on their way to a classifier, in the same form.

    For images of 64 pixels a side or more: at 32 a letterbox leaves 24 rows. A guard of v0.1 on
    EfficientNet-Lite0 flagged, at 5 %, .29 of what was padded to a square, .16 sharpened, .12 of
    1.5 times the brightness and .10 stretched; these weigh twice.
    """
    weights = {"padded": 2.0, "sharpened": 2.0, "light": 2.0, "stretched": 2.0}
    return tuple(Portion(m, share, weight=weights.get(m.name, 1.0)) for m in field_families())


def field_families() -> tuple[Mixture, ...]:
    """Return what happens to photographs by family."""
    fills: tuple[Fill, ...] = ("grey", "black", "white", "edge")
    letterboxes = ((0.75, 1.0), (1.0, 0.75), (0.56, 1.0), (1.0, 0.67), (0.9, 0.9))
    resizes: tuple[tuple[float, Filter], ...] = (
        (0.35, "area"),
        (0.5, "nearest"),
        (0.5, "bilinear"),
        (0.5, "bicubic"),
        (0.5, "lanczos"),
        (0.5, "area"),
        (0.75, "nearest"),
        (0.75, "bilinear"),
        (0.75, "area"),
        (2.0, "bilinear"),
        (2.0, "bicubic"),
        (2.0, "lanczos"),
    )
    return (
        Mixture(
            "encoded",
            (
                *(JPEG(quality=q) for q in (90, 50)),
                *(Resaved(qualities=q) for q in ((95, 75), (75, 90), (60, 85), (50, 50))),
                *(WebP(quality=q) for q in (90, 75, 50)),
                Chroma(block=2),
            ),
        ),
        Mixture("resized", tuple(Resize(share=s, by=by) for s, by in resizes)),
        Mixture("cropped", tuple(Crop(keep=k) for k in (0.95, 0.9, 0.86, 0.8))),
        Mixture(
            "padded",
            tuple(Pad(down=d, across=a, fill=fill) for d, a in letterboxes for fill in fills),
        ),
        Mixture("stretched", tuple(Stretch(ratio=r) for r in (0.67, 0.75, 0.87, 1.15, 1.33, 1.5))),
        Mixture(
            "sharpened",
            tuple(
                Sharpen(amount=amount, radius=radius)
                for amount, radius in ((0.5, 0.4), (1.0, 0.4), (1.0, 0.7), (1.5, 0.5), (2.0, 0.4))
            ),
        ),
        Mixture(
            "light",
            (
                *(Gain(factor=f) for f in (0.65, 0.8, 1.25, 1.6)),
                *(Gamma(gamma=g) for g in (0.6, 0.8, 1.25, 1.6)),
            ),
        ),
        Mixture(
            "colour",
            (
                *(Saturation(factor=f) for f in (0.15, 0.4, 0.7, 1.4, 1.8)),
                *(Hue(degrees=d) for d in (-10.0, 10.0)),
                *(WhiteBalance(warmth=w) for w in (-0.12, 0.12)),
                *(Palette(colours=c) for c in (32, 128)),
            ),
        ),
        Mixture("turned", tuple(Rotate(degrees=d) for d in (-3.0, -1.5, 1.5, 3.0))),
        Mixture("screen", tuple(Screen(strength=s) for s in (0.5, 1.0, 1.4))),
    )
