"""Resize and crop keep their promises for any size, and a pipeline is its JSON."""

import io
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from reluguard.detector.errors import ImageTooLargeError, SettingsError
from reluguard.detector.images import InputSpec, decode_image
from reluguard.detector.pixels.pipeline import Crop, Pipeline, Resize

SIDES = st.integers(1, 60)
RESIZES = st.builds(
    Resize,
    height=SIDES,
    width=SIDES,
    fit=st.sampled_from(["exact", "shortest", "longest"]),
    rounding=st.sampled_from(["down", "even"]),
)
CROPS = st.builds(Crop, height=SIDES, width=SIDES, rounding=st.sampled_from(["down", "even"]))
PIPELINES = st.builds(
    Pipeline,
    orientation=st.booleans(),
    background=st.none() | st.tuples(*[st.integers(0, 255)] * 3),
    resize=st.none() | RESIZES,
    crop=st.none() | CROPS,
)


@given(made=PIPELINES)
def test_json_gives_the_pipeline_back(made: Pipeline) -> None:
    """What to_json wrote, from_json reads; pickle too, for worker processes."""
    assert Pipeline.from_json(made.to_json()) == made
    assert pickle.loads(pickle.dumps(made)) == made
    assert made.words()


@given(made=RESIZES, height=SIDES, width=SIDES)
def test_a_resize_covers_or_stays_within(made: Resize, height: int, width: int) -> None:
    """Shortest covers the size, longest stays within it, and one side fits to the pixel."""
    h, w = made.size(height, width)
    if made.fit == "exact":
        assert (h, w) == (made.height, made.width)
    elif made.fit == "shortest":
        assert h >= made.height
        assert w >= made.width
        assert h == made.height or w == made.width
    else:
        assert h <= made.height
        assert w <= made.width


@given(made=CROPS, height=SIDES, width=SIDES)
def test_a_crop_is_the_middle(made: Crop, height: int, width: int) -> None:
    """Torchvision's centre crop, padding and all; the other rounding is at most one pixel off."""
    import torch
    from torchvision.transforms.functional import center_crop

    image = np.arange(height * width, dtype=np.int64).reshape(height, width, 1).astype(np.uint8)
    found = made.apply(image)
    assert found.shape == (made.height, made.width, 1)
    if made.rounding == "even":
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        expected = center_crop(tensor, [made.height, made.width]).permute(1, 2, 0)
        np.testing.assert_array_equal(found, expected.numpy())


def test_padding_has_its_colour() -> None:
    """Above and below as much, one more below where it is odd."""
    image = np.zeros((3, 4, 3), np.uint8)
    found = Crop(height=6, width=4, fill=(9, 8, 7)).apply(image)
    assert (found[[0, 4, 5]] == (9, 8, 7)).all()
    assert (found[1:4] == 0).all()
    grey = Crop(height=6, width=4, fill=(9, 9, 9)).apply(image[:, :, :1])
    assert (grey[[0, 4, 5]] == 9).all()


def test_a_resize_that_would_be_enormous_is_refused() -> None:
    """A line of pixels, its short side made 256, would be millions long."""
    resize = Resize(height=256, width=256, fit="shortest")
    with pytest.raises(ImageTooLargeError, match="an image of 60000 x 1 would become 15360000 x"):
        resize.apply(np.zeros((1, 60_000, 3), np.uint8), max_pixels=2**24)


def test_a_specification_decodes_its_own_way() -> None:
    """The same file, stretched as of old or cut out of the middle."""
    image = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    cut = Pipeline(crop=Crop(height=24, width=24))
    size: dict[str, Any] = {"name": "x", "height": 24, "width": 24, "channels": 3}
    found = decode_image(file.getvalue(), InputSpec(**size, files=cut))
    np.testing.assert_array_equal(found, image[8:32, 18:42])
    stretched = Image.fromarray(image).resize((24, 24), Image.Resampling.BILINEAR)
    old = InputSpec(**size)
    np.testing.assert_array_equal(decode_image(file.getvalue(), old), np.asarray(stretched))
    assert "files" not in old.to_json()


ERRORS: dict[str, tuple[Any, str]] = {
    "none": (None, "expected a pipeline's settings by name"),
    "unknown": ({"blur": 1}, "unknown pipeline settings: blur"),
    "resize": ({"resize": {"height": 3}}, "the resize is incomplete: .*width"),
    "size": ({"resize": {"height": 0, "width": 2}}, "expected a resize to whole sizes from 1"),
    "fit": ({"resize": {"height": 2, "width": 2, "fit": "fill"}}, "expected fit exact, shortest"),
    "crop": ({"crop": [3, 3]}, "expected crop settings by name"),
    "rounding": (
        {"crop": {"height": 2, "width": 2, "rounding": "up"}},
        "expected rounding down or even, got 'up'",
    ),
    "colour": ({"background": [1, 2, 300]}, r"expected a background of three values from 0 to"),
}


@pytest.mark.parametrize(("values", "message"), ERRORS.values(), ids=ERRORS)
def test_a_pipeline_without_meaning_is_refused(values: Any, message: str) -> None:
    """Each value is checked when it is read."""
    with pytest.raises(SettingsError, match=message):
        Pipeline.from_json(values)


def test_files_must_become_the_models_size() -> None:
    """A pipeline that makes another size is refused before any image is read."""
    with pytest.raises(SettingsError, match="expected files to become images of 8 x 8"):
        InputSpec(
            name="x",
            height=8,
            width=8,
            channels=3,
            files=Pipeline(crop=Crop(height=9, width=8)),
        )
