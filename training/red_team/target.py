"""What the red team is up against: the real guard, and a copy of it with gradients. N images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.images import Images
from reluguard.detector.model import load_production
from reluguard.detector.runtime import Guard
from reluguard.detector.verdict import Verdicts
from reluguard.training.attacks import Attack, Victim, open_victim
from reluguard.training.data.classes import Classes, guard_data
from reluguard.training.data.given import Data
from reluguard.training.data.holdout import unseen_rows
from reluguard.training.errors import DataError
from reluguard.training.red_team.aware_attacks import Bank
from reluguard.training.red_team.relaxed import RelaxedGuard
from reluguard.training.twin.twin import load_twin

__all__ = ["Ask", "Scores", "Target", "open_target"]

BANK = 512
LEAST_RATE = 0.01  # evasion at rarer false alarms is only easier

Scores = NDArray[np.float32]
Ask = Callable[[Images], Verdicts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is attacked.

    Attributes:
        guard: the real one, which alone decides what evades.
        relaxed: its copy with gradients.
        victim: the model.
        bank: clean images to copy, others than those under attack.
        images: uint8, (N, H, W, C), that no step of fitting saw and the model answers right.
        labels: int64, (N,).
        thresholds: score limits by false-positive rate.
        ask: what the black box asks.
        data: digest of the data set.
        seed: of every random choice.
    """

    guard: Guard
    relaxed: RelaxedGuard
    victim: Victim
    bank: Bank
    images: Images
    labels: NDArray[np.int64]
    thresholds: Mapping[str, float]
    ask: Ask
    data: str
    seed: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def strictest(self) -> float:
        """The lowest threshold: who stays below it evades at every rate."""
        return min(self.thresholds.values())

    def fool(
        self, attack: Attack, rows: NDArray[np.int64]
    ) -> tuple[Scores, Images, NDArray[np.int64] | None]:
        """Return scores (R,) of the real guard, images (R, H, W, C) and queries (R,), if counted.

        A score is infinite where the answer is right.

        Args:
            attack: knows the guard or not.
            rows: int64, (R,). Which of the images.
        """
        # each first row has chance of its own, so that batches are not alike
        seed = int(np.random.SeedSequence([self.seed, int(rows[0])]).generate_state(1)[0])
        result = attack(self.images[rows], self.labels[rows], self.victim, seed=seed)
        verdicts = self.guard.inspect(result.images)
        wrong = verdicts.prediction != self.labels[rows]
        scores = np.where(wrong, verdicts.score, np.float32(np.inf)).astype(np.float32)
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

    Raises:
        DataError: no image is left that the guard has not seen and the model answers right.
        TwinError: the model can't be run in torch.
        GuardError: the guard can't be read or is not the model's.
    """
    opened = Guard.open(model, guard, threads=threads)
    manifest, spec = opened.artifact.manifest, opened.spec
    dataset = guard_data(data, opened, classes)
    unseen = np.random.default_rng(seed).permutation(unseen_rows(dataset, manifest))
    victim = open_victim(model, spec, output=manifest.answer, threads=threads)
    production = load_production(model, output=manifest.answer)
    relaxed = RelaxedGuard(production, opened.artifact, dataset.images[unseen])
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
    thresholds = {rate: at for rate, at in manifest.thresholds.items() if float(rate) >= LEAST_RATE}
    return Target(
        guard=opened,
        relaxed=relaxed,
        victim=replace(victim, twin=twin),
        bank=Bank.read(relaxed, dataset.images[copied]),
        images=dataset.images[chosen],
        labels=dataset.labels[chosen],
        thresholds=thresholds or {f"{manifest.fpr:g}": opened.threshold},
        ask=ask or opened.inspect,
        data=dataset.digest,
        seed=seed,
    )
