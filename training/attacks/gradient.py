"""Attacks that follow the sign or the direction of the gradient: FGSM and its descendants."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from reluguard.training.attacks.base import Attack, Goal, Passes
from reluguard.training.attacks.budget import Budget, Norm
from reluguard.training.attacks.victim import Victim
from reluguard.training.errors import AttackError
from reluguard.training.twin.twin import Twin

__all__ = ["BIM", "FGSM", "MIFGSM", "PGD", "ascent", "climb", "random_start"]


def climb(twin: Twin, pixels: Tensor, goal: Goal, *, exact: bool = False) -> tuple[Tensor, Tensor]:
    """Return the gradient of the loss to raise, (N, C, H, W), and the logits, (N, K).

    Rough where the twin may, unless `exact`: the next of many steps mends what a rough one missed.
    """
    pixels = pixels.detach().requires_grad_()
    logits = twin.logits(pixels) if exact else twin.rough_logits(pixels)
    (gradient,) = torch.autograd.grad(goal.loss(logits).sum(), pixels)
    return gradient, logits.detach()


def ascent(gradient: Tensor, norm: Norm) -> Tensor:
    """Return the steepest step of length one in a norm: (N, C, H, W).

    One is 1 for the largest value of `linf`, and of length 1 for `l2`. For `l1` it spreads over the
    20 % strongest values, since a step of one value at a time never gets anywhere.
    """
    if norm == "linf":
        return torch.sign(gradient)
    flat = gradient.flatten(1)
    if norm == "l1":
        count = max(1, flat.shape[1] // 5)
        least = flat.abs().topk(count, dim=1).values[:, -1:]
        flat = torch.where(flat.abs() >= least, flat.sign(), 0.0)
        length = flat.abs().sum(1, keepdim=True)
        return (flat / length.clamp_min(1e-12)).reshape(gradient.shape)
    length = flat.square().sum(1, keepdim=True).sqrt()
    return (flat / length.clamp_min(1e-12)).reshape(gradient.shape)


def random_start(clean: Tensor, budget: Budget, generator: torch.Generator) -> Tensor:
    """Return pixels drawn at random from within the budget around the clean ones."""
    shape = tuple(clean.shape)
    if budget.norm == "linf":
        noise = (2 * torch.rand(shape, generator=generator) - 1) * budget.size / 255
    else:
        noise = ascent(torch.randn(shape, generator=generator), "l2")
        reach = torch.rand(len(clean), 1, 1, 1, generator=generator)
        noise = noise * budget.size * reach
    return budget.project(clean, clean + noise.to(clean.device))


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """One step of the whole budget along the gradient's sign.

    Source: Goodfellow et al. 2015, arXiv 1412.6572.
    """

    size: float = 8.0

    def __post_init__(self) -> None:
        self.budget  # noqa: B018  (building it checks the size)

    @property
    def name(self) -> str:
        """As `fgsm-linf-8`."""
        return f"fgsm-{self.budget}"

    @property
    def budget(self) -> Budget:
        """Linf, in 8-bit steps."""
        return Budget("linf", self.size)

    @property
    def passes(self) -> Passes:
        """One step."""
        return Passes(exact=1)

    def run(self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator) -> Tensor:
        """Return the clean pixels, each moved by the whole budget."""
        del generator
        gradient, _ = climb(victim.differentiable, clean, goal, exact=True)
        return clean + gradient.sign() * self.size / 255


@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Repeated steps, each put back into the budget, from a random start.

    Every image takes all its steps: that is the strong attack, and its images are far behind the
    boundary. With `early_stop` an image rests where its answer first changed, in whole pixels.

    Source: Madry et al. 2018, arXiv 1706.06083.
    """

    norm: Norm = "linf"
    size: float = 8.0
    steps: int = 10
    step: float = 2.5  # of the whole way size / steps
    restarts: int = 1
    early_stop: bool = False

    def __post_init__(self) -> None:
        if self.norm not in {"linf", "l2", "l1"}:
            raise AttackError(f"expected PGD in linf, l2 or l1, got {self.norm!r}")
        if self.steps < 1 or self.restarts < 1 or self.step <= 0:
            raise AttackError(
                f"expected positive steps, restarts and step, "
                f"got {self.steps}, {self.restarts} and {self.step}"
            )
        self.budget  # noqa: B018  (building it checks the size)

    @property
    def name(self) -> str:
        """As `pgd-linf-4`; other than ten steps or with an early stop, it says so."""
        steps = "" if self.steps == 10 else f"-{self.steps}"
        restarts = "" if self.restarts == 1 else f"-r{self.restarts}"
        return f"pgd-{self.budget}{steps}{restarts}{'-early' if self.early_stop else ''}"

    @property
    def budget(self) -> Budget:
        """In the chosen norm."""
        return Budget(self.norm, self.size)

    @property
    def passes(self) -> Passes:
        """A step each, from each start."""
        return Passes(climbed=self.steps * self.restarts)

    def for_images(self, height: int, width: int) -> Self:
        """As far as its budget goes on them."""
        return replace(self, size=self.budget.for_images(height, width).size)

    def run(self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator) -> Tensor:
        """Return the pixels of the last step; of several starts, the one deepest behind."""
        twin = victim.differentiable
        best, depth = clean, torch.full((len(clean),), torch.inf, device=clean.device)
        for _ in range(self.restarts):
            pixels = self._once(clean, goal, twin, generator)
            if self.restarts == 1:
                return pixels
            with torch.no_grad():
                margin = goal.margin(twin.logits(pixels))
            better = margin < depth
            best = torch.where(better[:, None, None, None], pixels, best)
            depth = torch.where(better, margin, depth)
        return best

    def _once(self, clean: Tensor, goal: Goal, twin: Twin, generator: torch.Generator) -> Tensor:
        unit = 255 if self.norm == "linf" else 1
        length = self.step * self.size / self.steps / unit
        pixels = random_start(clean, self.budget, generator)
        active = torch.arange(len(clean), device=clean.device)
        for _ in range(self.steps):
            if self.early_stop:
                active = active[~_reached(twin, self.budget, clean, pixels, goal, active)]
                if len(active) == 0:
                    break
            gradient, _ = climb(twin, pixels[active], goal.take(active))
            moved = pixels[active] + length * ascent(gradient, self.norm)
            pixels[active] = self.budget.project(clean[active], moved)
        return pixels


def _reached(
    twin: Twin, budget: Budget, clean: Tensor, pixels: Tensor, goal: Goal, rows: Tensor
) -> Tensor:
    whole = budget.whole(clean[rows], pixels[rows]).float() / 255
    with torch.no_grad():
        return goal.take(rows).margin(twin.logits(whole)) < 0


@dataclass(frozen=True, kw_only=True)
class BIM(Attack):
    """Small steps along the sign, from the clean image, no random start.

    Source: Kurakin et al. 2017, arXiv 1607.02533.
    """

    size: float = 8.0
    steps: int = 10

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise AttackError(f"expected positive steps, got {self.steps}")
        self.budget  # noqa: B018  (building it checks the size)

    @property
    def name(self) -> str:
        """As `bim-linf-8`."""
        return f"bim-{self.budget}"

    @property
    def budget(self) -> Budget:
        """Linf, in 8-bit steps."""
        return Budget("linf", self.size)

    @property
    def passes(self) -> Passes:
        """A step each."""
        return Passes(climbed=self.steps)

    def run(self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator) -> Tensor:
        """Return the pixels of the last step."""
        del generator
        return _along_signs(self.budget, self.steps, 0.0, clean, goal, victim.differentiable)


@dataclass(frozen=True, kw_only=True)
class MIFGSM(Attack):
    """BIM with momentum, whose images transfer better between models.

    Source: Dong et al. 2018, arXiv 1710.06081.
    """

    size: float = 8.0
    steps: int = 10
    decay: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.decay < 0:
            raise AttackError(
                f"expected positive steps and decay, got {self.steps} and {self.decay}"
            )
        self.budget  # noqa: B018  (building it checks the size)

    @property
    def name(self) -> str:
        """As `mifgsm-linf-8`."""
        return f"mifgsm-{self.budget}"

    @property
    def budget(self) -> Budget:
        """Linf, in 8-bit steps."""
        return Budget("linf", self.size)

    @property
    def passes(self) -> Passes:
        """A step each."""
        return Passes(climbed=self.steps)

    def run(self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator) -> Tensor:
        """Return the pixels of the last step."""
        del generator
        twin = victim.differentiable
        return _along_signs(self.budget, self.steps, self.decay, clean, goal, twin)


def _along_signs(
    budget: Budget, steps: int, decay: float, clean: Tensor, goal: Goal, twin: Twin
) -> Tensor:
    pixels, velocity = clean, torch.zeros_like(clean)
    for _ in range(steps):
        gradient, _ = climb(twin, pixels, goal)
        scale = gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        velocity = decay * velocity + gradient / scale
        moved = pixels + velocity.sign() * budget.size / steps / 255
        pixels = budget.project(clean, moved)
    return pixels
