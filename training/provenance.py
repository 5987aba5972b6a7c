"""Where a guard comes from: its manifest's provenance, typed.

On disk it is a mapping that every version may add to. What is read here is what training needs to
know of a guard again: to judge it on images it never saw, to go on from its harvest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import GuardArtifact, Manifest
from reluguard.detector.errors import GuardError
from reluguard.detector.plain import UNSAID, Plain, named
from reluguard.detector.reference import KEY as REFERENCE
from reluguard.training.composed import composed_name
from reluguard.training.errors import DataError

__all__ = [
    "REFITS",
    "Added",
    "ExportedFrom",
    "FittedOn",
    "FittedWith",
    "Kind",
    "Origin",
    "Provenance",
    "Recorded",
    "Refits",
    "Step",
    "origin_of",
    "provenance_of",
]

Kind = Literal["clean", "benign", "attack"]
REFITS = "hardened"  # by the first name they had: guards on disk say so


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedOn(Plain):
    """The data set of the fit: where it lay, and the digest that tells it from others.

    `copies` are rows that hold the same picture, `classes` the label of each folder of images,
    `names` those of all classes in the order of the model's outputs, where they are known.
    """

    source: str = ""
    sha256: str
    copies: tuple[tuple[int, ...], ...] = field(default=(), metadata=UNSAID)
    classes: Mapping[str, int] = field(default_factory=dict, metadata=UNSAID)
    names: tuple[str, ...] = field(default=(), metadata=UNSAID)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded(Plain):
    """One attack or harmless change of a recipe: its slug, its settings and its share of images."""

    slug: str
    change: str = ""
    share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedWith(Plain):
    """The recipe of the fit, as `Recipe.to_json` wrote it.

    Attributes:
        name: of the recipe.
        attacks, benign: what was done to the images.
        weights: by slug, how much each counted.
        levels: that taps were read at.
        head: the head's settings.
        splits: the share of the images in each part.
        least: of how many images of a part each change was made, where there were so many.
        most: of how many images of a part each change took its share at most.
        then: what attacked images went through afterwards, each a group of its own.
    """

    name: str
    attacks: tuple[Recorded, ...] = ()
    benign: tuple[Recorded, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    levels: tuple[float, ...] = ()
    head: Mapping[str, Any] = field(default_factory=dict)
    splits: Mapping[str, float] = field(default_factory=dict)
    least: Mapping[str, int] = field(default_factory=dict, metadata=UNSAID)
    most: Mapping[str, int] = field(default_factory=dict, metadata=UNSAID)
    then: tuple[Recorded, ...] = field(default=(), metadata=UNSAID)

    @property
    def kinds(self) -> dict[str, Kind]:
        """Return what each group of the harvest is, clean first, composed attacks last."""
        kinds: dict[str, Kind] = {"clean": "clean"}
        kinds |= {one.slug: "benign" for one in self.benign}
        kinds |= {one.slug: "attack" for one in self.attacks}
        return kinds | dict.fromkeys(self.composed, "attack")

    @property
    def composed(self) -> tuple[str, ...]:
        """Names of the attacks with what came afterwards."""
        return tuple(
            composed_name(attack.slug, later.slug) for later in self.then for attack in self.attacks
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Added(Plain):
    """One group that a retraining added.

    Attributes:
        name: of the attack, or of the harmless images.
        kind: "attack" or "benign".
        slug: where its shards lie in the work folder.
        weight: how much it counts among its kind.
        fit, test: rows of each split.
        source: where they came from.
        dropped: rows left out, by reason.
    """

    name: str
    kind: Kind
    slug: str
    weight: float
    fit: int
    test: int
    source: str
    dropped: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Plain):
    """One step of a guard's lineage.

    Attributes:
        parent: digest of the guard it came from.
        seed: of the step.
        added: names of what it learned.
        units: what it added to the head; None where the head was fitted anew.
    """

    parent: str
    seed: int
    added: tuple[str, ...]
    units: tuple[Mapping[str, Any], ...] | None = field(default=None, metadata=UNSAID)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refits(Plain):
    """The rounds that a guard came out of: from which guard, and what each added."""

    origin: str = field(metadata=named("from"))
    rounds: tuple[Added, ...]
    steps: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFrom(Plain):
    """What an ONNX file was exported from by us: it stands in the file's metadata too.

    Attributes:
        source: a module's class, a file's name or a name in a library.
        weights: SHA-256 of its weights and buffers.
        shape: of one image in its input.
        torch: version that exported it.
    """

    source: str
    weights: str
    shape: tuple[int, ...]
    torch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance(Plain):
    """Where a guard comes from.

    Attributes:
        recipe: what it was fitted with, None of a guard that does not say.
        seed: of the fit, likewise.
        twin: where gradients came from.
        prevalence: share of attacks that the likelihood assumes.
        data: what it was fitted on, likewise.
        exported: what its model's ONNX file was exported from, where that was done for it; the file
            lies beside the guard, under its name and `.onnx`.
        images: of each part.
        work: where its harvest lay.
        reference: what drift is measured against, as `detector.reference` reads it.
        versions: of the libraries.
        columns: of the harvested rates those it reads, runs of start and stop; None for all.
        added: what retraining added to the harvest.
        lineage: the steps from the first fit to it.
        refits: the rounds it came out of; on disk by their first name.
    """

    recipe: FittedWith | None = field(default=None, metadata=UNSAID)
    seed: int | None = field(default=None, metadata=UNSAID)
    twin: str = "auto"
    prevalence: float = 0.5
    data: FittedOn | None = field(default=None, metadata=UNSAID)
    exported: ExportedFrom | None = field(default=None, metadata=UNSAID)
    images: Mapping[str, int] = field(default_factory=dict)
    work: str | None = field(default=None, metadata=UNSAID)
    reference: Any = field(default=None, metadata=UNSAID | named(REFERENCE))
    versions: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[tuple[int, ...], ...] | None = field(default=None, metadata=UNSAID)
    added: tuple[Added, ...] = field(default=(), metadata=UNSAID)
    lineage: tuple[Step, ...] = field(default=(), metadata=UNSAID)
    refits: Refits | None = field(default=None, metadata=UNSAID | named(REFITS))

    @property
    def columns_read(self) -> NDArray[np.int64] | None:
        """Which of the harvested rates the guard reads, int64 (D,); None where it reads all."""
        if self.columns is None:
            return None
        return np.concatenate([np.arange(start, stop) for start, stop in self.columns])

    def is_fitted_on(self, digest: str) -> bool:
        """Whether a data set is the one the guard was fitted on."""
        return self.data is not None and self.data.sha256 == digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The first fit of a guard, all of it said: what retraining starts from."""

    recipe: FittedWith
    data: FittedOn
    seed: int


def origin_of(artifact: GuardArtifact) -> Origin:
    """Return how a guard was fitted.

    Raises:
        DataError: it does not say, or not in a way that can be read.
    """
    lacking = f"expected {artifact.path} to say how it was fitted, it lacks it"
    try:
        known = provenance_of(artifact.manifest)
    except GuardError as error:
        raise DataError(f"{lacking}: {error}") from error
    if known.recipe is None or known.data is None or known.seed is None or not known.recipe.splits:
        raise DataError(lacking)
    return Origin(recipe=known.recipe, data=known.data, seed=known.seed)


def provenance_of(manifest: Manifest) -> Provenance:
    """Return where a guard comes from.

    Raises:
        GuardError: what its manifest says of that can't be read.
    """
    return Provenance.from_json(manifest.provenance)
