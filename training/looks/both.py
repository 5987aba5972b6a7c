"""Attacks on both looks at once: an attacker who knows that there is a second one. N images.

The gradient is that of the mean of both networks' scores, so each step pleases both. Success is
what it always is: the production model answers another class.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from reluguard.detector.images import InputSpec
from reluguard.detector.looks.views import SAME, View, view_named
from reluguard.training.attacks import Attack, Budget, Goal, Passes, Victim
from reluguard.training.looks.choice import Second
from reluguard.training.twin.twin import Twin, load_twin

__all__ = ["AtBoth", "both_twin"]


class _Seen(nn.Module):
    """A module that sees a view of its input, which lies in a tensor as `spec` says."""

    def __init__(self, module: nn.Module, view: View, spec: InputSpec) -> None:
        super().__init__()
        self._module, self._spec = module, spec
        self.register_buffer("_rows", torch.from_numpy(np.ascontiguousarray(view.rows)))
        self.register_buffer("_columns", torch.from_numpy(np.ascontiguousarray(view.columns)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the class scores of the view."""
        spec, shape = self._spec, x.shape
        if spec.layout == "flat":
            x = x.reshape(len(x), spec.channels, spec.height, spec.width)
        how = "hi,nijc,vj->nhvc" if spec.layout == "NHWC" else "hi,ncij,vj->nchv"
        seen = torch.einsum(how, self.get_buffer("_rows"), x, self.get_buffer("_columns"))
        scores: Tensor = self._module(seen.reshape(shape).contiguous())
        return scores


class _Mean(nn.Module):
    """The mean of two modules' scores."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self._first, self._second = first, second

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores: (N, K)."""
        mean: Tensor = (self._first(x).float() + self._second(x).float()) / 2
        return mean


def both_twin(twin: Twin, second: Second, images: np.ndarray) -> Twin:
    """Return a twin whose scores are the mean of both looks'.

    Args:
        twin: of the production model.
        second: who looks again, at what.
        images: uint8, (N, H, W, C), a sample to check another network's twin on.

    Raises:
        TwinError: another network can't be run in torch.
    """
    module = twin.module
    if second.look.is_other:
        other = load_twin(
            second.file, twin.spec, images=images, output=second.output, device=twin.device
        )
        assert other is not None  # only where none is asked for
        module = other.module
    if second.look.view != SAME:
        view = view_named(second.look.view, twin.spec.height, twin.spec.width)
        module = _Seen(module, view, twin.spec)
    return Twin(_Mean(twin.module, module), twin.spec, device=twin.device, half=twin.half)


@dataclass(frozen=True, kw_only=True)
class AtBoth(Attack):
    """Another attack, led by the gradients of both looks at once."""

    attack: Attack

    @property
    def name(self) -> str:
        """As `both-pgd-linf-2`."""
        return f"both-{self.attack.name}"

    @property
    def budget(self) -> Budget:
        """The attack's own."""
        return self.attack.budget

    @property
    def passes(self) -> Passes:
        """Of its gradients twice as many."""
        own = self.attack.passes
        return replace(own, climbed=2 * own.climbed, exact=2 * own.exact)

    def for_images(self, height: int, width: int) -> "AtBoth":
        """As the attack does."""
        return replace(self, attack=self.attack.for_images(height, width))

    def run(
        self, clean: Tensor, goal: Goal, victim: Victim, generator: torch.Generator
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return what the attack makes of both looks."""
        twin = victim.both or victim.twin
        return self.attack.run(clean, goal, replace(victim, twin=twin), generator)
