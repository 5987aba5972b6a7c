"""Offline verdicts, from the same compiled graph that serves. N images, L taps."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import check_out, write_file
from reluguard.detector.images import Images
from reluguard.detector.looks.judging import Looks
from reluguard.detector.runtime import Guard
from reluguard.detector.verdict import Verdicts, columns_of
from reluguard.training.data.case import chunk_of_values
from reluguard.training.data.classes import Classes, guard_data
from reluguard.training.data.dataset import Dataset
from reluguard.training.data.folder import Folder, left_out_words, text_of
from reluguard.training.data.given import Data
from reluguard.training.data.pictures import Pictures, find_pictures
from reluguard.training.data.reading import Reading
from reluguard.training.models.of_guard import guard_model
from reluguard.training.models.opened import ModelOrNone
from reluguard.training.progress import HowTold, Progress, progress_of
from reluguard.training.tables import as_bytes, format_of

__all__ = ["score", "score_data", "summary_of"]


def score(
    model: ModelOrNone,
    guard: Path | str,
    data: Data,
    *,
    classes: Classes | None = None,
    weights: Path | str | None = None,
    looks: Looks | None = None,
    second_model: Path | str | None = None,
    threads: int | None = None,
    progress: HowTold = None,
) -> dict[str, NDArray[Any]]:
    """Return verdicts on every image as columns, in the order of the images.

    `file` str (N,), where images came from files; `labels` int64 (N,), where they have any;
    `prediction` int64 (N,), `score` and `likelihood` float32 (N,), `p_value` float64 (N,),
    `is_adversarial` and `unscored` bool (N,), `evidence` float32 (N, L). Of a guard that looks
    again also `look` uint8 (N,), which look decided, and `first_score` float32 and
    `first_p_value` float64, (N,).

    Args:
        model: the production ONNX file; None for the export that `fit` put beside the guard; or
            what `fit` was given: then that export is used, once it is clear that both answer alike.
        guard: the guard's folder.
        data: labelled images, as `fit` takes them; or pictures without labels: a file of an image,
            a pattern like `photos/**/*.jpg`, or a folder that holds images itself.
        classes: which class each folder of images is; by default what the guard knows.
        weights: of a network by name, as `fit` takes them.
        looks: when a second look is taken; by default at what is suspicious, if the guard can.
        second_model: the network that looks again, of a guard fitted with one.
        threads: of ONNX Runtime.
        progress: told of each batch: a `Progress`, or a function that takes a `Step`.

    Raises:
        DataError: the data can't be read, or there is no telling which class a folder is.
        ImageError: the images are not of the model's size.
        GuardError: the guard can't be read or is not the model's.
    """
    progress = progress_of(progress)
    file = guard_model(model, guard, weights=weights)
    opened = Guard.open(file, guard, threads=threads, looks=looks, second_model=second_model)
    spec = opened.spec
    batch = chunk_of_values(spec.height * spec.width * spec.channels)
    loose = find_pictures(str(data)) if isinstance(data, (str, Path)) else None
    columns: dict[str, NDArray[Any]] = {}
    if loose is not None and isinstance(data, (str, Path)):
        pictures = Pictures(loose, Reading.of_guard(opened.artifact.manifest))
        columns["file"] = np.array(pictures.names)
        for word in left_out_words(Path(data).iterdir()) if Path(data).is_dir() else ():
            progress.say(word)
        batches, count = pictures.batches(batch), len(pictures)
    else:
        dataset = guard_data(data, opened, classes)
        for word in dataset.words:
            progress.say(word)
        if dataset.folders and isinstance(data, (str, Path)):
            columns["file"] = np.array([text_of(file) for file, _ in Folder(Path(data)).files])
        columns["labels"] = dataset.labels
        batches, count = _batches(dataset, batch), len(dataset)
    progress.stage("score", count)
    parts: list[Verdicts] = []
    for images in batches:
        parts.append(opened.inspect(images))
        progress.advance(len(images))
    found = [columns_of(part) for part in parts]
    return columns | {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def score_data(
    model: ModelOrNone,
    guard: Path,
    data: Data,
    out: Path,
    *,
    classes: Classes | None = None,
    weights: Path | str | None = None,
    looks: Looks | None = None,
    second_model: Path | None = None,
    threads: int | None,
    progress: Progress,
) -> dict[str, int]:
    """Write verdicts on every image to a file and return how many were flagged.

    Args:
        model: the production ONNX file; None for the export that `fit` put beside the guard; or
            what `fit` was given: then that export is used, once it is clear that both answer alike.
        guard: the guard's folder.
        data: as `score` takes it.
        out: the file: .npz, .csv, .jsonl or .parquet; what stands in it is what `score` returns.
        classes: which class each folder of images is; by default what the guard knows.
        weights: of a network by name, as `fit` takes them.
        looks: when a second look is taken; by default at what is suspicious, if the guard can.
        second_model: the network that looks again, of a guard fitted with one.
        threads: of ONNX Runtime.
        progress: told of each batch: a `Progress`, or a function that takes a `Step`.

    Raises:
        SettingsError: the file's name ends in none of these.
        DataError: the data can't be read, or there is no telling which class a folder is.
        ImageError: the images are not of the model's size.
        GuardError: the guard can't be read or is not the model's.
    """
    _check_kind(out)
    places = [place for place in (model, data, classes) if isinstance(place, (str, Path))]
    check_out(out, guard, second_model, *places)
    columns = score(
        model,
        guard,
        data,
        classes=classes,
        weights=weights,
        looks=looks,
        second_model=second_model,
        threads=threads,
        progress=progress,
    )
    _write(columns, out)
    return summary_of(columns)


def _write(columns: dict[str, NDArray[Any]], out: Path) -> None:
    kind = format_of(out.name)
    if kind == "npz":
        write_file(out, npz=columns)
    else:
        write_file(out, as_bytes(columns, kind))


def _check_kind(out: Path) -> None:
    """Raise SettingsError where a file can't be written in the end, before hours of work.

    Its name must end in .npz, .csv, .jsonl or .parquet, and the last needs pandas and pyarrow.
    """
    if format_of(out.name) == "parquet":
        as_bytes({"prediction": np.zeros(1, np.int64)}, "parquet")


def summary_of(columns: dict[str, NDArray[Any]]) -> dict[str, int]:
    """Return how many images there were, were flagged, and were looked at again if any could be."""
    flagged = columns["is_adversarial"]
    summary = {"images": len(flagged), "flagged": int(flagged.sum())}
    if "look" in columns:
        summary["looked_again"] = int((columns["look"] == 2).sum())
    return summary


def _batches(dataset: Dataset, size: int) -> Iterator[Images]:
    for start in range(0, len(dataset), size):
        yield dataset.images[start : start + size]
        dataset.release()
