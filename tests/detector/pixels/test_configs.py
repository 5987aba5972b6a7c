"""Preprocessing read from files and transforms is what their libraries do, pixel by pixel."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from numpy.typing import NDArray
from PIL import Image

from reluguard.detector.errors import SettingsError
from reluguard.detector.images import Images, InputSpec, decode_image
from reluguard.detector.pixels.configs import (
    from_config,
    from_transform,
    preprocessing_named,
    read_preprocessing,
)
from reluguard.detector.pixels.pipeline import Crop, Pipeline, Resize
from reluguard.detector.pixels.preprocessing import Preprocessing
from reluguard.detector.pixels.presets import PRESETS, preset


def tensor_of(image: Images, made: Preprocessing, size: tuple[int, int]) -> NDArray[Any]:
    """Return the model's tensor for an image's file: float32 (C, H, W)."""
    spec = InputSpec(
        name="x",
        height=size[0],
        width=size[1],
        channels=3,
        scale=made.scale or 1 / 255,
        mean=made.mean,
        std=made.std,
        bgr=made.bgr,
        files=made.files,
    )
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    tensor: NDArray[Any] = spec.to_tensor(decode_image(file.getvalue(), spec)[None])[0]
    return tensor


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_a_configuration_is_what_its_library_does(
    library: str, golden_pixels: Path, pictures: list[Images]
) -> None:
    """Every pixel is the same; the normalised values agree to seven digits."""
    if int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("the arrays were made with Pillow 13, which resizes otherwise than before")
    with np.load(golden_pixels / f"{library}.npz") as arrays:
        stored = {name: arrays[name] for name in arrays.files}
    configs = {k.split("/")[1]: json.loads(str(v)) for k, v in stored.items() if "config" in k}
    assert len(configs) == {"timm": 6, "transformers": 12}[library]
    for k, config in configs.items():
        made = from_config(config)
        for i, image in enumerate(pictures):
            expected = stored[f"{k}/{i}"]
            ours = tensor_of(image, made, expected.shape[1:])
            np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=4e-6, err_msg=f"{k} {i}")


@pytest.mark.parametrize("mode", ["keras-tf", "keras-caffe"])
def test_keras_presets_are_keras(mode: str, golden_pixels: Path, pictures: list[Images]) -> None:
    """`load_img` and `preprocess_input` give the same values to the last bit."""
    with np.load(golden_pixels / "keras.npz") as arrays:
        for i, image in enumerate(pictures):
            ours = tensor_of(image, preset(mode, (24, 24)), (24, 24))
            np.testing.assert_array_equal(ours.transpose(1, 2, 0), arrays[f"{mode}/{i}"])


def test_the_opencv_preset_is_opencv(golden_pixels: Path, pictures: list[Images]) -> None:
    """`cv2.resize` and channels as `cv2.imread` gives them."""
    with np.load(golden_pixels / "opencv.npz") as arrays:
        for i, image in enumerate(pictures):
            ours = tensor_of(image, preset("opencv", (24, 24)), (24, 24))
            expected = arrays[f"bilinear/{i}/24x24"][:, :, ::-1].transpose(2, 0, 1)
            np.testing.assert_array_equal(ours, expected.astype(np.float32) / np.float32(255))


def test_the_timm_preset_is_timms_default(golden_pixels: Path) -> None:
    """What `resolve_data_config` fills in."""
    with np.load(golden_pixels / "timm.npz") as arrays:
        config = json.loads(str(arrays["config/0"]))
    assert preset("timm", (24, 24)).files == from_config(config).files
    assert preset("timm").mean == from_config(config).mean


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_transform_of_weights_is_read(interpolation: str, pictures: list[Images]) -> None:
    """Torchvision's `ImageClassification` gives the same values to the last bit."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    transform = ImageClassification(
        crop_size=24, resize_size=28, interpolation=InterpolationMode(interpolation)
    )
    for image in pictures:
        ours = tensor_of(image, from_transform(transform), (24, 24))
        np.testing.assert_array_equal(ours, transform(Image.fromarray(image)).numpy())
    default = ImageClassification(crop_size=224)
    assert preset("torchvision").files == from_transform(default).files


def test_composed_transforms_are_read(pictures: list[Images]) -> None:
    """On pictures and on tensors, with a crop that pads, with the longest side."""
    import torch
    from torchvision.transforms import v2

    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14):
        pytest.skip("equal to torch 2.14; torch 2.7 is off by one step in places")
    normal = v2.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    as_float = v2.ToDtype(torch.float32, scale=True)
    composed = [
        v2.Compose([v2.Resize(27), v2.CenterCrop(24), v2.ToImage(), as_float, normal]),
        v2.Compose([v2.ToImage(), v2.Resize((24, 24), antialias=False), as_float, normal]),
        v2.Compose([v2.ToImage(), v2.Resize(25), v2.CenterCrop(24), as_float, normal]),
        v2.Compose([v2.Resize(None, max_size=24), v2.CenterCrop(24), v2.ToImage(), as_float]),
        v2.Compose([v2.CenterCrop(24), v2.ToImage(), as_float]),
    ]
    for transform in composed:
        made = from_transform(transform)
        for image in pictures:
            ours = tensor_of(image, made, (24, 24))
            expected = transform(Image.fromarray(image)).numpy()
            np.testing.assert_allclose(ours, expected, atol=1e-6, err_msg=repr(transform))


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    """What to_json wrote, read_preprocessing reads."""
    for name in PRESETS:
        made = preset(f"{name}:background=1/2/3,size=32")
        (tmp_path / "mine.json").write_text(json.dumps(made.to_json()))
        assert read_preprocessing(tmp_path / "mine.json") == made


def test_a_hub_file_is_read(tmp_path: Path) -> None:
    """Timm's config.json holds the data configuration of its weights."""
    config = {"architecture": "x", "pretrained_cfg": {"input_size": [3, 32, 32], "crop_pct": 1}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = read_preprocessing(tmp_path / "config.json")
    assert made.files is not None
    assert made.files.size == (32, 32)


def test_a_preset_or_a_file_may_be_named(tmp_path: Path) -> None:
    """One text names either, with what differs after a colon."""
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"image_processor_type": "ViTImageProcessor", "size": 24}))
    made = preprocessing_named(str(path))
    other = preprocessing_named(f"{path}:library=pillow,bgr=yes")
    assert made.files is not None
    assert made.files.resize == Resize(height=24, width=24, library="torch")
    assert other.files is not None
    assert other.files.resize == Resize(height=24, width=24)
    assert other.bgr
    assert preprocessing_named("timm:resize=99").name == "timm:resize=99"
    with pytest.raises(SettingsError, match="expected a JSON file of preprocessing or one of"):
        preprocessing_named("tim")


CHANGED: dict[str, Any] = {
    "timm:crop_pct=0.95,size=192": (202, 202, "shortest"),
    "torchvision:resize=232": (232, 232, "shortest"),
    "torchvision:fit=exact": (224, 224, "exact"),
    "keras-tf:fit=longest,fill=9/9/9": (224, 224, "longest"),
    "opencv:size=20x30,method=area": (20, 30, "exact"),
    "keras-tf:library=tensorflow,method=bilinear,scale=1/255": (224, 224, "exact"),
}


@pytest.mark.parametrize("text", CHANGED)
def test_a_preset_may_be_changed(text: str) -> None:
    """Settings stand after its name."""
    made = preset(text)
    assert made.name == text
    assert made.files is not None
    assert made.files.resize is not None
    resize = made.files.resize
    assert (resize.height, resize.width, resize.fit) == CHANGED[text]
    assert made.files.size is not None


PRESET_ERRORS = {
    "caffe": "expected a preset, torchvision, timm, keras-tf, keras-caffe, opencv; got 'caffe'",
    "timm:crop_pct": "expected settings like crop_pct=0.95, got 'crop_pct'",
    "timm:crop=1": "unknown settings of a preprocessing: crop",
    "timm:crop_pct=2": "expected a crop_pct above 0 and at most 1, got 2.0",
    "opencv:crop_pct=1": "expected crop_pct for a preset that crops",
    "timm:method=cubic": "expected method of nearest, .*, got 'cubic'",
    "timm:size=large": "expected a size like 224 or 192x256, got 'large'",
    "timm:fill=1/2": "expected a fill like 255/255/255, got '1/2'",
    "timm:bgr=perhaps": "expected yes or no for bgr, got 'perhaps'",
    "timm:scale=1/0": "expected a number for scale, got '1/0'",
    "keras-tf:fill=1": "expected fill for a preset that pads",
}


@pytest.mark.parametrize(("text", "message"), PRESET_ERRORS.items())
def test_a_wrong_preset_is_refused(text: str, message: str) -> None:
    """The message says what was expected."""
    with pytest.raises(SettingsError, match=message):
        preset(text)


CONFIG_ERRORS: dict[str, tuple[Any, str]] = {
    "list": ([], "expected preprocessing settings by name, got list"),
    "unknown": ({"gamma": 2}, "unknown preprocessing settings: gamma"),
    "mode": ({"input_size": [3, 8, 8], "crop_mode": "odd"}, "expected a crop_mode of center"),
    "method": ({"input_size": [3, 8, 8], "interpolation": "odd"}, "expected an interpolation of"),
    "code": ({"do_resize": True, "resample": 9}, "expected resample from 0 to 5, got 9"),
    "pad": ({"do_resize": True, "do_pad": True}, "not known here, do_pad: write the pipeline out"),
    "step": ({"do_resize": True, "do_thumbnail": True}, "not known here, do_thumbnail"),
    "multiple": ({"do_resize": True, "ensure_multiple_of": 32}, "here, ensure_multiple_of"),
    "share": (
        {"image_processor_type": "ViTImageProcessor", "crop_pct": 0.9},
        "ViTImageProcessor does what is not known here, crop_pct",
    ),
    "order": (
        {"image_processor_type": "PerceiverImageProcessor", "do_center_crop": True},
        "do_center_crop before do_resize",
    ),
    "size": ({"do_resize": True, "size": {"max": 3}}, "expected a size of height and width"),
    "edges": (
        {"do_resize": True, "size": {"shortest_edge": 3, "longest_edge": 4}},
        "both shortest_edge and longest_edge",
    ),
    "type": ({"do_resize": True, "size": "big"}, "a value has no meaning here"),
}


@pytest.mark.parametrize(("values", "message"), CONFIG_ERRORS.values(), ids=CONFIG_ERRORS)
def test_a_wrong_file_is_refused(values: Any, message: str, tmp_path: Path) -> None:
    """Nothing is guessed at, and the file is named."""
    (tmp_path / "p.json").write_text(json.dumps(values))
    with pytest.raises(SettingsError, match=rf"p\.json: .*{message}"):
        read_preprocessing(tmp_path / "p.json")


def test_null_is_the_default() -> None:
    """Hugging Face writes null for what a processor leaves at its default."""
    said: dict[str, Any] = {"image_processor_type": "ViTImageProcessorFast", "size": 8}
    nulls = ("do_rescale", "do_center_crop", "do_pad", "crop_size", "image_mean", "resample")
    assert from_config(said | dict.fromkeys(nulls)) == from_config(said)


@pytest.mark.parametrize("size", [{"shortest_edge": 9}, {"height": 9, "width": 9}, 9])
def test_poolformer_resizes_to_a_share_above_its_crop(size: Any) -> None:
    """The short side becomes the size over crop_pct, rounded down."""
    said = {"image_processor_type": "PoolFormerImageProcessor", "size": size, "crop_pct": 0.95}
    files = from_config(said | {"do_center_crop": True, "crop_size": 9}).files
    assert files is not None
    assert files.resize is not None
    assert (files.resize.fit, files.resize.height) == ("shortest", 9)
    wide = from_config(said | {"crop_pct": 0.5}).files
    assert wide is not None
    assert wide.resize is not None
    assert wide.resize.height == 18


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    """Missing, no JSON or far too large."""
    with pytest.raises(SettingsError, match="expected a JSON file of preprocessing"):
        read_preprocessing(tmp_path / "missing.json")
    (tmp_path / "large.json").write_text(" " * 2**21)
    with pytest.raises(SettingsError, match="larger than 1 MiB"):
        read_preprocessing(tmp_path / "large.json")


def test_a_transform_that_is_not_known_is_refused() -> None:
    """A step in between, a Resize of floats."""
    from torchvision.transforms import v2

    with pytest.raises(SettingsError, match="expected steps of a transform that are known here"):
        from_transform(v2.Compose([v2.RandomHorizontalFlip()]))
    with pytest.raises(SettingsError, match="expected one Resize, first of all"):
        from_transform(v2.Compose([v2.CenterCrop(8), v2.Resize(9)]))


def test_a_transform_without_resize_takes_files_as_they_are() -> None:
    """A file of another size than the model's is refused in words."""
    from torchvision.transforms import v2

    made = from_transform(v2.CenterCrop(8))
    assert made.files == Pipeline(crop=Crop(height=8, width=8))
    assert made.files.resize is None
    assert Resize(height=8, width=8).size(3, 4) == (8, 8)
