"""Tries of the red team, kept on disk: hours of attacks that were stopped go on where they were.

A try is one attack on one run of images. N images of the target, R of them in a try.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.arrays import read_arrays
from reluguard.detector.artifact import write_file
from reluguard.detector.images import Images
from reluguard.training.attacks import Attack
from reluguard.training.errors import DataError
from reluguard.training.harvest.rates import REMEDY
from reluguard.training.harvest.workspace import Workspace
from reluguard.training.progress import Progress
from reluguard.training.red_team.target import Scores, Target

__all__ = ["Tries"]

AT_ONCE = 48  # images of a try: lost at most when the process dies


class Tries:
    """Makes tries, or finds them.

    Args:
        target: what is attacked.
        folder: where they are kept.
        told: what answers the black box, if not the guard in this process.
        progress: advanced by every image tried or found.

    Raises:
        DataError: the folder holds tries at another guard, or on other images.
    """

    def __init__(self, target: Target, folder: Path, told: str, progress: Progress) -> None:
        self._target, self._folder, self._progress = target, folder, progress
        images = hashlib.sha256(np.ascontiguousarray(target.images).data).hexdigest()
        plan: dict[str, Any] = {
            "model": target.guard.artifact.manifest.model_sha256,
            "guard": _digest(target.guard.artifact.head.to_arrays()),
            "data": target.data,
            "images": images,
            "thresholds": dict(target.thresholds),
            "black box": told,
            "seed": target.seed,
        }
        second = target.guard.artifact.second
        if second is not None and target.procedure.looks != "first":
            plan["looks"] = target.procedure.looks
            plan["second look"] = _digest(second.to_arrays())
        if target.known:
            plan["the attacker's guard"] = target.known
        Workspace(folder, plan)

    def fool(
        self, attack: Attack, rows: NDArray[np.int64]
    ) -> tuple[Scores, Images, NDArray[np.int64] | None]:
        """Return scores (R,), infinite where the answer is right, images and queries (R,)."""
        parts = [
            self._one(attack, rows[start : start + AT_ONCE])
            for start in range(0, len(rows), AT_ONCE)
        ]
        if not parts:
            return np.zeros(0, np.float32), self._target.images[:0], None
        counts = [part["queries"] for part in parts if "queries" in part]
        scores = np.concatenate([part["scores"] for part in parts])
        images = np.concatenate([part["images"] for part in parts])
        return scores, images, np.concatenate(counts) if counts else None

    def _one(self, attack: Attack, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        key = json.dumps([repr(attack), rows.tolist()])
        name = hashlib.sha256(key.encode()).hexdigest()[:24]
        file = self._folder / attack.name / f"{name}.npz"
        if not file.is_file():
            scores, images, queries = self._target.fool(attack, rows)
            arrays: dict[str, NDArray[Any]] = {"scores": scores, "images": images}
            write_file(file, npz=arrays if queries is None else arrays | {"queries": queries})
        self._progress.advance(len(rows))
        return read_arrays(
            file,
            "scores",
            "images",
            optional=("queries",),
            error=DataError,
            what="a kept try",
            remedy=REMEDY,
        )


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return what tells one guard's scores from another's: figures published since don't count."""
    content = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        content.update(name.encode() + np.ascontiguousarray(value).tobytes())
    return content.hexdigest()
