"""Offline verdicts on a data set, from the same compiled graph that serves. N images, L taps."""

from pathlib import Path

import numpy as np

from reluguard.detector.artifact import write_file
from reluguard.detector.looks.judging import Looks
from reluguard.detector.runtime import Guard
from reluguard.detector.verdict import Verdicts
from reluguard.training.data.classes import Classes, guard_data
from reluguard.training.data.given import Data
from reluguard.training.progress import Progress

__all__ = ["score_data"]

BATCH = 64


def score_data(
    model: Path,
    guard: Path,
    data: Data,
    out: Path,
    *,
    classes: Classes | None = None,
    looks: Looks | None = None,
    second_model: Path | None = None,
    threads: int | None,
    progress: Progress,
) -> dict[str, int]:
    """Write verdicts on every image to an npz and return how many were flagged.

    The arrays: `prediction` int64 (N,), `score` and `likelihood` float32 (N,), `p_value` float64
    (N,), `is_adversarial` bool (N,), `evidence` float32 (N, L), `labels` int64 (N,). Of a guard
    that looks again also `look` uint8 (N,), which look decided, and `first_score` float32 and
    `first_p_value` float64, (N,).

    Args:
        model: the production ONNX file.
        guard: the guard's folder.
        data: labelled images, as `fit` takes them.
        out: the file.
        classes: which class each folder of images is; by default what the guard knows.
        looks: when a second look is taken; by default at what is suspicious, if the guard can.
        second_model: the network that looks again, of a guard fitted with one.
        threads: of ONNX Runtime.
        progress: told of each batch.

    Raises:
        DataError: the data can't be read, or there is no telling which class a folder is.
        ImageError: the images are not of the model's size.
        GuardError: the guard can't be read or is not the model's.
    """
    opened = Guard.open(model, guard, threads=threads, looks=looks, second_model=second_model)
    dataset = guard_data(data, opened, classes)
    for word in dataset.words:
        progress.say(word)
    progress.stage("score", len(dataset))
    parts: list[Verdicts] = []
    for start in range(0, len(dataset), BATCH):
        images = dataset.images[start : start + BATCH]
        parts.append(opened.inspect(images))
        progress.advance(len(images))
    names = ("prediction", "score", "likelihood", "p_value", "is_adversarial", "evidence")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    first = [part.first for part in parts if part.first is not None]
    if first:
        arrays["look"] = np.concatenate([part.look for part in parts])
        arrays["first_score"] = np.concatenate([one.score for one in first])
        arrays["first_p_value"] = np.concatenate([one.p_value for one in first])
    write_file(out, npz=arrays | {"labels": dataset.labels})
    flagged = int(arrays["is_adversarial"].sum())
    summary = {"images": len(dataset), "flagged": flagged}
    if first:
        summary["looked_again"] = int((arrays["look"] == 2).sum())
    return summary
