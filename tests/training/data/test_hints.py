"""Tests for what is said of data that are nearly right."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reluguard.training.data.dataset import Dataset, check_labels, load_data
from reluguard.training.errors import DataError

UINT8 = np.zeros((2, 4, 4, 3), np.uint8)
LABELS = np.array([0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "hint"),
    [
        (UINT8.astype(np.float32), LABELS, "bring 0..1 to 0..255, (images * 255).round()"),
        (UINT8 + np.float32(200), LABELS, "make them bytes, images.round().astype('uint8')"),
        (UINT8 - np.float32(2.1), LABELS, "say the normalisation by --mean and --std"),
        (UINT8.astype(np.int64), LABELS, "make them bytes, images.astype('uint8')"),
        (UINT8.astype(np.int64) + 300, LABELS, "values from 300 to 300 are no pixels"),
        (np.zeros((2, 3, 4, 5), np.uint8), LABELS, "images.transpose(0, 2, 3, 1)"),
        (np.zeros((2, 1, 4, 5)), LABELS, "transpose(0, 2, 3, 1); and bring 0..1 to 0..255"),
        (np.zeros((2, 4, 4, 4), np.uint8), LABELS, "images[..., :3]"),
        (np.zeros((2, 48), np.uint8), LABELS, "images.reshape(len(images), H, W, C)"),
        (UINT8, np.array(["cat", "dog"]), "[names.index(label) for label in labels]"),
        (UINT8, np.array([0.0, 1.0]), "labels.astype('int64')"),
        (UINT8, LABELS[:, None], "labels[:, 0] has one axis"),
        (UINT8, np.eye(2), "labels.argmax(axis=1) is the class"),
    ],
)
def test_arrays_that_are_nearly_right(images: np.ndarray, labels: np.ndarray, hint: str) -> None:
    """Each is refused with what makes it right, in one line of Python where there is one."""
    with pytest.raises(DataError) as told:
        Dataset(images=images, labels=labels, source="here")
    assert hint in str(told.value)
    assert "expected " in str(told.value)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((2, 4, 4, 7)), LABELS),
        (np.zeros((2, 2, 2, 2, 2)), LABELS),
        (np.zeros((0, 4, 4, 3)), np.zeros(0, np.int64)),
        (UINT8, np.zeros((2, 2, 2), np.int64)),
    ],
)
def test_nothing_is_made_up(images: np.ndarray, labels: np.ndarray) -> None:
    """Where no one knows what was meant, the refusal ends with what came."""
    with pytest.raises(DataError, match=r"from here$"):
        Dataset(images=images, labels=labels, source="here")


def test_labels_that_count_from_one() -> None:
    """Labels from 1 to K of a model of K classes are called that."""
    data = Dataset(images=UINT8, labels=LABELS + 1, source="here")
    with pytest.raises(DataError, match="seem to count from 1, and the first class is 0"):
        check_labels(data, 2)


@pytest.mark.parametrize(
    ("make", "text", "hint"),
    [
        ("pictures/", "pictures", r"got no images in folders, only 2 beside each other"),
        ("empty/", "empty", "got no images: it is empty"),
        ("classes/", "classes", r"in cat, dog, no file ends in \.png"),
        ("other/", "other", r"it holds no folder, and no file ends in \.png"),
        ("images.npz", "image.npz", r"nothing is there; did you mean '.*images\.npz'\?"),
        ("images.npz", "nowhere/images.npz", "there is no folder .*nowhere"),
        ("images.npz", "*.npz", "a pattern has no labels"),
        ("names.npz", "names.npz", "x, y: write them by numpy.savez"),
        ("one.npy", "one.npy", "one array has no labels; write both by numpy.savez"),
        ("model.onnx", "model.onnx", "the model goes to --model, images to --data"),
        ("table.parquet", "table.parquet", "or give a folder of images per class"),
    ],
)
def test_places_that_are_nearly_right(tmp_path: Path, make: str, text: str, hint: str) -> None:
    """A place that holds no labelled images is refused with what to do."""
    place = tmp_path / make
    if make.endswith("/"):
        place.mkdir()
    if make == "pictures/":
        for name in "ab":
            Image.new("L", (4, 4)).save(place / f"{name}.png")
    elif make == "classes/":
        for name in ("cat", "dog"):
            (place / name).mkdir()
    elif make == "other/":
        (place / "notes.txt").touch()
    elif make == "names.npz":
        np.savez(place, x=UINT8, y=LABELS)
    elif not make.endswith("/"):
        place.touch()
    with pytest.raises(DataError, match=hint):
        load_data(str(tmp_path / text))


def test_misspelt_data_sets_of_torchvision(tmp_path: Path) -> None:
    """The nearest name is told."""
    with pytest.raises(DataError, match="did you mean 'CIFAR10'"):
        load_data(f"torchvision:CIFR10:{tmp_path}")
