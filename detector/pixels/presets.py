"""What libraries do by default, by their names.

Each is the pipeline that the library's own documentation gives for classification:

torchvision
    `ImageClassification`, the transform of its weights: Pillow, short side 256 (crop / .875),
    bilinear, centre 224, ImageNet's mean and deviation.
timm
    `create_transform(**resolve_data_config({}))`: short side crop / .875, bicubic, centre 224,
    ImageNet's mean and deviation.
keras-tf, keras-caffe
    `keras.utils.load_img(path, target_size=(224, 224))`, which stretches to the nearest pixels,
    and `preprocess_input` in its mode "tf" (-1 to 1) or "caffe" (blue first, means of 103.939,
    116.779, 123.68 for blue, green, red).
opencv
    `cv2.imread`, which turns as EXIF says and leaves alpha out, `cv2.resize` to the size, linear,
    channels as they come: blue first, in 0 to 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from reluguard.detector.errors import SettingsError
from reluguard.detector.pixels.pipeline import Colour, Crop, Fit, Pipeline, Resize
from reluguard.detector.pixels.preprocessing import Preprocessing
from reluguard.detector.pixels.resampling import LIBRARIES, METHODS, Library, Method

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "PRESETS", "changed", "imagenet_crop", "preset"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CAFFE_MEAN = (123.68, 116.779, 103.939)
CROP_SHARE = 0.875


def imagenet_crop(
    size: tuple[int, int],
    *,
    method: Method,
    library: Library = "pillow",
    antialias: bool = True,
    resize: int | None = None,
    crop_pct: float = CROP_SHARE,
) -> Pipeline:
    """Return "short side so long, middle cut out"; the short side is crop / crop_pct by default."""
    if not 0 < crop_pct <= 1:
        raise SettingsError(f"expected a crop_pct above 0 and at most 1, got {crop_pct}")
    h, w = (int(side / crop_pct) for side in size) if resize is None else (resize, resize)
    return Pipeline(
        resize=Resize(
            height=h,
            width=w,
            fit="shortest",
            rounding="down" if h == w else "even",
            library=library,
            method=method,
            antialias=antialias,
        ),
        crop=Crop(height=size[0], width=size[1]),
    )


def _torchvision(size: tuple[int, int]) -> Preprocessing:
    return Preprocessing(
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        scale=1 / 255,
        files=imagenet_crop(size, method="bilinear"),
    )


def _timm(size: tuple[int, int]) -> Preprocessing:
    return replace(_torchvision(size), files=imagenet_crop(size, method="bicubic"))


def _stretched(size: tuple[int, int], method: Method, library: Library = "pillow") -> Resize:
    return Resize(
        height=size[0],
        width=size[1],
        method=method,
        library=library,
        antialias=library == "pillow",
    )


def _keras_tf(size: tuple[int, int]) -> Preprocessing:
    files = Pipeline(resize=_stretched(size, "nearest"))
    return Preprocessing(scale=1 / 127.5, mean=(1.0,), files=files)


def _keras_caffe(size: tuple[int, int]) -> Preprocessing:
    files = Pipeline(resize=_stretched(size, "nearest"))
    return Preprocessing(scale=1.0, mean=CAFFE_MEAN, bgr=True, files=files)


def _opencv(size: tuple[int, int]) -> Preprocessing:
    files = Pipeline(orientation=True, resize=_stretched(size, "bilinear", "opencv"))
    return Preprocessing(scale=1 / 255, bgr=True, files=files)


PRESETS: Mapping[str, Callable[[tuple[int, int]], Preprocessing]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "keras-tf": _keras_tf,
    "keras-caffe": _keras_caffe,
    "opencv": _opencv,
}


def preset(text: str, size: tuple[int, int] | None = None) -> Preprocessing:
    """Return a preset, with what is changed of it.

    Args:
        text: its name, and after a colon what differs, as `changed` takes it; `size=192x256` too.
        size: (H, W) that the model takes; 224 x 224 by default.

    Raises:
        SettingsError: there is no such preset or setting, or a value has no meaning.
    """
    name, _, settings = text.partition(":")
    if name not in PRESETS:
        raise SettingsError(f"expected a preset, {', '.join(PRESETS)}; got {name!r}")
    items = _items(settings)
    if "size" in items:
        size = _size("size", items.pop("size"))
    made = PRESETS[name](size or (224, 224))
    return replace(_with(made, items), name=text)


def changed(made: Preprocessing, settings: str) -> Preprocessing:
    """Return a preprocessing with some settings changed.

    Args:
        made: what is changed.
        settings: like "crop_pct=0.95,method=bilinear": `resize` (the short side), `crop_pct`,
            `method`, `library`, `antialias`, `fit` (exact, shortest, longest), `fill` and
            `background` (255/255/255), `orientation`, `scale` (1/127.5), `mean` and `std`
            (0.5 or 0.5/0.5/0.5), `bgr`.

    Raises:
        SettingsError: there is no such setting, or a value has no meaning.
    """
    return replace(_with(made, _items(settings)), name=f"{made.name}:{settings}")


def _items(settings: str) -> dict[str, str]:
    items: dict[str, str] = {}
    for item in filter(None, settings.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise SettingsError(f"expected settings like crop_pct=0.95, got {item!r}")
        items[key.strip()] = value.strip()
    return items


def _with(made: Preprocessing, items: Mapping[str, str]) -> Preprocessing:
    unknown = sorted(set(items) - set(_SETTINGS))
    if unknown:
        raise SettingsError(f"unknown settings of a preprocessing: {', '.join(unknown)}")
    values = {key: _SETTINGS[key](key, text) for key, text in items.items()}
    files = made.files or Pipeline()
    decoding = {key: values[key] for key in ("orientation", "background") if key in values}
    plain = {key: values[key] for key in ("scale", "mean", "std", "bgr") if key in values}
    if set(values) - set(decoding) - set(plain):
        if files.resize is None:
            raise SettingsError("expected settings of a resize only where there is one")
        resize = _resized(files.resize, files.crop, values)
        resize, crop = _fitted(resize, files.crop, values)
        files = replace(files, resize=resize, crop=crop)
    return replace(made, files=replace(files, **decoding), **plain)


def _resized(resize: Resize, crop: Crop | None, values: Mapping[str, Any]) -> Resize:
    how = {key: values[key] for key in ("method", "library", "antialias") if key in values}
    if "library" in how:
        how.setdefault("antialias", how["library"] in _SMOOTH)
    if "crop_pct" in values:
        if crop is None:
            raise SettingsError("expected crop_pct for a preset that crops")
        size = (crop.height, crop.width)
        cut = imagenet_crop(size, method=resize.method, crop_pct=values["crop_pct"]).resize
        assert cut is not None
        how |= {"height": cut.height, "width": cut.width}
    if "resize" in values:
        how |= dict(zip(("height", "width"), values["resize"], strict=True))
    return replace(resize, **how)


def _fitted(
    resize: Resize, crop: Crop | None, values: Mapping[str, Any]
) -> tuple[Resize, Crop | None]:
    """Return resize and crop so that the whole image is stretched, covers the size or is padded."""
    size = (crop.height, crop.width) if crop else (resize.height, resize.width)
    fit = values.get("fit", resize.fit)
    if fit == "exact" and resize.fit != "exact":
        return replace(resize, fit="exact", height=size[0], width=size[1]), None
    if fit == "longest" and resize.fit != "longest":
        resize = replace(resize, height=size[0], width=size[1])
    resize = replace(resize, fit=fit)
    if fit != "exact":
        crop = crop or Crop(height=size[0], width=size[1])
    if "fill" in values:
        if crop is None:
            raise SettingsError("expected fill for a preset that pads: give fit=longest as well")
        crop = replace(crop, fill=values["fill"])
    return resize, crop


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise SettingsError(f"expected a number for {key}, got {text!r}") from error


def _factor(key: str, text: str) -> float:
    """Return a number that may be a fraction, like 1/127.5."""
    above, _, below = text.partition("/")
    divisor = _number(key, below or "1")
    if divisor == 0:
        raise SettingsError(f"expected a number for {key}, got {text!r}")
    return _number(key, above) / divisor


def _numbers(key: str, text: str) -> tuple[float, ...]:
    return tuple(_number(key, part) for part in text.split("/"))


def _flag(key: str, text: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise SettingsError(f"expected yes or no for {key}, got {text!r}")
    return known[text.lower()]


def _size(key: str, text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() for side in sides):
        raise SettingsError(f"expected a {key} like 224 or 192x256, got {text!r}")
    return int(sides[0]), int(sides[-1])


def _colour(key: str, text: str) -> Colour:
    parts = text.split("/")
    if len(parts) not in {1, 3} or not all(part.strip().isdecimal() for part in parts):
        raise SettingsError(f"expected a {key} like 255/255/255, got {text!r}")
    red, green, blue = map(int, parts * 3 if len(parts) == 1 else parts)
    return red, green, blue


def _one_of(known: Sequence[str]) -> Callable[[str, str], str]:
    def check(key: str, text: str) -> str:
        if text not in known:
            raise SettingsError(f"expected {key} of {', '.join(known)}, got {text!r}")
        return text

    return check


_SMOOTH = {"pillow", "torch"}
_SETTINGS: Mapping[str, Callable[[str, str], Any]] = {
    "antialias": _flag,
    "background": _colour,
    "bgr": _flag,
    "crop_pct": _number,
    "fill": _colour,
    "fit": _one_of(get_args(Fit)),
    "library": _one_of(LIBRARIES),
    "mean": _numbers,
    "method": _one_of(METHODS),
    "orientation": _flag,
    "resize": _size,
    "scale": _factor,
    "std": _numbers,
}
