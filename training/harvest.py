"""Harvest: attack or change images, read them through the compiled graph, keep it in shards.

A shard is one attack on one run of source images; it is written aside and renamed, so that
whatever is there is whole and a fit that was killed goes on where it was. N images, D rates, K
classes.
"""

import contextlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.artifact import write_file
from detector.images import Images, InputSpec
from detector.model import load_production
from detector.runtime import Reader
from detector.taps import Tap
from training.attacks import Attack, Victim
from training.attacks.benign import Change as Benign
from training.case import read_images, source_images
from training.data import Dataset
from training.errors import DataError
from training.rates import StoredRates, decode, places, stored
from training.readings import Kind, Readings
from training.twin import load_twin

__all__ = ["Job", "Maker", "Orders", "Shard", "Workspace", "harvest", "plan_jobs"]

SHARD_IMAGES = 256
KEPT_IMAGE_BYTES = 65_536
TWIN_SAMPLE = 8
# what NumPy, zipfile and zlib raise on a file that is not what it was written as
_DAMAGE = (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


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
    changes: Mapping[str, Attack | Benign]
    workspace: Path
    seed: int
    threads: int | None = None
    surrogates: tuple[Path, ...] = ()


class _Latest:
    """A reader that remembers its latest answer: an attack ends by asking for what is then kept."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._images: Images | None = None
        self._answer: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    def read(self, images: Images) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return rates (N, D) and logits (N, K) of images that nobody changes in place."""
        if self._answer is None or self._images is not images:
            self._answer = read_images(self._reader, images)
            self._images = images
        return self._answer


class Maker:
    """Makes shards: changes the images, reads them through the compiled graph, writes the file."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        production = load_production(orders.model, output=orders.output)
        reader = Reader(production, orders.spec, orders.taps, threads=orders.threads)
        self._latest = _Latest(reader)
        self._places = places(orders.taps)
        self.twin = load_twin(
            orders.model,
            orders.spec,
            orders.twin,
            output=orders.output,
            images=orders.dataset.images[:TWIN_SAMPLE],
        )
        others = (
            load_twin(other, orders.spec, images=orders.dataset.images[:TWIN_SAMPLE])
            for other in orders.surrogates
        )
        self._victim = Victim(
            predict=lambda x: self._latest.read(x)[1],
            twin=self.twin,
            surrogates=tuple(other for other in others if other is not None),
        )

    def make(self, job: Job) -> None:
        """Make one shard. Memory is that of its images."""
        orders = self._orders
        images, labels, rows = source_images(orders.dataset, job.sources)
        changed, success = self._change(job, images, labels)
        rates, logits = self._latest.read(changed)
        arrays = {"sources": rows, "labels": labels, "success": success, "logits": logits}
        arrays |= stored(rates, self._places)
        if changed[0].nbytes <= KEPT_IMAGE_BYTES:
            arrays["images"] = changed
        write_file(orders.workspace / job.file, npz=arrays, compress=False)
        orders.dataset.release()

    def _change(
        self, job: Job, images: Images, labels: NDArray[np.int64]
    ) -> tuple[Images, NDArray[np.bool_]]:
        everyone = np.ones(len(images), np.bool_)
        if job.kind == "clean":
            return images, everyone
        change = self._orders.changes[job.slug]
        entropy = [self._orders.seed, job.number, *job.split.encode()]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        if isinstance(change, Attack):
            result = change(images, labels, self._victim, seed=seed)
            return result.images, result.success
        return change(images, seed=seed), everyone


def harvest(
    jobs: Sequence[Job],
    orders: Orders,
    *,
    workers: int,
    engine: str = "local",
    progress: Callable[[Job], None] = lambda _: None,
) -> None:
    """Make every shard that isn't there yet.

    Args:
        jobs: the shards.
        orders: what goes into them.
        workers: processes or actors; with one local, this process does it.
        engine: "local", or "ray" for actors of a Ray cluster; the files are the same.
        progress: called for each job once it is done or found, in no order.

    Raises:
        SettingsError: no such engine, or Ray is not installed.
        TwinError: the twin can't be made, or does not match the model.
        WorkerError: a worker process died.
        OSError: the disk is full.
    """
    from training.engine import check_engine, run_local, run_ray

    check_engine(engine)
    left = [job for job in jobs if not (orders.workspace / job.file).is_file()]
    there = {job.file for job in jobs} - {job.file for job in left}
    for job in jobs:
        if job.file in there:
            progress(job)
    if not left:
        return
    with _torch_threads(orders.threads):
        maker = Maker(orders)  # here first: what is wrong with the model or twin is told plainly
        for job in left if workers == 1 and engine == "local" else ():
            maker.make(job)
            progress(job)
    if engine == "ray":
        run_ray(left, orders, min(workers, len(left)), progress)
    elif workers > 1:
        run_local(left, orders, min(workers, len(left)), progress)


@contextlib.contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    """Lend torch so many threads, and give it back its own number after."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
