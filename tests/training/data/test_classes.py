"""Folders become the model's classes: by what is said, by its metadata, by number or by order."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reluguard.detector.model import Production, load_production
from reluguard.training.data.classes import Known, class_names, names_kept, with_classes
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


def test_folders_that_nothing_names_are_refused(production: Production) -> None:
    """Nothing is guessed: the message says what to give; who says so has the first classes."""
    with pytest.raises(DataError, match="of the model's 5 classes the folders are: cat, dog, sea"):
        with_classes(folders(*ANIMALS), production, 5, None)
    told = with_classes(folders(*ANIMALS), production, 5, "alphabetical")
    assert labelled(told) == [0, 1, 2]
    assert told.words == ()


def test_wordnet_numbers_need_a_file(production: Production) -> None:
    """Folders of ImageNet as it is shipped: names of a file, with or without more words in it."""
    data = folders("n01440764", "n02102040")
    with pytest.raises(DataError, match=r"WordNet's numbers .*Give --classes FILE"):
        with_classes(data, production, 4, None)
    names = ("n01443537 goldfish", "n02102040", "n01440764, tench", "n03000684 chain saw")
    assert labelled(with_classes(data, production, 4, names)) == [2, 1]


def test_numbers_out_of_order_get_a_word(production: Production) -> None:
    """Class 10 comes before 2 in alphabetical order: which was meant is said."""
    names = [str(n) for n in range(11)]
    data = with_classes(folders(*sorted(names)), production, 11, None)
    assert "10 is class 2" in data.words[0]
    assert with_classes(folders(*"012"), production, 3, None).words == ()
    told = with_classes(folders(*sorted(names)), production, 11, "numbers")
    assert labelled(told)[:4] == [0, 1, 10, 2]


def test_what_a_guard_knows_decides() -> None:
    """Its folders first, then its names; others are refused, and numbers are read."""
    known = Known(folders={"cat": 3, "dog": 1, "sea lion": 4})
    assert labelled(with_classes(folders("cat", "dog"), None, 5, None, known)) == [3, 1]
    with pytest.raises(DataError, match=r"are: bird, where it knows cat, dog, sea lion\. Give"):
        with_classes(folders("bird", "cat"), None, 5, None, known)
    named = replace(known, names=("bird", "dog", "elk", "cat", "sea lion"))
    assert labelled(with_classes(folders("bird", "Sea-Lion"), None, 5, None, named)) == [0, 4]
    assert labelled(with_classes(folders("cat", "dog"), None, 5, "alphabetical", named)) == [0, 1]
    numbered = Known(folders={"0000-tench": 0, "0217-dog": 217})
    assert labelled(with_classes(folders("0217-dog", "0005-ray"), None, 1000, None, numbered)) == [
        217,
        5,
    ]


def test_a_guard_keeps_the_names(production: Production, tmp_path: Path) -> None:
    """Of a file, or of as many folders as classes; numbers alone say nothing of the other names."""
    data = with_classes(folders(*ANIMALS), production, 3, None)
    assert names_kept(data, production, 3, None) == ANIMALS
    (tmp_path / "names.txt").write_text("cat\ndog\nelk\nsea lion\n")
    data = with_classes(folders(*ANIMALS), production, 4, tmp_path / "names.txt")
    kept = names_kept(data, production, 4, tmp_path / "names.txt")
    assert kept == ("cat", "dog", "elk", "sea lion")
    numbered = with_classes(folders("007-x", "009-y"), production, 1000, None)
    assert names_kept(numbered, production, 1000, None) == ()
    assert names_kept(data, production, 4, ("a" * 2**20, "b", "c", "d")) == ()


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
    """One a line, or any JSON that people keep, with a byte order mark or without."""
    for mark in ("", "\ufeff"):
        (tmp_path / name).write_text(mark + FILES[name], encoding="utf-8")
        assert class_names(tmp_path / name) == ANIMALS


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("names.txt", "zébra".encode("latin1"), "it is no text in UTF-8"),
        ("names.json", b'{"0": "cat"', "it is no JSON, Expecting"),
        ("nams.txt", None, r"No such file or directory; did you mean '.*names\.txt'"),
        ("..", None, "Is a directory"),
    ],
)
def test_a_file_of_names_that_can_not_be_read_says_why(
    name: str, content: bytes | None, why: str, tmp_path: Path
) -> None:
    """What is wrong with it comes with the refusal."""
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"can't be read: {why}"):
        class_names(tmp_path / name)


def test_a_misspelt_word_for_classes_is_told() -> None:
    """Who means a word gets no word on files alone."""
    with pytest.raises(DataError, match="did you mean 'alphabetical'"):
        class_names("alphabetic")


ERRORS: dict[str, tuple[tuple[str, ...], int, Any, str]] = {
    "many": (("a", "b", "c"), 2, None, "expected at most 2 folders, .* got 3: a, b, c"),
    "numbers": (("a", "b"), 3, "numbers", "expected folders named by numbers below 3"),
    "count": (("a", "b"), 3, ("a", "b"), "expected names of all 3 classes of the model, .* got 2"),
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
