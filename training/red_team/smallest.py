"""The smallest change that evades, with both aims in one search. N images.

Rungs of budgets are too coarse to say how much farther evasion lies than a wrong answer, and an
attack for a given budget does not look for a smaller one. This walks along the border of what
evades, and the same walk on the bare model is what it is compared with.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reluguard.training.attacks import Attack, Budget, Goal, Passes, Victim
from reluguard.training.attacks.budget import Norm
from reluguard.training.attacks.gradient import ascent
from reluguard.training.attacks.minimal import length_of, shortened
from reluguard.training.errors import AttackError
from reluguard.training.red_team.relaxed import RelaxedGuard

__all__ = ["NO_GUARD", "Smallest"]

NO_GUARD = 1e6  # a threshold above any score: the bare model
BEHIND = 0.01  # logits and log-odds; the twin's digits differ last
_GROWTH = 1.2  # of the reach, before the first success
_START = {"l2": 0.02, "linf": 1.0 / 255}


@dataclass(frozen=True, kw_only=True)
class Smallest(Attack):
    """Follows the border of what evades inwards: the ball shrinks there, and grows elsewhere.

    A step goes down the margin and the excess of the score together, each with a gradient of
    length one while its own aim is not reached; on odd runs without what would undo the other one.
    What counts is judged by hard bits on whole pixels. Later runs start at random about as far
    away as the best that was found.

    Source: Pintor et al. 2021, arXiv 2102.12827 (FMN), with the guard as a second border; the
    orthogonal step from Bryniarski et al. 2021, arXiv 2106.15023.

    Attributes:
        guard: the relaxed guard.
        threshold: the score to stay at or below; `NO_GUARD` attacks the bare model.
        norm: "l2" or "linf".
        steps: of each run.
        restarts: runs.
        gamma: share by which the ball shrinks or grows at first.
    """

    guard: RelaxedGuard = field(repr=False)
    threshold: float
    norm: Norm = "l2"
    steps: int = 100
    restarts: int = 2
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if self.norm not in {"l2", "linf"}:
            raise AttackError(f"expected a norm of linf or l2, got {self.norm!r}")
        if self.steps < 2 or self.restarts < 1 or not 0 < self.gamma < 1:
            raise AttackError(
                f"expected 2 or more steps, 1 or more restarts and gamma in (0, 1), got "
                f"{self.steps}, {self.restarts} and {self.gamma}"
            )

    @property
    def name(self) -> str:
        """As `smallest-l2`."""
        return f"smallest-{self.norm}"

    @property
    def budget(self) -> Budget:
        """Free: the attack looks for the smallest change itself."""
        return Budget("none")

    @property
    def passes(self) -> Passes:
        """A step of each run, two gradients where the guard is in the way."""
        gradients = 1 if self.threshold >= NO_GUARD else 2
        return Passes(exact=gradients * self.steps * self.restarts)

    def run(self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator) -> Tensor:
        """Return the smallest change that evades in whole pixels, or the last one tried."""
        del victim
        best = clean.clone()
        shortest = torch.full((len(clean),), torch.inf, device=clean.device)
        for run in range(self.restarts):
            start = torch.zeros_like(clean)
            if run:
                noise = torch.randn(tuple(clean.shape), generator=generator).to(clean.device)
                near = torch.where(torch.isfinite(shortest), shortest, 1.0)
                start = ascent(noise, self.norm) * near[:, None, None, None]
            self._once(clean, start, goal, run, best, shortest)
        return best

    def _once(
        self, clean: Tensor, change: Tensor, goal: Goal, run: int, best: Tensor, shortest: Tensor
    ) -> None:
        """Walk once; keep in `best` and `shortest` what is shorter than what they hold."""
        reach = torch.full_like(shortest, _START[self.norm])
        if run:
            reach = torch.where(torch.isfinite(shortest), shortest, reach)
        arrived = torch.zeros_like(shortest, dtype=torch.bool)
        for step in range(self.steps):
            cosine = (1 + math.cos(math.pi * step / self.steps)) / 2
            gamma = 0.002 + (self.gamma - 0.002) * cosine
            moving = (clean + change).clamp(0, 1).requires_grad_()
            whole = torch.round(moving.detach() * 255) / 255
            evades, downwards = self._look(moving, whole, goal, run, step)
            length = length_of(whole - clean, self.norm)
            better = evades & (length < shortest)
            best[better], shortest[better] = whole[better], length[better]
            lost = torch.isinf(shortest)
            best[lost] = whole[lost]
            arrived |= evades
            grown = reach * torch.where(arrived, 1 + gamma, _GROWTH)
            reach = torch.where(evades, torch.minimum(reach, shortest) * (1 - gamma), grown)
            stride = (reach * (0.02 + 0.48 * cosine))[:, None, None, None]
            change = shortened(change + stride * downwards, reach, self.norm)

    def _look(
        self, moving: Tensor, whole: Tensor, goal: Goal, run: int, step: int
    ) -> tuple[Tensor, Tensor]:
        """Return which whole pixels evade, (N,), and the step of length one to take."""
        reading = self.guard.read(
            moving + (whole - moving).detach(), temperature=0.05 ** (step / self.steps)
        )
        margin = goal.margin(reading.logits)
        excess = reading.score - self.threshold
        bare = self.threshold >= NO_GUARD
        (g,) = torch.autograd.grad(margin.sum(), moving, retain_graph=not bare)
        wrong = (margin < -BEHIND).detach()
        quiet = (excess <= 0).detach()
        if bare:
            return wrong, -ascent(g, self.norm)
        (h,) = torch.autograd.grad(excess.sum(), moving)
        one, other = _unit(g), _unit(h)
        if run % 2:
            along = (one * other).flatten(1).sum(1)[:, None, None, None]
            one, other = one - along.clamp(max=0) * other, other - along.clamp(max=0) * one
        # a border that is far behind needs no push, one that is near keeps half of it
        before = _weight(wrong, margin.detach(), -4 * BEHIND)
        above = _weight(quiet, excess.detach(), -4 * BEHIND)
        return wrong & quiet, -ascent(before * one + above * other, self.norm)


def _unit(gradient: Tensor) -> Tensor:
    return ascent(gradient, "l2")


def _weight(reached: Tensor, value: Tensor, well: float) -> Tensor:
    """Return 1 before a border, .5 just behind it and 0 well behind: (N, 1, 1, 1)."""
    weight = torch.where(reached, torch.where(value < well, 0.0, 0.5), 1.0)
    return weight[:, None, None, None]
