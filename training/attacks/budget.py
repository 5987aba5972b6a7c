"""How far an attack may move a pixel. N images, C channels, H rows, W columns.

This file alone decides what is within a budget, in floats while an attack works and in whole 8-bit
pixels when it is done.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from reluguard.training.errors import AttackError

__all__ = ["Budget", "Norm", "norms", "side_of"]

Norm = Literal["linf", "l2", "l1", "l0", "none"]


@dataclass(frozen=True, slots=True)
class Budget:
    """The largest change an attack may make to one image.

    `size` counts, for `linf`, 8-bit steps of one pixel (4 means 4/255); for `l2` and `l1`, the norm
    of the change with pixels in [0, 1]; for `l0`, places (row, column) that differ in any channel.
    With `none` only the pixel range limits the change, and `size` is infinite.
    """

    norm: Norm
    size: float = math.inf

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise AttackError(f"expected a norm of {', '.join(get_args(Norm))}, got {self.norm!r}")
        if not self.size > 0 or (self.norm != "none" and math.isinf(self.size)):
            raise AttackError(
                f"expected a positive size of the {self.norm} budget, got {self.size}"
            )

    def for_images(self, height: int, width: int) -> "Budget":
        """Return the budget that goes about as far on images of this size; written for 32 x 32.

        An 8-bit step stays one, L2 grows with the root of the side, L1 with its power of 1.75.
        Sizes have three digits, and smaller images keep them.

        Measured, what PGD of ten steps fools of ResNet-20 at 32 pixels, of 64, and of
        EfficientNet-Lite0 at 224, of 16: Linf 1 .83 and 1.00; L2 .25 .97 and .44, .66 there 1.00;
        L1 12 .97, there 84 .12, 222 .62, 350 .94, 588 1.00.
        """
        power = {"l2": 0.5, "l1": 1.75}.get(self.norm)
        if power is None:
            return self
        grown = self.size * max(1.0, side_of(height, width)) ** power
        return Budget(self.norm, float(f"{grown:.3g}"))

    def __str__(self) -> str:
        return "none" if self.norm == "none" else f"{self.norm}-{self.size:g}"

    def project(self, clean: Tensor, moved: Tensor) -> Tensor:
        """Return the nearest pixels within the budget and within [0, 1].

        Nearest in the L2 sense, by the budget first and the range after, which keeps both.

        Args:
            clean: float, (N, C, H, W), in [0, 1].
            moved: the same shape; any value, and where it is not a number the clean pixel stands.
        """
        moved = torch.where(torch.isnan(moved), clean, moved).clamp(0, 1)
        return (clean + self._shrink(moved - clean, 1.0)).clamp(0, 1)

    def whole(self, clean: Tensor, moved: Tensor) -> Tensor:
        """Return whole 8-bit pixels within the budget, uint8, (N, C, H, W), next to `moved`.

        Rounding can leave an L2 or L1 budget. The values that rounding moved outward the most are
        then rounded towards the clean pixel instead, as few as needed.

        Args:
            clean: float, (N, C, H, W), whole pixels divided by 255.
            moved: the same shape; any value.
        """
        start = torch.round(clean.double() * 255)
        moved = torch.where(torch.isnan(moved), clean, moved).double().clamp(0, 1) * 255
        change = self._shrink(moved - start, 255.0)
        step = torch.round(change)
        if self.norm in {"l2", "l1"}:
            step = self._trim(step, change)
        elif self.norm == "linf":
            step = step.clamp(-math.floor(self.size), math.floor(self.size))
        return (start + step).clamp(0, 255).to(torch.uint8)

    def _shrink(self, change: Tensor, unit: float) -> Tensor:
        """Project a change onto the budget; `unit` is the value of a full pixel."""
        match self.norm:
            case "linf":
                limit = self.size * unit / 255
                return change.clamp(-limit, limit)
            case "l2":
                length = change.flatten(1).norm(dim=1).clamp_min(1e-12)
                return change * _rows(torch.clamp(self.size * unit / length, max=1.0))
            case "l1":
                return _onto_l1(change, self.size * unit)
            case "l0":
                return _keep_places(change, int(self.size))
            case _:
                return change

    def _trim(self, step: Tensor, change: Tensor) -> Tensor:
        size = step.flatten(1).abs()
        outward = size - change.flatten(1).abs()
        # What one value saves, of the norm or of its square, when taken one step back.
        saving = torch.where(outward > 0, 2 * size - 1 if self.norm == "l2" else 1.0, 0.0)
        total = size.square().sum(1) if self.norm == "l2" else size.sum(1)
        limit = (self.size * 255) ** 2 if self.norm == "l2" else self.size * 255
        order = outward.argsort(dim=1, descending=True, stable=True)
        saved = saving.gather(1, order).cumsum(1)
        # Take back the shortest prefix that saves enough: all before it fall short.
        before = torch.nn.functional.pad(saved[:, :-1], (1, 0))
        needed = before < (total - limit).unsqueeze(1)
        back = torch.zeros_like(needed).scatter(1, order, needed) & (saving > 0)
        return step - torch.sign(step) * back.reshape(step.shape)


def side_of(height: int, width: int) -> float:
    """Return an image's side in units of the 32 pixels that budgets are written for."""
    return math.sqrt(height * width) / 32


def _rows(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)


def _onto_l1(change: Tensor, size: float) -> Tensor:
    """Project onto the L1 ball. Source: Duchi et al. 2008, figure 1."""
    flat = change.flatten(1)
    magnitude = flat.abs()
    ordered = magnitude.sort(dim=1, descending=True).values
    excess = ordered.cumsum(1) - size
    counts = torch.arange(1, flat.shape[1] + 1, device=flat.device)
    kept = (ordered - excess / counts > 0).sum(1, keepdim=True).clamp_min(1)
    threshold = (excess.gather(1, kept - 1) / kept).clamp_min(0)
    inside = magnitude.sum(1, keepdim=True) <= size
    shrunk = torch.sign(flat) * (magnitude - threshold).clamp_min(0)
    return torch.where(inside, flat, shrunk).reshape(change.shape)


def _keep_places(change: Tensor, count: int) -> Tensor:
    """Keep the `count` places of largest change, of equal ones the first, put the others back."""
    strength = change.abs().sum(1).flatten(1)
    if count >= strength.shape[1]:
        return change
    least = strength.topk(count, dim=1).values[:, -1:]
    sure, tied = strength > least, strength == least
    mask = sure | (tied & (tied.cumsum(1) <= count - sure.sum(1, keepdim=True)))
    return change * mask.reshape(len(change), 1, *change.shape[2:])


def norms(clean: Tensor, attacked: Tensor) -> dict[str, Tensor]:
    """Return each image's change by norm, in the units of `Budget`: float64, (N,).

    Args:
        clean: uint8, (N, C, H, W).
        attacked: the same.
    """
    change = attacked.to(torch.int64) - clean.to(torch.int64)
    flat = change.abs().flatten(1)
    return {
        "linf": flat.amax(1).double(),
        "l2": flat.square().sum(1).double().sqrt() / 255,
        "l1": flat.sum(1).double() / 255,
        "l0": change.ne(0).any(1).flatten(1).sum(1).double(),
    }
