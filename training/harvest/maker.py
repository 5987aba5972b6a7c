"""Makes shards: images attacked or changed, then read through the compiled graph. N images."""

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import write_file
from reluguard.detector.images import Images
from reluguard.detector.model import load_production
from reluguard.detector.runtime import Reader
from reluguard.training.attacks import Attack, Victim
from reluguard.training.data.case import read_rates, source_images
from reluguard.training.harvest.orders import Job, Orders
from reluguard.training.harvest.rates import places, stored
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
        self.victim = Victim(
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
        elif job.number == 0:
            arrays["sample"] = changed[success][:SAMPLE_IMAGES]
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
            result = change(images, labels, self.victim, seed=seed)
            return result.images, result.success
        return change(images, seed=seed), everyone
