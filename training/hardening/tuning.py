"""Fine-tuning against attacks that are made anew at every step. N images, K classes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, one_hot, softmax

from reluguard.detector.images import Images, InputSpec
from reluguard.training.data.dataset import Dataset
from reluguard.training.errors import AnalysisError
from reluguard.training.hardening.settings import HardenSettings
from reluguard.training.hardening.student import Student
from reluguard.training.twin.twin import Twin, half_serves, to_pixels

__all__ = ["SAMPLE", "Networks", "fine_tune"]

_STEEPEST = 5.0  # longest gradient of all weights together
_STRIDE = 1.25  # of the one step of an attack, by its budget (Wong et al. 2020, arXiv 2001.03994)
SAMPLE = 8  # images that tell whether bfloat16 will do


@dataclass(frozen=True, slots=True)
class Networks:
    """The network that learns and the one that it learns from, preprocessing in front of both."""

    learner: Twin
    student: Student
    teacher: Twin

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """What is trained, by name."""
        return self.student.weights

    @classmethod
    def of(
        cls, student: Student, teacher: nn.Module, spec: InputSpec, sample: Images
    ) -> "Networks":
        """Return both, as the production model is now.

        Args:
            student: what learns.
            teacher: returns the production model's logits.
            spec: how images go into both.
            sample: uint8, (N, H, W, C), a few, to see whether bfloat16 will do.
        """
        told = Twin(teacher, spec, device="cpu")
        told.half = half_serves(told, sample)
        return cls(Twin(student, spec, device="cpu", half=told.half), student, told)

    def target(self, x: Tensor, labels: NDArray[np.int64], share: float) -> Tensor:
        """Return what is to be said of images: (N, K), each row adds up to 1.

        Args:
            x: pixels.
            labels: int64, (N,).
            share: of what the teacher says; the rest is the label.
        """
        with torch.no_grad():
            told = softmax(self.teacher.rough_logits(x), 1)
        right = one_hot(torch.tensor(labels), told.shape[1]).float()
        return share * told + (1 - share) * right

    def attacked(
        self, x: Tensor, target: Tensor, settings: HardenSettings, generator: np.random.Generator
    ) -> Tensor:
        """Return images after one step of FGSM from a random start, within the budget."""
        size = torch.full((len(x), 1, 1, 1), settings.budget / 255)
        if settings.varied:
            size = size * torch.from_numpy(generator.uniform(0, 1, (len(x), 1, 1, 1))).float()
        noise = torch.from_numpy(generator.uniform(-1, 1, tuple(x.shape))).float() * size
        started = (x + noise).clamp(0, 1).requires_grad_()
        for weight in self.weights.values():  # without theirs it costs a third less
            weight.requires_grad_(False)
        loss = cross_entropy(self.learner.rough_logits(started), target)
        (gradient,) = torch.autograd.grad(loss, started)
        for weight in self.weights.values():
            weight.requires_grad_()
        moved = started.detach() + _STRIDE * size * gradient.sign()
        return torch.minimum(torch.maximum(moved, x - size), x + size).clamp(0, 1)


def fine_tune(
    networks: Networks, train: Dataset, settings: HardenSettings, step_done: Callable[[], None]
) -> dict[str, Tensor]:
    """Train the network that learns, and return the weights that it is to have, by name.

    Raises:
        AnalysisError: the loss grew beyond all numbers.
    """
    weights = list(networks.weights.values())
    generator = np.random.default_rng(settings.seed)
    steps = settings.epochs * -(-len(train) // settings.batch)
    optimiser = torch.optim.SGD(_decayed(weights, settings.decay), lr=settings.rate,
                                momentum=0.9, nesterov=True)  # fmt: skip
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=settings.rate, total_steps=steps, pct_start=0.1
    )
    average = {name: weight.detach().clone() for name, weight in networks.weights.items()}
    done = 0
    for _ in range(settings.epochs):
        order = generator.permutation(len(train))
        for start in range(0, len(train), settings.batch):
            rows = order[start : start + settings.batch]
            x = to_pixels(_shifted(train.images[rows], generator))
            loss = _loss(networks, x, train.labels[rows], settings, generator)
            if not torch.isfinite(loss):
                raise AnalysisError("training diverged: give a smaller rate")
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, _STEEPEST)
            optimiser.step()
            schedule.step()
            done += 1
            kept = min(settings.average, done / (10 + done))  # the first steps are soon forgotten
            for name, weight in networks.weights.items():
                average[name].lerp_(weight.detach(), 1 - kept)
            step_done()
    return average


def _decayed(weights: list[Tensor], decay: float) -> list[dict[str, object]]:
    """Return the groups of an optimiser: biases and scales don't decay."""
    return [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]


def _loss(
    networks: Networks,
    x: Tensor,
    labels: NDArray[np.int64],
    settings: HardenSettings,
    generator: np.random.Generator,
) -> Tensor:
    target = networks.target(x, labels, settings.teacher)
    attacked = networks.attacked(x, target, settings, generator)
    networks.student.forget()
    both = networks.learner.rough_logits(torch.cat([x, attacked]))
    clean_logits, logits = both.split(len(x))
    loss = cross_entropy(clean_logits, target)
    if settings.follow:
        loss = loss + settings.follow * cross_entropy(logits, target)
    if settings.apart:
        apart = kl_div(log_softmax(logits, 1), softmax(clean_logits, 1), reduction="batchmean")
        loss = loss + settings.apart * apart
    if settings.weight:
        clean_phi, phi = networks.student.phi[: len(both)].float().flatten(1).split(len(x))
        distance = (clean_phi - phi).norm(dim=1)
        if not settings.plain:
            # plain distance is smallest where the network says nothing at all
            length = (clean_phi.norm(dim=1) + phi.norm(dim=1)) / 2
            distance = distance / length.clamp_min(1e-6)
        loss = loss + settings.weight * distance.mean()
    return loss


def _shifted(images: Images, generator: np.random.Generator) -> Images:
    """Return the images, half of them mirrored, all shifted by up to an eighth of their width."""
    reach = images.shape[1] // 8
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="reflect")
    top, left = generator.integers(0, 2 * reach + 1, 2)
    h, w = images.shape[1:3]
    cut = padded[:, top : top + h, left : left + w].copy()
    mirrored = generator.random(len(cut)) < 0.5
    cut[mirrored] = cut[mirrored][:, :, ::-1]
    return cut
