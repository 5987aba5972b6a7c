"""A file's pixels, whatever its colours, depth, alpha or orientation."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from reluguard.detector.errors import ImageError, ImageTooLargeError
from reluguard.detector.pixels.decoding import OFFLINE, claimed_pixels, decode
from reluguard.detector.pixels.resampling import Images


def noise(*shape: int) -> Images:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def file(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes, **changes: Any) -> Images:
    return decode(data, **{"channels": 3, "orientation": False, "background": None, **changes})


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_files_keep_every_pixel(kind: str) -> None:
    """Formats that strangers may not send are read offline."""
    image = noise(7, 9, 3)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = file(Image.fromarray(image), kind, **options)
    np.testing.assert_array_equal(pixels(data, formats=OFFLINE), image)
    assert claimed_pixels(data, OFFLINE) == 63
    if kind not in {"PNG", "WEBP"}:
        with pytest.raises(ImageError, match="expected a whole JPEG, PNG or WebP image"):
            pixels(data)


def test_the_first_frame_counts() -> None:
    """Of an animation only the first picture is looked at."""
    frames = [Image.fromarray(np.full((4, 4), shade, np.uint8)) for shade in (10, 200)]
    for kind in ("GIF", "WEBP"):
        data = file(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert pixels(data, formats=OFFLINE).max() <= 11


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_heeded_where_asked_for(turn: int, kind: str) -> None:
    """As Pillow's own exif_transpose does it; and not at all by default."""
    exif = Image.Exif()
    exif[0x0112] = turn
    data = file(Image.fromarray(noise(8, 16, 3)), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        turned = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        plain = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(pixels(data, orientation=True), turned)
    np.testing.assert_array_equal(pixels(data), plain)


def test_damaged_exif_leaves_the_picture_as_it_is() -> None:
    """The picture still counts where the data about it do not."""
    data = file(Image.fromarray(noise(8, 16, 3)), "JPEG", exif=b"Exif\x00\x00damaged")
    assert pixels(data, orientation=True).shape == (8, 16, 3)


def test_alpha_lies_over_the_background_or_is_left_out() -> None:
    """Whether it comes as a channel, in a palette or as one transparent colour."""
    image = noise(6, 5, 3)
    clear = np.concatenate([image, np.full((6, 5, 1), 51, np.uint8)], axis=2)
    data = file(Image.fromarray(clear), "PNG")
    np.testing.assert_array_equal(pixels(data), image)
    white = pixels(data, background=(255, 255, 255))
    np.testing.assert_allclose(white, image * 0.2 + 255 * 0.8, atol=1)
    grey = file(Image.fromarray(clear[:, :, :2]), "PNG")
    assert Image.open(io.BytesIO(grey)).mode == "LA"
    np.testing.assert_array_equal(pixels(grey, channels=1)[:, :, 0], image[:, :, 0])
    palette = Image.fromarray(image).quantize(8)
    several = file(palette, "PNG", transparency=bytes([0, 128, 255]))
    np.testing.assert_array_equal(pixels(several), np.asarray(palette.convert("RGB")))
    over = pixels(several, background=(1, 2, 3))
    index = np.asarray(palette)
    assert (over[index == 0] == (1, 2, 3)).all()
    assert (over[index > 2] == np.asarray(palette.convert("RGB"))[index > 2]).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_upper_ones(kind: str) -> None:
    """White stays white and grey grey, for grey and for colour models."""
    deep = (noise(6, 5).astype(np.uint16) << 8) + 77
    data = file(Image.fromarray(deep), kind)
    for channels in (1, 3):
        found = pixels(data, channels=channels, formats=OFFLINE)
        expected = np.repeat((deep >> 8)[:, :, None], channels, 2)
        np.testing.assert_array_equal(found, expected)


def test_cmyk_becomes_rgb() -> None:
    """As Pillow converts it."""
    image = Image.fromarray(noise(16, 16, 4), "CMYK")
    data = file(image, "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.mode == "CMYK"
        np.testing.assert_array_equal(pixels(data), np.asarray(opened.convert("RGB")))


@pytest.mark.parametrize("channels", [3, 1])
def test_opencv_reads_files_so(golden_pixels: Path, channels: int) -> None:
    """Equal in every pixel: grey of colour, CMYK, alpha, 16 bits and turns by its own rules."""
    with np.load(golden_pixels / "imread.npz") as arrays:
        found = {name: arrays[name] for name in arrays.files}
    names = [name.removesuffix("/file") for name in found if name.endswith("/file")]
    assert len(names) == 13
    for name in names:
        data = found[f"{name}/file"].tobytes()
        asked: dict[str, Any] = {"channels": channels, "orientation": True, "formats": OFFLINE}
        ours = pixels(data, library="opencv", **asked)
        np.testing.assert_array_equal(ours, found[f"{name}/{channels}"], name)
        if "grey" in name or "deep" in name:
            assert (ours == ours[:, :, :1]).all()
    own = pixels(found["cmyk jpeg/file"].tobytes())
    assert (own != found["cmyk jpeg/3"]).any()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_what_has_no_eight_bits_is_refused(mode: str) -> None:
    """Thirty-two bits and fractions have no known white."""
    values = np.full((4, 4), 2**20, np.int32 if mode == "I" else np.float32)
    with pytest.raises(ImageError, match="expected 8 or 16 bits a channel"):
        pixels(file(Image.fromarray(values), "TIFF"), formats=OFFLINE)


def test_too_many_pixels_are_refused_by_the_header() -> None:
    """Whatever the format."""
    data = file(Image.fromarray(noise(20, 20)), "WEBP")
    with pytest.raises(ImageTooLargeError, match="expected at most 399 pixels, got 20 x 20"):
        pixels(data, max_pixels=399)
    assert claimed_pixels(b"nothing") == 0
