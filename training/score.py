"""Offline verdicts on a data set, from the same compiled graph that serves. N images, L taps."""

from pathlib import Path

import numpy as np

from reluguard.detector.artifact import write_file
from reluguard.detector.runtime import Guard
from reluguard.detector.verdict import Verdicts
from reluguard.training.data.given import Data, given_data
from reluguard.training.data.reading import Reading
from reluguard.training.progress import Progress

__all__ = ["score_data"]

BATCH = 64


def score_data(
    model: Path, guard: Path, data: Data, out: Path, *, threads: int | None, progress: Progress
) -> dict[str, int]:
    """Write verdicts on every image to an npz and return how many were flagged.

    The arrays: `prediction` int64 (N,), `score` and `likelihood` float32 (N,), `p_value` float64
    (N,), `is_adversarial` bool (N,), `evidence` float32 (N, L), `labels` int64 (N,).

    Raises:
        DataError: the data can't be read.
        ImageError: the images are not of the model's size.
        GuardError: the guard can't be read or is not the model's.
    """
    opened = Guard.open(model, guard, threads=threads)
    dataset = given_data(data, Reading.of_guard(opened.artifact.manifest))
    progress.stage("score", len(dataset))
    parts: list[Verdicts] = []
    for start in range(0, len(dataset), BATCH):
        images = dataset.images[start : start + BATCH]
        parts.append(opened.inspect(images))
        progress.advance(len(images))
    names = ("prediction", "score", "likelihood", "p_value", "is_adversarial", "evidence")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    write_file(out, npz=arrays | {"labels": dataset.labels})
    flagged = int(arrays["is_adversarial"].sum())
    return {"images": len(dataset), "flagged": flagged}
