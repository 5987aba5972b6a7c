"""Write what other libraries make of a few small images: `python make.py opencv timm ...`.

Each is asked in an environment of its own (opencv-python-headless 5.0.0.93, tensorflow-cpu 2.21.0
with keras 3.15.1, timm 1.0.31, transformers 5.24.0 with torchvision 0.29.1), so that the tests
need none of them.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
SHAPES = ((30, 41), (57, 38), (64, 64), (19, 23), (96, 80))
SIZES = ((24, 24), (15, 32), (32, 32), (40, 20))


def pictures() -> list[NDArray[np.uint8]]:
    """Return uint8 images of several shapes: waves, an edge and noise."""
    rng = np.random.default_rng(7)
    made = []
    for h, w in SHAPES:
        y, x = np.mgrid[:h, :w]
        waves = np.stack([np.sin(x / 3 + c) + np.cos(y / (4 + c)) for c in range(3)], -1)
        smooth = 127 + 60 * waves + 60.0 * (x > y)[..., None]
        noisy = np.clip(smooth + rng.normal(0, 40, smooth.shape), 0, 255)
        made.append(noisy.astype(np.uint8))
    return made


def opencv() -> dict[str, NDArray[Any]]:
    """Return resizes by every method: uint8."""
    import cv2

    methods = {
        "nearest": cv2.INTER_NEAREST,
        "bilinear": cv2.INTER_LINEAR,
        "bicubic": cv2.INTER_CUBIC,
        "lanczos": cv2.INTER_LANCZOS4,
        "area": cv2.INTER_AREA,
    }
    return {
        f"{method}/{i}/{h}x{w}": cv2.resize(image, (w, h), interpolation=code)
        for method, code in methods.items()
        for i, image in enumerate(pictures())
        for h, w in SIZES
    }


def imread() -> dict[str, NDArray[Any]]:
    """Return files and what `cv2.imdecode` makes of them, in colour (RGB) and in grey: uint8."""
    import io

    import cv2
    from PIL import Image

    image = pictures()[0]
    inks = np.concatenate([image, image[::-1, :, :1]], axis=2)
    colour, grey = Image.fromarray(image), Image.fromarray(image[..., 0])
    turned = Image.Exif()
    turned[0x0112] = 6
    files: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "png": (colour, "PNG", {}),
        "grey png": (grey, "PNG", {}),
        "deep png": (Image.fromarray(image[..., 0].astype(np.uint16) * 257), "PNG", {}),
        "clear png": (Image.fromarray(inks), "PNG", {}),
        "clear grey png": (Image.fromarray(inks[..., 2:].copy()), "PNG", {}),
        "palette png": (colour.quantize(32), "PNG", {}),
        "jpeg": (colour, "JPEG", {"quality": 85}),
        "fine jpeg": (colour, "JPEG", {"quality": 95, "subsampling": 0}),
        "grey jpeg": (grey, "JPEG", {}),
        "turned jpeg": (colour, "JPEG", {"exif": turned}),
        "cmyk jpeg": (Image.fromarray(inks, "CMYK"), "JPEG", {"quality": 95}),
        "webp": (colour, "WEBP", {"lossless": True}),
        "bmp": (colour, "BMP", {}),
    }
    made = {}
    for name, (picture, kind, options) in files.items():
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        data = np.frombuffer(stream.getvalue(), np.uint8)
        made[f"{name}/file"] = data
        made[f"{name}/3"] = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
        made[f"{name}/1"] = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)[..., None]
    return made


def tensorflow() -> dict[str, NDArray[Any]]:
    """Return resizes by every method, with and without antialiasing: float32."""
    import tensorflow as tf

    methods = {m: m for m in ("nearest", "bilinear", "bicubic", "area")} | {"lanczos": "lanczos3"}
    return {
        f"{method}/{antialias:d}/{i}/{h}x{w}": tf.image.resize(
            image, (h, w), method=name, antialias=antialias
        ).numpy()
        for method, name in methods.items()
        for antialias in (False, True)
        for i, image in enumerate(pictures()[:2])
        for h, w in SIZES[:2]
    }


def keras() -> dict[str, NDArray[Any]]:
    """Return `load_img` with `preprocess_input` of the modes tf and caffe: float32 (H, W, C)."""
    import tempfile

    from keras.applications.imagenet_utils import preprocess_input
    from keras.utils import img_to_array, load_img
    from PIL import Image

    made = {}
    for i, image in enumerate(pictures()):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image.png"
            Image.fromarray(image).save(path)
            loaded = img_to_array(load_img(path, target_size=(24, 24)))
        for mode in ("tf", "caffe"):
            batch = preprocess_input(loaded[None].copy(), mode=mode, data_format="channels_last")
            made[f"keras-{mode}/{i}"] = batch[0]
    return made


def timm() -> dict[str, NDArray[Any]]:
    """Return evaluation transforms of several data configurations: float32 (C, H, W)."""
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    wanted: list[dict[str, Any]] = [
        {"input_size": (3, 24, 24)},
        {"input_size": (3, 24, 24), "crop_pct": 0.9, "interpolation": "bilinear"},
        {"input_size": (3, 24, 24), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.5,) * 3},
        {"input_size": (3, 24, 24), "crop_pct": 0.95, "crop_mode": "squash"},
        {"input_size": (3, 24, 24), "crop_pct": 1.0, "crop_mode": "border"},
        {"input_size": (3, 20, 28)},
    ]
    made: dict[str, NDArray[Any]] = {}
    for k, config in enumerate(wanted):
        resolved = resolve_data_config({}, pretrained_cfg=config)
        transform = create_transform(**resolved)
        made[f"config/{k}"] = np.array(json.dumps(resolved))
        for i, image in enumerate(pictures()):
            made[f"{k}/{i}"] = transform(Image.fromarray(image)).numpy()
    return made


def transformers() -> dict[str, NDArray[Any]]:
    """Return what image processors make of the images: float32 (C, H, W)."""
    import transformers as hf
    from PIL import Image

    edge = {"shortest_edge": 24}
    square = {"height": 24, "width": 24}
    larger = {"height": 29, "width": 31}
    wanted = [
        hf.ViTImageProcessor(size=square),
        hf.ViTImageProcessor(size=larger, do_normalize=False),
        hf.CLIPImageProcessor(size=edge, crop_size=square),
        hf.ConvNextImageProcessor(size=edge, crop_pct=0.875),
        hf.ConvNextImageProcessor(size=edge, crop_pct=0.95, resample=2),
        hf.EfficientNetImageProcessor(size=larger, crop_size=square, do_center_crop=True),
        hf.EfficientNetImageProcessor(size=larger, rescale_offset=True, rescale_factor=1 / 127.5),
        hf.DeiTImageProcessor(size=larger, crop_size=square),
        hf.BeitImageProcessor(size=larger, crop_size=square, do_center_crop=True),
        hf.MobileNetV2ImageProcessor(size={"shortest_edge": 27}, crop_size=square),
        hf.models.vit.ViTImageProcessorPil(size=square),
        hf.models.clip.CLIPImageProcessorPil(size=edge, crop_size=square),
    ]
    made: dict[str, NDArray[Any]] = {}
    for k, processor in enumerate(wanted):
        config = processor.to_dict()
        config["image_processor_type"] = type(processor).__name__  # it leaves "Pil" out
        made[f"config/{k}"] = np.array(json.dumps(config, default=str))
        for i, image in enumerate(pictures()):
            values = processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
            made[f"{k}/{i}"] = np.asarray(values, np.float32)
    return made


def shown() -> dict[str, NDArray[Any]]:
    """Return the images themselves, for a sine may differ in its last bit elsewhere."""
    return {str(i): image for i, image in enumerate(pictures())}


MAKERS: dict[str, Callable[[], dict[str, NDArray[Any]]]] = {
    "pictures": shown,
    "opencv": opencv,
    "imread": imread,
    "tensorflow": tensorflow,
    "keras": keras,
    "timm": timm,
    "transformers": transformers,
}


def main() -> None:
    """Write the files of the libraries named."""
    for name in sys.argv[1:]:
        np.savez_compressed(HERE / f"{name}.npz", **MAKERS[name]())  # type: ignore[arg-type]  # names are keys


if __name__ == "__main__":
    main()
