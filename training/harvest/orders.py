"""What a harvest is asked for: which shards, and what goes into them. N images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.images import InputSpec
from reluguard.detector.taps import Tap
from reluguard.training.attacks import Attack
from reluguard.training.changes import Change
from reluguard.training.composed import composed_name
from reluguard.training.data.dataset import Dataset
from reluguard.training.harvest.readings import Kind
from reluguard.training.looks.choice import Second

__all__ = [
    "SHARD_IMAGES",
    "Job",
    "Orders",
    "composed_jobs",
    "of_a_worker",
    "plan_jobs",
    "shard_images",
    "with_changes",
]

SHARD_IMAGES = 256
LEAST_SHARD_IMAGES = 32
SHARD_VALUES = 256 * 3 * 32 * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One shard to make: `slug` on these source images, in one split.

    `then` are shards of what its images, attacked, go through afterwards: some of its sources each.
    Of these a success is answered wrong still; where it is `caused` by the attack, the change alone
    leaves the clean image's answer as it was.
    """

    slug: str
    kind: Kind
    split: str
    number: int
    sources: NDArray[np.int64]
    then: tuple["Job", ...] = ()
    caused: bool = False

    @property
    def file(self) -> str:
        """Where the shard lies in the workspace."""
        return f"{self.slug}/{self.split}-{self.number:05d}.npz"

    def is_made(self, workspace: Path) -> bool:
        """Return whether the shard lies there, and those of what comes afterwards."""
        return all((workspace / job.file).is_file() for job in (self, *self.then))


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
        changes: the attacks and benign changes by slug; of a composed one, what comes afterwards.
        workspace: the folder of shards.
        seed: of every random choice.
        threads: of ONNX Runtime and torch in each process.
        surrogates: other models of the same task and input, for attacks that transfer.
        second: who looks again; every image is read a second time.
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
    second: Second | None = None


def of_a_worker(orders: Orders) -> Orders:
    """Return the orders of a worker that shares the machine with others: one thread by default."""
    return replace(orders, threads=orders.threads or 1)


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


def with_changes(
    jobs: Sequence[Job], changes: Mapping[str, float], *, seed: int, caused: bool = False
) -> list[Job]:
    """Return the shards of an attack, and with each those of what its images go through then.

    Args:
        jobs: of one attack.
        changes: harmless changes by name, and the share of the attacked images that each is made
            of, in (0, 1]: at least one image of a shard.
        seed: of which images.
        caused: whether a change that would flip the answer alone makes no success.
    """
    found = []
    for job in jobs:
        then = []
        for name, share in changes.items():
            entropy = [seed, job.number, *f"{job.split} {name}".encode()]
            order = np.random.default_rng(entropy).permutation(len(job.sources))
            chosen = np.sort(order[: max(1, round(share * len(order)))])
            slug = composed_name(job.slug, name)
            then.append(replace(job, slug=slug, sources=job.sources[chosen], caused=caused))
        found.append(replace(job, then=tuple(then)))
    return found


def composed_jobs(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """Return the shards of what attacked images went through then, by slug."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        for later in job.then:
            found.setdefault(later.slug, []).append(later)
    return found
