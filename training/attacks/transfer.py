"""Attacks by someone who holds other models than this one. N images."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from reluguard.training.attacks.base import Attack, Goal, Passes
from reluguard.training.attacks.budget import Budget
from reluguard.training.attacks.carlini import Adam
from reluguard.training.attacks.gradient import MIFGSM
from reluguard.training.attacks.victim import Victim
from reluguard.training.errors import AttackError

__all__ = ["Ensemble", "Transfer"]


@dataclass(frozen=True, kw_only=True)
class Transfer(Attack):
    """Another attack's images, made on the first surrogate and tried on this model.

    Source: Papernot et al. 2016, arXiv 1605.07277.
    """

    needs_gradients: ClassVar[bool] = False
    needs_surrogates: ClassVar[bool] = True
    inner: Attack = field(default_factory=lambda: MIFGSM(size=8.0))

    def __post_init__(self) -> None:
        if self.inner.needs_surrogates or self.inner.targeted:
            raise AttackError(f"expected a plain attack to transfer, got {self.inner.name}")

    @property
    def name(self) -> str:
        """As `transfer-mifgsm-linf-8`."""
        return f"transfer-{self.inner.name}"

    @property
    def budget(self) -> Budget:
        """The inner attack's."""
        return self.inner.budget

    @property
    def passes(self) -> Passes:
        """Those of the inner attack, on another model."""
        return self.inner.passes

    def run(
        self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return what the inner attack finds on the surrogate."""
        return self.inner.run(clean, goal, replace(victim, twin=victim.surrogates[0]), generator)


@dataclass(frozen=True, kw_only=True)
class Ensemble(Attack):
    """One image that all models, the surrogates and the twin if there is one, take for the target.

    Minimises weight * mean squared change + mean cross-entropy to the target, by Adam.

    Source: Dong, Su, Zhu & Bao 2017, arXiv 1708.05493 (ensemble-optimisation).
    """

    needs_gradients: ClassVar[bool] = False
    needs_surrogates: ClassVar[bool] = True
    targeted: ClassVar[bool] = True
    steps: int = 20
    rate: float = 1.0  # 8-bit steps; the paper's 5 is for 224 pixels a side
    weight: float = 3000.0  # of the mean squared change, pixels in [0, 1]
    with_twin: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rate <= 0 or self.weight < 0:
            raise AttackError(
                f"expected positive steps, rate and weight, "
                f"got {self.steps}, {self.rate} and {self.weight}"
            )

    @property
    def name(self) -> str:
        """`ensemble-targeted`, or `ensemble-transfer` without the twin."""
        return "ensemble-targeted" if self.with_twin else "ensemble-transfer"

    @property
    def budget(self) -> Budget:
        """Free: the objective keeps the change small."""
        return Budget("none")

    @property
    def passes(self) -> Passes:
        """A step each, of this model and another."""
        return Passes(exact=2 * self.steps)

    def run(self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator) -> Tensor:
        """Return the pixels after the last step."""
        del generator
        own = (victim.twin,) if self.with_twin and victim.twin is not None else ()
        twins = (*victim.surrogates, *own)
        pixels = clean
        adam = Adam(clean, torch.full((len(clean),), self.rate / 255, device=clean.device))
        for _ in range(self.steps):
            pixels = pixels.detach().requires_grad_()
            # `goal.loss` is to be raised; Adam lowers.
            reach = -torch.stack([goal.loss(twin.logits(pixels)) for twin in twins]).mean(0)
            change = (pixels - clean).square().flatten(1).mean(1)
            (gradient,) = torch.autograd.grad((self.weight * change + reach).sum(), pixels)
            pixels = (pixels.detach() - adam.step(gradient)).clamp(0, 1)
        return pixels
