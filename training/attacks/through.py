"""An attack made through harmless changes, so that it survives them. N images, C channels.

Whoever knows that an image will be encoded again, lightened or moved a little on its way makes it
for that: the gradient is the mean over such changes.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from reluguard.training.attacks.base import Attack, Goal, Passes
from reluguard.training.attacks.budget import Budget, Norm, side_of
from reluguard.training.attacks.gradient import ascent, random_start
from reluguard.training.attacks.spatial import turned
from reluguard.training.attacks.victim import Victim
from reluguard.training.changes import JPEG
from reluguard.training.errors import AttackError
from reluguard.training.twin.twin import Twin, from_pixels, to_pixels

__all__ = ["PGDThrough"]

LIGHT, CONTRAST, NOISE = 0.15, 0.25, 8 / 255  # largest change of each kind
SHIFT, BLUR = 2.0, 0.8  # pixels, of 32 a side
QUALITIES = (60, 95)


@dataclass(frozen=True, kw_only=True)
class PGDThrough(Attack):
    """PGD whose gradient is the mean over the image itself and `draws` harmless changes of it.

    Each draw is light, contrast, noise, a shift, blur or JPEG at a strength by chance; JPEG's
    rounding is taken for the identity on the way back. Success is that of the image itself.

    Source: Athalye et al. 2018, arXiv 1707.07397 (expectation over transformation) and 1802.00420
    (the way back through what has no gradient).
    """

    norm: Norm = "linf"
    size: float = 4.0
    steps: int = 10
    step: float = 2.5  # of the whole way size / steps
    draws: int = 3

    def __post_init__(self) -> None:
        if self.norm not in {"linf", "l2"}:
            raise AttackError(f"expected PGD through changes in linf or l2, got {self.norm!r}")
        if self.steps < 1 or self.draws < 1 or self.step <= 0:
            raise AttackError(
                f"expected positive steps, draws and step, "
                f"got {self.steps}, {self.draws} and {self.step}"
            )
        self.budget  # noqa: B018  (building it checks the size)

    @property
    def name(self) -> str:
        """As `pgd-linf-4-through`; other than ten steps or three draws, it says so."""
        steps = "" if self.steps == 10 else f"-{self.steps}"
        draws = "" if self.draws == 3 else f"-{self.draws}"
        return f"pgd-{self.budget}{steps}-through{draws}"

    @property
    def budget(self) -> Budget:
        """In the chosen norm."""
        return Budget(self.norm, self.size)

    @property
    def passes(self) -> Passes:
        """A step each, of the image and of every changed one."""
        return Passes(climbed=self.steps * (1 + self.draws))

    def for_images(self, height: int, width: int) -> Self:
        """As far as its budget goes on them."""
        return replace(self, size=self.budget.for_images(height, width).size)

    def run(self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator) -> Tensor:
        """Return the pixels of the last step."""
        unit = 255 if self.norm == "linf" else 1
        length = self.step * self.size / self.steps / unit
        pixels = random_start(clean, self.budget, generator)
        for _ in range(self.steps):
            gradient = self._mean_gradient(victim.differentiable, pixels, goal, generator)
            pixels = self.budget.project(clean, pixels + length * ascent(gradient, self.norm))
        return pixels

    def _mean_gradient(
        self, twin: Twin, pixels: Tensor, goal: Goal, generator: torch.Generator
    ) -> Tensor:
        total = torch.zeros_like(pixels)
        for draw in range(1 + self.draws):
            seen = pixels.detach().requires_grad_()
            changed = seen if draw == 0 else _changed(seen, generator)
            (gradient,) = torch.autograd.grad(goal.loss(twin.rough_logits(changed)).sum(), seen)
            # each view counts alike, however steep the loss is there
            total += (
                gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
            )
        return total


def _changed(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return the pixels after one harmless change, a way back for gradients through it."""
    kinds = (_light, _contrast, _noise, _shift, _blur, _jpeg)
    kind = kinds[int(torch.randint(len(kinds), (1,), generator=generator))]
    return kind(pixels, generator).clamp(0, 1)


def _each(pixels: Tensor, reach: float, generator: torch.Generator) -> Tensor:
    """Return a number for each image, from -reach to reach: (N, 1, 1, 1)."""
    chance = torch.rand((len(pixels), 1, 1, 1), generator=generator)
    return ((2 * chance - 1) * reach).to(pixels)


def _light(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return pixels + _each(pixels, LIGHT, generator)


def _contrast(pixels: Tensor, generator: torch.Generator) -> Tensor:
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (pixels - mean) * (1 + _each(pixels, CONTRAST, generator))


def _noise(pixels: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(tuple(pixels.shape), generator=generator).to(pixels)
    return pixels + noise * _each(pixels, NOISE, generator)


def _shift(pixels: Tensor, generator: torch.Generator) -> Tensor:
    reach = SHIFT * max(1.0, side_of(*pixels.shape[2:]))
    down, right = ((2 * torch.rand(2, generator=generator) - 1) * reach).tolist()
    return turned(pixels, 0.0, down, right, "border")


def _blur(pixels: Tensor, generator: torch.Generator) -> Tensor:
    largest = BLUR * max(1.0, side_of(*pixels.shape[2:]))
    sigma = largest * (0.3 + 0.7 * float(torch.rand(1, generator=generator)))
    return blurred(pixels, sigma)


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Return the pixels after a Gaussian blur, (N, C, H, W), edges continued."""
    reach = min(max(1, math.ceil(2.5 * sigma)), min(pixels.shape[2:]) - 1)
    if reach < 1:
        return pixels
    at = torch.arange(-reach, reach + 1, device=pixels.device, dtype=pixels.dtype)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = pixels.shape[1]
    for shape, padding in (
        ((1, 1, -1, 1), (0, 0, reach, reach)),
        ((1, 1, 1, -1), (reach, reach, 0, 0)),
    ):
        weight = kernel.reshape(shape).expand(channels, 1, *kernel.reshape(shape).shape[2:])
        pixels = F.conv2d(F.pad(pixels, padding, mode="replicate"), weight, groups=channels)
    return pixels


def _jpeg(pixels: Tensor, generator: torch.Generator) -> Tensor:
    if pixels.shape[1] not in {1, 3}:
        return _noise(pixels, generator)
    low, high = QUALITIES
    quality = int(torch.randint(low, high + 1, (1,), generator=generator))
    whole = torch.round(pixels.detach() * 255).to(torch.uint8)
    saved = to_pixels(JPEG(quality=quality)(from_pixels(whole), seed=0), pixels.device)
    return pixels + (saved - pixels).detach()
