"""Preprocessing read from what other libraries keep: files of Hugging Face and timm, transforms."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from reluguard.detector.errors import SettingsError, did_you_mean
from reluguard.detector.pixels.pipeline import Colour, Crop, Pipeline, Resize
from reluguard.detector.pixels.preprocessing import Preprocessing
from reluguard.detector.pixels.presets import (
    CROP_SHARE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    PRESETS,
    changed,
    imagenet_crop,
    preset,
)
from reluguard.detector.pixels.resampling import Library, Method

__all__ = ["from_config", "from_transform", "preprocessing_named", "read_preprocessing"]

MOST_BYTES = 2**20

# PIL.Image.Resampling, whose numbers Hugging Face's files hold
_CODES: Mapping[int, Method] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "area",
    5: "hamming",
}
_NAMES: Mapping[str, Method] = {
    "nearest": "nearest",
    "nearest-exact": "nearest-exact",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "lanczos": "lanczos",
    "box": "area",
    "hamming": "hamming",
}


def preprocessing_named(text: str, size: tuple[int, int] | None = None) -> Preprocessing:
    """Return the preprocessing that a user named: a preset or a file, and what differs from it.

    Args:
        text: "timm", "config.json", or with settings after a colon, "config.json:library=pillow".
        size: (H, W) that the model takes, for presets.

    Raises:
        SettingsError: as `preset` and `read_preprocessing`.
    """
    name = text.split(":", maxsplit=1)[0]
    if name in PRESETS:
        return preset(text, size)
    if Path(text).exists() or ":" not in text:
        if not Path(text).exists():
            raise SettingsError(
                f"expected a JSON file of preprocessing or one of {', '.join(PRESETS)}, "
                f"got {text!r}{did_you_mean(text, PRESETS)}"
            )
        return read_preprocessing(text)
    path, _, settings = text.rpartition(":")
    return changed(read_preprocessing(path), settings)


def read_preprocessing(path: Path | str) -> Preprocessing:
    """Return the preprocessing that a JSON file holds.

    Hugging Face's `preprocessor_config.json`, timm's `config.json`, or our own: the values of
    `Preprocessing.to_json`, all of them optional.

    Raises:
        SettingsError: it can't be read, or says something that this does not know.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise SettingsError(f"expected a file of settings, {path} is larger than 1 MiB")
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"expected a JSON file of preprocessing, {path} is none") from error
    try:
        made = from_config(values)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise SettingsError(f"{path}: a value has no meaning here: {error}") from error
    return replace(made, name=made.name or path.name)


def from_config(values: Any) -> Preprocessing:
    """Return the preprocessing that a configuration describes.

    Args:
        values: of a Hugging Face image processor, of timm (`pretrained_cfg`, or what
            `resolve_data_config` returns), or of `Preprocessing.to_json`.

    Raises:
        SettingsError: it is none of them, or says something that this does not know.
    """
    if not isinstance(values, Mapping):
        raise SettingsError(f"expected preprocessing settings by name, got {type(values).__name__}")
    if "pretrained_cfg" in values:
        return _timm(values["pretrained_cfg"])
    if "image_processor" in values and isinstance(values["image_processor"], Mapping):
        return _hugging_face(values["image_processor"])
    if {"image_processor_type", "feature_extractor_type", "do_resize", "image_mean"} & set(values):
        return _hugging_face(values)
    if {"input_size", "crop_pct", "interpolation"} & set(values):
        return _timm(values)
    return Preprocessing.from_json(dict(values))


def _timm(config: Mapping[str, Any]) -> Preprocessing:
    """Return what `timm.data.create_transform(**resolve_data_config(config))` does."""
    shape = config.get("input_size", (3, 224, 224))
    size = (int(shape[-2]), int(shape[-1])) if len(shape) > 1 else (int(shape[0]),) * 2
    share = float(config.get("crop_pct") or CROP_SHARE)
    method = _method(config.get("interpolation") or "bicubic")
    mean = tuple(map(float, config.get("mean") or IMAGENET_MEAN))
    std = tuple(map(float, config.get("std") or IMAGENET_STD))
    wide = tuple(math.floor(side / share) for side in size)
    mode = config.get("crop_mode") or "center"
    if mode == "center":
        files = imagenet_crop(size, method=method, crop_pct=share)
    elif mode == "squash":
        resize = Resize(height=wide[0], width=wide[1], method=method)
        files = Pipeline(resize=resize, crop=Crop(height=size[0], width=size[1]))
    elif mode == "border":
        red, green, blue = (round(255 * value) for value in (mean * 3)[:3])
        files = Pipeline(
            resize=Resize(
                height=wide[0], width=wide[1], fit="longest", rounding="even", method=method
            ),
            crop=Crop(height=size[0], width=size[1], fill=(red, green, blue)),
        )
    else:
        raise SettingsError(f"expected a crop_mode of center, squash or border, got {mode!r}")
    return Preprocessing(scale=1 / 255, mean=mean, std=std, files=files, name="timm")


def _hugging_face(config: Mapping[str, Any]) -> Preprocessing:
    """Return what an image processor does with one image.

    It resizes by torchvision on tensors, as `AutoImageProcessor` does today; those whose name ends
    in "Pil", and the feature extractors of old files, by Pillow. The two differ by 1 in few pixels.
    """
    config = {key: value for key, value in config.items() if value is not None}  # the default
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    library: Library = "pillow" if kind.endswith(("Pil", "FeatureExtractor")) else "torch"
    name = kind.removesuffix("Fast").removesuffix("Pil").removesuffix("ImageProcessor")
    name = name.removesuffix("FeatureExtractor")
    _check_steps(config, kind, name)
    method = _CODES.get(config.get("resample", 2))
    if method is None:
        raise SettingsError(f"expected resample from 0 to 5, got {config['resample']}")
    if name == "PoolFormer":
        share = float(config.get("crop_pct", 0.9))
        short = min(_sides(config.get("size", 224), "size"))
        config["size"] = {"shortest_edge": int(short / share)}
    resize, crop = _hugging_face_size(config, name, method, library)
    if config.get("do_center_crop"):
        h, w = _sides(config.get("crop_size") or config.get("size"), "crop_size")
        crop = Crop(height=h, width=w, rounding="down")
    scale = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    mean: tuple[float, ...] = (0.0,)
    image_std = _values(config.get("image_std", IMAGENET_STD))
    std: tuple[float, ...] = (1.0,) * len(image_std)
    if config.get("do_normalize", True):
        mean = _values(config.get("image_mean", IMAGENET_MEAN))
        std = image_std
    if config.get("rescale_offset"):  # EfficientNet's: pixel * factor - 1, and then normalised
        mean = tuple(value + 1 for value in mean)
    if name == "EfficientNet" and config.get("include_top", True):
        std = tuple(value * again for value, again in zip(std, image_std, strict=True))
    return Preprocessing(
        scale=scale,
        mean=mean,
        std=std,
        bgr=bool(config.get("do_flip_channel_order", name == "MobileViT")),
        files=Pipeline(resize=resize, crop=crop),
        name=kind or "Hugging Face",
    )


def _check_steps(config: Mapping[str, Any], kind: str, name: str) -> None:
    """Raise SettingsError where something is done to pixels that is not known here."""
    unknown = [key for key, on in config.items() if key.startswith("do_") and on]
    unknown = [key for key in unknown if key not in _STEPS]
    unknown += [key for key in _SIZES if config.get(key) not in {None, False, 1}]
    if "crop_pct" in config and name not in {"ConvNext", "PoolFormer"}:
        unknown.append("crop_pct")
    if name == "Perceiver" and config.get("do_center_crop"):
        unknown.append("do_center_crop before do_resize")
    if unknown:
        raise SettingsError(
            f"{kind or 'the image processor'} does what is not known here, {', '.join(unknown)}: "
            "write the pipeline out"
        )


# what processors do that is known here, or changes no pixel that a classifier sees
_STEPS = {
    "do_center_crop",
    "do_convert_rgb",
    "do_flip_channel_order",
    "do_normalize",
    "do_reduce_labels",
    "do_rescale",
    "do_resize",
}
# what else decides which size an image gets
_SIZES = ("ensure_multiple_of", "keep_aspect_ratio", "size_divisor")


def _hugging_face_size(
    config: Mapping[str, Any], name: str, method: Method, library: Library
) -> tuple[Resize | None, Crop | None]:
    if not config.get("do_resize", True):
        return None, None
    size = config.get("size", 224)
    antialias = method != "nearest" or library == "pillow"
    how: dict[str, Any] = {"method": method, "library": library, "antialias": antialias}
    if isinstance(size, Mapping) and "shortest_edge" in size:
        edge = int(size["shortest_edge"])
        if size.get("longest_edge"):
            raise SettingsError("a size with both shortest_edge and longest_edge is not known here")
    elif isinstance(size, Mapping) or (isinstance(size, Sequence) and not isinstance(size, str)):
        h, w = _sides(size, "size")
        return Resize(height=h, width=w, **how), None
    else:
        edge = int(size)
        if name not in _SHORT_SIDE:
            return Resize(height=edge, width=edge, **how), None
    if name == "ConvNext":
        if edge >= 384:
            return Resize(height=edge, width=edge, **how), None
        wide = int(edge / float(config.get("crop_pct") or 224 / 256))
        resize = Resize(height=wide, width=wide, fit="shortest", **how)
        return resize, Crop(height=edge, width=edge, rounding="down")
    if name == "LevIt":
        edge = int(256 / 224 * edge)
    return Resize(height=edge, width=edge, fit="shortest", **how), None


# whose plain number means the short side
_SHORT_SIDE = {"CLIP", "ConvNext", "LevIt", "MobileNetV1", "MobileNetV2", "MobileViT", "Bit"}


def _sides(size: Any, what: str) -> tuple[int, int]:
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    if isinstance(size, Mapping) and "shortest_edge" in size:
        return (int(size["shortest_edge"]),) * 2
    if isinstance(size, Sequence) and len(size) == 2:
        return int(size[0]), int(size[1])
    if isinstance(size, int):
        return size, size
    raise SettingsError(f"expected a {what} of height and width, got {size!r}")


def _values(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, Sequence) else (float(value),)


def _method(value: Any) -> Method:
    """Return the method of torchvision's or timm's name of it."""
    name = str(getattr(value, "value", value)).lower()
    if name not in _NAMES:
        raise SettingsError(f"expected an interpolation of {', '.join(_NAMES)}, got {value!r}")
    return _NAMES[name]


def from_transform(transform: Any) -> Preprocessing:
    """Return what a torchvision transform does, without importing torchvision.

    Args:
        transform: `weights.transforms()`, or a Compose of Resize, CenterCrop, ToTensor (or ToImage,
            PILToTensor, ToDtype, ConvertImageDtype) and Normalize; timm's too.

    Raises:
        SettingsError: a step is not among these, or comes where it can't be read.
    """
    kind = type(transform).__name__
    if kind == "ImageClassification":
        (resize,), (side,) = transform.resize_size, transform.crop_size
        return Preprocessing(
            scale=1 / 255,
            mean=tuple(transform.mean),
            std=tuple(transform.std),
            files=imagenet_crop(
                (side, side), method=_method(transform.interpolation), resize=resize
            ),
            name="torchvision",
        )
    read = _Steps()
    for step in getattr(transform, "transforms", [transform]):
        read.take(step)
    return Preprocessing(
        scale=read.scale,
        mean=read.mean,
        std=read.std,
        files=Pipeline(resize=read.resize, crop=read.crop),
        name="torchvision",
    )


class _Steps:
    """The steps of a transform, one after another."""

    def __init__(self) -> None:
        self.resize: Resize | None = None
        self.crop: Crop | None = None
        self.scale = 1.0
        self.mean: tuple[float, ...] = (0.0,)
        self.std: tuple[float, ...] = (1.0,)
        self._tensor = False

    def take(self, step: Any) -> None:
        """Read one more step."""
        name = type(step).__name__
        if name in {"Resize", "ResizeKeepRatio"}:
            if self.resize or self.crop or self.scale != 1.0:
                raise SettingsError(f"expected one Resize, first of all, got {step!r} later on")
            self.resize = _resize_step(step, tensor=self._tensor)
        elif name in {"CenterCrop", "CenterCropOrPad"}:
            h, w = _sides(step.size, "size")
            self.crop = Crop(height=h, width=w, fill=_fill(getattr(step, "fill", 0)))
        elif name in {"ToTensor", "MaybeToTensor", "ConvertImageDtype", "ToDtype"}:
            self._tensor = True
            self.scale = 1 / 255 if getattr(step, "scale", True) else self.scale
        elif name in {"ToImage", "PILToTensor", "MaybePILToTensor"}:
            self._tensor = True
        elif name == "Normalize":
            self.mean = tuple(map(float, step.mean))
            self.std = tuple(map(float, step.std))
        elif name not in {"RGB", "Identity", "ToPureTensor"}:
            raise SettingsError(f"expected steps of a transform that are known here, got {step!r}")


def _resize_step(step: Any, *, tensor: bool) -> Resize:
    method = _method(step.interpolation)
    library: Library = "torch" if tensor else "pillow"
    antialias = not tensor or bool(getattr(step, "antialias", True))
    how: dict[str, Any] = {"method": method, "library": library, "antialias": antialias}
    if type(step).__name__ == "ResizeKeepRatio":
        if step.longest not in {0.0, 1.0}:
            raise SettingsError(f"expected longest of 0 or 1, got {step.longest}")
        fit = "longest" if step.longest else "shortest"
        h, w = step.size
        return Resize(height=h, width=w, fit=cast("Any", fit), rounding="even", **how)
    if getattr(step, "max_size", None) is not None:
        if step.size is None:
            side = int(step.max_size)
            return Resize(height=side, width=side, fit="longest", **how)
        raise SettingsError("expected a Resize with size or max_size, got both")
    sides = list(step.size) if isinstance(step.size, tuple | list) else [step.size]
    if len(sides) == 1:
        side = int(sides[0])
        return Resize(height=side, width=side, fit="shortest", **how)
    return Resize(height=int(sides[0]), width=int(sides[1]), **how)


def _fill(value: Any) -> Colour:
    if isinstance(value, int | float):
        return (int(value),) * 3
    parts = [int(part) for part in value]
    red, green, blue = parts * 3 if len(parts) == 1 else parts
    return red, green, blue
