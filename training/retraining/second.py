"""A second look, kept through a retraining: a joint head fitted anew beside the new first one.

What the joint head reads is what the harvest holds of both looks: of the first fit all, of what was
added later what came with its image. One calibration over both looks again, on the very images of
the champion's: P(p <= a) <= a among clean images as before.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.head import Head
from reluguard.detector.looks.joint import Joint
from reluguard.detector.looks.second import SecondLook
from reluguard.detector.runtime import Reader
from reluguard.training.data.case import read_rates
from reluguard.training.data.dataset import Dataset
from reluguard.training.errors import DataError
from reluguard.training.harvest.readings import CLEAN, Readings
from reluguard.training.head.alarms import scores_of
from reluguard.training.head.second import (
    SUSPICIOUS,
    BothReadings,
    calibrate_second,
    fit_second,
    joint_readings,
)
from reluguard.training.looks.choice import Second
from reluguard.training.progress import Progress
from reluguard.training.provenance import provenance_of
from reluguard.training.retraining.calibration import kept_readings
from reluguard.training.retraining.fresh import Fresh
from reluguard.training.retraining.kept import WEIGHT, Kept
from reluguard.training.retraining.learned import Learned
from reluguard.training.retraining.original import Original

__all__ = ["Looking", "Relearned", "is_unseen", "lacking"]

CALIBRATION = "calibration-second"
LEAST_SEEN = 0.25  # of the new attacked rows, for a second look to learn from
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Relearned:
    """A second look learned anew.

    Attributes:
        look: calibrated with the first look's new head.
        control: its joint head fitted by another seed on nothing new.
    """

    look: SecondLook
    control: Head


@dataclass(frozen=True, slots=True, kw_only=True)
class Looking:
    """The second look of a guard that is retrained.

    Attributes:
        champion: the guard.
        second: who looks again.
        reader: reads what they see.
    """

    champion: GuardArtifact
    second: Second
    reader: Reader

    @property
    def joint(self) -> Joint:
        """How the two readings join."""
        return Joint(self.champion.manifest.taps, self.second.taps)

    def groups(self, kept: Kept, split: str) -> list[Readings]:
        """Return joint readings of one split, named and weighted; of attacks, the successes.

        Groups of which the second look read nothing are left out.

        Raises:
            DataError: a shard of the first fit has no second reading.
        """
        columns = None if self.second.look.is_other else kept.workspace.columns
        found = [
            replace(
                joint_readings(kept.workspace, made, self.joint, columns),
                name=name,
                weight=kept.weights.get(name, WEIGHT),
            )
            for name, made in kept.split(split).items()
        ]
        return [group for group in found if len(group)]

    def calibration(self, kept: Kept, original: Original, clean: Readings) -> BothReadings:
        """Return what both looks read of the calibration images, kept on disk as `clean` is.

        Raises:
            DataError: neither what the second look read nor the images are there.
        """

        def read(dataset: Dataset, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
            rates, logits = read_rates(self.reader, dataset.images, rows)
            return {"rates": rates, "logits": logits}

        told = json.dumps([self.second.look.to_json(), repr(self.second.taps)], sort_keys=True)
        file, values = kept_readings(
            kept,
            original,
            read,
            ("rates", "logits"),
            name=CALIBRATION,
            told=told,
            need="a second look is calibrated on what it reads of clean images",
            instead=", or --looks first for a guard that looks once",
        )
        if len(values["rates"]) != len(clean):
            raise DataError(
                f"expected what the second look reads of {len(clean)} calibration images in "
                f"{file}, it holds {len(values['rates'])}: remove it"
            )
        return BothReadings(clean, values["rates"], values["logits"])

    def relearn(
        self,
        draft: GuardArtifact,
        learned: Learned,
        kept: Kept,
        clean: BothReadings,
        *,
        golden: Readings,
        new: Sequence[str],
        seed: int,
        progress: Progress,
    ) -> Relearned:
        """Return the second look beside a new first one.

        Args:
            draft: the challenger, with its new first head.
            learned: how that came about.
            kept: the harvest, with what is new.
            clean: what both looks read of the calibration images.
            golden: what the first look reads of the golden inputs.
            new: names of the groups that the champion has not seen.
            seed: of every random choice.
            progress: told of the stage.

        Raises:
            DataError: as `fit_second` has it.
        """
        progress.stage("second head", 200)
        groups = self.groups(kept, "fit")
        old = [group for group in groups if group.name not in new]
        fitted, control = (
            fit_second(
                these,
                self.joint,
                settings=kept.head,
                seed=own,
                beside=draft.head,
                progress=progress.so_far(100),
            )
            for these, own in ((groups, seed), (old, seed + 1))
        )
        first = next(group for group in groups if group.kind == CLEAN)
        # among the images it was fitted on a head finds a tenth suspicious at another bound
        seen = scores_of(draft.head, first)
        suspicious = fitted.beside > np.quantile(seen, 1 - SUSPICIOUS)
        bound = learned.bound
        if bound is None:
            assert self.champion.second is not None
            before = scores_of(self.champion.head, first)
            bound = carried_over(self.champion.second.bound, before, seen)
        provenance, manifest = provenance_of(self.champion.manifest), self.champion.manifest
        images = self.champion.golden.images
        look = calibrate_second(
            draft.head,
            bound,
            fitted,
            suspicious,
            clean,
            BothReadings(golden, *read_rates(self.reader, images)),
            self.second,
            self.joint,
            rates=[manifest.fpr],
            prevalence=provenance.prevalence,
        )
        return Relearned(look=look, control=control.head)


def carried_over(bound: float, before: Floats, after: Floats) -> float:
    """Return the bound that stands among new scores where the old one stood among the old.

    Neither the old scores nor the new ones are of calibration images. Between two scores it is
    drawn straight; beyond all of them it keeps its distance.

    Args:
        bound: among the old scores.
        before: float32, (N,). Scores by the head it was made for.
        after: float32, (N,). Scores of the same images by the head it is wanted for.
    """
    old, new = np.sort(before.astype(np.float64)), np.sort(after.astype(np.float64))
    beyond = max(0.0, bound - old[-1]) + min(0.0, bound - old[0])
    return float(np.float32(np.interp(bound, old, new) + beyond))


def is_unseen(fresh: Sequence[Fresh]) -> bool:
    """Return whether the second look can't learn the new attacks: it read few of their rows."""
    attacked = [one for one in fresh if one.kind == "attack"]
    seen = sum(one.seen_twice for one in attacked)
    return bool(attacked) and seen < LEAST_SEEN * sum(len(one.ids) for one in attacked)


def lacking(fresh: Sequence[Fresh]) -> list[str]:
    """Return a sentence for each new group that the second look can't read all of."""
    said = []
    for one in fresh:
        there, count = one.seen_twice, len(one.ids)
        if there == count:
            continue
        said.append(
            f"{one.name}: the second look reads images, and {count - there} of {count} came as "
            "readings of the first look alone: "
            + (
                f"it learns from the other {there}"
                if there
                else "only the first look can learn from them"
            )
            + ". Serve with --capture-images to have them"
        )
    return said
