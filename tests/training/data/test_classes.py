"""Folders become the model's classes: by what is said, by its metadata, by number or by order."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reluguard.detector.model import Production, load_production
from reluguard.training.data.classes import class_names, with_classes
from reluguard.training.data.dataset import Dataset
from reluguard.training.errors import DataError

ANIMALS = ("cat", "dog", "sea lion")


@pytest.fixture
def production(digits_model: Path) -> Production:
    return load_production(digits_model)


def folders(*names: str) -> Dataset:
    labels = np.repeat(np.arange(len(names)), 2)
    images = np.zeros((len(labels), 8, 8, 1), np.uint8)
    known = {name: place for place, name in enumerate(names)}
    return Dataset(images=images, labels=labels, source="folder", folders=known)


def labelled(data: Dataset) -> list[int]:
    found: list[int] = data.labels[::2].tolist()
    return found


def test_the_users_names_decide(production: Production) -> None:
    """Blanks, case and a number in front may differ; a class may have several names."""
    names = ("sea lion, Zalophus", "Dog", "n02123045 tabby", "cat")
    data = folders("003-cat", "dog", "n02123045", "sea_lion")
    assert labelled(with_classes(data, production, 4, names)) == [3, 1, 2, 0]


def test_the_models_own_names_decide(production: Production) -> None:
    """What exporters leave in the metadata is read."""
    entry = production.proto.metadata_props.add()
    entry.key, entry.value = "names", "{0: 'dog', 1: 'sea lion', 2: 'cat'}"
    data = with_classes(folders(*ANIMALS), production, 3, None)
    assert labelled(data) == [2, 0, 1]
    assert data.folders == {"cat": 2, "dog": 0, "sea lion": 1}


def test_as_many_folders_as_classes_are_in_order(production: Production) -> None:
    """As torchvision's ImageFolder labels them."""
    data = with_classes(folders(*ANIMALS), production, 3, None)
    assert labelled(data) == [0, 1, 2]
    assert data.words == ()


def test_fewer_folders_with_numbers_are_what_they_say(production: Production) -> None:
    """Some of a model's thousand classes, named by their index."""
    data = with_classes(folders("0482-tape", "0574-ball", "7"), production, 1000, None)
    assert labelled(data) == [482, 574, 7]
    assert "0482-tape is class 482 of 1000" in data.words[0]


def test_fewer_folders_without_a_clue_get_a_word(production: Production) -> None:
    """The first classes are assumed, and people are told."""
    data = with_classes(folders(*ANIMALS), production, 5, None)
    assert labelled(data) == [0, 1, 2]
    assert "3 folders and 5 classes" in data.words[0]
    assert with_classes(folders(*ANIMALS), production, 5, "alphabetical").words == ()


FILES: dict[str, Any] = {
    "names.txt": "cat\ndog\n\nsea lion\n",
    "list.json": json.dumps(ANIMALS),
    "index.json": json.dumps({"0": "cat", "1": "dog", "2": "sea lion"}),
    "name.json": json.dumps({"dog": 1, "cat": 0, "sea lion": 2}),
    "config.json": json.dumps(
        {"model": "x", "id2label": {"0": "cat", "1": "dog", "2": "sea lion"}}
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_names_are_read(name: str, tmp_path: Path) -> None:
    """One a line, or any JSON that people keep."""
    (tmp_path / name).write_text(FILES[name])
    assert class_names(tmp_path / name) == ANIMALS


ERRORS: dict[str, tuple[tuple[str, ...], int, Any, str]] = {
    "many": (("a", "b", "c"), 2, None, "expected at most 2 folders, .* got 3: a, b, c"),
    "numbers": (("a", "b"), 3, "numbers", "expected folders named by numbers below 3"),
    "count": (("a", "b"), 3, ("a", "b"), "expected names of the model's 3 classes, got 2"),
    "names": (("a", "b"), 3, ("a", "c", "d"), "among the 3 class names, not there: "),
    "file": (("a", "b"), 3, "missing.txt", "expected a file of class names"),
}


@pytest.mark.parametrize(("names", "count", "classes", "message"), ERRORS.values(), ids=ERRORS)
def test_what_does_not_fit_is_refused(
    names: tuple[str, ...], count: int, classes: Any, message: str, production: Production
) -> None:
    """The message says what was expected and what came."""
    with pytest.raises(DataError, match=message):
        with_classes(folders(*names), production, count, classes)


def test_arrays_have_labels_already(production: Production) -> None:
    """There is nothing to name where there is no folder."""
    data = Dataset(images=np.zeros((2, 8, 8, 1), np.uint8), labels=np.arange(2), source="arrays")
    assert with_classes(data, production, 2, None) is data
    with pytest.raises(DataError, match="expected a folder per class to name, arrays is none"):
        with_classes(data, production, 2, ANIMALS)
