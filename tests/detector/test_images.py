"""From pixels to the model's input: what torchvision does, and clear words for what doesn't fit."""

import contextlib
import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from reluguard.detector.errors import ImageError, ImageTooLargeError, SettingsError
from reluguard.detector.images import Images, InputSpec, check_images, decode_image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def spec(**changes: Any) -> InputSpec:
    return InputSpec(**{"name": "x", "height": 6, "width": 5, "channels": 3, **changes})


def pixels(count: int = 3, channels: int = 3) -> Images:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 6, 5, channels), dtype=np.uint8)


def encoded(image: NDArray[Any] | Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    made = image if isinstance(image, Image.Image) else Image.fromarray(image)
    made.save(buffer, kind, **options)
    return buffer.getvalue()


def test_the_tensor_is_torchvisions() -> None:
    """ToTensor and Normalize give the same numbers to the last bit."""
    from torchvision import transforms

    images = pixels()
    plain = transforms.ToTensor()
    normal = transforms.Compose([plain, transforms.Normalize(MEAN, STD)])
    ours, ours_normal = spec().to_tensor(images), spec(mean=MEAN, std=STD).to_tensor(images)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(ours[i], plain(image).numpy())
        np.testing.assert_array_equal(ours_normal[i], normal(image).numpy())


@given(
    layout=st.sampled_from(["NCHW", "NHWC", "flat"]),
    dtype=st.sampled_from(["float32", "float16", "float64"]),
    bgr=st.booleans(),
)
def test_every_layout_holds_the_same_pixels(layout: Any, dtype: str, *, bgr: bool) -> None:
    """Undoing the layout and the channel order gives the plain tensor back."""
    made = spec(layout=layout, dtype=dtype, bgr=bgr, mean=MEAN, std=STD)
    tensor = made.to_tensor(pixels())
    assert tensor.dtype == dtype
    assert tensor.shape == (3, *made.tensor_shape)
    made.check_tensor(tensor)
    first = tensor.transpose(0, 3, 1, 2) if layout == "NHWC" else tensor.reshape(3, 3, 6, 5)
    expected = spec(mean=MEAN, std=STD).to_tensor(pixels()).astype(dtype)
    np.testing.assert_array_equal(first[:, ::-1] if bgr else first, expected)


def test_a_uint8_model_gets_the_pixels_as_they_are() -> None:
    """No arithmetic happens on the way into a uint8 input."""
    made = spec(dtype="uint8", scale=1.0, layout="NHWC")
    np.testing.assert_array_equal(made.to_tensor(pixels()), pixels())


@given(batch=st.none() | st.integers(1, 9), bgr=st.booleans(), scale=st.floats(1e-3, 10))
def test_json_gives_the_specification_back(batch: int | None, scale: float, *, bgr: bool) -> None:
    """What to_json wrote, from_json reads, all fields."""
    made = spec(batch=batch, bgr=bgr, scale=scale, mean=MEAN, std=STD)
    assert InputSpec.from_json(made.to_json()) == made


def test_png_keeps_every_pixel() -> None:
    """A PNG of the model's size decodes to exactly its pixels, alpha and palette dropped."""
    image = pixels()[0]
    np.testing.assert_array_equal(decode_image(encoded(image, "PNG"), spec()), image)
    alpha = np.concatenate([image, np.full((6, 5, 1), 7, np.uint8)], axis=2)
    np.testing.assert_array_equal(decode_image(encoded(alpha, "PNG"), spec()), image)
    palette = Image.fromarray(image).quantize(200)
    np.testing.assert_array_equal(decode_image(encoded(palette, "PNG"), spec()), image)


def test_grey_and_colour_become_what_the_model_takes() -> None:
    """Grey goes to all three channels of a colour model, colour to luminance of a grey one."""
    grey = pixels(channels=1)[0]
    flat = grey[:, :, 0]
    np.testing.assert_array_equal(decode_image(encoded(flat, "PNG"), spec(channels=1)), grey)
    np.testing.assert_array_equal(
        decode_image(encoded(flat, "PNG"), spec()), grey.repeat(3, axis=2)
    )
    colour = encoded(grey.repeat(3, axis=2), "PNG")
    np.testing.assert_array_equal(decode_image(colour, spec(channels=1)), grey)


def test_sixteen_bit_grey_keeps_its_upper_byte() -> None:
    """A 16-bit PNG is scaled down, not cut to white."""
    deep = (pixels(channels=1)[0, :, :, 0].astype(np.uint16) << 8) + 77
    decoded = decode_image(encoded(deep, "PNG"), spec(channels=1))
    np.testing.assert_array_equal(decoded[:, :, 0], deep >> 8)


def test_jpeg_is_close_and_resized_as_torchvision_does() -> None:
    """A JPEG decodes, and another size is resized bilinearly with antialiasing."""
    from torchvision.transforms import functional

    smooth = np.linspace(0, 255, 64, dtype=np.uint8)
    image = np.stack([np.add.outer(smooth // 2, smooth // 2)] * 3, axis=2)
    decoded = decode_image(encoded(image, "JPEG", quality=95), spec(height=64, width=64))
    assert np.abs(decoded.astype(int) - image).max() < 8
    small = functional.resize(Image.fromarray(image), [6, 5])
    np.testing.assert_array_equal(decode_image(encoded(image, "PNG"), spec()), np.asarray(small))


def claims(width: int, height: int) -> bytes:
    """A PNG that says it is this large and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("size", [5000, 10_000, 60_000])
def test_a_decompression_bomb_costs_nothing(size: int) -> None:
    """An image of an enormous claimed size is refused by its header."""
    tracemalloc.start()
    with pytest.raises(ImageTooLargeError, match="expected at most 16777216 pixels"):
        decode_image(claims(size, size), spec())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


BROKEN = {
    "nothing": b"",
    "text": b"this is no image",
    "header only": claims(6, 5),
    "gif": encoded(pixels()[0], "GIF"),
    "bmp": encoded(pixels()[0], "BMP"),
    "tiff": encoded(pixels()[0], "TIFF"),
    "half a png": encoded(pixels()[0], "PNG")[:80],
    "half a jpeg": encoded(np.zeros((64, 64, 3), np.uint8), "JPEG")[:400],
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_what_is_no_whole_jpeg_or_png_is_refused(data: bytes) -> None:
    """Other formats, cut files and other bytes get one clear error."""
    with pytest.raises(ImageError, match="expected a whole JPEG, PNG or WebP image"):
        decode_image(data, spec())


@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["PNG", "JPEG"]))
def test_damage_never_escapes_as_another_error(seed: int, kind: str) -> None:
    """Whatever bytes are changed, decoding gives an image or an ImageError."""
    rng = np.random.default_rng(seed)
    bad = np.frombuffer(encoded(pixels()[0], kind), np.uint8).copy()
    bad[rng.integers(0, len(bad), 4)] = rng.integers(0, 256, 4)
    with contextlib.suppress(ImageError):
        assert decode_image(bad.tobytes(), spec()).shape == (6, 5, 3)


TENSORS: dict[str, tuple[Any, str]] = {
    "dtype": (np.zeros((1, 3, 6, 5)), r"expected a float32 .* got float64 \(1, 3, 6, 5\)"),
    "endian": (np.zeros((1, 3, 6, 5), ">f4"), r"expected a float32 tensor of shape .* got >f4"),
    "rank": (np.zeros((3, 6, 5), np.float32), r"\(N, 3, 6, 5\), got \(3, 6, 5\)"),
    "shape": (np.zeros((1, 6, 5, 3), np.float32), r"\(N, 3, 6, 5\), got \(1, 6, 5, 3\)"),
    "channels": (np.zeros((1, 1, 6, 5), np.float32), r"\(N, 3, 6, 5\), got \(1, 1, 6, 5\)"),
    "empty": (np.zeros((0, 3, 6, 5), np.float32), "at least one image, got an empty batch"),
    "nan": (np.full((1, 3, 6, 5), np.nan, np.float32), "expected finite values, got NaN"),
    "infinity": (np.full((1, 3, 6, 5), np.inf, np.float32), "expected finite values"),
    "list": ([[1.0]], "expected a float32 tensor of shape .* got <class 'list'>"),
}


@pytest.mark.parametrize(("tensor", "message"), TENSORS.values(), ids=TENSORS)
def test_a_tensor_that_does_not_fit_is_refused(tensor: Any, message: str) -> None:
    """The message says what was expected and what came."""
    with pytest.raises(ImageError, match=message):
        spec().check_tensor(tensor)


IMAGES: dict[str, tuple[Any, str]] = {
    "dtype": (np.zeros((1, 6, 5, 3)), r"uint8 images of shape \(N, 6, 5, 3\), got float64"),
    "rank": (np.zeros((6, 5, 3), np.uint8), r"got uint8 \(6, 5, 3\)"),
    "height": (np.zeros((1, 7, 5, 3), np.uint8), r"\(N, 6, 5, 3\), got \(1, 7, 5, 3\)"),
    "width": (np.zeros((1, 6, 4, 3), np.uint8), r"\(N, 6, 5, 3\), got \(1, 6, 4, 3\)"),
    "channels": (np.zeros((1, 6, 5, 1), np.uint8), r"\(N, 6, 5, 3\), got \(1, 6, 5, 1\)"),
    "empty": (np.zeros((0, 6, 5, 3), np.uint8), "at least one image, got an empty batch"),
    "list": ([[1]], "got <class 'list'>"),
}


@pytest.mark.parametrize(("images", "message"), IMAGES.values(), ids=IMAGES)
def test_images_that_do_not_fit_are_refused(images: Any, message: str) -> None:
    """The message says what was expected and what came."""
    with pytest.raises(ImageError, match=message):
        spec().to_tensor(images)


def test_images_of_any_size_may_be_asked_for() -> None:
    """Without a wanted size only dtype and rank count."""
    check_images(np.zeros((2, 9, 8, 1), np.uint8))
    with pytest.raises(ImageError, match=r"of shape \(N, H, W, C\), got float32"):
        check_images(np.zeros((2, 9, 8, 1), np.float32))


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "height": ({"height": 0}, "expected a positive image size, got 0 x 5 x 3"),
    "whole": ({"height": 1.5}, r"expected whole sizes, got \[1.5, 5, 3\]"),
    "channels": ({"channels": 4}, "expected 1 or 3 channels, got 4"),
    "layout": ({"layout": "CHWN"}, "expected layout NCHW, NHWC or flat, got 'CHWN'"),
    "dtype": ({"dtype": "int64"}, "expected dtype one of float32, .* got 'int64'"),
    "batch": ({"batch": 0}, "expected a batch of 1 or more, got 0"),
    "scale": ({"scale": -1.0}, "expected a positive scale, got -1.0"),
    "nan": ({"scale": float("nan")}, "expected a positive scale, got nan"),
    "mean": ({"mean": (0.0, 0.0)}, "expected 1 or 3 finite mean values"),
    "std": ({"std": (1.0, 0.0, 1.0)}, "expected positive std values"),
    "uint8": ({"dtype": "uint8"}, "a uint8 model input takes pixels as they are"),
}


@pytest.mark.parametrize(("changes", "message"), SETTINGS.values(), ids=SETTINGS)
def test_a_specification_without_meaning_is_refused(changes: dict[str, Any], message: str) -> None:
    """Each field is checked when the specification is made."""
    with pytest.raises(SettingsError, match=message):
        spec(**changes)


def test_unknown_or_missing_settings_are_named() -> None:
    """A manifest of another version is not guessed at."""
    with pytest.raises(SettingsError, match="unknown input settings: gamma"):
        InputSpec.from_json(spec().to_json() | {"gamma": 2.2})
    with pytest.raises(SettingsError, match="the input specification is incomplete"):
        InputSpec.from_json({"name": "x"})
