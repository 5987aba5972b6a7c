"""What earlier fits left on disk: the harvest of a guard, read back without its images.

A guard's manifest says what it was fitted on; its work folder holds the readings. Retraining adds
shards under `added/` and lists them in the new guard's manifest. N images, D rates.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.lock import hold
from reluguard.training.errors import DataError
from reluguard.training.harvest.orders import Job
from reluguard.training.harvest.rates import SHARD
from reluguard.training.harvest.readings import CLEAN, Readings
from reluguard.training.harvest.workspace import (
    Workspace,
    read_plan,
    read_shard,
    work_folder,
)
from reluguard.training.head.fit import HeadSettings
from reluguard.training.provenance import Added, Kind, origin_of, provenance_of

__all__ = ["Kept", "hold_kept", "open_kept"]

WEIGHT = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The readings of a guard by group and split."""

    workspace: Workspace
    jobs: Mapping[str, tuple[Job, ...]]
    weights: Mapping[str, float]
    added: tuple[Added, ...]
    head: HeadSettings

    def split(self, split: str) -> dict[str, list[Job]]:
        """Return the shards of one split by group."""
        found = {n: [job for job in made if job.split == split] for n, made in self.jobs.items()}
        return {name: made for name, made in found.items() if made}

    def groups(self, split: str) -> list[Readings]:
        """Return the readings of one split, named and weighted; of attacks, the successes."""
        return [
            replace(self.workspace.readings(made), name=name, weight=self.weights.get(name, WEIGHT))
            for name, made in self.split(split).items()
        ]

    def weight_of(self, kind: Kind) -> float:
        """Return what all groups of a kind weigh together."""
        return sum(
            self.weights.get(n, WEIGHT) for n, made in self.jobs.items() if made[0].kind == kind
        )

    def row_weight(self, kind: Kind) -> float:
        """Return what a row of a kind that is fitted on weighs on average, infinite without any."""
        groups = {n: made for n, made in self.split("fit").items() if made[0].kind == kind}
        rows = sum(len(job.sources) for made in groups.values() for job in made)
        weight = sum(self.weights.get(name, WEIGHT) for name in groups)
        return weight / rows if rows else math.inf

    def with_added(self, added: Sequence[Added]) -> "Kept":
        """Return the same with these groups, whose shards are on disk."""
        jobs = {a.name: _jobs(self.workspace.folder, a.slug, a.kind) for a in added}
        return replace(
            self,
            jobs={**self.jobs, **jobs},
            weights={**self.weights, **{a.name: a.weight for a in added}},
            added=(*self.added, *added),
        )


def open_kept(artifact: GuardArtifact, work: Path | None = None) -> Kept:
    """Return a guard's harvest.

    Args:
        artifact: the guard.
        work: its work folder; by default the one its manifest names, or GUARD.work beside it.

    Raises:
        DataError: it isn't there, belongs to another guard, or the guard does not say how it was
            fitted.
    """
    known, origin = provenance_of(artifact.manifest), origin_of(artifact)
    folder = work or _folder(artifact)
    plan = _plan(artifact, folder)
    same = (plan.get("model"), plan.get("data"), plan.get("seed")) == (
        artifact.manifest.model_sha256,
        origin.data.sha256,
        origin.seed,
    )
    if not same:
        raise DataError(f"{folder} holds the work of another model, data set or seed")
    jobs = {slug: _jobs(folder, slug, kind) for slug, kind in origin.recipe.kinds.items()}
    workspace = Workspace(folder, plan)
    workspace.columns = known.columns_read
    kept = Kept(
        workspace=workspace,
        jobs={slug: made for slug, made in jobs.items() if made},
        weights=origin.recipe.weights,
        added=(),
        head=HeadSettings(**origin.recipe.head),
    ).with_added(known.added)
    clean = kept.split("fit").get(CLEAN)
    if not clean:
        raise DataError(f"expected clean readings to fit on in {folder}, found none")
    rates = kept.workspace.readings(clean[:1]).rates.shape[1]
    expected = sum(tap.rates for tap in artifact.manifest.taps)
    if rates != expected:
        raise DataError(f"expected readings of {expected} rates in {folder}, got {rates}")
    return kept


@contextmanager
def hold_kept(artifact: GuardArtifact, work: Path | None = None) -> Iterator[None]:
    """Keep other processes from adding to a guard's harvest until the block ends.

    Args:
        artifact: the guard.
        work: its work folder, as `open_kept` takes it.

    Raises:
        DataError: it isn't there.
        HeldError: another process works in it.
    """
    folder = work or _folder(artifact)
    _plan(artifact, folder)
    with hold(folder):
        yield


def _plan(artifact: GuardArtifact, folder: Path) -> dict[str, Any]:
    """Return what the harvest in a folder was made from."""
    plan = read_plan(folder)
    if plan is None:
        raise DataError(
            f"expected the harvest of {artifact.path} in {folder}: give its --work folder"
        )
    return plan


def _folder(artifact: GuardArtifact) -> Path:
    """Return where the harvest lies: as the manifest says, or beside the guard if both moved."""
    beside = work_folder(artifact.path)
    named = provenance_of(artifact.manifest).work
    if named is None or (not Path(named).is_dir() and beside.is_dir()):
        return beside
    return Path(named)


def _jobs(folder: Path, slug: str, kind: Kind) -> tuple[Job, ...]:
    """Return the shards there are. `sources` is what each holds."""
    found = []
    for file in sorted((folder / slug).glob("*-*.npz")):
        split, _, number = file.stem.partition("-")
        if not number.isdecimal():
            raise DataError(f"expected {SHARD} named SPLIT-NUMBER.npz, {file} is none: remove it")
        sources = read_shard(file, "sources")["sources"]
        found.append(Job(slug=slug, kind=kind, split=split, number=int(number), sources=sources))
    return tuple(found)
