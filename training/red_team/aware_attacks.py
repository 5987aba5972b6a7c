"""What an attacker who holds the guard goes down: five ways to join a wrong answer and no flag.

N images, M images to copy, X features.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from reluguard.detector.images import Images
from reluguard.training.red_team.aware import BEHIND, Aware, Moment
from reluguard.training.red_team.relaxed import RelaxedGuard
from reluguard.training.twin.twin import to_pixels

__all__ = ["Bank", "CombinedLogit", "Lagrangian", "Mimicry", "Orthogonal", "Selective"]

_WEIGHTS = (1.0, 0.1, 10.0, 0.01, 100.0)


@dataclass(frozen=True, kw_only=True)
class Lagrangian(Aware):
    """The margin plus a weighted penalty on the score; each restart walks a grid of weights.

    Source: Carlini & Wagner 2017, arXiv 1705.07263, section 3.
    """

    label: ClassVar[str] = "lagrangian"
    grid: ClassVar[int] = len(_WEIGHTS)

    def descent(self, moment: Moment) -> Tensor:
        """Lower the margin until it is well behind, and what the score exceeds the threshold by."""
        weight = _WEIGHTS[moment.run % len(_WEIGHTS)]
        excess = softplus(moment.reading.score - self.threshold)
        margin = moment.goal.margin(moment.reading.logits).clamp_min(-2.0)
        return moment.gradient(margin + weight * excess)


@dataclass(frozen=True, kw_only=True)
class Selective(Aware):
    """Each step lowers the margin until the answer changes, then the score.

    Source: Bryniarski et al. 2021, arXiv 2106.15023 (Selective PGD).
    """

    label: ClassVar[str] = "selective"

    def descent(self, moment: Moment) -> Tensor:
        """Follow the one loss that is not yet where it should be."""
        margin = moment.goal.margin(moment.reading.logits)
        return moment.gradient(torch.where(margin > -2 * BEHIND, margin, moment.reading.score))


@dataclass(frozen=True, kw_only=True)
class Orthogonal(Aware):
    """As `Selective`, without what would undo the other aim: g - (g.h / |h|^2) h.

    Source: Bryniarski et al. 2021, arXiv 2106.15023, equation 6 as its text means it.
    """

    label: ClassVar[str] = "orthogonal"

    def descent(self, moment: Moment) -> Tensor:
        """Follow the one loss, at right angles to the other."""
        margin = moment.goal.margin(moment.reading.logits)
        g = moment.gradient(margin, keep=True)
        h = moment.gradient(moment.reading.score)
        behind = (margin <= -2 * BEHIND)[:, None, None, None]
        used, other = torch.where(behind, h, g), torch.where(behind, g, h)
        along = (used * other).flatten(1).sum(1) / other.square().flatten(1).sum(1).clamp_min(1e-20)
        return used - along[:, None, None, None] * other


@dataclass(frozen=True, kw_only=True)
class CombinedLogit(Aware):
    """Carlini and Wagner's attack on one classifier made of both: "flagged" is a class more.

    Its logit is (score - threshold + 1) * the largest logit, above all where the guard flags.

    Source: Carlini & Wagner 2017, arXiv 1705.07263, section 4.
    """

    label: ClassVar[str] = "combined"

    def descent(self, moment: Moment) -> Tensor:
        """Lower the larger of the clean class and "flagged" against the best other class."""
        logits, labels = moment.reading.logits, moment.goal.labels
        largest = logits.amax(1).clamp_min(1.0)
        flagged = (moment.reading.score - self.threshold + 1) * largest
        own = logits.gather(1, labels[:, None]).squeeze(1)
        others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        if moment.goal.targeted:
            return moment.gradient(torch.maximum(others, flagged) - own)
        return moment.gradient(torch.maximum(own, flagged) - others)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bank:
    """Clean images to copy: their features (M, X) and the model's answers (M,)."""

    features: Tensor
    answers: Tensor

    @classmethod
    def read(cls, guard: RelaxedGuard, images: Images) -> "Bank":
        """Return the bank of these images, uint8, (M, H, W, C)."""
        pixels = to_pixels(images, guard.twin.device)
        with torch.no_grad():
            parts = [guard.read(part) for part in pixels.split(64)]
        return cls(
            features=torch.cat([part.features for part in parts]),
            answers=torch.cat([part.logits.argmax(1) for part in parts]),
        )


@dataclass(frozen=True, kw_only=True)
class Mimicry(Aware):
    """Makes the guard's features those of a clean image of another class.

    Of the bank's images that the model answers otherwise, the nearest in features is copied; later
    runs take the next nearest. Until the answer changes its margin counts too.

    Source: Sabour et al. 2016, arXiv 1511.05122, on firing rates.
    """

    label: ClassVar[str] = "mimicry"
    bank: Bank = field(repr=False)

    def descent(self, moment: Moment) -> Tensor:
        """Approach the copied features, and the boundary."""
        own = moment.reading
        fits = self.bank.answers[None] != moment.goal.labels[:, None]
        if moment.goal.targeted:
            fits = ~fits
        fits |= ~fits.any(1, keepdim=True)
        distance = torch.cdist(own.features.detach(), self.bank.features)
        near = distance.masked_fill(~fits, torch.inf).argsort(dim=1, stable=True)
        copied = self.bank.features[near[:, moment.run % min(5, near.shape[1])]]
        apart = (own.features - copied).square().mean(1)
        return moment.gradient(apart + 0.1 * moment.goal.margin(own.logits).clamp_min(-1.0))
