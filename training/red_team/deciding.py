"""Someone who sees answers and flags, and neither scores nor gradients. N images, K classes."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reluguard.detector.images import Images
from reluguard.detector.verdict import Verdicts
from reluguard.training.attacks import Attack, Budget, Goal, HopSkipJump, Passes, Victim
from reluguard.training.errors import AttackError
from reluguard.training.twin.twin import to_pixels

__all__ = ["Deciding", "FromPictures"]


@dataclass(frozen=True, kw_only=True)
class Deciding(Attack):
    """An attack that only asks, told one class an image and whether it was flagged.

    What it is told of an image is 1 for the answer and 0 for every other class; of one that is
    flagged all are 0, so that no class is ahead and nothing is reached.

    Source: the decision-based setting of Chen et al. 2020, arXiv 1904.02144.

    Attributes:
        attack: asks through `victim.predict`.
        ask: whole images to verdicts: the guard in process, or a real server.
        flags: whether a flag counts; without, it is the bare model that is attacked.
    """

    needs_gradients: ClassVar[bool] = False
    attack: Attack
    ask: Callable[[Images], Verdicts] = field(repr=False)
    flags: bool = True

    @property
    def name(self) -> str:
        """As `hopskipjump-l2-answers-and-flags`."""
        return f"{self.attack.name}-answers{'-and-flags' if self.flags else ''}"

    @property
    def budget(self) -> Budget:
        """That of the attack."""
        return self.attack.budget

    @property
    def passes(self) -> Passes:
        """Those of the attack."""
        return self.attack.passes

    def run(
        self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return what the attack finds by what it is told."""
        classes = 0

        def told(images: Images) -> NDArray[np.float32]:
            nonlocal classes
            verdicts = self.ask(images)
            classes = classes or victim.predict(images[:1]).shape[1]
            one = np.zeros((len(images), classes), np.float32)
            one[np.arange(len(images)), verdicts.prediction] = 1
            if self.flags:
                one[verdicts.is_adversarial] = 0
            return one

        return self.attack.run(clean, goal, replace(victim, predict=told, twin=None), generator)


@dataclass(frozen=True, kw_only=True)
class FromPictures(HopSkipJump):
    """HopSkipJump that starts from pictures of other classes: a guard flags noise at once.

    Attributes:
        pictures: uint8, (P, H, W, C). Clean ones that the attacker has; each image starts from the
            first few of them, in random order, until one is answered otherwise.
    """

    pictures: Images = field(repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.pictures):
            raise AttackError("expected pictures to start from, got none")

    def _candidates(self, clean: Tensor, turn: int, generator: torch.Generator) -> Tensor:
        """Return a picture for each image, drawn by chance."""
        del turn
        chosen = torch.randint(len(self.pictures), (len(clean),), generator=generator)
        return to_pixels(self.pictures[chosen.numpy()], clean.device)
