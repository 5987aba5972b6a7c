"""Makes shards: images attacked or changed, then read through the compiled graph. N images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import write_file
from reluguard.detector.images import Images
from reluguard.detector.model import load_production
from reluguard.detector.runtime import Reader
from reluguard.training.attacks import Attack, Victim
from reluguard.training.changes import Change
from reluguard.training.composed import is_composed
from reluguard.training.data.case import read_rates, source_images
from reluguard.training.data.mapped import give_back
from reluguard.training.harvest.orders import Job, Orders
from reluguard.training.harvest.rates import places, stored
from reluguard.training.harvest.workspace import SECOND, read_shard
from reluguard.training.looks.both import both_twin
from reluguard.training.twin.twin import load_twin

__all__ = ["Maker"]

KEPT_IMAGE_BYTES = 65_536
SAMPLE_IMAGES = 4  # of larger ones, from the first shard of each kind
TWIN_SAMPLE = 8


class _Latest:
    """A reader that remembers its latest answer: an attack ends by asking for what is then kept."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._images: Images | None = None
        self._answer: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    def read(self, images: Images) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return rates (N, D) and logits (N, K) of images that nobody changes in place."""
        if self._answer is None or self._images is not images:
            self._answer = read_rates(self._reader, images)
            self._images = images
        return self._answer

    def forget(self) -> None:
        """Remember nothing."""
        self._images = self._answer = None


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
        second, both = orders.second, None
        self._second: Reader | None = None
        if second is not None:
            self._second = second.reader(orders.spec, threads=orders.threads)
            self._second_places = places(second.taps)
            if self.twin is not None:
                both = both_twin(self.twin, second, orders.dataset.images[:TWIN_SAMPLE])
        self.victim = Victim(
            predict=lambda x: self._latest.read(x)[1],
            twin=self.twin,
            surrogates=tuple(other for other in others if other is not None),
            both=both,
        )
        give_back()

    def make(self, job: Job) -> None:
        """Make one shard, and those of what its images go through then.

        Memory is that of its images.
        """
        made = self._again(job) or self._made(job)
        if not (self._orders.workspace / job.file).is_file():
            self._write(job, made)
        for later in job.then:
            if not (self._orders.workspace / later.file).is_file():
                self._write(later, self._afterwards(later, made))
        self._orders.dataset.release()

    def _made(self, job: Job) -> "_Made":
        images, labels, rows = source_images(self._orders.dataset, job.sources)
        if job.kind == "clean":
            return _Made(job.sources, rows, labels, images, np.ones(len(images), np.bool_))
        change, seed = self._orders.changes[job.slug], self._seed(job)
        if isinstance(change, Attack):
            result = change(images, labels, self.victim, seed=seed)
            before = result.clean_prediction
            return _Made(job.sources, rows, labels, result.images, result.success, before)
        changed = change(images, seed=seed)
        return _Made(job.sources, rows, labels, changed, np.ones(len(images), np.bool_))

    def _again(self, job: Job) -> "_Made | None":
        """Return what a shard holds that is there with its images, None where it must be made."""
        file = self._orders.workspace / job.file
        if not job.then or not file.is_file():
            return None
        shard = read_shard(file, "sources", "labels", "success", optional=("images",))
        if "images" not in shard:
            return None
        images, _, _ = source_images(self._orders.dataset, job.sources)
        before = self.victim.predict(images).argmax(axis=1)
        return _Made(
            job.sources,
            shard["sources"],
            shard["labels"],
            shard["images"],
            shard["success"],
            before,
        )

    def _afterwards(self, later: Job, made: "_Made") -> "_Made":
        """Return attacked images after a harmless change: a success is answered wrong still."""
        change = self._orders.changes[later.slug]
        assert isinstance(change, Change)
        assert made.before is not None
        chosen = np.flatnonzero(np.isin(made.asked, later.sources))
        changed = change(made.images[chosen], seed=self._seed(later))
        before = made.before[chosen]
        success = made.success[chosen]
        if later.caused:
            clean, _, _ = source_images(self._orders.dataset, later.sources)
            alone = change(clean, seed=self._seed(later))  # drawn alike
            success = success & (self._latest.read(alone)[1].argmax(axis=1) == before)
        success = success & (self._latest.read(changed)[1].argmax(axis=1) != before)
        return _Made(later.sources, made.sources[chosen], made.labels[chosen], changed, success)

    def _seed(self, job: Job) -> int:
        entropy = [self._orders.seed, job.number, *job.split.encode()]
        if is_composed(job.slug):
            entropy += [*job.slug.encode()]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def _write(self, job: Job, made: "_Made") -> None:
        rates, logits = self._latest.read(made.images)
        arrays = {
            "sources": made.sources,
            "labels": made.labels,
            "success": made.success,
            "logits": logits,
        }
        arrays |= stored(rates, self._places)
        if self._second is not None:
            again, scores = read_rates(self._second, made.images)
            kept = stored(again, self._second_places) | {"logits": scores}
            arrays |= {f"{SECOND}{name}": values for name, values in kept.items()}
        if made.images[0].nbytes <= KEPT_IMAGE_BYTES:
            arrays["images"] = made.images
        elif job.number == 0:
            arrays["sample"] = made.images[made.success][:SAMPLE_IMAGES]
        write_file(self._orders.workspace / job.file, npz=arrays, compress=False)


@dataclass(frozen=True, slots=True)
class _Made:
    """Images as a shard holds them.

    Attributes:
        asked: int64, (N,). The sources of the job, mirror images by a number of their own.
        sources: int64, (N,). The images they were made from.
        labels: int64, (N,). True classes of those.
        images: uint8, (N, H, W, C).
        success: bool, (N,).
        before: int64, (N,), of an attack. The answer it had to change.
    """

    asked: NDArray[np.int64]
    sources: NDArray[np.int64]
    labels: NDArray[np.int64]
    images: Images
    success: NDArray[np.bool_]
    before: NDArray[np.int64] | None = None
