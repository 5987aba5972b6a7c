"""A folder of shards: what a harvest left on disk, read back. N images, D rates, K classes."""

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import write_file
from reluguard.detector.images import Images
from reluguard.training.errors import DataError
from reluguard.training.harvest.orders import Job
from reluguard.training.harvest.rates import StoredRates, decode
from reluguard.training.harvest.readings import Readings

__all__ = ["COLUMNS", "Shard", "Workspace", "column_runs"]

COLUMNS = "columns"  # of the harvested rates, those that a guard reads: runs of start and stop

# what NumPy, zipfile and zlib raise on a file that is not what it was written as
_DAMAGE = (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A shard read back. `images` is None where they were too large to keep."""

    images: Images | None
    sources: NDArray[np.int64]
    labels: NDArray[np.int64]
    success: NDArray[np.bool_]
    rates: NDArray[Any]
    logits: NDArray[np.float32]


class Workspace:
    """A folder of shards that belong to one plan: model, data, recipe and seed.

    Raises:
        DataError: the folder holds shards of another plan.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self.folder = folder
        self.columns: NDArray[np.int64] | None = None  # of the harvested rates; all of them
        text = json.dumps(plan, sort_keys=True, indent=2)
        file = folder / "plan.json"
        known = file.read_text() if file.is_file() else None
        if known == text:
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
        try:
            # NumPy leaves a file open that it opened itself and can't read
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                values = {name: arrays[name] for name in arrays.files}
            steps = values.pop("steps", None)
            if steps is not None:
                values["rates"] = decode(values["rates"], steps)
            return Shard(**{"images": None, **values})
        except _DAMAGE as error:
            raise _damaged(file) from error

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

    def _open(self, job: Job) -> dict[str, Any]:
        """Return a shard's arrays without its images, its rates checked but left on disk."""
        file = self.folder / job.file
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                names = set(arrays.files) - {"images"}
                values = {name: arrays[name] for name in names}  # checks every sum
                if "steps" in values:
                    values["rates"] = StoredRates.of_shard(file, stream, values["steps"])
        except _DAMAGE as error:
            raise _damaged(file) from error
        return values


def _damaged(file: Path) -> DataError:
    return DataError(f"the shard {file} is damaged: remove it to make it anew")


def _differences(known: str, plan: Mapping[str, Any]) -> str:
    """Return in what a stored plan differs, as words."""
    try:
        stored = dict(json.loads(known))
    except (ValueError, TypeError):
        return "plan"
    wanted = json.loads(json.dumps(plan))
    keys = sorted(stored.keys() | wanted.keys())
    return " and ".join(key for key in keys if stored.get(key) != wanted.get(key))


def column_runs(columns: NDArray[np.int64]) -> list[list[int]]:
    """Return ascending columns as runs of start and stop."""
    cuts = np.flatnonzero(np.diff(columns) > 1) + 1
    return [[int(run[0]), int(run[-1]) + 1] for run in np.split(columns, cuts)]
