"""FAB: the fast adaptive boundary attack. N images, D values of an image, K classes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from reluguard.training.attacks.base import Attack, Goal, Passes
from reluguard.training.attacks.budget import Budget, Norm
from reluguard.training.attacks.minimal import CLEARLY, boundaries, length_of, rounded, survive
from reluguard.training.attacks.victim import Victim
from reluguard.training.errors import AttackError
from reluguard.training.twin.twin import Twin

__all__ = ["FAB", "onto_plane"]

_HALVINGS = 30
_FARTHEST = 64.0  # there all but values of nearly no slope are at the end of their range


def onto_plane(x: Tensor, normal: Tensor, offset: Tensor, *, norm: Norm) -> Tensor:
    """Return the nearest points of [0, 1]^D on hyperplanes, (N, D), or how near the box gets.

    The nearest point is clip(x + t v) for a t >= 0, with v along the normal in `l2` and its sign in
    `linf`; what is left to the plane falls with t, so t is bisected.

    Args:
        x: (N, D), in the box.
        normal: (N, D).
        offset: (N,). Points z with normal . z + offset = 0 are on the plane.
        norm: nearest in this one.
    """
    side = ((normal * x).sum(1) + offset).sign()
    way = normal.sign() if norm == "linf" else normal
    way = -side[:, None] * way / way.abs().amax(1, keepdim=True).clamp_min(1e-12)
    low, high = torch.zeros_like(offset), torch.full_like(offset, _FARTHEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        moved = (x + middle[:, None] * way).clamp(0, 1)
        short = side * ((normal * moved).sum(1) + offset) > 0
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return (x + high[:, None] * way).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class FAB(Attack):
    """Walks along the boundary towards the image, each time to where it would be if it were flat.

    Steps are judged in whole pixels; what no step reached is stretched until it survives rounding.

    Source: Croce & Hein 2020, arXiv 1907.02044, algorithm 1.
    """

    norm: Norm = "l2"
    steps: int = 20
    candidates: int = 5  # classes looked at, the likeliest
    pull: float = 0.1  # at most so much of the way is from the image: alpha
    overshoot: float = 1.05  # eta
    back: float = 0.9  # of the change that is left after a success: beta

    def __post_init__(self) -> None:
        shares = 0 <= self.pull <= 1 and 0 < self.back < 1 <= self.overshoot
        if self.norm not in {"l2", "linf"} or min(self.steps, self.candidates) < 1 or not shares:
            raise AttackError(
                "expected FAB in l2 or linf, positive steps and candidates, pull in [0, 1], back "
                f"in (0, 1) and an overshoot of 1 or more, got {self.norm!r}, {self.steps}, "
                f"{self.candidates}, {self.pull}, {self.back} and {self.overshoot}"
            )

    @property
    def name(self) -> str:
        """As `fab-l2`."""
        return f"fab-{self.norm}"

    @property
    def budget(self) -> Budget:
        """Free: the attack looks for the smallest change itself."""
        return Budget("none")

    @property
    def passes(self) -> Passes:
        """Each step looks at every candidate, and judges what it found."""
        return Passes(exact=self.steps * (2 + 2 * self.candidates) / 3)

    def run(self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator) -> Tensor:
        """Return the smallest change that reached the goal in whole pixels."""
        del generator
        twin, start = victim.differentiable, clean.flatten(1)
        x, best, last = start.clone(), start.clone(), start.clone()
        shortest = torch.full((len(clean),), torch.inf, device=clean.device)
        for _ in range(self.steps):
            normal, offset = self._nearest_plane(twin, x.reshape(clean.shape), goal)
            here, there = (onto_plane(z, normal, offset, norm=self.norm) for z in (x, start))
            own, other = length_of(here - x, self.norm), length_of(there - start, self.norm)
            share = (own / (own + other).clamp_min(1e-12)).clamp_max(self.pull)[:, None]
            ahead = x + self.overshoot * (here - x)
            x = (1 - share) * ahead + share * (start + self.overshoot * (there - start))
            x = last = x.clamp(0, 1)
            whole = rounded(x).reshape(clean.shape)
            with torch.no_grad():
                reached = goal.margin(twin.logits(whole)) < CLEARLY
            length = length_of(whole.flatten(1) - start, self.norm)
            better = reached & (length < shortest)
            best = torch.where(better[:, None], whole.flatten(1), best)
            shortest = torch.where(better, length, shortest)
            x = torch.where(reached[:, None], start + self.back * (x - start), x)
        lost = torch.nonzero(torch.isinf(shortest)).squeeze(1)
        if len(lost):
            moved = last.reshape(clean.shape)[lost]
            found = survive(clean[lost], moved, goal.take(lost), twin, self.budget)
            best[lost] = found.flatten(1)
        return best.reshape(clean.shape)

    def _nearest_plane(self, twin: Twin, pixels: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        """Return normal (N, D) and offset (N,) of the flat boundary that is nearest."""
        margin, gaps, slopes = boundaries(twin, pixels, goal, self.candidates)
        x = pixels.flatten(1)
        nearest = torch.full_like(margin, torch.inf)
        normal, offset = torch.zeros_like(x), torch.zeros_like(nearest)
        for gap, steep in zip(gaps, slopes, strict=True):
            slope = steep.flatten(1)
            dual = slope.abs().sum(1) if self.norm == "linf" else slope.square().sum(1).sqrt()
            distance = gap.abs() / dual.clamp_min(1e-12)
            nearer = distance < nearest
            nearest = torch.where(nearer, distance, nearest)
            normal = torch.where(nearer[:, None], slope, normal)
            offset = torch.where(nearer, gap - (slope * x).sum(1), offset)
        return normal, offset
