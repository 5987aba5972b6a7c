"""Which of the model's classes a folder of images is.

A guard remembers what `fit` was told or found out, so that every later command labels alike.

N images, K classes.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from reluguard.detector.artifact import Manifest
from reluguard.detector.errors import did_you_mean, near_path
from reluguard.detector.model import Production
from reluguard.detector.runtime import Guard
from reluguard.training.data.dataset import Dataset
from reluguard.training.data.given import Data, given_data
from reluguard.training.data.reading import Reading
from reluguard.training.errors import DataError

__all__ = [
    "Classes",
    "Known",
    "class_names",
    "guard_data",
    "known_classes",
    "names_kept",
    "with_classes",
]

Classes = Sequence[str] | Path | str
"""Names in the order of the model's outputs, a file of them, "alphabetical" or "numbers"."""

MOST_BYTES = 2**24
MOST_KEPT = 2**20  # letters of names that a guard keeps: its manifest may have four times that
_KEYS = ("names", "classes", "class_names", "labels", "id2label")
_WORDS = ("alphabetical", "numbers")
_NUMBER = re.compile(r"\d+")
_SYNSET = re.compile(r"^n\d{8}\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a guard knows of classes.

    Attributes:
        folders: the label of each folder it was fitted on.
        names: of all K classes in the order of the model's outputs; empty where it knows none.
    """

    folders: Mapping[str, int] = field(default_factory=dict)
    names: tuple[str, ...] = ()


def known_classes(manifest: Manifest) -> Known:
    """Return what a guard knows of classes; nothing where it was fitted on arrays."""
    data = manifest.provenance.get("data")
    if not isinstance(data, Mapping):
        return Known()
    folders, names = data.get("classes"), data.get("names")
    labelled = isinstance(folders, Mapping) and all(type(n) is int for n in folders.values())
    named = isinstance(names, list) and all(type(name) is str for name in names)
    return Known(
        folders=dict(folders) if labelled and isinstance(folders, Mapping) else {},
        names=tuple(names) if named and isinstance(names, list) else (),
    )


def names_kept(
    dataset: Dataset, production: Production, count: int, classes: Classes | None
) -> tuple[str, ...]:
    """Return the names of all classes for a guard to keep, none where they are not known.

    Args:
        dataset: images as `with_classes` gives them.
        production: the model.
        count: K, its classes.
        classes: what the user says of them.
    """
    if classes is not None and classes not in _WORDS:
        names = class_names(classes)
    else:
        names = _metadata_names(production, count)
        if not names and len(dataset.folders) == count:
            names = tuple(sorted(dataset.folders, key=dataset.folders.__getitem__))
    return names if sum(map(len, names)) <= MOST_KEPT else ()


def guard_data(data: Data, guard: Guard, classes: Classes | None = None) -> Dataset:
    """Return labelled images for a guard's model, read and labelled as when it was fitted.

    Args:
        data: as `given_data` takes it.
        guard: the guard.
        classes: what the user says of the folders; by default what the guard knows.

    Raises:
        DataError: they can't be read, or there is no telling which class a folder is.
    """
    manifest = guard.artifact.manifest
    dataset = given_data(data, Reading.of_guard(manifest))
    if not dataset.folders and classes is None:
        return dataset
    seen = guard.inspect(guard.artifact.golden.images[:1]).outputs[guard.answer]
    count = guard.class_scores(seen).shape[1]
    return with_classes(dataset, None, count, classes, known=known_classes(manifest))


def with_classes(
    dataset: Dataset,
    production: Production | None,
    count: int | None,
    classes: Classes | None,
    known: Known | None = None,
) -> Dataset:
    """Return the images with labels that are places among the model's outputs.

    Only a folder per class has names to go by; labels of arrays stay as they are. Without word from
    the user it is what the guard knows, then the names in the model's own metadata, then the
    alphabetical order where there are as many folders as classes, then numbers that folder names
    begin with.

    Args:
        dataset: N images.
        production: the model, for its metadata.
        count: K, its classes, where they are known.
        classes: what the user says of them.
        known: what the model's guard knows of them.

    Raises:
        DataError: there is no telling, or what the user says doesn't fit the folders.
    """
    if not dataset.folders:
        if classes is not None:
            raise DataError(f"expected a folder per class to name, {dataset.source} is none")
        return dataset
    folders = sorted(dataset.folders, key=dataset.folders.__getitem__)
    known = known or Known()
    if count is None:
        count = len(known.names) or max([len(folders) - 1, *known.folders.values()]) + 1
    names = known.names or (_metadata_names(production, count) if production else ())
    labels, words = _labels(folders, names, known.folders, count, classes)
    by_place = np.array([labels[name] for name in folders], np.int64)
    place = {label: i for i, label in enumerate(dataset.folders[name] for name in folders)}
    rows = np.array([place[int(label)] for label in dataset.labels])
    return replace(dataset, labels=by_place[rows], folders=labels, words=(*dataset.words, *words))


def _labels(
    folders: Sequence[str],
    names: Sequence[str],
    fitted: Mapping[str, int],
    count: int,
    classes: Classes | None,
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return each folder's label, and words on what was assumed."""
    if classes is not None:
        return _told(folders, count, classes), ()
    if set(folders) <= set(fitted):
        return {name: fitted[name] for name in folders}, ()
    own = _matched(folders, names)
    if len(own) == len(folders):
        return own, ()
    if len(folders) > count:
        raise DataError(
            f"expected at most {count} folders, one per class of the model, got {len(folders)}: "
            f"{_some(folders)}"
        )
    numbered = _numbered(folders, count)
    if len(folders) == count and not fitted:
        alphabetical = {name: place for place, name in enumerate(folders)}
        if numbered is None or numbered == alphabetical:
            return alphabetical, ()
        moved = next(name for name in folders if numbered[name] != alphabetical[name])
        word = (
            "folders are taken in alphabetical order, as torchvision's ImageFolder labels them: "
            f"{moved} is class {alphabetical[moved]}. If they are called by their class's number, "
            "give --classes numbers"
        )
        return alphabetical, (word,)
    if numbered is None:
        raise DataError(_no_telling(folders, names, fitted, count))
    first = folders[0]
    word = (
        f"folders are taken by the number they begin with: {first} is class {numbered[first]} of "
        f"{count}"
    )
    return numbered, (word,)


def _no_telling(
    folders: Sequence[str], names: Sequence[str], fitted: Mapping[str, int], count: int
) -> str:
    """Return why nothing is guessed, and what to say."""
    what = "folders"
    knows = ""
    if names or fitted:
        matched = _matched(folders, names)
        folders = [name for name in folders if name not in fitted and name not in matched]
        knows = f", where it knows {_some(names or sorted(fitted))}"
    elif all(_SYNSET.match(name) for name in folders):
        what = "WordNet's numbers of the folders"
    return (
        f"expected to know which of the model's {count} classes the {what} are: "
        f"{_some(folders)}{knows}. Give --classes FILE with the names of all {count} classes in "
        "the order of the model's outputs, or --classes alphabetical where the folders are its "
        "first classes in that order"
    )


def _told(folders: Sequence[str], count: int, classes: Classes) -> dict[str, int]:
    """Return each folder's label as the user says."""
    if classes == "alphabetical":
        return {name: place for place, name in enumerate(folders)}
    if classes == "numbers":
        numbered = _numbered(folders, count)
        if numbered is None:
            raise DataError(
                f"expected folders named by numbers below {count}, all different, got "
                f"{_some(folders)}"
            )
        return numbered
    names = class_names(classes)
    if len(names) != count:
        raise DataError(
            f"expected names of all {count} classes of the model, in the order of its outputs, got "
            f"{len(names)}"
        )
    found = _matched(folders, names)
    missing = [name for name in folders if name not in found]
    if missing:
        raise DataError(
            f"expected every folder among the {count} class names, not there: {_some(missing)}"
            f"{did_you_mean(missing[0], names)}"
        )
    return found


def _some(names: Sequence[str]) -> str:
    text = ", ".join(name.encode("utf-8", "replace").decode() for name in names[:3])
    return text + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _numbered(folders: Sequence[str], count: int) -> dict[str, int] | None:
    """Return the numbers that folder names begin with, None where they are no labels."""
    found = [_NUMBER.match(name) for name in folders]
    labels = [int(match[0]) for match in found if match is not None]
    if len(labels) < len(folders) or len(set(labels)) < len(labels) or max(labels) >= count:
        return None
    return dict(zip(folders, labels, strict=True))


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name.casefold()).strip()


def _matched(folders: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Return the places of the folders whose name is a class's, spelling of blanks aside.

    A class of several names, "tench, Tinca tinca", has each of them; so has "n01440764 tench".
    """
    exact: dict[str, int] = {}
    for place, name in enumerate(names):
        for spelled in (name, *name.split(","), *_SYNSET.findall(name)):
            exact.setdefault(_plain(spelled), place)
    found = {}
    for folder in folders:
        without = re.sub(r"^\d+[\s_.-]+", "", folder)
        for spelled in (folder, without, *_SYNSET.findall(folder)):
            if _plain(spelled) in exact:
                found[folder] = exact[_plain(spelled)]
                break
    return found if len(set(found.values())) == len(found) else {}


def class_names(classes: Classes) -> tuple[str, ...]:
    """Return names in the order of the model's outputs.

    Args:
        classes: the names; a text file of one a line; or a JSON file: a list, an object from index
            to name (or to a list of names, as Keras keeps ImageNet's), from name to index, or with
            one of these under `names`, `id2label` and the like, as Hugging Face's config.json.

    Raises:
        DataError: the file can't be read, or holds no names.
    """
    if isinstance(classes, Sequence) and not isinstance(classes, str):
        return tuple(classes)
    path = Path(classes)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"expected a file of class names, {path} is larger than 16 MiB")
        text = path.read_text(encoding="utf-8-sig")
        names = _from_json(json.loads(text)) if path.suffix == ".json" else _from_lines(text)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"expected a file of class names, {path} can't be read: {_why_unread(path, error)}"
        ) from error
    if not names:
        raise DataError(f"expected a file of class names, one a line or as JSON, {path} has none")
    return names


def _why_unread(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{error.strerror}{did_you_mean(str(path), _WORDS) or near_path(path)}"
    if isinstance(error, OSError):
        return str(error.strerror)
    if isinstance(error, UnicodeDecodeError):
        return "it is no text in UTF-8; save it as such"
    return f"it is no JSON, {error}"


def _from_lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _from_json(values: Any) -> tuple[str, ...]:
    if isinstance(values, Mapping):
        for key in _KEYS:
            if isinstance(values.get(key), (Mapping, list)):
                return _from_json(values[key])
        if all(isinstance(value, int) for value in values.values()):
            values = {place: name for name, place in values.items()}
        try:
            places = {int(place): name for place, name in values.items()}
        except ValueError:
            return ()
        if sorted(places) != list(range(len(places))):
            return ()
        values = [places[place] for place in range(len(places))]
    if not isinstance(values, list):
        return ()
    return tuple(
        " ".join(map(str, name)) if isinstance(name, list) else str(name) for name in values
    )


def _metadata_names(production: Production, count: int) -> tuple[str, ...]:
    """Return the class names that exporters leave in the model, none where they don't fit it."""
    for entry in production.proto.metadata_props:
        if entry.key not in _KEYS or len(entry.value) > MOST_BYTES:
            continue
        try:
            values = ast.literal_eval(entry.value)  # JSON of strings and numbers is Python as well
            values = dict(enumerate(values)) if isinstance(values, (list, tuple)) else values
            names = _from_json({str(k): v for k, v in values.items()})
        except (ValueError, SyntaxError, AttributeError, MemoryError, RecursionError):
            names = tuple(part.strip() for part in entry.value.split(","))
        if len(names) == count:
            return names
    return ()
