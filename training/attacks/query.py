"""Attacks that only ask: they see the ONNX model's answers and no gradient. N images, K classes.

Every question is a whole 8-bit image, as a client would send it.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from reluguard.training.attacks.base import Attack, Goal, Passes
from reluguard.training.attacks.budget import Budget
from reluguard.training.attacks.victim import Victim
from reluguard.training.errors import AttackError
from reluguard.training.twin.twin import from_pixels

__all__ = ["HopSkipJump", "Square", "ask", "square_mask"]

SHARE_ASKED = 0.3


def ask(victim: Victim, pixels: Tensor, goal: Goal) -> Tensor:
    """Return the ONNX model's margins on the nearest whole pixels: float32, (N,)."""
    whole = torch.round(pixels.clamp(0, 1) * 255).to(torch.uint8)
    logits = torch.from_numpy(victim.predict(from_pixels(whole))).to(pixels.device)
    return goal.margin(logits)


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Random squares at the edge of the Linf budget, kept where they lower the margin.

    Sees scores. An image stops at its first success. Own code: ART 1.20 asks image by image, and
    its images are rounded only afterwards.

    Source: Andriushchenko et al. 2020, arXiv 1912.00049, algorithms 1 and 2.
    """

    needs_gradients: ClassVar[bool] = False
    size: float = 8.0
    most_queries: int = 500
    share: float = 0.8  # of the image, of the first square

    def __post_init__(self) -> None:
        if self.most_queries < 1 or not 0 < self.share <= 1:
            raise AttackError(
                f"expected 1 or more queries and a share in (0, 1], "
                f"got {self.most_queries} and {self.share}"
            )
        self.budget  # noqa: B018  (building it checks the size)

    @property
    def name(self) -> str:
        """As `square-linf-8`."""
        return f"square-{self.budget}"

    @property
    def budget(self) -> Budget:
        """Linf, in 8-bit steps."""
        return Budget("linf", self.size)

    @property
    def passes(self) -> Passes:
        """Most images fall long before the last question."""
        return Passes(asked=self.most_queries * SHARE_ASKED)

    def run(
        self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the lowest margin's pixels and the questions asked."""
        n, c, h, w = clean.shape
        edge = math.floor(self.size) / 255
        stripes = _signs((n, c, 1, w), generator).to(clean.device)
        pixels = (clean + edge * stripes).clamp(0, 1)
        margin = ask(victim, pixels, goal)
        queries = torch.ones(n, dtype=torch.int64)
        for i in range(1, self.most_queries):
            active = torch.nonzero(margin >= 0).squeeze(1)
            if len(active) == 0:
                break
            side = _side(self.share, i / self.most_queries, h, w)
            mask = _squares(len(active), h, w, side, generator).to(clean.device)
            signs = _signs((len(active), c, 1, 1), generator).to(clean.device)
            base = clean[active]
            tried = torch.where(mask, (base + edge * signs).clamp(0, 1), pixels[active])
            found = ask(victim, tried, goal.take(active))
            queries[active.cpu()] += 1
            better = found < margin[active]
            pixels[active[better]] = tried[better]
            margin[active[better]] = found[better]
        return pixels, queries


def square_mask(top: Tensor, left: Tensor, side: Tensor, size: tuple[int, int]) -> Tensor:
    """Return one square per image: bool, (N, 1, H, W).

    Args:
        top: int64, (N, 1). Its first row.
        left: int64, (N, 1). Its first column.
        side: int64, (N, 1), or one for all.
        size: (H, W).
    """
    rows, columns = (torch.arange(length, device=top.device) for length in size)
    inside_rows = (rows >= top) & (rows < top + side)
    inside_columns = (columns >= left) & (columns < left + side)
    return (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator).float() * 2 - 1


def _side(share: float, progress: float, h: int, w: int) -> int:
    """Return the square's side: its area halves at fixed points of the way."""
    halvings = sum(progress > at for at in (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8))
    return min(max(1, round(math.sqrt(share / 2**halvings * h * w))), h, w)


def _squares(n: int, h: int, w: int, side: int, generator: torch.Generator) -> Tensor:
    """Return one random square per image: bool, (N, 1, H, W)."""
    top = torch.randint(0, h - side + 1, (n, 1), generator=generator)
    left = torch.randint(0, w - side + 1, (n, 1), generator=generator)
    return square_mask(top, left, torch.tensor(side), (h, w))


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(Attack):
    """Walks along the boundary towards the clean image, seeing only which class the model answers.

    Probes are at least one 8-bit step, since the model sees whole pixels. Own code: ART 1.20 walks
    image by image.

    Source: Chen et al. 2020, arXiv 1904.02144, algorithm 2, L2.
    """

    needs_gradients: ClassVar[bool] = False
    steps: int = 8
    probes: int = 60  # of the first step; grows with the square root of the step
    starts: int = 20
    bisections: int = 8

    def __post_init__(self) -> None:
        if min(self.steps, self.probes, self.starts, self.bisections) < 1:
            raise AttackError(
                f"expected positive steps, probes, starts and bisections, got {self.steps}, "
                f"{self.probes}, {self.starts} and {self.bisections}"
            )

    @property
    def name(self) -> str:
        """`hopskipjump-l2`."""
        return "hopskipjump-l2"

    @property
    def budget(self) -> Budget:
        """Free: the attack looks for a small change itself."""
        return Budget("none")

    @property
    def passes(self) -> Passes:
        """Questions of the start, the bisections and the probes."""
        probes = sum(round(self.probes * math.sqrt(i)) for i in range(1, self.steps + 1))
        return Passes(asked=self.starts / 4 + (self.steps + 1) * self.bisections + probes)

    def run(
        self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest pixels found behind the boundary, and the questions asked."""
        start, queries = self._start(clean, goal, victim, generator)
        inside = ask(victim, start, goal) < 0
        rows = torch.nonzero(inside).squeeze(1)
        if len(rows):
            near, asked = self._walk(clean[rows], start[rows], goal.take(rows), victim, generator)
            start[rows] = near
            queries[rows.cpu()] += asked
        return start, queries

    def _start(
        self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return pixels that the model answers otherwise, where a few tries find some."""
        pixels = clean.clone()
        queries = torch.zeros(len(clean), dtype=torch.int64)
        pending = torch.arange(len(clean), device=clean.device)
        for i in range(self.starts):
            tried = self._candidates(clean[pending], i, generator)
            found = ask(victim, tried, goal.take(pending)) < 0
            queries[pending.cpu()] += 1
            pixels[pending[found]] = tried[found]
            pending = pending[~found]
            if len(pending) == 0:
                break
        return pixels, queries

    def _candidates(self, clean: Tensor, turn: int, generator: torch.Generator) -> Tensor:
        """Return where each image may start: noise, more of it every turn."""
        noise = torch.rand(tuple(clean.shape), generator=generator)
        share = min(1.0, 0.3 + 0.7 * turn / self.starts)
        return (1 - share) * clean + share * noise.to(clean.device)

    def _walk(
        self, clean: Tensor, start: Tensor, goal: Goal, victim: Victim, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        queries = torch.zeros(len(clean), dtype=torch.int64)
        near = self._bisect(clean, start, goal, victim)
        queries += self.bisections
        for i in range(1, self.steps + 1):
            probes = round(self.probes * math.sqrt(i))
            direction = _boundary_normal(near, goal, victim, probes, generator)
            stride = _length(near - clean) / math.sqrt(i)
            pending = torch.arange(len(clean), device=clean.device)
            far = near.clone()
            for _ in range(6):
                tried = near[pending] + stride[pending][:, None, None, None] * direction[pending]
                found = ask(victim, tried.clamp(0, 1), goal.take(pending)) < 0
                queries[pending.cpu()] += 1
                far[pending[found]] = tried[found].clamp(0, 1)
                pending = pending[~found]
                stride = stride / 2
                if len(pending) == 0:
                    break
            nearer = self._bisect(clean, far, goal, victim)
            gain = _length(nearer - clean) < _length(near - clean)
            near = torch.where(gain[:, None, None, None], nearer, near)
            queries += probes + self.bisections
        return near, queries

    def _bisect(self, clean: Tensor, far: Tensor, goal: Goal, victim: Victim) -> Tensor:
        """Return the point on the way to the clean image that is still behind the boundary."""
        low = torch.zeros(len(clean), 1, 1, 1, device=clean.device)
        high = torch.ones_like(low)
        for _ in range(self.bisections):
            middle = (low + high) / 2
            behind = ask(victim, clean + middle * (far - clean), goal) < 0
            high = torch.where(behind[:, None, None, None], middle, high)
            low = torch.where(behind[:, None, None, None], low, middle)
        return clean + high * (far - clean)


def _boundary_normal(
    near: Tensor, goal: Goal, victim: Victim, probes: int, generator: torch.Generator
) -> Tensor:
    """Return the direction, of length one, in which probes tend to fall behind the boundary."""
    total, votes = torch.zeros_like(near), torch.zeros(len(near), device=near.device)
    noises = []
    for _ in range(probes):
        noise = torch.randn(tuple(near.shape), generator=generator).to(near.device)
        noise = noise * (2 / 255)
        vote = (ask(victim, near + noise, goal) < 0).float() * 2 - 1
        total += vote[:, None, None, None] * noise
        votes += vote
        noises.append(noise)
    mean = votes / probes
    # The baseline lowers the variance when most probes agree.
    for noise in noises:
        total -= mean[:, None, None, None] * noise
    return total / _length(total).clamp_min(1e-12)[:, None, None, None]


def _length(change: Tensor) -> Tensor:
    return change.flatten(1).square().sum(1).sqrt()
