"""Attacks by someone who holds the guard too: a changed answer that is not flagged. N images.

All follow gradients through the relaxed guard, but what they keep at each step is judged by hard
bits on whole pixels. None of them knows more of success than the real guard will say afterwards.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from detector.images import Images
from detector.runtime import Guard
from training.attacks import Attack, Budget, Goal, Victim
from training.attacks.budget import Norm
from training.attacks.gradient import ascent, random_start
from training.errors import AttackError
from training.relaxed import Reading, RelaxedGuard
from training.twin import from_pixels, to_pixels

__all__ = [
    "Aware",
    "Bank",
    "CombinedLogit",
    "Lagrangian",
    "Mimicry",
    "Orthogonal",
    "ScoreSearch",
    "Selective",
]

_BEHIND = 0.05  # logits and log-odds: how far past a boundary counts, since digits differ last
_WEIGHTS = (1.0, 0.1, 10.0, 0.01, 100.0)
_WARM, _COLD = 1.0, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One step of an attack: what was read of pixels (N, C, H, W), what to reach, and which run."""

    pixels: Tensor
    reading: Reading
    goal: Goal
    run: int

    def gradient(self, loss: Tensor, *, keep: bool = False) -> Tensor:
        """Return the gradient of a loss per image (N,) in the pixels."""
        (found,) = torch.autograd.grad(loss.sum(), self.pixels, retain_graph=keep)
        return found


@dataclass(frozen=True, kw_only=True)
class Aware(Attack):
    """Signed steps with momentum and a falling length, put back into the budget.

    Runs differ: the first starts at the clean image and leaves its class for the nearest, later
    ones start at random and aim at the clean image's next best classes in turn; odd ones relax the
    forward pass too. An image rests once it evades.

    Attributes:
        guard: the relaxed guard.
        threshold: the score to stay at or below; above any score it attacks the bare model.
        norm: "linf" or "l2".
        size: the budget, as `Budget` counts it.
        steps: of each run.
        restarts: how many runs.
    """

    label: ClassVar[str]
    guard: RelaxedGuard = field(repr=False)
    threshold: float
    norm: Norm = "linf"
    size: float = 8.0
    steps: int = 100
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.norm not in {"linf", "l2"}:
            raise AttackError(f"expected a norm of linf or l2, got {self.norm!r}")
        if self.steps < 1 or self.restarts < 1:
            raise AttackError(
                f"expected positive steps and restarts, got {self.steps} and {self.restarts}"
            )
        self.budget  # noqa: B018  (building it checks the size)

    @property
    def name(self) -> str:
        """As `selective-linf-4`."""
        return f"{self.label}-{self.budget}"

    @property
    def budget(self) -> Budget:
        """In the chosen norm."""
        return Budget(self.norm, self.size)

    @abstractmethod
    def descent(self, moment: Moment) -> Tensor:
        """Return the gradient to go down: (N, C, H, W)."""

    def runs(self) -> int:
        """Return how many runs there are."""
        return self.restarts

    @final
    def run(self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator) -> Tensor:
        """Return for each image the pixels of the lowest score behind the boundary."""
        del victim
        with torch.no_grad():
            reading = self.guard.read(clean)
        rank = reading.logits.scatter(1, goal.labels[:, None], -torch.inf).argsort(
            1, descending=True
        )
        best, lowest = clean.clone(), torch.full((len(clean),), torch.inf, device=clean.device)
        for run in range(self.runs()):
            rows = torch.nonzero(lowest > self.threshold - _BEHIND).squeeze(1)
            if len(rows) == 0:
                break
            aim = goal.take(rows)
            classes = rank.shape[1] - 1
            if run and not goal.targeted:
                aim = Goal(labels=rank[rows, run % min(classes, 5)], targeted=True)
            found, score = self._once(clean[rows], goal.take(rows), aim, run, generator)
            better = (score < lowest[rows]) | torch.isinf(lowest[rows])
            best[rows[better]], lowest[rows[better]] = found[better], score[better]
        return best

    def _once(
        self, clean: Tensor, goal: Goal, aim: Goal, run: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the best pixels of one run and their score, infinite where the answer stayed."""
        pixels = random_start(clean, self.budget, generator) if run else clean.clone()
        velocity = torch.zeros_like(clean)
        best, lowest = clean.clone(), torch.full((len(clean),), torch.inf, device=clean.device)
        active = torch.arange(len(clean), device=clean.device)
        for step in range(self.steps):
            moving = pixels[active].requires_grad_()
            share = step / self.steps
            whole = self.budget.whole(clean[active], moving.detach()).float() / 255
            reading = self.guard.read(
                moving + (whole - moving).detach(),  # read in whole pixels, straight through
                temperature=_WARM * (_COLD / _WARM) ** share,
                soft=run % 2 == 1,
            )
            moment = Moment(pixels=moving, reading=reading, goal=aim.take(active), run=run)
            gradient = self.descent(moment)
            score = self._judge(whole, goal.take(active), reading if run % 2 == 0 else None)
            better = score < lowest[active]
            best[active[better]], lowest[active[better]] = whole[better], score[better]
            resting = lowest[active] <= self.threshold - _BEHIND
            scale = gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
            velocity[active] = 0.75 * velocity[active] + gradient / scale
            unit = 255 if self.norm == "linf" else 1
            length = self.size / unit * (0.02 + 0.23 * (1 + math.cos(math.pi * share)) / 2)
            moved = pixels[active] - length * ascent(velocity[active], self.norm)
            pixels[active] = self.budget.project(clean[active], moved)
            active = active[~resting]
            if len(active) == 0:
                break
        missed = torch.isinf(lowest)
        best[missed] = pixels[missed]
        return best, lowest

    def _judge(self, whole: Tensor, goal: Goal, reading: Reading | None) -> Tensor:
        """Return the hard-bit score of whole pixels, infinite where the answer stayed."""
        with torch.no_grad():
            known = self.guard.read(whole) if reading is None else reading
            behind = goal.margin(known.logits.detach()) < -_BEHIND
            return torch.where(behind, known.score.detach(), torch.inf)


@dataclass(frozen=True, kw_only=True)
class Lagrangian(Aware):
    """The margin plus a weighted penalty on the score, the weight from a grid.

    Source: Carlini & Wagner 2017, arXiv 1705.07263, section 3.
    """

    label: ClassVar[str] = "lagrangian"

    def runs(self) -> int:
        """Each restart walks the grid of weights."""
        return self.restarts * len(_WEIGHTS)

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
        return moment.gradient(torch.where(margin > -2 * _BEHIND, margin, moment.reading.score))


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
        behind = (margin <= -2 * _BEHIND)[:, None, None, None]
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
        near = distance.masked_fill(~fits, torch.inf).argsort(1)
        copied = self.bank.features[near[:, moment.run % min(5, near.shape[1])]]
        apart = (own.features - copied).square().mean(1)
        return moment.gradient(apart + 0.1 * moment.goal.margin(own.logits).clamp_min(-1.0))


@dataclass(frozen=True, kw_only=True)
class ScoreSearch(Attack):
    """Random squares that lower the margin and then the score: sees answers and scores only.

    What it asks is what the service answers to a client that may see scores.

    Source: Andriushchenko et al. 2020, arXiv 1912.00049, with the guard's score behind the margin.
    """

    needs_gradients: ClassVar[bool] = False
    guard: Guard = field(repr=False)
    threshold: float
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
        verdicts = self.guard.inspect(from_pixels(whole))
        answer = self.guard.artifact.manifest.answer
        logits = torch.from_numpy(verdicts.outputs[answer].astype(np.float32)).to(pixels.device)
        margin = goal.margin(logits)
        excess = torch.from_numpy(verdicts.score).to(pixels.device) - self.threshold
        # a changed answer is worth more than any score
        return torch.where(margin >= 0, 1e6 + margin, excess)
