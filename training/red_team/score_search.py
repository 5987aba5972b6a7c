"""An attack by questions alone: someone who sees answers and scores, and no gradient. N images."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reluguard.detector.images import Images
from reluguard.detector.verdict import Verdicts
from reluguard.training.attacks import Attack, Budget, Goal, Passes, Victim
from reluguard.training.twin.twin import from_pixels

__all__ = ["ScoreSearch"]


def _score(verdicts: Verdicts) -> NDArray[np.float32]:
    return verdicts.score


@dataclass(frozen=True, kw_only=True)
class ScoreSearch(Attack):
    """Random squares that lower the margin and then the score: sees answers and scores only.

    What it asks is what the service answers to a client that may see scores and outputs: in process
    by default, or through a real server.

    Source: Andriushchenko et al. 2020, arXiv 1912.00049, with the guard's score behind the margin.

    Attributes:
        ask: whole images to verdicts with the model's own outputs.
        answer: the output that holds the class scores.
        threshold: the score to stay at or below.
        columns: from that output to a column per class, where it has none.
        heights: where images stand by their verdicts; their scores, of a guard that looks once.
        size: Linf, in 8-bit steps.
        most_queries: for one image.
    """

    needs_gradients: ClassVar[bool] = False
    ask: Callable[[Images], Verdicts] = field(repr=False)
    answer: str
    threshold: float
    columns: Callable[[NDArray[Any]], NDArray[Any]] = field(default=np.asarray, repr=False)
    heights: Callable[[Verdicts], NDArray[np.float32]] = field(default=_score, repr=False)
    size: float = 8.0
    most_queries: int = 1000

    @property
    def name(self) -> str:
        """As `score-search-linf-8`."""
        return f"score-search-{self.budget}"

    @property
    def budget(self) -> Budget:
        """Linf, in 8-bit steps."""
        return Budget("linf", self.size)

    @property
    def passes(self) -> Passes:
        """A question at a time."""
        return Passes(asked=self.most_queries)

    def run(
        self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the pixels of the lowest loss and the questions asked."""
        del victim
        n, c, h, w = clean.shape
        chance = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        edge = math.floor(self.size) / 255
        stripes = torch.from_numpy(chance.choice([-edge, edge], (n, c, 1, w)).astype(np.float32))
        pixels = (clean + stripes.to(clean.device)).clamp(0, 1)
        loss = self._ask(pixels, goal)
        queries = torch.ones(n, dtype=torch.int64)
        for asked in range(1, self.most_queries):
            active = torch.nonzero(loss > 0).squeeze(1)
            if len(active) == 0:
                break
            area = 0.3 * (1 - asked / self.most_queries) ** 2
            side = max(1, round(math.sqrt(area * h * w)))
            tried = pixels[active].clone()
            for i, row in enumerate(active.tolist()):
                top, left = chance.integers(h - side + 1), chance.integers(w - side + 1)
                sign = torch.from_numpy(chance.choice([-edge, edge], (c, 1, 1)).astype(np.float32))
                square = (slice(None), slice(top, top + side), slice(left, left + side))
                tried[i][square] = clean[row][square] + sign.to(clean.device)
            tried = tried.clamp(0, 1)
            found = self._ask(tried, goal.take(active))
            queries[active.cpu()] += 1
            better = found < loss[active]
            pixels[active[better]], loss[active[better]] = tried[better], found[better]
        return pixels, queries

    def _ask(self, pixels: Tensor, goal: Goal) -> Tensor:
        """Return what is left to do: (N,), 0 or less once the image evades."""
        whole = torch.round(pixels * 255).to(torch.uint8)
        verdicts = self.ask(from_pixels(whole))
        scores = self.columns(verdicts.outputs[self.answer])
        logits = torch.from_numpy(scores.astype(np.float32)).to(pixels.device)
        margin = goal.margin(logits)
        excess = torch.from_numpy(self.heights(verdicts)).to(pixels.device) - self.threshold
        # a changed answer is worth more than any score
        return torch.where(margin >= 0, 1e6 + margin, excess)
