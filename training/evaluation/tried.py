"""What a guard is judged on: attacks and harmless changes, alone and one after the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import Manifest
from reluguard.detector.images import InputSpec
from reluguard.training.attacks import PGD, Attack, attack_named
from reluguard.training.changes import Change, benign_named, controls
from reluguard.training.composed import SEPARATOR, composed_name, is_composed
from reluguard.training.errors import AttackError, DataError
from reluguard.training.evaluation.threats import threat_of
from reluguard.training.harvest.orders import Job, plan_jobs, with_changes
from reluguard.training.harvest.readings import CLEAN
from reluguard.training.looks.both import AtBoth
from reluguard.training.provenance import provenance_of
from reluguard.training.recipes.afterwards import judged_afterwards

__all__ = ["DEFAULT_ATTACKS", "Tried"]

# whatever a guard was fitted on: several of each kind, and some that no recipe here holds
DEFAULT_ATTACKS = (
    "fgsm-linf-2",
    "fgsm-linf-8",
    "mifgsm-linf-4",
    "pgd-linf-1",
    "pgd-linf-2",
    "pgd-linf-4",
    "pgd-linf-8",
    "pgd-linf-4-40",
    "pgd-linf-4-early",
    "apgd-ce-linf-4",
    "apgd-dlr-linf-4",
    "pgd-linf-4-through",
    "pgd-l2-0.5",
    "deepfool-l2",
    "deepfool-l2-o0.5",
    "deepfool-l2-o1",
    "fmn-linf",
    "fmn-l2",
    "fab-l2",
    "fab-linf",
    "cw-l2",
    "cw-l2-k5",
    "cw-l2-k10",
    "cw-l2-k20",
    "square-linf-8",
    "hopskipjump-l2",
    "spatial",
    "patch-6",
    "art-newtonfool",
)
BOTH_SIZES = (2.0, 4.0, 8.0)  # of PGD led by both looks, of a guard that looks again
TRANSFERS = ("transfer-mifgsm-linf-8",)  # tried where there is another model to come from


@dataclass(frozen=True, slots=True)
class Tried:
    """Attacks and harmless changes.

    Attributes:
        alone: by name.
        then: the harmless changes that attacked images go through afterwards, by name.
    """

    alone: Mapping[str, Attack | Change]
    then: Mapping[str, Change]

    @classmethod
    def of(
        cls,
        spec: InputSpec,
        manifest: Manifest,
        *,
        attacks: Sequence[str] | None,
        benign: Sequence[str] | None,
        twin: str,
        is_transferred: bool,
        is_twice: bool,
        is_changed_after: bool,
    ) -> "Tried":
        """Return what is asked for, or else what suits a guard.

        Args:
            spec: how images go into the model.
            manifest: of the guard.
            attacks: by name; by default `DEFAULT_ATTACKS`, with budgets that suit these images.
            benign: harmless changes by name; by default those that suit these images, none at just
                the strength that the guard was fitted on.
            twin: where gradients come from; of "none" only attacks that need no gradients.
            is_transferred: whether there is another model that attacks can come from.
            is_twice: whether the guard looks again: then some attacks are led by both looks.
            is_changed_after: whether attacked images are judged after harmless changes too.

        Raises:
            AttackError: no such attack or change, or the name of a composed one.
        """
        alone: dict[str, Attack | Change] = {
            **_attacks(attacks, spec, twin, is_transferred=is_transferred),
            **_benign(benign, spec, manifest),
        }
        if is_twice and twin != "none":
            led = (AtBoth(attack=PGD(size=size)) for size in BOTH_SIZES)
            alone |= {one.name: one for one in led}
        shape = (spec.height, spec.width, spec.channels)
        return cls(alone, judged_afterwards(*shape) if is_changed_after else {})

    @property
    def every(self) -> dict[str, Attack | Change]:
        """All of it by slug; of a composed one, what comes afterwards."""
        composed = {
            composed_name(slug, name): later
            for slug, change in self.alone.items()
            for name, later in self.then.items()
            if isinstance(change, Attack)
        }
        return {**self.alone, **composed}

    @property
    def threats(self) -> dict[str, str]:
        """The threat model of each attack: a key of `THREATS`."""
        return {
            slug: threat_of(change)
            for slug, change in self.alone.items()
            if isinstance(change, Attack)
        }

    def jobs(
        self, rows: NDArray[np.int64], right: NDArray[np.bool_], *, size: int, seed: int
    ) -> dict[str, list[Job]]:
        """Return the shards of all this by slug, clean first; those of composed ones are in them.

        Args:
            rows: int64, (N,). The images.
            right: bool, (N,). Which of them the model answers right: those that are attacked.
            size: images of a shard.
            seed: of what is changed afterwards.

        Raises:
            DataError: none is answered right.
        """
        if not right.any():
            raise DataError("expected unseen images that the model answers right, got none")
        jobs = {CLEAN: plan_jobs(CLEAN, "clean", {"test": rows}, size=size)}
        for slug, change in self.alone.items():
            if isinstance(change, Attack):
                made = plan_jobs(slug, "attack", {"test": rows[right]}, size=size)
                jobs[slug] = with_changes(made, dict.fromkeys(self.then, 1.0), seed=seed)
            else:
                jobs[slug] = plan_jobs(slug, "benign", {"test": rows}, size=size)
        return jobs


def _attacks(
    named: Sequence[str] | None, spec: InputSpec, twin: str, *, is_transferred: bool
) -> dict[str, Attack]:
    """Return the attacks by name; without a twin, only those that need none."""
    default = (*DEFAULT_ATTACKS, *(TRANSFERS if is_transferred else ()))
    made = (
        [attack_named(name) for name in named]
        if named
        else [attack_named(name).for_images(spec.height, spec.width) for name in default]
    )
    joined = [one.name for one in made if is_composed(one.name)]
    if joined:
        raise AttackError(f"expected names of attacks without a {SEPARATOR}, got {joined[0]}")
    return {one.name: one for one in made if twin != "none" or not one.needs_gradients}


def _benign(named: Sequence[str] | None, spec: InputSpec, manifest: Manifest) -> dict[str, Change]:
    """Return the harmless changes by name."""
    if named is not None:
        return {name: benign_named(name) for name in named}
    recipe = provenance_of(manifest).recipe
    seen = [one.change for one in recipe.benign] if recipe else []
    return controls(spec.height, spec.width, spec.channels, seen)
