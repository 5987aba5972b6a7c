"""An attack by chance alone: coarse random changes until the answer flips. N images.

Weak, and unlike every attack that searches: what it finds teaches a guard that a wrong answer on a
changed image counts, whatever the change looks like.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from reluguard.training.attacks.base import Attack, Goal, Passes
from reluguard.training.attacks.budget import Budget, side_of
from reluguard.training.attacks.query import ask, square_mask
from reluguard.training.attacks.victim import Victim
from reluguard.training.errors import AttackError

__all__ = ["RandomSearch"]


@dataclass(frozen=True, kw_only=True)
class RandomSearch(Attack):
    """Coarse blocks of `low` to `high` 8-bit steps, or one square of noise or of one colour.

    Each try draws anew; an image stops at its first success. Sees answers only.

    Args:
        low: smallest height of the blocks, in 8-bit steps.
        high: largest.
        side: largest side of the square, as a share of the image's.
        tries: questions per image, at most.
        cells: sides of the blocks, in pixels; one is drawn each time.
    """

    needs_gradients: ClassVar[bool] = False
    low: float = 6.0
    high: float = 20.0
    side: float = 0.4
    tries: int = 8
    cells: tuple[int, ...] = (2, 4, 8, 16)

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 255 or not 0 < self.side <= 1 or self.tries < 1:
            raise AttackError(
                "expected 0 < low <= high <= 255, a side in (0, 1] and 1 or more tries, "
                f"got {self.low}, {self.high}, {self.side} and {self.tries}"
            )
        if not self.cells or min(self.cells) < 1:
            raise AttackError(f"expected cells of 1 or more pixels, got {self.cells}")

    @property
    def name(self) -> str:
        """`random-search`."""
        return "random-search"

    @property
    def budget(self) -> Budget:
        """Free: a square may hold anything."""
        return Budget("none")

    @property
    def passes(self) -> Passes:
        """A question for each try."""
        return Passes(asked=self.tries)

    def for_images(self, height: int, width: int) -> Self:
        """Blocks of the same share of the side; of smaller images, as they are."""
        side = max(1.0, side_of(height, width))
        return replace(self, cells=tuple(round(cell * side) for cell in self.cells))

    def run(
        self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the first changes that flip the answer, or the last ones tried."""
        pixels = clean.clone()
        queries = torch.zeros(len(clean), dtype=torch.int64)
        active = torch.arange(len(clean), device=clean.device)
        for _ in range(self.tries):
            if len(active) == 0:
                break
            tried = self._changed(clean[active], generator)
            pixels[active] = tried
            queries[active.cpu()] += 1
            active = active[ask(victim, tried, goal.take(active)) >= 0]
        return pixels, queries

    def _changed(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        n, _, h, w = clean.shape
        cells = [cell for cell in self.cells if cell <= min(h, w)] or [1]
        cell = cells[int(torch.randint(len(cells), (1,), generator=generator))]
        height = self.low + (self.high - self.low) * torch.rand((n, 1, 1, 1), generator=generator)
        blocks = (clean + (self._blocks(clean, cell, generator) * height / 255).to(clean)).clamp(
            0, 1
        )
        square = torch.where(
            self._square(n, h, w, generator).to(clean.device),
            self._content(clean, generator),
            clean,
        )
        one = torch.rand((n, 1, 1, 1), generator=generator).to(clean.device) < 0.5
        return torch.where(one, blocks, square)

    def _blocks(self, clean: Tensor, cell: int, generator: torch.Generator) -> Tensor:
        n, c, h, w = clean.shape
        coarse = torch.randint(0, 2, (n, c, -(-h // cell), -(-w // cell)), generator=generator)
        return F.interpolate(coarse.float() * 2 - 1, scale_factor=cell)[..., :h, :w]

    def _square(self, n: int, h: int, w: int, generator: torch.Generator) -> Tensor:
        """Return one square per image: bool, (N, 1, H, W)."""
        most = max(1, round(self.side * min(h, w)))
        side = torch.randint(max(1, most // 3), most + 1, (n, 1), generator=generator)
        top = (torch.rand((n, 1), generator=generator) * (h - side + 1)).long()
        left = (torch.rand((n, 1), generator=generator) * (w - side + 1)).long()
        return square_mask(top, left, side, (h, w))

    def _content(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Return what a square holds: noise, or one colour."""
        n, c, h, w = clean.shape
        noise = torch.rand((n, c, h, w), generator=generator)
        colour = torch.rand((n, c, 1, 1), generator=generator).expand(n, c, h, w)
        plain = torch.rand((n, 1, 1, 1), generator=generator) < 0.5
        return torch.where(plain, colour, noise).to(clean)
