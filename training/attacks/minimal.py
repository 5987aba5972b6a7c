"""Attacks that look for the smallest change. N images, K classes.

A smallest change in floats is mostly gone after rounding to 8 bits (of DeepFool's images 4 % still
fool ResNet-20). So these judge what they find in whole pixels, and stretch it until it survives.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from reluguard.training.attacks.base import Attack, Goal, Passes
from reluguard.training.attacks.budget import Budget, Norm
from reluguard.training.attacks.gradient import ascent
from reluguard.training.attacks.victim import Victim
from reluguard.training.errors import AttackError
from reluguard.training.twin.twin import Twin

__all__ = [
    "CLEARLY",
    "FMN",
    "DeepFool",
    "boundaries",
    "length_of",
    "rounded",
    "shortened",
    "survive",
]

# The twin and the ONNX model differ in the last digits of a logit.
CLEARLY = -1e-3
STEPS_TAKEN = 4
LENGTHS_TRIED = 10
OVERSHOOT = 0.02  # of DeepFool, as in the paper


def rounded(pixels: Tensor) -> Tensor:
    """Return whole 8-bit pixels whose gradient is that of the pixels: straight-through."""
    return pixels + (torch.round(pixels * 255) / 255 - pixels).detach()


def survive(
    clean: Tensor,
    moved: Tensor,
    goal: Goal,
    twin: Twin,
    budget: Budget,
    *,
    growth: float = 1.08,
    most: float = 50.0,
) -> Tensor:
    """Return each change stretched just so far that it reaches its goal in whole pixels.

    Changes that don't within `most` times their length come back as they were.

    Args:
        clean: float32, (N, C, H, W).
        moved: the same, the change at the boundary.
        goal: what to reach.
        twin: judges.
        budget: that the whole pixels keep.
        growth: factor from one length to the next.
        most: longest length.
    """
    best, pending, scale = moved.clone(), torch.arange(len(clean), device=clean.device), 1.0
    while scale <= most and len(pending):
        stretched = clean[pending] + scale * (moved - clean)[pending]
        whole = budget.whole(clean[pending], stretched).float() / 255
        with torch.no_grad():
            reached = goal.take(pending).margin(twin.logits(whole)) < CLEARLY
        best[pending[reached]] = whole[reached]
        pending = pending[~reached]
        scale *= growth
    return best


def boundaries(
    twin: Twin, pixels: Tensor, goal: Goal, candidates: int
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the margin (N,), and to each of the likeliest other classes gap and slope.

    A gap, (N,), is how far that class's score is above the own one's; its slope, (N, C, H, W), the
    gradient of that.
    """
    pixels = pixels.detach().requires_grad_()
    logits = twin.logits(pixels)
    own = logits.gather(1, goal.labels[:, None]).squeeze(1)
    others = logits.detach().scatter(1, goal.labels[:, None], -torch.inf)
    ranked = others.argsort(dim=1, descending=True, stable=True)
    rivals = ranked[:, : min(candidates, logits.shape[1] - 1)]
    gaps, slopes = [], []
    for k in range(rivals.shape[1]):
        gap = logits.gather(1, rivals[:, k : k + 1]).squeeze(1) - own
        kept = k < rivals.shape[1] - 1
        (slope,) = torch.autograd.grad(gap.sum(), pixels, retain_graph=kept)
        gaps.append(gap.detach())
        slopes.append(slope)
    return goal.margin(logits.detach()), gaps, slopes


def length_of(change: Tensor, norm: Norm) -> Tensor:
    """Return the length in `l2`, or in `linf`: (N,)."""
    flat = change.flatten(1)
    return flat.square().sum(1).sqrt() if norm == "l2" else flat.abs().amax(1)


def shortened(change: Tensor, reach: Tensor, norm: Norm) -> Tensor:
    """Return changes (N, C, H, W) no longer than `reach` (N,) in `l2`, or in `linf`."""
    limit = reach[:, None, None, None]
    if norm == "linf":
        return torch.minimum(torch.maximum(change, -limit), limit)
    length = length_of(change, norm).clamp_min(1e-12)[:, None, None, None]
    return change * torch.clamp(limit / length, max=1.0)


@dataclass(frozen=True, kw_only=True)
class DeepFool(Attack):
    """Steps to the nearest boundary as if the network were linear, then just past it.

    Past it means in whole pixels: the paper's fixed overshoot of 2 % is followed by a search along
    the direction found. Own code: ART 1.20 takes 25 s for 32 images of ResNet-20, of which 3 %
    survive rounding; this takes 1 s and all survive.

    Source: Moosavi-Dezfooli et al. 2016, arXiv 1511.04599, algorithm 2.
    """

    steps: int = 30
    candidates: int = 5  # classes looked at, the likeliest
    overshoot: float = OVERSHOOT

    def __post_init__(self) -> None:
        if self.steps < 1 or self.candidates < 1 or self.overshoot < 0:
            raise AttackError(
                f"expected positive steps, candidates and overshoot, "
                f"got {self.steps}, {self.candidates} and {self.overshoot}"
            )

    @property
    def name(self) -> str:
        """`deepfool-l2`, or as `deepfool-l2-o0.5` where it goes half as far again."""
        further = "" if self.overshoot == OVERSHOOT else f"-o{self.overshoot:g}"
        return f"deepfool-l2{further}"

    @property
    def budget(self) -> Budget:
        """Free: the attack looks for the smallest change itself."""
        return Budget("none")

    @property
    def passes(self) -> Passes:
        """A few steps look at every candidate; then lengths are tried."""
        return Passes(exact=STEPS_TAKEN * (1 + 2 * self.candidates) / 3 + LENGTHS_TRIED / 3)

    def run(self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator) -> Tensor:
        """Return whole pixels just behind the nearest boundary."""
        del generator
        twin = victim.differentiable
        pixels, active = clean.clone(), torch.arange(len(clean), device=clean.device)
        for _ in range(self.steps):
            step, inside = self._step(twin, pixels[active], goal.take(active))
            active, step = active[inside], step[inside]
            if len(active) == 0:
                break
            moved = pixels[active] + (1 + self.overshoot) * step
            pixels[active] = self.budget.project(clean[active], moved)
        return survive(clean, pixels, goal, twin, self.budget)

    def _step(self, twin: Twin, pixels: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        """Return the step to the nearest linear boundary, and which images are still before it."""
        margin, gaps, slopes = boundaries(twin, pixels, goal, self.candidates)
        best = torch.full_like(margin, torch.inf)
        step = torch.zeros_like(pixels)
        for gap, slope in zip(gaps, slopes, strict=True):
            steepness = slope.square().flatten(1).sum(1).clamp_min(1e-12)
            distance = (gap.abs() + 1e-4) / steepness
            length = distance * steepness.sqrt()
            nearer = length < best
            best = torch.where(nearer, length, best)
            step = torch.where(
                nearer[:, None, None, None], distance[:, None, None, None] * slope, step
            )
        return step, margin >= 0


@dataclass(frozen=True, kw_only=True)
class FMN(Attack):
    """Follows the boundary inwards: the ball shrinks while the answer is wrong, grows while right.

    Each step is judged in whole pixels, its gradient passed straight through the rounding. A step
    is a share of the ball, where the paper has a fixed length: it suits near and far boundaries.

    Source: Pintor et al. 2021, arXiv 2102.12827, algorithm 1.
    """

    norm: Norm = "l2"
    steps: int = 30
    step: float = 1.0
    gamma: float = 0.05

    def __post_init__(self) -> None:
        if self.norm not in {"l2", "linf"} or self.steps < 2 or not 0 < self.gamma < 1:
            raise AttackError(
                f"expected FMN in l2 or linf, 2 or more steps and gamma in (0, 1), "
                f"got {self.norm!r}, {self.steps} and {self.gamma}"
            )

    @property
    def name(self) -> str:
        """As `fmn-l2`."""
        return f"fmn-{self.norm}"

    @property
    def budget(self) -> Budget:
        """Free: the attack looks for the smallest change itself."""
        return Budget("none")

    @property
    def passes(self) -> Passes:
        """A step each."""
        return Passes(exact=self.steps)

    def run(self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator) -> Tensor:
        """Return the smallest change that reached the goal in whole pixels, or the last one."""
        del generator
        twin = victim.differentiable
        change, best = torch.zeros_like(clean), torch.zeros_like(clean)
        shortest = torch.full((len(clean),), torch.inf, device=clean.device)
        reach = torch.full_like(shortest, torch.inf)
        for i in range(self.steps):
            cosine = (1 + math.cos(math.pi * i / self.steps)) / 2
            gamma = 0.001 + (self.gamma - 0.001) * cosine
            pixels = rounded(clean + change).detach().requires_grad_()
            margin = goal.margin(twin.logits(pixels))
            (gradient,) = torch.autograd.grad(-margin.sum(), pixels)
            whole, margin = pixels.detach() - clean, margin.detach()
            length = length_of(whole, self.norm)
            reached = margin < CLEARLY
            better = reached & (length < shortest)
            best = torch.where(better[:, None, None, None], whole, best)
            shortest = torch.where(better, length, shortest)
            reach = self._reach(reach, change, gradient, margin, shortest, reached, gamma)
            stride = (reach * self.step * (0.02 + 0.98 * cosine))[:, None, None, None]
            change = shortened(change + stride * ascent(gradient, self.norm), reach, self.norm)
            change = (clean + change).clamp(0, 1) - clean
        # A boundary within half an 8-bit step is crossed by no rounded step: stretch the way there.
        lost = torch.nonzero(torch.isinf(shortest)).squeeze(1)
        stretched = survive(clean[lost], (clean + change)[lost], goal.take(lost), twin, self.budget)
        best[lost] = stretched - clean[lost]
        return clean + best

    def _reach(
        self,
        reach: Tensor,
        change: Tensor,
        gradient: Tensor,
        margin: Tensor,
        shortest: Tensor,
        reached: Tensor,
        gamma: float,
    ) -> Tensor:
        """Return the next radius: shrunk, grown, or before any success to the linear boundary."""
        flat = gradient.flatten(1)
        slope = flat.square().sum(1).sqrt() if self.norm == "l2" else flat.abs().sum(1)
        linear = length_of(change, self.norm) + margin.abs() / slope.clamp_min(1e-12)
        grown = torch.where(torch.isfinite(shortest), reach * (1 + gamma), linear)
        return torch.where(reached, torch.minimum(reach, shortest) * (1 - gamma), grown)
