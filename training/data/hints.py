"""What to do about data that are nearly right. N images, H rows, W columns, C channels.

Each function returns the end of a message, "" where nothing is known.
"""

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.arrays import DAMAGE
from reluguard.detector.errors import did_you_mean, near_path

__all__ = ["data_hint", "from_one_hint", "images_hint", "labels_hint", "npz_hint"]

_WILD = frozenset("*?[")
_SAVED = "numpy.savez(file, images=images, labels=labels)"


def images_hint(images: NDArray[Any]) -> str:
    """Return what makes these arrays uint8 images of shape (N, H, W, 1 or 3)."""
    shape = images.shape
    if images.ndim == 3 or (images.ndim == 4 and shape[3] in {1, 3}):
        steps = []
    elif images.ndim == 4 and shape[1] in {1, 3}:
        steps = ["put channels last, images.transpose(0, 2, 3, 1)"]
    elif images.ndim == 4 and shape[3] == 4:
        steps = ["leave out the fourth channel, images[..., :3]"]
    elif images.ndim == 2:
        steps = ["give each image its rows and columns, images.reshape(len(images), H, W, C)"]
    else:
        return ""
    if images.dtype != np.uint8 and images.dtype.kind in "iuf" and images.size:
        steps.append(_to_bytes(images))
    return f": {'; and '.join(steps)}" if steps else ""


def _to_bytes(images: NDArray[Any]) -> str:
    """Return what makes pixels of these numbers bytes."""
    if not np.isfinite(images).all():
        return "some values are no numbers: leave those images out"
    low, high = float(images.min()), float(images.max())
    if low >= 0 and high <= 1 and images.dtype.kind == "f":
        return "bring 0..1 to 0..255, (images * 255).round().astype('uint8')"
    if low >= 0 and high <= 255:
        whole = ".round()" if images.dtype.kind == "f" else ""
        return f"make them bytes, images{whole}.astype('uint8')"
    return (
        f"values from {low:.3g} to {high:.3g} are no pixels of 0 to 255: where they were "
        "normalised, give the pixels as they were before, and say the normalisation by --mean and "
        "--std"
    )


def labels_hint(labels: NDArray[Any]) -> str:
    """Return what makes these arrays whole-number labels of shape (N,)."""
    if labels.ndim == 1 and labels.dtype.kind in "US":
        return (
            ": words don't say which of the model's outputs they are; give each its place among "
            "them, like [names.index(label) for label in labels], or a folder per class"
        )
    if labels.ndim == 1 and labels.dtype.kind in "fb":
        return ": labels.astype('int64') makes them whole"
    if labels.ndim == 2 and labels.shape[1] == 1:
        return ": labels[:, 0] has one axis"
    if labels.ndim == 2:
        return ": where there is a column per class, labels.argmax(axis=1) is the class"
    return ""


def from_one_hint(labels: NDArray[np.int64], classes: int) -> str:
    """Return a word where labels seem to count from 1."""
    if labels.min() == 1 and labels.max() == classes:
        return ": they seem to count from 1, and the first class is 0; give labels - 1"
    return ""


def npz_hint(path: Path) -> str:
    """Return what else a file is, or how its arrays get the names they must have."""
    if path.suffix == ".npy":
        return f"one array has no labels; write both by {_SAVED}"
    if path.suffix == ".onnx":
        return "the model goes to --model, images to --data"
    if path.suffix in {".h5", ".hdf5", ".mat", ".parquet", ".csv", ".pkl", ".pt", ".pth", ".zip"}:
        return f"write images and labels by {_SAVED}, or give a folder of images per class"
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except DAMAGE:
        return ""
    return "" if {"images", "labels"} <= names else f"write them by {_SAVED}"


def data_hint(text: str, *, among: Iterable[str]) -> str:
    """Return what to do about a place where no data are.

    Args:
        text: as the user named it.
        among: names of torchvision's data sets that are known.
    """
    if _WILD & set(text):
        return ": a pattern has no labels; give a folder of images per class, or an .npz"
    if hint := did_you_mean(text.partition(":")[0], among):
        return hint
    path = Path(text)
    return f": nothing is there{near_path(path)}" if not path.exists() else ""
