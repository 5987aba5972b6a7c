"""Images pushed across a boundary along directions by chance: what attacks share. N images.

Not an attack that anybody makes: a generator of positives. The direction is the model's own
gradient for a class by chance, at a place by chance, put through filters and masks by chance; the
push ends where the answer flips, or by chance further on. A head fitted on it learns what a push
across a boundary looks like rather than a list of attacks.

Measured on ResNet-20 and CIFAR-10, heads of one member and at most 250 rows a group (1,000 of this
one), composed positives in both; AUROC of what was left out, without and with it: FGSM 2, 4 and
8/255 .887, .845, .726 and .903, .900, .902; PGD 1, 2, 4 and 8/255 .817, .868, .969, .983 and .823,
.864, .956, .978; DeepFool, FMN and CW .888, .883, .914 and .885, .895, .913. No direction is the
plain gradient's sign, but that of a lightly blurred one is among them, which is close to FGSM.
Price, with 18 % of the weight of positives: what is detected of seen attacks at 1 % .514 to .451,
harmless changes flagged .069 to .081; gain after a change of the recipe's strengths, .845 and .729
to .882 and .802. The recipes give it half that weight.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from reluguard.training.attacks.base import Attack, Goal, Passes
from reluguard.training.attacks.budget import Budget, side_of
from reluguard.training.attacks.through import blurred
from reluguard.training.attacks.victim import Victim
from reluguard.training.errors import AttackError
from reluguard.training.twin.twin import Twin

__all__ = ["Pushed"]

START = 6.0  # largest noise that a gradient is taken at, in 8-bit steps
BLURS = (0.5, 0.9, 1.5, 3.0)  # pixels, of 32 a side
CELLS = (2, 4, 8, 16)  # the same, of masks
KEPT = (0.02, 0.1, 0.3)  # share of the strongest values
STRENGTHS = 6  # doublings that are tried


@dataclass(frozen=True, kw_only=True)
class Pushed(Attack):
    """A push along a filtered and masked gradient, to the boundary or up to `beyond` times as far.

    Args:
        low: the first length that is tried, in 8-bit steps of the strongest value; doubled after.
        beyond: times the length that flipped the answer, at most.
        rounds: gradients; an image that did not flip goes on from where the last push ended.

    Source: our own; after Wang et al. 2025, perturbation forgery (CVPR), which shapes noise, not
    gradients.
    """

    low: float = 1.0
    beyond: float = 2.5
    rounds: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.low <= 255 or self.beyond < 1 or self.rounds < 1:
            raise AttackError(
                "expected a first length in (0, 255], beyond of 1 or more and 1 or more rounds, "
                f"got {self.low}, {self.beyond} and {self.rounds}"
            )

    @property
    def name(self) -> str:
        """`pushed`."""
        return "pushed"

    @property
    def budget(self) -> Budget:
        """Free: any strength."""
        return Budget("none")

    @property
    def passes(self) -> Passes:
        """A gradient and a few tries each round; a try is a third of a pass both ways."""
        return Passes(climbed=self.rounds * (1 + (STRENGTHS + 1) / 3))

    def for_images(self, height: int, width: int) -> Self:
        """The same: filters and masks grow with the image by themselves."""
        del height, width
        return replace(self)

    def run(self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator) -> Tensor:
        """Return the pushed pixels, those that never flipped too."""
        twin = victim.differentiable
        pixels = clean.clone()
        active = torch.arange(len(clean), device=clean.device)
        for _ in range(self.rounds):
            start, some = pixels[active], goal.take(active)
            direction = _shaped(_direction(twin, start, some, generator), generator)
            moved, flipped = self._push(twin, start, direction, some, generator)
            pixels[active] = moved
            active = active[~flipped]
            if len(active) == 0:
                break
        return pixels

    def _push(
        self, twin: Twin, start: Tensor, direction: Tensor, goal: Goal, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the pixels at the end of the push, and which flipped: bool, (N,)."""
        length = torch.full((len(start), 1, 1, 1), torch.nan, device=start.device)
        low = self.low * (0.75 + 0.5 * float(torch.rand(1, generator=generator)))
        for doubling in range(STRENGTHS):
            size = low * 2**doubling
            whole = torch.round((start + direction * size / 255).clamp(0, 1) * 255) / 255
            with torch.no_grad():
                across = goal.margin(twin.logits(whole)) < 0
            first = across[:, None, None, None] & torch.isnan(length)
            length = torch.where(first, torch.full_like(length, size), length)
            if not torch.isnan(length).any():
                break
        flipped = ~torch.isnan(length).flatten()
        chance = torch.rand((len(start), 1, 1, 1), generator=generator).to(start)
        further = length * (1 + (self.beyond - 1) * chance**2)
        ended = torch.where(torch.isnan(length), torch.full_like(length, low), further)
        return (start + direction * ended / 255).clamp(0, 1), flipped


def _direction(twin: Twin, pixels: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
    """Return gradients towards a class by chance, or away from the own one, at noisy pixels."""
    n = len(pixels)
    reach = torch.rand((n, 1, 1, 1), generator=generator) * START / 255
    noise = torch.randn(tuple(pixels.shape), generator=generator) * reach
    seen = (pixels + noise.to(pixels)).clamp(0, 1).detach().requires_grad_()
    logits = twin.rough_logits(seen)
    own = logits.gather(1, goal.labels[:, None])[:, 0]
    chance = torch.rand(tuple(logits.shape), generator=generator).to(logits)
    # nearer classes more often: the gap to each counts, by chance
    gap = (own[:, None] - logits).detach() * (0.2 + chance)
    gap = gap.scatter(1, goal.labels[:, None], torch.inf)
    other = logits.gather(1, gap.argmin(1, keepdim=True))[:, 0]
    away = (torch.rand(n, generator=generator) < 0.3).to(logits.device)
    rise = torch.where(away, goal.loss(logits), other - own)
    (gradient,) = torch.autograd.grad(rise.sum(), seen)
    return gradient


def _shaped(gradient: Tensor, generator: torch.Generator) -> Tensor:
    """Return directions of largest value 1, each through a filter, a mask or noise by chance."""
    n, c, h, w = gradient.shape
    grown = max(1.0, side_of(h, w))
    size = gradient.abs().flatten(1).mean(dim=1).clamp_min(1e-20)[:, None, None, None]
    plain = gradient / size
    shapes = [_filtered(plain, sigma * grown) for sigma in BLURS if sigma * grown < min(h, w)]
    shapes += [plain - shapes[0]] if shapes else []
    shapes += [_strongest(plain, share) for share in KEPT]
    shapes += [plain.sign() * torch.rand((n, c, h, w), generator=generator).to(plain)]
    shapes += [plain.mean(dim=1, keepdim=True).expand_as(plain)]
    choice = torch.randint(len(shapes), (n,), generator=generator)
    shaped = torch.stack(shapes)[choice, torch.arange(n)]
    power = torch.tensor([0.0, 0.5, 1.0])[torch.randint(3, (n,), generator=generator)]
    shaped = shaped.sign() * shaped.abs() ** power.to(shaped)[:, None, None, None]
    shaped = shaped * _mask(n, h, w, grown, generator).to(shaped)
    shaped = shaped * _flips(n, c, h, w, generator).to(shaped)
    most = torch.quantile(shaped.abs().flatten(1), 0.98, dim=1).clamp_min(1e-12)
    most = torch.maximum(most, shaped.abs().flatten(1).amax(1) / 8).clamp_min(1e-12)
    return (shaped / most[:, None, None, None]).clamp(-1, 1)


def _filtered(x: Tensor, sigma: float) -> Tensor:
    found = blurred(x, sigma)
    return found / found.abs().flatten(1).mean(dim=1).clamp_min(1e-20)[:, None, None, None]


def _strongest(x: Tensor, share: float) -> Tensor:
    flat = x.abs().flatten(1)
    least = flat.topk(max(1, round(share * flat.shape[1])), dim=1).values[:, -1:]
    return torch.where(x.abs() >= least[:, :, None, None], x, torch.zeros_like(x))


def _mask(n: int, h: int, w: int, grown: float, generator: torch.Generator) -> Tensor:
    """Return where an image is pushed: all of it, blocks by chance, or one side: (N, 1, H, W)."""
    cells = [cell for cell in (round(c * grown) for c in CELLS) if cell <= min(h, w)] or [1]
    cell = cells[int(torch.randint(len(cells), (1,), generator=generator))]
    coarse = torch.rand((n, 1, -(-h // cell), -(-w // cell)), generator=generator)
    share = 0.2 + 0.8 * torch.rand((n, 1, 1, 1), generator=generator)
    blocks = F.interpolate((coarse < share).float(), scale_factor=float(cell))[..., :h, :w]
    everywhere = torch.rand((n, 1, 1, 1), generator=generator) < 0.5
    return torch.where(everywhere, torch.ones_like(blocks), blocks)


def _flips(n: int, c: int, h: int, w: int, generator: torch.Generator) -> Tensor:
    """Return signs, a share of them turned by chance, none in half of the images."""
    share = 0.35 * torch.rand((n, 1, 1, 1), generator=generator)
    share = share * (torch.rand((n, 1, 1, 1), generator=generator) < 0.5)
    return torch.where(torch.rand((n, c, h, w), generator=generator) < share, -1.0, 1.0)
