"""Any evasion attack of the Adversarial Robustness Toolbox, under our promises. N images."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from reluguard.training.attacks.base import Attack, Goal
from reluguard.training.attacks.budget import Budget
from reluguard.training.attacks.victim import Victim
from reluguard.training.errors import AttackError
from reluguard.training.twin.twin import Twin

__all__ = ["FromART", "TwinModule"]


@dataclass(frozen=True, kw_only=True)
class FromART(Attack):
    """An ART attack by its class name, with ART's own arguments.

    Breadth, not speed: ART works in NumPy and mostly image by image. Its global random state is set
    from our seed for the call and put back after it. Untargeted.

    Args:
        attack: a class of `art.evasion`, like `NewtonFool`.
        arguments: pairs of ART's argument names and values.
        limit: the budget to hold it to.
    """

    needs_gradients: ClassVar[bool] = True
    attack: str
    arguments: tuple[tuple[str, Any], ...] = ()
    limit: Budget = Budget("none")

    @property
    def name(self) -> str:
        """As `art-newtonfool`."""
        limit = "" if self.limit.norm == "none" else f"-{self.limit}"
        return f"art-{self.attack.lower()}{limit}"

    @property
    def budget(self) -> Budget:
        """The given limit."""
        return self.limit

    def run(self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator) -> Tensor:
        """Return what ART finds on the twin."""
        made = self._made(victim.differentiable, clean)
        seed = int(torch.randint(0, 2**31, (1,), generator=generator).item())
        before = np.random.get_state()  # noqa: NPY002  (ART draws from it)
        labels = goal.labels.cpu().numpy()
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                np.random.seed(seed)  # noqa: NPY002  (ART draws from it)
                found = made.generate(clean.cpu().numpy(), y=labels)
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            raise AttackError(f"ART's {self.attack} failed: {error}") from error
        finally:
            np.random.set_state(before)  # noqa: NPY002  (ART draws from it)
        return torch.from_numpy(np.asarray(found, np.float32)).to(clean.device)

    def _made(self, twin: Twin, clean: Tensor) -> Any:
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        kind = getattr(evasion, self.attack, None)
        if kind is None:
            raise AttackError(f"expected a class of art.attacks.evasion, got {self.attack!r}")
        with torch.no_grad():
            classes = twin.logits(clean[:1]).shape[1]
        classifier = PyTorchClassifier(
            TwinModule(twin),
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(clean.shape[1:]),
            nb_classes=classes,
            clip_values=(0.0, 1.0),
            device_type="cpu" if twin.device.type == "cpu" else "gpu",
        )
        try:
            return kind(classifier, **dict(self.arguments))
        except (ValueError, TypeError) as error:
            raise AttackError(f"ART's {self.attack} refuses its arguments: {error}") from error


class TwinModule(nn.Module):
    """A twin as other libraries want it. No parameter is registered, so they can't train it."""

    def __init__(self, twin: Twin) -> None:
        super().__init__()
        self._twin = twin

    def forward(self, pixels: Tensor) -> Tensor:
        """Return class scores, (N, K)."""
        return self._twin.logits(pixels.float())  # some of ART's attacks work in doubles
