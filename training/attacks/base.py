"""What every attack shares, whatever library is behind it. N images, K classes.

The base class is the one owner of the promises: the budget is kept, pixels are whole and in range,
and success is measured on the ONNX model afterwards, never believed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reluguard.detector.errors import DetectorError
from reluguard.detector.images import Images, check_images
from reluguard.training.attacks.budget import Budget, norms
from reluguard.training.attacks.victim import Victim
from reluguard.training.data.dataset import Labels
from reluguard.training.errors import AttackError
from reluguard.training.lent import Lent
from reluguard.training.twin.twin import from_pixels, to_pixels

__all__ = ["Attack", "AttackResult", "Goal", "Passes"]

# ResNet-20, forward and backward, one core: 1.06 ms an image at batch 32, 1.21 at 64, 2.27 at 256;
# with products in bfloat16 .88 at 48, .76 at 96, .75 at 192; without them 96 costs what 48 does.
# One number for either: chance is drawn by the batch, and must not hang on the processor.
_BATCH_VALUES = 96 * 3 * 32 * 32
_BATCH_VALUES_CUDA = 1024 * 3 * 32 * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackResult:
    """What an attack reached.

    Attributes:
        images: uint8, (N, H, W, C). Attacked images, failed ones too.
        success: bool, (N,). Whether the ONNX model's answer left the one on the clean image, or for
            a targeted attack reached the target.
        prediction: int64, (N,). The ONNX model's answer on the attacked images.
        clean_prediction: int64, (N,).
        target: int64, (N,), of a targeted attack, else None.
        linf: float64, (N,). Largest change of a value, in 8-bit steps.
        l2: float64, (N,). Norm of the change with pixels in [0, 1].
        l1: float64, (N,). The same.
        l0: float64, (N,). Places that differ.
        queries: int64, (N,). Times the model was asked, None where the attack does not count.
    """

    images: Images
    success: NDArray[np.bool_]
    prediction: Labels
    clean_prediction: Labels
    target: Labels | None
    linf: NDArray[np.float64]
    l2: NDArray[np.float64]
    l1: NDArray[np.float64]
    l0: NDArray[np.float64]
    queries: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.success)


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """Where an attack leads: away from a class, or towards one.

    Attributes:
        labels: int64, (N,), on the attack's device. The class to leave, or to reach.
        targeted: whether `labels` is to be reached.
    """

    labels: Tensor
    targeted: bool = False

    def take(self, rows: Tensor) -> "Goal":
        """Return the goal of these rows only."""
        return Goal(labels=self.labels[rows], targeted=self.targeted)

    def margin(self, logits: Tensor) -> Tensor:
        """Return how far the goal is, in logits: (N,), negative once it is reached.

        Args:
            logits: float, (N, K).
        """
        own = logits.gather(1, self.labels[:, None]).squeeze(1)
        best = logits.scatter(1, self.labels[:, None], -torch.inf).amax(1)
        return best - own if self.targeted else own - best

    def loss(self, logits: Tensor) -> Tensor:
        """Return the cross-entropy to raise in order to get there: (N,)."""
        loss = torch.nn.functional.cross_entropy(logits, self.labels, reduction="none")
        return -loss if self.targeted else loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """About how often an attack runs a network for one image: what it costs.

    Attributes:
        asked: passes of the ONNX model.
        climbed: passes of the twin, forwards and backwards, as rough as it may be.
        exact: the same, exact. One forwards alone is a third of that.
    """

    asked: float = 0.0
    climbed: float = 0.0
    exact: float = 0.0


class Attack(ABC):
    """One attack with its settings: `attack(images, labels, victim, seed=0) -> AttackResult`.

    An author writes a frozen dataclass with a `name`, a `budget` and a `run`, and `run` may return
    whatever it likes: what leaves here is projected, rounded and measured again.
    """

    needs_gradients: ClassVar[bool] = True
    needs_surrogates: ClassVar[bool] = False
    targeted: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str:
        """Short and unique among attacks, like `pgd-linf-4`."""

    @property
    @abstractmethod
    def budget(self) -> Budget:
        """The largest change it may make."""

    @property
    def passes(self) -> Passes:
        """About what `run` costs an image; people are told by it how long a fit takes.

        An attack that does not say is taken to be like most.
        """
        return Passes(exact=10) if self.needs_gradients else Passes(asked=50)

    def for_images(self, height: int, width: int) -> Self:
        """Return the attack as it suits images of this size; written for 32 x 32 pixels.

        Most attacks don't depend on it. One that counts places does.
        """
        del height, width
        return self

    @abstractmethod
    def run(
        self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return attacked pixels, and the number of queries per image (N,) if it is known.

        Args:
            clean: float32, (N, C, H, W), in [0, 1], on the victim's device. One batch.
            goal: the class to leave, which is the ONNX model's own answer, or the class to reach.
            victim: the model.
            generator: the only source of chance, on the CPU.
        """

    @final
    def __call__(
        self,
        images: Images,
        labels: Labels,
        victim: Victim,
        *,
        seed: int,
        progress: Callable[[int], None] | None = None,
        batch: int | None = None,
    ) -> AttackResult:
        """Return the attacked images, within budget, in whole pixels, measured on the ONNX model.

        The same images, seed, batch and victim give the same result. An image that is already
        misclassified is attacked like any other: success means that the answer changed.

        Args:
            images: uint8, (N, H, W, C).
            labels: int64, (N,). Their true classes; a targeted attack never aims at them.
            victim: the model.
            seed: of every random choice.
            progress: called with the number of images done, after each batch.
            batch: images at a time; by default what suits the device.

        Raises:
            AttackError: the attack lacks a twin or surrogates, labels don't fit, what came back is
                not an image, or the `run` of an attack of yours failed.
            ImageError: the images are not uint8 of that shape.
        """
        check_images(images)
        if labels.shape != (len(images),) or labels.dtype.kind != "i":
            raise AttackError(
                f"expected whole-number labels of shape ({len(images)},), "
                f"got {labels.dtype} {labels.shape}"
            )
        self._check_needs(victim)
        scores = victim.predict(images)
        clean_prediction = scores.argmax(axis=1)
        target = _targets(scores, labels, seed) if self.targeted else None
        goals = clean_prediction if target is None else target
        step = batch or _batch_size(images, victim)
        parts, counts = [], []
        for start in range(0, len(images), step):
            rows = slice(start, start + step)
            generator = torch.Generator().manual_seed(_batch_seed(seed, start))
            goal = Goal(
                labels=torch.from_numpy(goals[rows]).to(victim.device), targeted=self.targeted
            )
            attacked, queries = self._batch(images[rows], goal, victim, generator)
            parts.append(attacked)
            counts.append(queries)
            if progress is not None:
                progress(min(start + step, len(images)))
        return _measure(images, np.concatenate(parts), clean_prediction, target, victim, counts)

    def _check_needs(self, victim: Victim) -> None:
        if self.needs_gradients and victim.twin is None:
            raise AttackError(
                f"{self.name} needs gradients: expected a twin of the model, got none"
            )
        if self.needs_surrogates and not victim.surrogates:
            raise AttackError(f"{self.name} needs surrogates: expected another model, got none")

    def _run(
        self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator
    ) -> Tensor | tuple[Tensor, Tensor]:
        kind = type(self)
        try:
            return self.run(clean, goal, victim, generator)
        except DetectorError:
            raise
        except Exception as error:
            if kind.__module__.startswith("reluguard."):
                raise
            lent = Lent(f"{kind.__module__}:{kind.__qualname__}", "attack", AttackError)
            raise AttackError(lent.failed(error)) from error

    def _batch(
        self, images: Images, goal: Goal, victim: Victim, generator: torch.Generator
    ) -> tuple[Images, NDArray[np.int64] | None]:
        clean = to_pixels(images, victim.device)
        found = self._run(clean, goal, victim, generator)
        moved, queries = found if isinstance(found, tuple) else (found, None)
        if moved.shape != clean.shape:
            raise AttackError(
                f"expected {self.name} to return pixels of shape {tuple(clean.shape)}, "
                f"got {tuple(moved.shape)}"
            )
        whole = self.budget.whole(clean, moved.detach().to(clean.device))
        return from_pixels(whole), None if queries is None else queries.cpu().numpy().astype("i8")


def _measure(
    images: Images,
    attacked: Images,
    clean_prediction: Labels,
    target: Labels | None,
    victim: Victim,
    counts: list[NDArray[np.int64] | None],
) -> AttackResult:
    prediction = victim.predict(attacked).argmax(axis=1)
    success = prediction != clean_prediction if target is None else prediction == target
    tensors = (torch.tensor(part).permute(0, 3, 1, 2) for part in (images, attacked))
    measured = {name: value.numpy() for name, value in norms(*tensors).items()}
    known = [count for count in counts if count is not None]
    return AttackResult(
        images=attacked,
        success=success,
        prediction=prediction,
        clean_prediction=clean_prediction,
        target=target,
        linf=measured["linf"],
        l2=measured["l2"],
        l1=measured["l1"],
        l0=measured["l0"],
        queries=np.concatenate(known) if len(known) == len(counts) else None,
    )


def _targets(scores: NDArray[np.float32], labels: Labels, seed: int) -> Labels:
    """Return for each image any class but the model's answer and the true one."""
    chance = np.random.default_rng(seed).random(scores.shape)
    rows = np.arange(len(scores))
    chance[rows, labels] = -1
    chance[rows, scores.argmax(axis=1)] = -2
    chosen: Labels = chance.argmax(axis=1)
    return chosen


def _batch_size(images: Images, victim: Victim) -> int:
    values = _BATCH_VALUES
    if victim.device.type == "cuda":
        values = _BATCH_VALUES_CUDA
    return max(4, values // int(np.prod(images.shape[1:])))


def _batch_seed(seed: int, start: int) -> int:
    # Any whole number seeds; torch's generator takes 64 bits.
    state = np.random.SeedSequence([seed, start]).generate_state(2)
    return int.from_bytes(state.tobytes(), "little") >> 1
