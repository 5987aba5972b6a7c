"""Harmless changes: whole pixels, repeatable, and as strong as they say."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from reluguard.detector.errors import ImageError
from reluguard.training.changes import (
    BENIGN,
    JPEG,
    Blur,
    Brightness,
    Contrast,
    Flip,
    GaussianNoise,
    ImpulseNoise,
    Pixelate,
    Shift,
    ShotNoise,
    SignNoise,
    UniformNoise,
    benign_named,
    severity,
)
from reluguard.training.errors import AttackError

RNG = np.random.default_rng(0)
SMOOTH = np.clip(
    np.cumsum(np.cumsum(RNG.normal(0, 2, (6, 16, 12, 3)), axis=1), axis=2) + 128, 0, 255
).astype(np.uint8)
GREY = np.full((4, 64, 64, 3), 128, np.uint8)


@pytest.mark.parametrize("name", BENIGN)
@pytest.mark.parametrize("channels", [1, 3])
def test_change_gives_whole_images_by_its_seed(name: str, channels: int) -> None:
    """Same shape, uint8, repeatable, the input untouched, something changed where it can be."""
    images = SMOOTH[..., :channels].copy()
    change = benign_named(name)
    changed = change(images, seed=5)
    assert changed.dtype == np.uint8
    assert changed.shape == images.shape
    assert_array_equal(images, SMOOTH[..., :channels])
    assert_array_equal(changed, change(images, seed=5))
    assert (changed != images).any() == (channels == 3 or not change.needs_colour)


@pytest.mark.parametrize(
    "kind", ["gaussian", "shot", "impulse", "jpeg", "brightness", "contrast", "blur", "pixelate"]
)
def test_severity_rises(kind: str) -> None:
    """Each level is at least as far from the original as the one before."""
    distances = [
        np.square(severity(kind, level)(SMOOTH, seed=0).astype(float) - SMOOTH).mean()
        for level in range(1, 6)
    ]
    assert distances[-1] > distances[0] > 0
    assert max(distances) == distances[-1]


def test_noise_is_as_strong_as_it_says() -> None:
    """Deviation, bound and share are what the name says, on mid-grey where nothing clips."""
    gaussian = GaussianNoise(sigma=8.0)(GREY, seed=0).astype(int) - GREY
    assert gaussian.std() == pytest.approx(8.0, rel=0.02)
    sign = SignNoise(size=3.0)(GREY, seed=0).astype(int) - GREY
    assert_array_equal(np.unique(sign), [-3, 3])
    uniform = UniformNoise(size=4.0)(GREY, seed=0).astype(int) - GREY
    assert_array_equal(np.unique(uniform), np.arange(-4, 5))
    impulse = ImpulseNoise(share=0.05)(GREY, seed=0)
    assert (impulse != GREY).mean() == pytest.approx(0.05, rel=0.1)
    assert_array_equal(np.unique(impulse), [0, 128, 255])
    shot = ShotNoise(photons=100.0)(GREY, seed=0).astype(float)
    assert shot.std() == pytest.approx(255 * np.sqrt(128 / 255 / 100), rel=0.02)


def test_shift_moves_pixels() -> None:
    """Down and right are positive; the gap is the edge repeated or mirrored."""
    image = np.arange(4 * 3, dtype=np.uint8).reshape(1, 4, 3, 1)
    moved = Shift(down=1, right=1, padding="edge")(image, seed=0)
    assert_array_equal(moved[0, 1:, 1:], image[0, :-1, :-1])
    assert_array_equal(moved[0, 0, 1:], image[0, 0, :-1])
    back = Shift(down=-2, right=0)(image, seed=0)
    assert_array_equal(back[0, :2], image[0, 2:])
    assert_array_equal(back[0, 2:, :, 0], image[0, [2, 1], :, 0])


def test_light_and_mirror() -> None:
    """Brightness raises the value, contrast keeps the mean, a flip undoes itself."""
    brighter = Brightness(amount=0.1)(GREY, seed=0)
    assert_array_equal(np.unique(brighter), [154])
    black = Brightness(amount=0.2)(np.zeros_like(GREY), seed=0)
    assert_array_equal(np.unique(black), [51])
    flat = Contrast(factor=0.5)(SMOOTH, seed=0).astype(float)
    np.testing.assert_allclose(flat.mean(axis=(1, 2)), SMOOTH.mean(axis=(1, 2)), atol=0.5)
    assert np.ptp(flat[0], axis=(0, 1)).max() <= 0.5 * np.ptp(SMOOTH[0], axis=(0, 1)).max() + 1
    assert_array_equal(Flip()(Flip()(SMOOTH, seed=0), seed=0), SMOOTH)


def test_smoothing_smooths() -> None:
    """Blur and pixelation take away differences between neighbours; JPEG keeps the picture."""
    noisy = GaussianNoise(sigma=20.0)(GREY, seed=0)
    for change in (Blur(sigma=1.0), Pixelate(share=0.5)):
        assert change(noisy, seed=0).std() < 0.7 * noisy.std()
    assert np.abs(JPEG(quality=90)(SMOOTH, seed=0).astype(int) - SMOOTH).mean() < 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianNoise(sigma=0.0), "expected a positive sigma, got 0.0"),
        (lambda: ImpulseNoise(share=2.0), r"expected a share in \(0, 1\], got 2.0"),
        (lambda: JPEG(quality=0), "expected a JPEG quality of 1 to 95, got 0"),
        (lambda: Brightness(amount=2.0), "expected an amount of brightness"),
        (lambda: Contrast(factor=-1.0), "expected a positive factor, got -1.0"),
        (
            lambda: Shift(padding=cast("Any", "zero")),
            "expected padding edge or reflect, got 'zero'",
        ),
        (lambda: Shift(down=12)(SMOOTH, seed=0), "expected a shift below 12 pixels, got 12"),
        (lambda: Pixelate(share=0.0), r"expected a share in \(0, 1\], got 0.0"),
        (
            lambda: severity("fog", 1),
            "expected one of gaussian, .* at level 1 to 5, got 'fog' at 1",
        ),
        (lambda: severity("jpeg", 6), "got 'jpeg' at 6"),
        (lambda: benign_named("fog"), "expected a change of gaussian-2, .* got 'fog'"),
    ],
)
def test_meaningless_changes_are_refused(make: Callable[[], object], message: str) -> None:
    """A setting without meaning is named."""
    with pytest.raises(AttackError, match=message):
        make()


def test_other_than_images_are_refused() -> None:
    """Only uint8 images of four axes are changed."""
    with pytest.raises(ImageError, match="expected uint8 images"):
        Flip()(SMOOTH.astype("f4"), seed=0)
