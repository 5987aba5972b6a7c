"""What a harvest is asked for: which shards, and what goes into them. N images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.images import InputSpec
from reluguard.detector.taps import Tap
from reluguard.training.attacks import Attack
from reluguard.training.changes import Change
from reluguard.training.data.dataset import Dataset
from reluguard.training.harvest.readings import Kind

__all__ = ["SHARD_IMAGES", "Job", "Orders", "plan_jobs", "shard_images"]

SHARD_IMAGES = 256
LEAST_SHARD_IMAGES = 32
SHARD_VALUES = 256 * 3 * 32 * 32


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
class Orders:
    """All that making shards takes, small enough to hand to another process.

    Attributes:
        model: the production ONNX file.
        output: its output with the class scores.
        spec: how images go into it.
        taps: the gates to read.
        twin: where gradients come from, as `load_twin` takes it.
        dataset: the source images.
        changes: the attacks and benign changes by slug.
        workspace: the folder of shards.
        seed: of every random choice.
        threads: of ONNX Runtime and torch in each process.
        surrogates: other models of the same task and input, for attacks that transfer.
    """

    model: Path
    output: str
    spec: InputSpec
    taps: tuple[Tap, ...]
    twin: str
    dataset: Dataset
    changes: Mapping[str, Attack | Change]
    workspace: Path
    seed: int
    threads: int | None = None
    surrogates: tuple[Path, ...] = ()


def shard_images(shape: Sequence[int]) -> int:
    """Return how many images of a shape (H, W, C) a shard holds: of large ones fewer.

    So that workers end together, and people are told every minute or so how far it is.
    """
    return min(SHARD_IMAGES, max(LEAST_SHARD_IMAGES, SHARD_VALUES // int(np.prod(shape))))


def plan_jobs(
    slug: str,
    kind: Kind,
    splits: Mapping[str, NDArray[np.int64]],
    *,
    size: int = SHARD_IMAGES,
) -> list[Job]:
    """Return the shards of one slug over the source images of each split, so many in each."""
    return [
        Job(
            slug=slug,
            kind=kind,
            split=split,
            number=number,
            sources=sources[start : start + size],
        )
        for split, sources in splits.items()
        for number, start in enumerate(range(0, len(sources), size))
    ]
