"""Harvest: attack or change images, read them through the compiled graph, keep it in shards.

A shard is one attack on one run of source images; it is written aside and renamed, so that
whatever is there is whole and a fit that was killed goes on where it was. N images, D rates, K
classes.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from detector.artifact import write_file
from detector.images import Images
from detector.runtime import Reader
from training.errors import DataError
from training.fit import Kind, Readings

__all__ = ["SHARD_IMAGES", "Changed", "Job", "Shard", "Workspace", "harvest", "plan_jobs"]

SHARD_IMAGES = 256
_KEEP_IMAGE_BYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One shard to make: `slug` on these source images, in one split."""

    slug: str
    kind: Kind
    split: str
    number: int
    sources: NDArray[np.int64]

    @property
    def file(self) -> str:
        """Where the shard lies in the workspace."""
        return f"{self.slug}/{self.split}-{self.number:05d}.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What an attack or a benign change made of a run of images: images and success per image."""

    images: Images
    success: NDArray[np.bool_]


class Change(Protocol):
    """Makes other images of some."""

    def __call__(self, job: Job, images: Images, labels: NDArray[np.int64]) -> Changed:
        """Return as many images as came, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A shard read back. `images` is None where they were too large to keep."""

    images: Images | None
    sources: NDArray[np.int64]
    labels: NDArray[np.int64]
    success: NDArray[np.bool_]
    rates: NDArray[np.float16]
    logits: NDArray[np.float32]


class Workspace:
    """A folder of shards that belong to one plan: model, data, recipe and seed.

    Raises:
        DataError: the folder holds the work of another plan.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self.folder = folder
        text = json.dumps(plan, sort_keys=True, indent=2)
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        file = folder / "plan.json"
        if file.is_file():
            if file.read_text() != text:
                raise DataError(
                    f"{folder} holds the work of another model, data set, recipe or seed: "
                    "give another --work folder or remove that one"
                )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_file(file, text.encode())

    def has(self, job: Job) -> bool:
        """Whether the shard is there."""
        return (self.folder / job.file).is_file()

    def write(self, job: Job, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep a shard, whole or not at all."""
        write_file(self.folder / job.file, npz=arrays)

    def read(self, job: Job) -> Shard:
        """Return a shard.

        Raises:
            DataError: it is damaged.
        """
        file = self.folder / job.file
        try:
            with np.load(file, allow_pickle=False) as arrays:
                values = {name: arrays[name] for name in arrays.files}
            return Shard(**{"images": None, **values})
        except (OSError, ValueError, TypeError, EOFError) as error:
            raise DataError(f"the shard {file} is damaged: remove it to make it anew") from error

    def readings(self, jobs: Sequence[Job]) -> Readings:
        """Return what the jobs of one slug and split gave; of attacks, only the successes."""
        shards = [self.read(job) for job in jobs]
        first = jobs[0]
        joined = {
            name: np.concatenate([getattr(shard, name) for shard in shards])
            for name in ("rates", "logits", "sources", "labels")
        }
        readings = Readings(name=first.slug, kind=first.kind, **joined)
        if first.kind != "attack":
            return readings
        return readings.rows(np.concatenate([shard.success for shard in shards]))

    def images(self, jobs: Sequence[Job]) -> Iterator[Shard]:
        """Yield the shards of the jobs one by one."""
        return (self.read(job) for job in jobs)


def plan_jobs(slug: str, kind: Kind, splits: Mapping[str, NDArray[np.int64]]) -> list[Job]:
    """Return the shards of one slug over the source images of each split."""
    return [
        Job(
            slug=slug,
            kind=kind,
            split=split,
            number=number,
            sources=sources[start : start + SHARD_IMAGES],
        )
        for split, sources in splits.items()
        for number, start in enumerate(range(0, len(sources), SHARD_IMAGES))
    ]


def harvest(
    jobs: Sequence[Job],
    *,
    workspace: Workspace,
    images: Images,
    labels: NDArray[np.int64],
    change: Change,
    reader: Reader,
    progress: Callable[[Job], None] = lambda _: None,
) -> None:
    """Make every shard that isn't there yet. Memory is that of one shard.

    Args:
        jobs: the shards.
        workspace: where they go.
        images: uint8, (N, H, W, C). All source images.
        labels: int64, (N,).
        change: makes a job's images.
        reader: reads them through the compiled graph.
        progress: called after each job, done or found.
    """
    for job in jobs:
        if not workspace.has(job):
            _make(job, workspace, images, labels, change, reader)
        progress(job)


def _make(
    job: Job,
    workspace: Workspace,
    images: Images,
    labels: NDArray[np.int64],
    change: Change,
    reader: Reader,
) -> None:
    mine = labels[job.sources]
    changed = change(job, images[job.sources], mine)
    rates, logits = reader.read(changed.images)
    arrays = {
        "sources": job.sources,
        "labels": mine,
        "success": changed.success,
        "rates": rates.astype(np.float16),
        "logits": logits,
    }
    if changed.images[0].nbytes <= _KEEP_IMAGE_BYTES:
        arrays["images"] = changed.images
    workspace.write(job, arrays)
