"""Data sets of other libraries give the same pixels as arrays do, or say why not."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from reluguard.detector.pixels.pipeline import Pipeline, Resize
from reluguard.training.data.dataset import Dataset
from reluguard.training.data.given import ARRAYS, Data, given_data
from reluguard.training.data.reading import Reading
from reluguard.training.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 5, 6, 3), dtype=np.uint8)
LABELS = np.arange(12) % 4
WANTED = Dataset(images=IMAGES, labels=LABELS, source="here")


class Pictures(TorchDataset[Any]):
    """PIL pictures with labels, through a transform."""

    def __init__(self, transform: Any = lambda picture: picture) -> None:
        self._transform = transform

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return a picture and its label."""
        return self._transform(Image.fromarray(IMAGES[index])), int(LABELS[index])


class Stream(IterableDataset[Any]):
    """The same, one after another."""

    def __iter__(self) -> Iterator[Any]:
        return iter([Pictures()[i] for i in range(len(IMAGES))])


class Fake:
    """Rows by name, as Hugging Face's data sets look."""

    def __init__(self, rows: list[dict[str, Any]], features: dict[str, Any]) -> None:
        self._rows, self.features, self.column_names = rows, features, list(features)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """Do what torchvision's ToTensor does."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def normalised(picture: Image.Image) -> torch.Tensor:
    """Do what Normalize does after it."""
    return (to_tensor(picture) - 0.5) / 0.25


def halved(picture: Image.Image) -> torch.Tensor:
    """Resize a tensor."""
    return torch.nn.functional.interpolate(
        to_tensor(picture)[None], (3, 3), mode="bilinear", antialias=True
    )[0]


def floats() -> torch.Tensor:
    """Return all images as ToTensor makes them."""
    return torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float() / 255


WAYS: dict[str, Data] = {
    "pictures": Pictures(),
    "ToTensor": Pictures(to_tensor),
    "in half precision": Pictures(lambda picture: to_tensor(picture).half()),
    "uint8 tensors": Pictures(lambda picture: torch.from_numpy(np.array(picture)).permute(2, 0, 1)),
    "arrays": Pictures(np.asarray),
    "stream": Stream(),
    "list": [Pictures()[i] for i in range(len(IMAGES))],
    "loader": DataLoader(Pictures(to_tensor), batch_size=5),
    "shuffling loader": DataLoader(Pictures(to_tensor), batch_size=5, shuffle=True),
    "tensors": (floats(), torch.from_numpy(LABELS)),
    "tensor data set": TensorDataset(floats(), torch.from_numpy(LABELS)),
    "pixels as floats": TensorDataset(floats() * 255, torch.from_numpy(LABELS)),
    "by name": [{"img": IMAGES[i], "label": LABELS[i]} for i in range(len(IMAGES))],
}


@pytest.mark.parametrize("name", WAYS)
def test_every_way_gives_the_same_data_set(name: str) -> None:
    """One digest, so that a guard knows the images it was fitted on again."""
    found = given_data(WAYS[name])
    assert found.digest == WANTED.digest
    assert found.source == ARRAYS


def test_pictures_go_the_way_of_files() -> None:
    """Those of another size than the model's are resized as files are, by the guard's pipeline."""
    resize = Resize(height=4, width=4)
    reading = Reading(files=Pipeline(resize=resize), size=(4, 4), channels=3)
    wanted = [resize.apply(image, max_pixels=1000) for image in IMAGES]
    np.testing.assert_array_equal(given_data(Pictures(), reading).images, wanted)
    np.testing.assert_array_equal(given_data(Pictures(to_tensor), reading).images, wanted)


def test_black_and_white_is_told_by_the_others() -> None:
    """Zeros and ones are shares of white, unless other images have pixels up to 255."""
    plain = torch.zeros(2, 1, 3, 3)
    plain[0, 0, 0, 0] = 1
    assert given_data((plain, np.array([0, 1]))).images.max() == 255
    plain[1] = 7
    assert given_data((plain, np.array([0, 1]))).images[0].max() == 1


def test_grey_pictures_among_colours_become_colours() -> None:
    """All have the channels of the widest."""
    grey = Image.fromarray(IMAGES[0, :, :, 0])
    found = given_data([(grey, 0), (Image.fromarray(IMAGES[1]), 1)]).images
    assert found.shape == (2, 5, 6, 3)
    assert (found[0] == IMAGES[0, :, :, :1]).all()
    assert given_data([(grey, 0)]).images.shape == (1, 5, 6, 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            Pictures(normalised),
            r"image 0 has -2 to 1\.\d+: it was normalised\. Give images as they",
        ),
        (Pictures(halved), r"values of image 0, .* lie between them, as resizing .* tensors"),
        ([(IMAGES[0], 0), (IMAGES[1, :4], 0)], r"image 0 has 5 x 6 and image 1 4 x 6"),
        ([(IMAGES[0], 0.5)], r"whole number as the label of image 0, got float64"),
        ([IMAGES[0]], r"rows of an image and its label, or with both by name, got ndarray"),
        ([{"photo": IMAGES[0], "label": 0}], r"for the image, got photo, label: rename it"),
        ([("a.png", 0)], r"expected an image, got str of shape \(\)"),
        ([], "got none from"),
        ({"train": [], "test": []}, "several: train, test; give one of them"),
        (
            [(torch.full((1, 2, 2), 0.2), 0), (torch.full((1, 2, 2), 7.0), 0)],
            r"either in \[0, 1\] or in 0 to 255, image 0 has the one and image 1 the other",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_are_no_pixels_with_labels_is_said(data: Any, message: str) -> None:
    """Each in a sentence with what to do."""
    with pytest.raises(DataError, match=message):
        given_data(data)


class ClassLabel:
    """As `datasets.ClassLabel`, by its name."""


def test_rows_by_name_are_found_by_their_kind() -> None:
    """A column of labels may have any name, but only one may be such."""
    rows = [
        {"image": Image.fromarray(IMAGES[i]), "kind": int(LABELS[i])} for i in range(len(IMAGES))
    ]
    features = {"image": None, "kind": ClassLabel()}
    assert given_data(Fake(rows, features)).digest == WANTED.digest
    with pytest.raises(DataError, match="one column of labels, got kind, other: leave the others"):
        given_data(Fake(rows, features | {"other": ClassLabel()}))


@pytest.mark.slow
def test_hugging_face_data_sets_are_taken() -> None:
    """The library's own, files and pictures and a part of several, where it is installed."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed here")
    features = datasets.Features(
        {"photo": datasets.Image(), "kind": datasets.ClassLabel(names=list("abcd"))}
    )
    rows = {"photo": [Image.fromarray(image) for image in IMAGES], "kind": LABELS.tolist()}
    made = datasets.Dataset.from_dict(rows, features=features)
    assert given_data(made).digest == WANTED.digest
    assert given_data(made.to_iterable_dataset()).digest == WANTED.digest
    shares = made.with_transform(
        lambda rows: {
            "image": [to_tensor(one) for one in rows["photo"]],
            "label": rows["kind"],
        }
    )
    with pytest.raises(DataError, match="train, test; give one"):
        given_data(datasets.DatasetDict(train=made, test=made))
    assert given_data(DataLoader(shares, batch_size=4)).digest == WANTED.digest
