"""Attacks by someone who holds the guard too: a changed answer that is not flagged. N images.

All follow gradients through the relaxed guard, but what they keep at each step is judged by hard
bits on whole pixels. None of them knows more of success than the real guard will say afterwards.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor

from reluguard.training.attacks import Attack, Budget, Goal, Passes, Victim
from reluguard.training.attacks.budget import Norm
from reluguard.training.attacks.gradient import ascent, random_start
from reluguard.training.errors import AttackError
from reluguard.training.red_team.relaxed import Reading, RelaxedGuard

__all__ = ["BEHIND", "Aware", "Moment"]

BEHIND = 0.05  # logits and log-odds: how far past a boundary counts, since digits differ last
_WARM, _COLD = 1.0, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One step of an attack: what was read of pixels (N, C, H, W), what to reach, and which run."""

    pixels: Tensor
    reading: Reading
    goal: Goal
    run: int

    def gradient(self, loss: Tensor, *, keep: bool = False) -> Tensor:
        """Return the gradient of a loss per image (N,) in the pixels."""
        (found,) = torch.autograd.grad(loss.sum(), self.pixels, retain_graph=keep)
        return found


@dataclass(frozen=True, kw_only=True)
class Aware(Attack):
    """Signed steps with momentum and a falling length, put back into the budget.

    Restarts differ: the first starts at the clean image and leaves its class for the nearest, later
    ones start at random and aim at the clean image's next best classes in turn; odd ones relax the
    forward pass too. An image rests once it evades.

    Attributes:
        guard: the relaxed guard.
        threshold: the score to stay at or below; above any score it attacks the bare model.
        norm: "linf" or "l2".
        size: the budget, as `Budget` counts it.
        steps: of each run.
        restarts: how many.
        first: the number of the first of them, so that they can be made one at a time.
    """

    label: ClassVar[str]
    grid: ClassVar[int] = 1  # runs of a restart
    guard: RelaxedGuard = field(repr=False)
    threshold: float
    norm: Norm = "linf"
    size: float = 8.0
    steps: int = 100
    restarts: int = 1
    first: int = 0

    def __post_init__(self) -> None:
        if self.norm not in {"linf", "l2"}:
            raise AttackError(f"expected a norm of linf or l2, got {self.norm!r}")
        if self.steps < 1 or self.restarts < 1 or self.first < 0:
            raise AttackError(
                f"expected positive steps and restarts, got {self.steps} and {self.restarts} from "
                f"{self.first} on"
            )
        self.budget  # noqa: B018  (building it checks the size)

    @property
    def name(self) -> str:
        """As `selective-linf-4`."""
        return f"{self.label}-{self.budget}"

    @property
    def budget(self) -> Budget:
        """In the chosen norm."""
        return Budget(self.norm, self.size)

    @property
    def passes(self) -> Passes:
        """A step of each run; images that evade before are left alone."""
        return Passes(exact=self.steps * len(self.runs()))

    @abstractmethod
    def descent(self, moment: Moment) -> Tensor:
        """Return the gradient to go down: (N, C, H, W)."""

    @final
    def runs(self) -> range:
        """Return the numbers of the runs."""
        return range(self.first * self.grid, (self.first + self.restarts) * self.grid)

    @final
    def run(self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator) -> Tensor:
        """Return for each image the pixels of the lowest score behind the boundary."""
        del victim
        with torch.no_grad():
            reading = self.guard.read(clean)
        rank = reading.logits.scatter(1, goal.labels[:, None], -torch.inf).argsort(
            dim=1, descending=True, stable=True
        )
        best, lowest = clean.clone(), torch.full((len(clean),), torch.inf, device=clean.device)
        for run in self.runs():
            rows = torch.nonzero(lowest > self.threshold - BEHIND).squeeze(1)
            if len(rows) == 0:
                break
            aim = goal.take(rows)
            classes = rank.shape[1] - 1
            if run and not goal.targeted:
                aim = Goal(labels=rank[rows, run % min(classes, 5)], targeted=True)
            # chance by run, not by what ran before: restarts made one at a time are the same
            chance = torch.Generator().manual_seed(generator.initial_seed() + run)
            found, score = self._once(clean[rows], goal.take(rows), aim, run, chance)
            better = (score < lowest[rows]) | torch.isinf(lowest[rows])
            best[rows[better]], lowest[rows[better]] = found[better], score[better]
        return best

    def _once(
        self, clean: Tensor, goal: Goal, aim: Goal, run: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the best pixels of one run and their score, infinite where the answer stayed."""
        pixels = random_start(clean, self.budget, generator) if run else clean.clone()
        velocity = torch.zeros_like(clean)
        best, lowest = clean.clone(), torch.full((len(clean),), torch.inf, device=clean.device)
        active = torch.arange(len(clean), device=clean.device)
        for step in range(self.steps):
            moving = pixels[active].requires_grad_()
            share = step / self.steps
            whole = self.budget.whole(clean[active], moving.detach()).float() / 255
            reading = self.guard.read(
                moving + (whole - moving).detach(),  # read in whole pixels, straight through
                temperature=_WARM * (_COLD / _WARM) ** share,
                soft=run % 2 == 1,
            )
            moment = Moment(pixels=moving, reading=reading, goal=aim.take(active), run=run)
            gradient = self.descent(moment)
            score = self._judge(whole, goal.take(active), reading if run % 2 == 0 else None)
            better = score < lowest[active]
            best[active[better]], lowest[active[better]] = whole[better], score[better]
            resting = lowest[active] <= self.threshold - BEHIND
            scale = gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
            velocity[active] = 0.75 * velocity[active] + gradient / scale
            unit = 255 if self.norm == "linf" else 1
            length = self.size / unit * (0.02 + 0.23 * (1 + math.cos(math.pi * share)) / 2)
            moved = pixels[active] - length * ascent(velocity[active], self.norm)
            pixels[active] = self.budget.project(clean[active], moved)
            active = active[~resting]
            if len(active) == 0:
                break
        missed = torch.isinf(lowest)
        best[missed] = pixels[missed]
        return best, lowest

    def _judge(self, whole: Tensor, goal: Goal, reading: Reading | None) -> Tensor:
        """Return the hard-bit score of whole pixels, infinite where the answer stayed."""
        with torch.no_grad():
            known = self.guard.read(whole) if reading is None else reading
            behind = goal.margin(known.logits.detach()) < -BEHIND
            return torch.where(behind, known.score.detach(), torch.inf)
