"""Guards of one model that differ in images, seed and secret, kept on disk. N images, D rates."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.secrecy.keys import By, hidden_columns
from reluguard.detector.artifact import GuardArtifact, read_guard, write_file
from reluguard.detector.head import Head, threshold_at
from reluguard.detector.images import Images
from reluguard.detector.looks.joint import Joint, Run
from reluguard.detector.looks.views import viewed
from reluguard.detector.model import Production, load_production
from reluguard.detector.runtime import Reader
from reluguard.training.data.case import read_rates
from reluguard.training.data.dataset import Dataset, load_data, save_dataset
from reluguard.training.data.splits import split_sources
from reluguard.training.errors import DataError
from reluguard.training.fit import fit
from reluguard.training.harvest.rates import StoredRates
from reluguard.training.harvest.readings import Readings, clean_readings
from reluguard.training.head.fit import calibrate, fit_head
from reluguard.training.head.probes import column_taps
from reluguard.training.head.second import fit_second
from reluguard.training.provenance import origin_of
from reluguard.training.retraining.kept import Kept, open_kept

__all__ = ["ATTACKER", "FPR", "FRESH", "OWNER", "Form", "Party", "Read", "deal"]

FPR = 0.05
PREVALENCE = 0.5
WEIGHT = 1.0
Floats = NDArray[np.float32]
OWNER, ATTACKER, FRESH = "owner", "attacker", "fresh"


@dataclass(frozen=True, slots=True)
class Form:
    """How a guard is made, of a secret and a seed.

    Attributes:
        name: of the form, without secret and seed.
        share: of the rates or taps that are read.
        by: "rates" or "taps".
        view: that is looked at a second time, "" where nothing is.
        secret: of the deployment.
        seed: of the fit.
    """

    name: str
    share: float = 1.0
    by: By = "rates"
    view: str = ""
    secret: str = ""
    seed: int = 0

    @property
    def file(self) -> str:
        """Where its head lies."""
        parts = (self.name, self.view, self.secret, f"{self.seed}")
        return "-".join(part.replace(" ", "-") for part in parts if part) + ".npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What the network gives of N images as they are and at views of them.

    Attributes:
        rates: float32, (N, D).
        logits: float32, (N, K).
        views: by name, rates and logits.
    """

    rates: Floats
    logits: Floats
    views: Mapping[str, tuple[Floats, Floats]]


def deal(data: str, out: Path, *, each: int, seed: int) -> dict[str, Path]:
    """Write the images of owner and attacker, and those that neither has, once each.

    Args:
        data: labelled images that the model was not trained on.
        out: the folder to write to.
        each: images of owner and of attacker.
        seed: of the order.
    """
    files = {name: out / f"{name}.npz" for name in (OWNER, ATTACKER, FRESH)}
    if not all(file.is_file() for file in files.values()):
        dataset = load_data(data)
        order = np.random.default_rng(seed).permutation(len(dataset))
        parts = np.split(order, [each, 2 * each])
        for file, rows in zip(files.values(), parts, strict=True):
            save_dataset(dataset.take(np.sort(rows)), file)
    return files


class Party:
    """Owner or attacker: images, their harvest, and every head fitted on it.

    Args:
        name: of the folder.
        model: the production ONNX file.
        data: their own images.
        out: the folder all of it is kept in.
        recipe: what guards are fitted on.
        seed: of the harvest.
    """

    def __init__(
        self, name: str, model: Path, data: Path, out: Path, *, recipe: str, seed: int
    ) -> None:
        self._out, place = out / f"{name}.heads", out / f"{name}.guard"
        if not (place / "manifest.json").is_file():
            fit(
                model, str(data), out=place, recipe=recipe, second="none", max_overhead=0,
                target_fpr=FPR, seed=seed, threads=1, workers=1,
            )  # fmt: skip
        self.name, self.model = name, model
        self.artifact: GuardArtifact = read_guard(place)
        self.production: Production = load_production(model)
        self.kept: Kept = open_kept(self.artifact)
        self.images: Dataset = load_data(str(data))
        self._readers: dict[str, Reader] = {}
        self._heads: dict[Form, Head] = {}

    def read(self, images: Images, views: Sequence[str] = ()) -> Read:
        """Return what the network gives of images, uint8 (N, H, W, C)."""
        rates, logits = self._reader("").read(images)
        return Read(
            rates=rates,
            logits=logits,
            views={view: self._reader(view).read(images) for view in views},
        )

    def _reader(self, view: str) -> Reader:
        if view not in self._readers:
            manifest = self.artifact.manifest
            network = viewed(self.production, manifest.input, view) if view else self.production
            self._readers[view] = Reader(network, manifest.input, manifest.taps, threads=1)
        return self._readers[view]

    @property
    def joint(self) -> Joint:
        """How two looks of the model at the same taps are read together."""
        taps = self.artifact.manifest.taps
        return Joint(taps, taps)

    def head(self, form: Form) -> Head:
        """Return a calibrated head of a form, fitted now or before."""
        file = self._out / form.file
        if not file.is_file():
            write_file(file, npz=self._fitted(form).to_arrays())
        if form not in self._heads:
            with np.load(file) as stored:
                self._heads[form] = Head.from_arrays(dict(stored))
        return self._heads[form]

    def _fitted(self, form: Form) -> Head:
        settings = self.kept.head
        if form.view:
            groups = [self._joined(*one, form.view) for one in self._groups("fit")]
            head = fit_second(groups, self.joint, settings=settings, seed=form.seed).head
            clean = self._joined(self._clean, self._clean_images, form.view)
        else:
            taps = self.artifact.manifest.taps
            columns = hidden_columns(taps, form.secret, form.share, form.by)
            counts = np.bincount(column_taps(taps)[columns], minlength=len(taps))
            groups = [replace(g, rates=g.rates.only(columns)) for g in self.kept.groups("fit")]
            runs = [Run(int(count)) for count in counts]
            head = fit_head(groups, taps=runs, settings=settings, seed=form.seed)
            read = columns[head.features.columns]
            head = replace(head, features=replace(head.features, columns=read))
            clean = self._clean
        return calibrate(head, clean, rates=[FPR], prevalence=PREVALENCE)

    def scores(self, form: Form, read: Read) -> Floats:
        """Return the scores of images, float32 (N,), by the head of a form."""
        rates = read.rates
        if form.view:
            rates = self.joint.read(read.rates, read.logits, *read.views[form.view])
        return self.head(form).score(rates, read.logits).score

    def limit(self, form: Form) -> float:
        """Return the score above which a guard of a form flags."""
        return threshold_at(FPR, self.head(form).clean_scores)

    def ordinary(self, form: Form) -> dict[str, tuple[Floats, NDArray[np.int64]]]:
        """Return scores and sources, (N,) each, of images that no step of fitting saw.

        By name: clean ones, and attacks that know of no guard, of which those that succeeded.
        """
        head, found = self.head(form), {}
        for group, images in self._groups("test"):
            if group.kind != "benign" and len(group):
                read = self._joined(group, images, form.view) if form.view else group
                rates = np.asarray(read.rates[:]).astype(np.float32)
                found[group.name] = (head.score(rates, group.logits).score, group.sources)
        return found

    @cached_property
    def _clean(self) -> Readings:
        origin = origin_of(self.artifact)
        labels, shares = self.images.labels, origin.recipe.splits
        parts = split_sources(labels, shares, origin.seed, copies=origin.data.copies)
        return clean_readings(self._reader(""), self.images, parts["calibrate"])

    @property
    def _clean_images(self) -> Images:
        return self.images.images[self._clean.sources]

    def _groups(self, split: str) -> Iterator[tuple[Readings, Images]]:
        """Yield the harvest of a part with its images; of attacks, the successes."""
        space = self.kept.workspace
        for name, jobs in self.kept.split(split).items():
            group = replace(
                space.readings(jobs), name=name, weight=self.kept.weights.get(name, WEIGHT)
            )
            shards = [space.read(job) for job in jobs]
            kept = [
                shard.images[shard.success] if group.kind == "attack" else shard.images
                for shard in shards
                if shard.images is not None
            ]
            if sum(map(len, kept)) != len(group):
                raise DataError("expected images small enough to be kept beside their readings")
            yield group, np.concatenate(kept)

    def _joined(self, group: Readings, images: Images, view: str) -> Readings:
        """Return joint readings of a group, in half precision."""
        if not len(group):
            return replace(group, rates=np.zeros((0, sum(r.rates for r in self.joint.runs))))
        again = read_rates(self._reader(view), images)
        first = np.asarray(group.rates[:]).astype(np.float32)
        rates = self.joint.read(first, group.logits, *again)
        most = np.finfo(np.float16).max
        half = np.clip(rates, -most, most).astype(np.float16)
        return replace(group, rates=StoredRates.joined([half]))
