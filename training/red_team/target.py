"""What the red team is up against: the real guard, and a copy of it with gradients. N images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import GuardArtifact, read_guard
from reluguard.detector.errors import GuardError
from reluguard.detector.images import Images
from reluguard.detector.looks.again import find_network
from reluguard.detector.looks.judging import Looks
from reluguard.detector.model import Production, load_production
from reluguard.detector.runtime import Guard
from reluguard.detector.verdict import Verdicts
from reluguard.training.attacks import Attack, Victim, open_victim
from reluguard.training.data.classes import Classes, guard_data
from reluguard.training.data.given import Data
from reluguard.training.data.holdout import unseen_rows
from reluguard.training.errors import DataError
from reluguard.training.red_team.aware_attacks import Bank
from reluguard.training.red_team.procedure import Procedure
from reluguard.training.red_team.relaxed import RelaxedGuard
from reluguard.training.twin.twin import load_twin

__all__ = ["Ask", "Scores", "Target", "open_target"]

BANK = 512

Scores = NDArray[np.float32]
Ask = Callable[[Images], Verdicts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is attacked.

    Attributes:
        guard: the real one, which alone decides what evades.
        relaxed: a copy with gradients: its own, or that of the guard that the attacker has.
        victim: the model.
        bank: clean images to copy, others than those under attack.
        images: uint8, (N, H, W, C), that no step of fitting saw and the model answers right.
        labels: int64, (N,).
        procedure: one look or two, and where its verdicts come from.
        thresholds: its limits by false-positive rate.
        ask: what the black box asks.
        data: digest of the data set.
        seed: of every random choice.
        believed: the height to stay at or below, as far as the attacker knows.
        known: digest of the guard that the attacker has, "" where it is the one attacked.
    """

    guard: Guard
    relaxed: RelaxedGuard
    victim: Victim
    bank: Bank
    images: Images
    labels: NDArray[np.int64]
    procedure: Procedure
    thresholds: Mapping[str, float]
    ask: Ask
    data: str
    seed: int
    believed: float
    known: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def strictest(self) -> float:
        """The lowest limit: who stays below it evades at every rate."""
        return min(self.thresholds.values())

    def fool(
        self, attack: Attack, rows: NDArray[np.int64]
    ) -> tuple[Scores, Images, NDArray[np.int64] | None]:
        """Return heights (R,) by the real guard, images (R, H, W, C) and queries (R,), if counted.

        A height is infinite where the answer is right.

        Args:
            attack: knows the guard or not.
            rows: int64, (R,). Which of the images.
        """
        # each first row has chance of its own, so that batches are not alike
        seed = int(np.random.SeedSequence([self.seed, int(rows[0])]).generate_state(1)[0])
        result = attack(self.images[rows], self.labels[rows], self.victim, seed=seed)
        verdicts = self.guard.inspect(result.images)
        wrong = verdicts.prediction != self.labels[rows]
        heights = self.procedure.heights(verdicts)
        scores = np.where(wrong, heights, np.float32(np.inf)).astype(np.float32)
        return scores, result.images, result.queries


def open_target(
    model: Path,
    guard: Path,
    data: Data,
    *,
    seed: int,
    limit: int,
    classes: Classes | None = None,
    threads: int | None = None,
    ask: Ask | None = None,
    attacker_guard: Path | None = None,
    looks: Looks | None = None,
    second_model: Path | None = None,
) -> Target:
    """Return the target.

    Args:
        model: the production ONNX file.
        guard: the guard's folder.
        data: labelled images; of those the guard was fitted on, only its test split is used.
        seed: of every random choice.
        limit: how many images, of those the model answers right.
        classes: which class each folder of images is; by default what the guard knows.
        threads: of ONNX Runtime.
        ask: what the black box asks, by default the guard in this process.
        attacker_guard: a guard of the same model that the attacker fitted, who does not have this
            one's weights; gradients and thresholds are then that one's.
        looks: when the guard looks again; by default as it is served.
        second_model: the network that looks again, of a guard fitted with one.

    Raises:
        DataError: no image is left that the guard has not seen and the model answers right.
        TwinError: the model can't be run in torch.
        GuardError: a guard can't be read or is not the model's, or the attacker's is this one.
        SettingsError: there is no second look, or no network for it.
        ModelMismatchError: another network looks again than at fitting.
    """
    opened = Guard.open(model, guard, threads=threads, looks=looks, second_model=second_model)
    manifest, spec = opened.artifact.manifest, opened.spec
    dataset = guard_data(data, opened, classes)
    unseen = np.random.default_rng(seed).permutation(unseen_rows(dataset, manifest))
    victim = open_victim(model, spec, output=manifest.answer, threads=threads)
    production = load_production(model, output=manifest.answer)
    known = opened.artifact if attacker_guard is None else _attackers(attacker_guard, opened)
    relaxed = _relaxed(production, known, opened, dataset.images[unseen], model, second_model)
    twin = load_twin(model, spec, images=dataset.images[unseen], output=manifest.answer)
    answers = victim.predict(dataset.images[unseen]).argmax(axis=1)
    right = unseen[answers == dataset.labels[unseen]]
    if len(right) == 0:
        raise DataError(
            f"expected unseen images that the model answers right, {dataset.source} has none"
        )
    chosen = right[:limit]
    # the attacker's own images to copy: others than those under attack, where there are any
    copied = right[limit : limit + BANK] if len(right) > limit else right
    procedure = Procedure.of(opened.artifact, opened.looks)
    return Target(
        guard=opened,
        relaxed=relaxed,
        victim=replace(victim, twin=twin),
        bank=Bank.read(relaxed, dataset.images[copied]),
        images=dataset.images[chosen],
        labels=dataset.labels[chosen],
        procedure=procedure,
        thresholds=procedure.limits,
        ask=ask or opened.inspect,
        data=dataset.digest,
        seed=seed,
        believed=relaxed.procedure.believed,
        known="" if attacker_guard is None else known.digest,
    )


def _relaxed(
    production: Production,
    known: GuardArtifact,
    opened: Guard,
    images: Images,
    model: Path,
    second_model: Path | None,
) -> RelaxedGuard:
    """Return the guard that the attacker has, with gradients, looking as the real one does.

    An attacker's own guard of one look is followed as it is: it is all they have.
    """
    looks: Looks = "first" if known.second is None else opened.looks
    other = None
    if known.second is not None and looks != "first":
        other = find_network(known.second.look, known.path, model, second_model)
    return RelaxedGuard(production, known, images, looks=looks, other=other)


def _attackers(path: Path, guard: Guard) -> GuardArtifact:
    """Return the guard that the attacker has, which must be another one of the same model."""
    found, own = read_guard(path), guard.artifact
    if found.manifest.model_sha256 != own.manifest.model_sha256:
        raise GuardError(
            f"expected the attacker's guard to be one of the same model, {path} belongs to "
            f"{found.manifest.model_sha256[:16]}, the guard attacked to "
            f"{own.manifest.model_sha256[:16]}"
        )
    if found.digest == own.digest:
        raise GuardError(
            f"expected a guard that the attacker fitted, {path} is the very guard that is "
            "attacked: leave it out for an attacker who has that one"
        )
    return found
