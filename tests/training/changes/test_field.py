"""What happens to photographs in the field: laws of strength, size and colour."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from reluguard.training.changes import (
    BENIGN,
    Blur,
    Change,
    Chroma,
    Crop,
    Gain,
    Gamma,
    GaussianNoise,
    Grey,
    Hue,
    Pad,
    Palette,
    Resaved,
    Resize,
    Rotate,
    Saturation,
    Screen,
    Sharpen,
    Shift,
    Stretch,
    WebP,
    WhiteBalance,
    controls,
)
from reluguard.training.changes.mixture import Mixture
from reluguard.training.errors import AttackError
from reluguard.training.recipes.harmless import harmless, in_the_field

RNG = np.random.default_rng(0)
PHOTOGRAPHS = np.clip(
    np.cumsum(np.cumsum(RNG.normal(0, 2, (3, 48, 40, 3)), axis=1), axis=2) + 128, 0, 255
).astype(np.uint8)
MIDDLING = (PHOTOGRAPHS // 2 + 60).astype(np.uint8)  # room on either side
FIELD = [
    change for portion in in_the_field(1.0) for change in cast("Mixture", portion.change).changes
]
EVERY = {**{change.name: change for change in FIELD}, **BENIGN}


@pytest.mark.parametrize("change", FIELD, ids=lambda change: change.name)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_field_change_gives_whole_images_by_its_seed(change: Change, channels: int) -> None:
    """Same shape, uint8, the same for the same seed; only what needs colour leaves grey alone."""
    images = PHOTOGRAPHS[..., :channels].copy()
    changed = change(images, seed=5)
    assert changed.dtype == np.uint8
    assert changed.shape == images.shape
    assert_array_equal(images, PHOTOGRAPHS[..., :channels])
    assert_array_equal(changed, change(images, seed=5))
    assert (changed != images).any() == (channels == 3 or not change.needs_colour)


@pytest.mark.parametrize("name", EVERY)
def test_what_needs_colour_leaves_grey_alone(name: str) -> None:
    """A change says that it needs colour exactly where it does nothing without."""
    grey = PHOTOGRAPHS[..., :1].copy()
    assert EVERY[name].needs_colour == bool((EVERY[name](grey, seed=0) == grey).all())


@pytest.mark.parametrize(
    "change",
    [
        Crop(keep=1.0),
        Pad(down=1.0, across=1.0),
        Stretch(ratio=1.0),
        Resize(share=1.0),
        Rotate(degrees=0.0),
        Sharpen(amount=0.0),
        Gain(factor=1.0),
        Gamma(gamma=1.0),
        Saturation(factor=1.0),
        Hue(degrees=0.0),
        WhiteBalance(warmth=0.0),
        Chroma(block=1),
        Screen(strength=0.0),
        Resaved(qualities=()),
    ],
    ids=lambda change: change.name,
)
def test_no_strength_is_no_change(change: Change) -> None:
    """At strength zero the picture comes back value for value."""
    assert_array_equal(change(PHOTOGRAPHS, seed=3), PHOTOGRAPHS)


@pytest.mark.parametrize(
    ("weak", "strong"),
    [
        (Crop(keep=0.95), Crop(keep=0.7)),
        (Pad(down=0.95), Pad(down=0.5)),
        (Stretch(ratio=1.1), Stretch(ratio=1.6)),
        (Stretch(ratio=0.9), Stretch(ratio=0.6)),
        (Resize(share=0.8, by="area"), Resize(share=0.3, by="area")),
        (Rotate(degrees=1.0), Rotate(degrees=6.0)),
        (Sharpen(amount=0.5), Sharpen(amount=2.0)),
        (Gain(factor=1.1), Gain(factor=1.4)),
        (Gamma(gamma=0.9), Gamma(gamma=0.6)),
        (Saturation(factor=1.2), Saturation(factor=1.8)),
        (Hue(degrees=5.0), Hue(degrees=20.0)),
        (WhiteBalance(warmth=0.05), WhiteBalance(warmth=0.2)),
        (Palette(colours=128), Palette(colours=8)),
        (Chroma(block=2), Chroma(block=8)),
        (Screen(strength=0.5), Screen(strength=1.5)),
        (WebP(quality=90), WebP(quality=30)),
        (Resaved(qualities=(90,)), Resaved(qualities=(90, 30))),
    ],
    ids=lambda change: change.name,
)
def test_the_stronger_moves_pixels_further(weak: Change, strong: Change) -> None:
    """The same picture is further away after more of the same change."""
    distances = [
        np.square(change(MIDDLING, seed=1).astype(float) - MIDDLING).mean()
        for change in (weak, strong)
    ]
    assert 0 < distances[0] < distances[1]


@pytest.mark.parametrize("name", EVERY)
def test_changes_of_small_images_stay_as_they_are(name: str) -> None:
    """At 28 and 32 pixels each is just what it is."""
    for side in (8, 28, 32):
        assert EVERY[name].for_images(side, side) == EVERY[name]


def test_strengths_grow_with_the_image() -> None:
    """Moves by the side, blur by its root, noise and shares not at all; the name tells."""
    assert Shift(down=2, right=-1).for_images(224, 224) == Shift(down=14, right=-7)
    assert Shift(down=2, right=2).for_images(64, 128) == Shift(down=4, right=8)
    assert Blur(sigma=0.4).for_images(128, 128) == Blur(sigma=0.8)
    assert Blur(sigma=0.4).for_images(224, 224).name == "blur-1.06"
    assert Sharpen(amount=1.0, radius=0.5).for_images(128, 128).name == "sharpen-1-1"
    assert Screen(strength=1.2).for_images(512, 512).blur == pytest.approx(1.4)
    for change in (GaussianNoise(sigma=4.0), Crop(keep=0.9), Gain(factor=1.5), WebP(quality=60)):
        assert change.for_images(224, 224) == change
    mixed = Mixture("moves", (Shift(down=2, right=0), Grey()))
    assert mixed.for_images(64, 64) == Mixture("moves", (Shift(down=4, right=0), Grey()))


@pytest.mark.parametrize("factor", [2, 3])
def test_a_change_in_shares_does_the_same_to_a_larger_picture(factor: int) -> None:
    """Pad, stretch, crop, turn and vignette of an enlarged picture are the enlarged result."""
    small = np.repeat(np.repeat(MIDDLING[:, ::4, ::4], 4, axis=1), 4, axis=2)
    large = np.repeat(np.repeat(small, factor, axis=1), factor, axis=2)
    for change in (Pad(down=0.75), Stretch(ratio=1.25), Crop(keep=0.8), Rotate(degrees=5.0)):
        of_small = change(small, seed=2).astype(float)
        of_large = change(large, seed=2)[:, ::factor, ::factor].astype(float)
        still = np.abs(small.astype(float) - of_small).mean()
        assert np.abs(of_large - of_small).mean() < 0.6 * still, change.name


def test_a_letterbox_is_plain_around_the_picture() -> None:
    """The frame is the level it says, half of it on either side, the picture in between."""
    for fill, level in (("grey", 114), ("black", 0), ("white", 255)):
        padded = Pad(down=0.5, fill=cast("Any", fill))(MIDDLING, seed=0)
        assert (padded[:, :12] == level).all()
        assert (padded[:, -12:] == level).all()
        assert (padded[:, 12:-12] != level).any()
    edge = Pad(down=1.0, across=0.5, fill="edge")(MIDDLING, seed=0)
    assert_array_equal(edge[:, :, :10], np.repeat(edge[:, :, 10:11], 10, axis=2))


def test_light_and_colour_do_what_they_say() -> None:
    """Gain multiplies, grey has equal channels of the same luma, warmth is red, hue goes round."""
    plain = np.full((1, 4, 4, 3), (100, 80, 60), np.uint8)
    assert_array_equal(np.unique(Gain(factor=1.5)(plain, seed=0)), [90, 120, 150])
    luma = round(0.299 * 100 + 0.587 * 80 + 0.114 * 60)
    assert (Grey()(plain, seed=0) == luma).all()
    assert_array_equal(Saturation(factor=0.0)(plain, seed=0), Grey()(plain, seed=0))
    assert_array_equal(WhiteBalance(warmth=0.1)(plain, seed=0)[0, 0, 0], [110, 80, 54])
    assert np.abs(Hue(degrees=360.0)(plain, seed=0).astype(int) - plain).max() <= 1
    turned = Hue(degrees=90.0)(plain, seed=0)
    assert abs(int(Grey()(turned, seed=0)[0, 0, 0, 0]) - luma) <= 1
    assert (Gamma(gamma=0.5)(plain, seed=0) > plain).all()


def test_sharpening_undoes_blur_and_a_palette_has_its_colours() -> None:
    """Unsharp masking brings a soft picture nearer to the sharp one; few colours are left."""
    soft = Blur(sigma=0.8)(MIDDLING, seed=0)
    sharp = Sharpen(amount=1.0, radius=0.8)(soft, seed=0)
    away = [np.square(x.astype(float) - MIDDLING).mean() for x in (soft, sharp)]
    assert away[1] < away[0]
    few = Palette(colours=8)(MIDDLING, seed=0)
    assert all(len(np.unique(image.reshape(-1, 3), axis=0)) <= 8 for image in few)


def test_each_image_is_photographed_and_cropped_anew() -> None:
    """Two equal images in a batch get another moire and another window."""
    twice = np.stack([MIDDLING[0], MIDDLING[0]])
    for change in (Screen(strength=1.0), Crop(keep=0.7)):
        changed = change(twice, seed=0)
        assert (changed[0] != changed[1]).any()


def test_controls_are_none_of_the_recipes_own() -> None:
    """Judged by default: what the shape allows, but nothing the guard saw at just that strength."""
    portions = [p.for_images(224, 224, 3) for p in (*harmless(1.0), *in_the_field(1.0))]
    seen = [repr(portion.change) for portion in portions if portion is not None]
    judged = controls(224, 224, 3, seen)
    assert not [name for name, change in judged.items() if repr(change) in "\n".join(seen)]
    assert {"grey", "gain-1.5", "screen-1.2", "flip", "jpeg-c3", "sharpen-0.8-1.59"} <= set(judged)
    assert all(change.name == name or "-c" in name for name, change in judged.items())


def test_controls_suit_the_shape() -> None:
    """Small images keep to what was there before, grey ones to what does not need colour."""
    small = controls(32, 32, 3)
    assert "pad-0.7-1-grey" not in small
    assert small["blur-0.5"] == Blur(sigma=0.5)
    grey = controls(64, 64, 1)
    assert "pad-0.7-1-grey" in grey
    assert not any(change.needs_colour for change in grey.values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Resize(by=cast("Any", "mitchell")), "expected a filter of nearest, .*'mitchell'"),
        (lambda: Resize(share=0.0), "expected a positive share, got 0.0"),
        (lambda: Crop(keep=1.2), r"expected a share in \(0, 1\], got 1.2"),
        (lambda: Pad(fill=cast("Any", "pink")), "expected a fill of grey, .* got 'pink'"),
        (lambda: Pad(across=0.0), r"expected a share in \(0, 1\], got 0.0"),
        (lambda: Stretch(ratio=-1.0), "expected a positive ratio, got -1.0"),
        (lambda: Rotate(degrees=90.0), "expected at most 45 degrees either way, got 90.0"),
        (lambda: Sharpen(amount=-1.0), "expected an amount of 0 or more, got -1.0"),
        (lambda: Sharpen(radius=0.0), "expected a positive radius, got 0.0"),
        (lambda: Gain(factor=0.0), "expected a positive factor, got 0.0"),
        (lambda: Gamma(gamma=0.0), "expected a positive gamma, got 0.0"),
        (lambda: Saturation(factor=-0.5), "expected a factor of 0 or more, got -0.5"),
        (lambda: WhiteBalance(warmth=1.0), "expected a warmth between -1 and 1, got 1.0"),
        (lambda: Palette(colours=1), "expected 2 to 256 colours, got 1"),
        (lambda: Chroma(block=0), "expected a block of 1 or more pixels, got 0"),
        (lambda: Resaved(qualities=(90, 96)), "expected a JPEG quality of 1 to 95, got 96"),
        (lambda: WebP(quality=0), "expected a WebP quality of 1 to 100, got 0"),
        (lambda: Screen(strength=-1.0), "expected strength and blur of 0 or more, got -1.0"),
        (lambda: Mixture("x", (Grey(),)).in_grey(), "at least one change to mix, got none"),
    ],
)
def test_meaningless_field_changes_are_refused(make: Callable[[], object], message: str) -> None:
    """A setting without meaning is named."""
    with pytest.raises(AttackError, match=message):
        make()
