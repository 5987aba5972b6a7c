"""Resizing is that of the library named: every pixel, or within the bound that is said."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from reluguard.detector.errors import SettingsError
from reluguard.detector.pixels.resampling import Images, Library, Method, resample

SIDES = st.integers(1, 40)
PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
WAYS: list[tuple[Library, Method, bool]] = [
    ("pillow", "bicubic", True),
    ("torch", "bilinear", True),
    ("torch", "bicubic", False),
    ("opencv", "bilinear", False),
    ("opencv", "area", False),
    ("opencv", "lanczos", False),
    ("tensorflow", "bilinear", False),
    ("tensorflow", "bicubic", True),
    ("tensorflow", "area", False),
]


def noise(h: int, w: int, c: int = 3) -> Images:
    return np.random.default_rng(h * 997 + w).integers(0, 256, (h, w, c), dtype=np.uint8)


@given(source=st.tuples(SIDES, SIDES), size=st.tuples(SIDES, SIDES), way=st.sampled_from(WAYS))
def test_one_colour_stays_one_colour(
    source: tuple[int, int], size: tuple[int, int], way: tuple[Library, Method, bool]
) -> None:
    """Weights add up to one in every library, at the edges too."""
    library, method, antialias = way
    flat = np.full((*source, 3), 201, np.uint8)
    resized = resample(flat, size, library=library, method=method, antialias=antialias)
    assert resized.shape == (*size, 3)
    slack = 1 if library == "opencv" else 0  # its bilinear drops bits
    assert np.abs(resized.astype(int) - 201).max() <= slack


@given(size=st.tuples(SIDES, SIDES), way=st.sampled_from(WAYS))
def test_channels_do_not_mix(size: tuple[int, int], way: tuple[Library, Method, bool]) -> None:
    """Three channels resize as each alone would."""
    library, method, antialias = way
    image = noise(17, 23)
    how: Any = {"library": library, "method": method, "antialias": antialias}
    alone = [resample(image[:, :, c : c + 1], size, **how) for c in range(3)]
    np.testing.assert_array_equal(resample(image, size, **how), np.concatenate(alone, axis=2))


@pytest.mark.parametrize("method", PILLOW)
@pytest.mark.parametrize("channels", [1, 3])
def test_pillow_is_pillow(method: Method, channels: int) -> None:
    """Equal in every pixel."""
    image = noise(33, 21, channels)
    picture = Image.fromarray(image[:, :, 0] if channels == 1 else image)
    expected = np.asarray(picture.resize((14, 40), PILLOW[method])).reshape(40, 14, channels)
    ours = resample(image, (40, 14), library="pillow", method=method, antialias=True)
    np.testing.assert_array_equal(ours, expected)


def test_pillow_is_the_version_that_is_installed() -> None:
    """Which way a narrow picture goes first: across before Pillow 13, what is less work since."""
    image = noise(500, 100)
    how: Any = {"library": "pillow", "method": "bilinear", "antialias": True}
    across = resample(resample(image, (500, 224), **how), (224, 224), **how)
    down = resample(resample(image, (224, 100), **how), (224, 224), **how)
    assert np.abs(across.astype(int) - down).max() == 1
    expected = down if int(PIL.__version__.split(".")[0]) >= 13 else across
    np.testing.assert_array_equal(resample(image, (224, 224), **how), expected)
    wide = noise(300, 400)
    both = resample(resample(wide, (300, 224), **how), (224, 224), **how)
    np.testing.assert_array_equal(resample(wide, (224, 224), **how), both)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("method", ["nearest", "nearest-exact", "bilinear", "bicubic", "lanczos"])
def test_torch_is_torchvision_on_tensors(method: Method, *, antialias: bool) -> None:
    """Equal in every pixel on a processor with AVX2 or ARM's vectors, and off by 1 elsewhere."""
    import torch
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    if method == "lanczos" and not antialias:
        pytest.skip("torchvision has no such thing")
    native = torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}
    native &= tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14)  # 2.7 is off by 1
    for source in ((64, 64), (37, 53), (96, 80)):
        image = noise(*source)
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        for size in ((32, 32), (20, 31), (64, 80)):
            try:
                expected = functional.resize(
                    tensor,
                    list(size),
                    interpolation=InterpolationMode(method),
                    antialias=antialias,
                )
            except (ValueError, NotImplementedError, RuntimeError):  # before torchvision 0.27
                assert method == "lanczos"
                return
            ours = resample(image, size, library="torch", method=method, antialias=antialias)
            off = np.abs(ours.astype(int) - expected.permute(1, 2, 0).numpy())
            assert off.max() <= (0 if native else 1)


OPENCV = {"nearest": 0, "bilinear": 0, "area": 0, "lanczos": 0, "bicubic": 1}


@pytest.mark.parametrize("method", OPENCV)
def test_opencv_is_opencv(method: Method, golden_pixels: Path, pictures: list[Images]) -> None:
    """Equal in every pixel; cubic, which Intel's library computes, is off by 1 in one of 1,000."""
    with np.load(golden_pixels / "opencv.npz") as arrays:
        found = {name: arrays[name] for name in arrays.files if name.startswith(f"{method}/")}
    assert len(found) == 20
    for name, expected in found.items():
        _, i, _ = name.split("/")
        size = expected.shape[:2]
        ours = resample(pictures[int(i)], size, library="opencv", method=method, antialias=False)
        off = np.abs(ours.astype(int) - expected)
        assert off.max() <= OPENCV[method], name
        assert (off > 0).mean() < 2e-3, name


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic", "lanczos", "area"])
def test_tensorflow_is_tensorflow_rounded(
    method: Method, golden_pixels: Path, pictures: list[Images], *, antialias: bool
) -> None:
    """Its fractions are rounded to whole values, which is all that differs."""
    with np.load(golden_pixels / "tensorflow.npz") as arrays:
        prefix = f"{method}/{antialias:d}/"
        found = {name: arrays[name] for name in arrays.files if name.startswith(prefix)}
    assert len(found) == 4
    for name, expected in found.items():
        image = pictures[int(name.split("/")[2])]
        size = expected.shape[:2]
        ours = resample(image, size, library="tensorflow", method=method, antialias=antialias)
        off = np.abs(ours - np.clip(expected, 0, 255))
        assert off.max() <= (0 if method == "nearest" else 0.52), name


def test_the_same_size_is_left_alone() -> None:
    """No arithmetic happens where nothing is to be done."""
    image = noise(9, 9)
    assert resample(image, (9, 9), library="opencv", method="bicubic", antialias=False) is image


ERRORS: dict[str, tuple[Any, str]] = {
    "library": (("scipy", "bilinear", True), "expected to resize as one of pillow, torch"),
    "method": (("pillow", "cubic", True), "expected one of pillow's interpolations, area, bicubic"),
    "smooth": (("opencv", "area", True), "opencv resizes by area only without antialiasing"),
    "rough": (("pillow", "bilinear", False), "pillow resizes by bilinear only with antialiasing"),
}


@pytest.mark.parametrize(("way", "message"), ERRORS.values(), ids=ERRORS)
def test_what_a_library_does_not_do_is_refused(way: Any, message: str) -> None:
    """The message says what there is."""
    library, method, antialias = way
    with pytest.raises(SettingsError, match=message):
        resample(noise(4, 4), (2, 2), library=library, method=method, antialias=antialias)
