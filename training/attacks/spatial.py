"""An attack by turning and shifting. N images, H rows, W columns."""

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from reluguard.training.attacks.base import Attack, Goal, Passes
from reluguard.training.attacks.budget import Budget
from reluguard.training.attacks.query import ask
from reluguard.training.attacks.victim import Victim
from reluguard.training.errors import AttackError

__all__ = ["Padding", "Spatial", "turned"]


Padding = Literal["zeros", "border", "reflection"]


def turned(
    pixels: Tensor, degrees: float, down: float, right: float, padding: Padding = "zeros"
) -> Tensor:
    """Return images turned about their centre and shifted by pixels, bilinear.

    Outside is black, or what `padding` says.
    """
    n, _, h, w = pixels.shape
    angle = math.radians(degrees)
    cosine, sine = math.cos(angle), math.sin(angle)
    # affine_grid works in [-1, 1] on both axes, so a turn of other than square images needs w / h
    matrix = torch.tensor(
        [
            [cosine, -sine * h / w, -2 * right / w],
            [sine * w / h, cosine, -2 * down / h],
        ],
        device=pixels.device,
    )
    grid = F.affine_grid(matrix.expand(n, 2, 3), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode=padding, align_corners=False)


@dataclass(frozen=True, kw_only=True)
class Spatial(Attack):
    """The turn and shift, of a whole grid of them, that lowers the margin most.

    Source: Engstrom et al. 2019, arXiv 1712.02779, section 3 (grid search).
    """

    needs_gradients: ClassVar[bool] = False
    degrees: float = 30.0
    share: float = 0.1  # of the side, the furthest shift
    turns: int = 7
    shifts: int = 3
    padding: Padding = "zeros"

    def __post_init__(self) -> None:
        if min(self.turns, self.shifts) < 1 or not 0 <= self.share < 1 or self.degrees < 0:
            raise AttackError(
                f"expected positive turns and shifts, a share in [0, 1) and degrees, got "
                f"{self.turns}, {self.shifts}, {self.share} and {self.degrees}"
            )
        if self.padding not in get_args(Padding):
            raise AttackError(
                f"expected a padding of {', '.join(get_args(Padding))}, got {self.padding!r}"
            )

    @property
    def name(self) -> str:
        """`spatial`, with other degrees `spatial-15`, with another padding `spatial-border`."""
        degrees = [] if self.degrees == 30 else [f"{self.degrees:g}"]
        padding = [] if self.padding == "zeros" else [self.padding]
        return "-".join(["spatial", *degrees, *padding])

    @property
    def budget(self) -> Budget:
        """Free: pixels may change at will, their places not."""
        return Budget("none")

    @property
    def passes(self) -> Passes:
        """Each turn and shift."""
        return Passes(asked=self.turns * self.shifts**2)

    def run(
        self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the images of the lowest margin, and the questions asked."""
        del generator
        h, w = clean.shape[2:]
        best, lowest = clean, torch.full((len(clean),), torch.inf, device=clean.device)
        grid = list(
            itertools.product(
                torch.linspace(-self.degrees, self.degrees, self.turns).tolist(),
                torch.linspace(-self.share * h, self.share * h, self.shifts).tolist(),
                torch.linspace(-self.share * w, self.share * w, self.shifts).tolist(),
            )
        )
        for degrees, down, right in grid:
            moved = turned(clean, degrees, down, right, self.padding)
            margin = ask(victim, moved, goal)
            better = margin < lowest
            best = torch.where(better[:, None, None, None], moved, best)
            lowest = torch.where(better, margin, lowest)
        return best, torch.full((len(clean),), len(grid))
