"""Attacks on a few places: anywhere, or in one square patch. N images, H rows, W columns."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from reluguard.training.attacks.base import Attack, Goal, Passes
from reluguard.training.attacks.budget import Budget, side_of
from reluguard.training.attacks.gradient import climb
from reluguard.training.attacks.query import square_mask
from reluguard.training.attacks.victim import Victim
from reluguard.training.errors import AttackError

__all__ = ["Patch", "SparsePGD"]


@dataclass(frozen=True, kw_only=True)
class SparsePGD(Attack):
    """PGD onto the few places that help most; a place's channels may take any value.

    The best of all steps is returned.

    Source: Croce & Hein 2019, arXiv 1909.05040, section 3 (PGD0).
    """

    places: int = 20
    steps: int = 30
    step: float = 60.0  # L1 length, pixels in [0, 1]

    def __post_init__(self) -> None:
        if self.steps < 1 or self.step <= 0:
            raise AttackError(f"expected positive steps and step, got {self.steps}, {self.step}")
        self.budget  # noqa: B018  (building it checks the size)

    @property
    def name(self) -> str:
        """As `sparse-l0-20`."""
        return f"sparse-{self.budget}"

    @property
    def budget(self) -> Budget:
        """Places that may differ."""
        return Budget("l0", self.places)

    def for_images(self, height: int, width: int) -> Self:
        """The same share of the places; of smaller images a larger one, by the side.

        What 20 places in 1,024 do to ResNet-20, .66 fooled, 980 in 224 x 224 do to
        EfficientNet-Lite0, .75; 140, by the side, fool .06.
        """
        side = side_of(height, width)
        more = side**2 if side > 1 else side
        return replace(
            self,
            places=max(1, round(self.places * more)),
            step=float(f"{self.step * max(1.0, more):.3g}"),
        )

    @property
    def passes(self) -> Passes:
        """A step each, and a last look."""
        return Passes(climbed=self.steps, exact=1 / 3)

    def run(self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator) -> Tensor:
        """Return the pixels deepest behind the boundary."""
        twin = victim.differentiable
        noise = torch.rand(tuple(clean.shape), generator=generator) - 0.5
        pixels = self.budget.project(clean, clean + noise.to(clean.device))
        best, depth = pixels, torch.full((len(clean),), torch.inf, device=clean.device)
        for _ in range(self.steps):
            gradient, logits = climb(twin, pixels, goal)
            best, depth = _keep_deeper(best, depth, pixels, goal.margin(logits))
            scale = gradient.abs().flatten(1).sum(1).clamp_min(1e-12)[:, None, None, None]
            pixels = self.budget.project(clean, pixels + self.step * gradient / scale)
        with torch.no_grad():
            margin = goal.margin(twin.logits(pixels))
        return _keep_deeper(best, depth, pixels, margin)[0]


@dataclass(frozen=True, kw_only=True)
class Patch(Attack):
    """One square of any content, where the gradient is strongest, its pixels free.

    Source: Brown et al. 2017, arXiv 1712.09665, per image instead of universal.
    """

    side: int = 6
    steps: int = 30
    step: float = 0.1

    def __post_init__(self) -> None:
        if min(self.side, self.steps) < 1 or self.step <= 0:
            raise AttackError(
                f"expected positive side, steps and step, "
                f"got {self.side}, {self.steps} and {self.step}"
            )

    @property
    def name(self) -> str:
        """As `patch-6`."""
        return f"patch-{self.side}"

    @property
    def budget(self) -> Budget:
        """The places of one square."""
        return Budget("l0", self.side**2)

    def for_images(self, height: int, width: int) -> Self:
        """The same share of the side."""
        return replace(self, side=max(1, round(self.side * side_of(height, width))))

    @property
    def passes(self) -> Passes:
        """A look for the place, a step each, and a last look."""
        return Passes(climbed=self.steps + 1, exact=1 / 3)

    def run(self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator) -> Tensor:
        """Return the pixels deepest behind the boundary."""
        twin = victim.differentiable
        if self.side > min(clean.shape[2:]):
            raise AttackError(
                f"expected images of at least {self.side} pixels a side, got {tuple(clean.shape)}"
            )
        gradient, _ = climb(twin, clean, goal)
        mask = _strongest_square(gradient.abs().sum(1, keepdim=True), self.side)
        content = torch.rand(tuple(clean.shape), generator=generator).to(clean.device)
        pixels = torch.where(mask, content, clean)
        best, depth = pixels, torch.full((len(clean),), torch.inf, device=clean.device)
        for i in range(self.steps):
            gradient, logits = climb(twin, pixels, goal)
            best, depth = _keep_deeper(best, depth, pixels, goal.margin(logits))
            stride = self.step * (1 - i / self.steps)
            moved = (pixels + stride * gradient.sign()).clamp(0, 1)
            pixels = torch.where(mask, moved, clean)
        with torch.no_grad():
            margin = goal.margin(twin.logits(pixels))
        return _keep_deeper(best, depth, pixels, margin)[0]


def _keep_deeper(
    best: Tensor, depth: Tensor, pixels: Tensor, margin: Tensor
) -> tuple[Tensor, Tensor]:
    better = margin < depth
    return torch.where(better[:, None, None, None], pixels, best), torch.where(
        better, margin, depth
    )


def _strongest_square(strength: Tensor, side: int) -> Tensor:
    """Return the mask, bool (N, 1, H, W), of the square with the largest sum."""
    sums = F.avg_pool2d(strength, side, stride=1)
    place = sums.flatten(1).argmax(1)
    top, left = place // sums.shape[3], place % sums.shape[3]
    size = (strength.shape[2], strength.shape[3])
    return square_mask(top[:, None], left[:, None], torch.tensor(side, device=top.device), size)
