"""An attack of varying strength: each image gets one of several attacks, by chance. N images.

A guard fitted on one strength learns that strength; fitted on a range it tells those between.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from reluguard.training.attacks.base import Attack, Goal, Passes
from reluguard.training.attacks.budget import Budget
from reluguard.training.attacks.victim import Victim
from reluguard.training.errors import AttackError

__all__ = ["Varied", "VariedQueries"]


@dataclass(frozen=True)
class Varied(Attack):
    """Each image is attacked by one of `attacks`, and stays within that one's budget."""

    label: str
    attacks: tuple[Attack, ...]

    def __post_init__(self) -> None:
        if not self.attacks:
            raise AttackError(f"expected at least one attack for {self.label}, got none")
        apart = [a.name for a in self.attacks if a.needs_surrogates or a.targeted]
        if apart:
            raise AttackError(
                f"expected untargeted attacks on the model alone for {self.label}, "
                f"got {', '.join(apart)}"
            )

    @property
    def name(self) -> str:
        """What the report calls it."""
        return self.label

    @property
    def budget(self) -> Budget:
        """That of each attack is kept image by image."""
        return Budget("none")

    def for_images(self, height: int, width: int) -> Self:
        """Each attack as it suits them."""
        attacks = tuple(attack.for_images(height, width) for attack in self.attacks)
        return replace(self, attacks=attacks)

    @property
    def passes(self) -> Passes:
        """The mean of the attacks."""
        return Passes(
            asked=sum(attack.passes.asked for attack in self.attacks) / len(self.attacks),
            climbed=sum(attack.passes.climbed for attack in self.attacks) / len(self.attacks),
            exact=sum(attack.passes.exact for attack in self.attacks) / len(self.attacks),
        )

    def run(
        self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return each image as its attack left it, and queries where every attack counts them."""
        chosen = torch.randint(len(self.attacks), (len(clean),), generator=generator)
        chosen = chosen.to(clean.device)
        moved, queries, counted = clean.clone(), torch.zeros_like(goal.labels), True
        for index, attack in enumerate(self.attacks):
            rows = torch.nonzero(chosen == index).flatten()
            if not len(rows):
                continue
            some = clean[rows]
            found = attack.run(some, goal.take(rows), victim, generator)
            own, asked = found if isinstance(found, tuple) else (found, None)
            whole = attack.budget.whole(some, own.detach().to(some.device))
            moved[rows] = whole.to(moved) / 255
            counted = counted and asked is not None
            if asked is not None:
                queries[rows] = asked.to(queries)
        return (moved, queries) if counted else moved


@dataclass(frozen=True)
class VariedQueries(Varied):
    """The same of attacks that only ask: it serves a model without a twin too."""

    needs_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        Varied.__post_init__(self)
        wanting = [attack.name for attack in self.attacks if attack.needs_gradients]
        if wanting:
            raise AttackError(f"expected attacks without gradients, got {', '.join(wanting)}")
