"""A folder of shards: what a harvest left on disk, read back. N images, D rates, K classes."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.arrays import DAMAGE, find_place, read_arrays
from reluguard.detector.artifact import write_file
from reluguard.detector.images import Images
from reluguard.training.errors import DataError
from reluguard.training.harvest.orders import Job
from reluguard.training.harvest.rates import REMEDY, SHARD, StoredRates, decode
from reluguard.training.harvest.readings import Readings

__all__ = [
    "ADDED",
    "PLAN",
    "SECOND",
    "Again",
    "Shard",
    "Workspace",
    "column_runs",
    "read_plan",
    "read_shard",
    "work_folder",
]

PLAN = "plan.json"
SECOND = "second_"  # what arrays of a second look's readings begin with
SEEN = f"{SECOND}seen"  # which rows a second look read, where it did not read all
ADDED = "added/"  # what slugs begin with of what came after the fit
_OF_ROWS = ("sources", "labels", "success", "logits")
_APART = {"steps", "sample", f"{SECOND}steps"}  # have no row per image
_KINDS = {
    "images": "u",
    "sample": "u",
    "sources": "i",
    "labels": "i",
    "success": "b",
    "logits": "f",
}
_KINDS |= {"rates": "uf", "steps": "u"}
_KINDS |= {f"{SECOND}{name}": _KINDS[name] for name in ("rates", "steps", "logits")}
_KINDS[SEEN] = "b"
_AXES = {
    "images": 4,
    "sample": 4,
    "sources": 1,
    "labels": 1,
    "success": 1,
    "logits": 2,
    "rates": 2,
    "steps": 1,
}
_AXES |= {f"{SECOND}{name}": _AXES[name] for name in ("rates", "steps", "logits")}
_AXES[SEEN] = 1


def work_folder(guard: Path) -> Path:
    """Return where the harvest of a guard lies unless it was put elsewhere: beside it."""
    return guard.with_name(f"{guard.name}.work")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A shard read back. `images` is None where they were too large to keep.

    Then the first shard of each kind has a few in `sample`, which are successes.
    """

    images: Images | None
    sample: Images | None = None
    sources: NDArray[np.int64]
    labels: NDArray[np.int64]
    success: NDArray[np.bool_]
    rates: NDArray[Any]
    logits: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """What a second look read of N images.

    Attributes:
        rates: floats, (N, E).
        logits: float32, (N, K).
        seen: bool, (N,). Which were read; of the others the numbers mean nothing.
    """

    rates: NDArray[Any]
    logits: NDArray[np.float32]
    seen: NDArray[np.bool_]

    def rows(self, chosen: NDArray[np.int64]) -> "Again":
        """Return these rows only."""
        return Again(rates=self.rates[chosen], logits=self.logits[chosen], seen=self.seen[chosen])


class Workspace:
    """A folder of shards that belong to one plan: model, data, recipe and seed.

    Raises:
        DataError: the folder holds shards of another plan.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self.folder = folder
        self.columns: NDArray[np.int64] | None = None  # of the harvested rates; all of them
        text = json.dumps(plan, sort_keys=True, indent=2)
        file = folder / PLAN
        try:
            known = file.read_bytes() if file.exists() else None
        except OSError as error:
            raise DataError(f"expected a file at {file}, it can't be read") from error
        if known == text.encode():
            return
        if known is not None and any(folder.glob("*/*.npz")):
            raise DataError(
                f"{folder} holds work of another {_differences(known, plan)}: give another --work "
                "folder or remove that one"
            )
        write_file(file, text.encode())

    def read(self, job: Job) -> Shard:
        """Return a shard.

        Raises:
            DataError: it is damaged.
        """
        file = self.folder / job.file
        values = read_shard(file, *_OF_ROWS, "rates", optional=("steps", "images", "sample"))
        steps = values.pop("steps", None)
        if steps is not None:
            values["rates"] = decode(values["rates"], steps)
        return Shard(images=values.pop("images", None), sample=values.pop("sample", None), **values)

    def readings(self, jobs: Sequence[Job]) -> Readings:
        """Return what the jobs of one slug and split gave; of attacks, only the successes.

        Rates stay on disk until they are asked for, unless the shards are of an older format.

        Raises:
            DataError: a shard is damaged.
        """
        shards = [self._open(job) for job in jobs]
        first = jobs[0]
        joined: dict[str, Any] = {
            name: np.concatenate([shard[name] for shard in shards])
            for name in ("logits", "sources", "labels")
        }
        rates = StoredRates.joined([shard["rates"] for shard in shards])
        if self.columns is not None and rates.shape[1] > len(self.columns):
            rates = rates.only(self.columns)  # what was added later has these alone
        readings = Readings(name=first.slug, kind=first.kind, rates=rates, **joined)
        if first.kind != "attack":
            return readings
        return readings.rows(np.concatenate([shard["success"] for shard in shards]))

    def count(self, jobs: Sequence[Job]) -> int:
        """Return how many rows `readings` gives, of which it reads the flags alone.

        Raises:
            DataError: a shard is damaged.
        """
        flags = [read_shard(self.folder / job.file, "success")["success"] for job in jobs]
        every = jobs[0].kind != "attack"
        return sum(len(one) if every else int(np.count_nonzero(one)) for one in flags)

    def seen_twice(self, job: Job) -> NDArray[np.bool_]:
        """Return which of a shard's images a second look read: bool, (N,).

        Of attacks, only of the successes. Of the harvest of a fit it read all or is missing; what
        was added later may have come without images, so that nothing could look again.

        Raises:
            DataError: it is damaged, or was made in a fit without a second look.
        """
        file = self.folder / job.file
        names = ("success", f"{SECOND}logits")
        needed = names[:1] if job.slug.startswith(ADDED) else names
        found = read_shard(file, *needed, optional=(names[1], SEEN))
        rows = len(found["success"])
        seen = found.get(SEEN, np.full(rows, f"{SECOND}logits" in found))
        return seen[found["success"]] if job.kind == "attack" else seen

    def second(self, job: Job) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return what a second look read of a shard's images, rates (M, E) and logits (M, K).

        Of those that `seen_twice` tells of.

        Raises:
            DataError: it is damaged, or was made without a second look.
        """
        names = [f"{SECOND}{name}" for name in ("rates", "logits")]
        file = self.folder / job.file
        found = read_shard(file, *names, "success", optional=(f"{SECOND}steps", SEEN))
        rates, logits = found[names[0]], found[names[1]]
        if f"{SECOND}steps" in found:
            rates = decode(rates, found[f"{SECOND}steps"])
        kept = found.get(SEEN, np.ones(len(rates), np.bool_))
        if job.kind == "attack":
            kept = kept & found["success"]
        return rates[kept].astype(np.float32), logits[kept]

    def add(self, slug: str, split: str, readings: Readings, again: Again | None = None) -> None:
        """Write readings without images as the one shard of a slug and split.

        Args:
            slug: which.
            split: likewise.
            readings: of the first look.
            again: of the second, of the same rows, where there is one.
        """
        more = {}
        if again is not None and again.seen.any():
            more = {
                f"{SECOND}rates": again.rates,
                f"{SECOND}logits": again.logits,
                SEEN: again.seen,
            }
        arrays = more | {
            "sources": readings.sources,
            "labels": readings.labels,
            "success": np.ones(len(readings), np.bool_),
            "rates": readings.rates,
            "logits": readings.logits,
        }
        write_file(self.folder / slug / f"{split}-00000.npz", npz=arrays)

    def _open(self, job: Job) -> dict[str, Any]:
        """Return a shard's arrays without its images, its rates checked but left on disk."""
        file = self.folder / job.file
        values: dict[str, Any] = read_shard(file, *_OF_ROWS, optional=("steps",))
        if "steps" not in values:
            return values | read_shard(file, "rates")
        steps = values["steps"]
        place = find_place(file, "rates", error=DataError, what=SHARD, remedy=REMEDY)
        shape = (len(values["sources"]), len(steps))
        if place is None or place.dtype != np.uint8 or place.shape != shape:
            raise DataError(f"expected {SHARD}, {file} holds its rates otherwise: {REMEDY}")
        return values | {"rates": StoredRates.at(place, steps)}


def read_shard(file: Path, *names: str, optional: Collection[str] = ()) -> dict[str, NDArray[Any]]:
    """Return arrays of a shard by name, each of the kind it has to be.

    Args:
        file: the shard.
        names: arrays that must be there.
        optional: arrays that are read if they are there.

    Raises:
        DataError: it is damaged, lacks one, or holds other things under their names.
    """
    values = read_arrays(
        file, *names, error=DataError, optional=optional, what=SHARD, remedy=REMEDY
    )
    rows = {len(value) if value.ndim else 0 for name, value in values.items() if name not in _APART}
    fit = all(
        value.dtype.kind in _KINDS[name] and value.ndim == _AXES[name]
        for name, value in values.items()
    )
    wide = values["rates"].shape[1:] if fit and "steps" in values and "rates" in values else ()
    if not fit or len(rows) > 1 or (wide and wide != values["steps"].shape):
        found = ", ".join(f"{n} {value.dtype} {value.shape}" for n, value in values.items())
        raise DataError(f"expected {SHARD}, {file} holds {found}: {REMEDY}")
    return values


def read_plan(folder: Path) -> dict[str, Any] | None:
    """Return what the shards of a folder were made from; None if it does not say.

    Raises:
        DataError: what it says can't be read.
    """
    file = folder / PLAN
    try:
        plan = json.loads(file.read_bytes()) if file.exists() else None
    except DAMAGE as error:
        raise DataError(f"expected the plan of a harvest, {file} is damaged ({error})") from error
    if plan is not None and not isinstance(plan, dict):
        raise DataError(f"expected the plan of a harvest in {file}, got other JSON")
    return plan


def _differences(known: bytes, plan: Mapping[str, Any]) -> str:
    """Return in what a stored plan differs, as words."""
    try:
        stored = dict(json.loads(known))
    except DAMAGE:
        return "plan"
    wanted = json.loads(json.dumps(plan))
    keys = sorted(stored.keys() | wanted.keys())
    return " and ".join(key for key in keys if stored.get(key) != wanted.get(key))


def column_runs(columns: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    """Return ascending columns as runs of start and stop."""
    cuts = np.flatnonzero(np.diff(columns) > 1) + 1
    return tuple((int(run[0]), int(run[-1]) + 1) for run in np.split(columns, cuts))
