"""Auto-PGD: PGD that sets its own step length. N images, K classes."""

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from reluguard.training.attacks.base import Attack, Goal, Passes
from reluguard.training.attacks.budget import Budget, Norm
from reluguard.training.attacks.gradient import ascent, random_start
from reluguard.training.attacks.victim import Victim
from reluguard.training.errors import AttackError
from reluguard.training.twin.twin import Twin

__all__ = ["APGD", "ratio_loss"]

_MOMENTUM = 0.75
_PROGRESS = 0.75  # share of steps in a window that must gain


def ratio_loss(logits: Tensor, goal: Goal) -> Tensor:
    """Return the difference-of-logits ratio to raise: (N,), blind to the scale of the logits.

    Needs three classes; with fewer the plain margin stands in. Source: Croce & Hein 2020, eq. 6.
    """
    margin = -goal.margin(logits)
    if logits.shape[1] < 3:
        return margin
    ordered = logits.sort(dim=1, descending=True).values
    return margin / (ordered[:, 0] - ordered[:, 2]).clamp_min(1e-12)


@dataclass(frozen=True)
class _State:
    """Where each image stands, and the best it has seen. All (N, ...)."""

    pixels: Tensor
    previous: Tensor
    loss: Tensor
    gradient: Tensor
    best: Tensor
    best_loss: Tensor
    best_gradient: Tensor


@dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """PGD with momentum that halves an image's step when it stops gaining.

    Every image takes all its steps and the highest loss is returned.

    Source: Croce & Hein 2020, arXiv 2003.01690, algorithm 1.
    """

    loss: Literal["ce", "dlr"] = "ce"
    norm: Norm = "linf"
    size: float = 4.0
    steps: int = 30

    def __post_init__(self) -> None:
        if self.loss not in {"ce", "dlr"} or self.norm not in {"linf", "l2"} or self.steps < 2:
            raise AttackError(
                f"expected loss ce or dlr, norm linf or l2 and 2 or more steps, "
                f"got {self.loss!r}, {self.norm!r} and {self.steps}"
            )
        self.budget  # noqa: B018  (building it checks the size)

    @property
    def name(self) -> str:
        """As `apgd-dlr-linf-4`."""
        return f"apgd-{self.loss}-{self.budget}"

    @property
    def budget(self) -> Budget:
        """In the chosen norm."""
        return Budget(self.norm, self.size)

    @property
    def passes(self) -> Passes:
        """A step each, after the start."""
        return Passes(climbed=self.steps + 1)

    def for_images(self, height: int, width: int) -> Self:
        """As far as its budget goes on them."""
        return replace(self, size=self.budget.for_images(height, width).size)

    def run(self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator) -> Tensor:
        """Return the pixels of the highest loss seen."""
        twin, unit = victim.differentiable, 255 if self.norm == "linf" else 1
        start = random_start(clean, self.budget, generator)
        loss, gradient = self._climb(twin, start, goal)
        state = _State(start, start, loss, gradient, start, loss, gradient)
        step = torch.full((len(clean), 1, 1, 1), 2 * self.size / unit, device=clean.device)
        gains = torch.zeros(len(clean), device=clean.device)
        reduced = torch.ones(len(clean), dtype=torch.bool, device=clean.device)
        mark_loss, last, window = loss, 0, max(1, round(0.22 * self.steps))
        for i in range(self.steps):
            before = state.loss
            state = self._step(state, step, clean, goal, twin, first=i == 0)
            gains += state.loss > before
            if i + 1 - last >= window:
                stuck = gains < _PROGRESS * (i + 1 - last)
                stuck |= ~reduced & (state.best_loss <= mark_loss)
                step = torch.where(stuck[:, None, None, None], step / 2, step)
                state = _back_to_best(state, stuck)
                gains, reduced, mark_loss, last = (
                    torch.zeros_like(gains),
                    stuck,
                    state.best_loss,
                    i + 1,
                )
                window = max(window - max(1, round(0.03 * self.steps)), round(0.06 * self.steps), 1)
        return state.best

    def _step(
        self, state: _State, step: Tensor, clean: Tensor, goal: Goal, twin: Twin, *, first: bool
    ) -> _State:
        share = 1.0 if first else _MOMENTUM
        moved = self.budget.project(clean, state.pixels + step * ascent(state.gradient, self.norm))
        drift = share * (moved - state.pixels) + (1 - share) * (state.pixels - state.previous)
        pixels = self.budget.project(clean, state.pixels + drift)
        loss, gradient = self._climb(twin, pixels, goal)
        better = loss > state.best_loss
        mask = better[:, None, None, None]
        return _State(
            pixels=pixels,
            previous=state.pixels,
            loss=loss,
            gradient=gradient,
            best=torch.where(mask, pixels, state.best),
            best_loss=torch.where(better, loss, state.best_loss),
            best_gradient=torch.where(mask, gradient, state.best_gradient),
        )

    def _climb(self, twin: Twin, pixels: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        pixels = pixels.detach().requires_grad_()
        logits = twin.rough_logits(pixels)
        loss = goal.loss(logits) if self.loss == "ce" else ratio_loss(logits, goal)
        (gradient,) = torch.autograd.grad(loss.sum(), pixels)
        return loss.detach(), gradient


def _back_to_best(state: _State, rows: Tensor) -> _State:
    mask = rows[:, None, None, None]
    return replace(
        state,
        pixels=torch.where(mask, state.best, state.pixels),
        loss=torch.where(rows, state.best_loss, state.loss),
        gradient=torch.where(mask, state.best_gradient, state.gradient),
    )
