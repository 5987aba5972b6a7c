"""A recipe: what a guard is fitted on, as a typed value."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from reluguard.training.attacks import Attack
from reluguard.training.changes import Change as Benign
from reluguard.training.changes.base import PHOTOGRAPH
from reluguard.training.changes.mixture import InTurn, Mixture
from reluguard.training.composed import SEPARATOR, composed_name
from reluguard.training.errors import DataError
from reluguard.training.head.fit import HeadSettings

__all__ = ["Portion", "Recipe"]


@dataclass(frozen=True, slots=True)
class Portion:
    """One attack or benign change on a share of the source images, and how much it counts."""

    change: Attack | Benign
    share: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise DataError(f"expected a share of sources in (0, 1], got {self.share}")
        if not self.weight > 0:
            raise DataError(f"expected a positive weight, got {self.weight}")

    def images(self, count: int, least: int, most: int | None = None) -> int:
        """Return on how many of `count` source images: its share of `most` at most, but `least`."""
        counted = count if most is None else min(count, most)
        return min(count, max(1, least, round(self.share * counted)))

    def for_images(self, height: int, width: int, channels: int) -> "Portion | None":
        """Return the portion as it suits images of this shape, None where it changes nothing."""
        change = self.change
        if channels == 1 and isinstance(change, Benign):
            if change.needs_colour:
                return None
            if isinstance(change, (InTurn, Mixture)):
                change = change.in_grey()
        return replace(self, change=change.for_images(height, width))

    def to_json(self) -> dict[str, Any]:
        """Return plain values: the change with its settings, and the share."""
        return {"slug": self.change.name, "change": repr(self.change), "share": self.share}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to attack, what to leave harmless, how to split and how to fit.

    Each tap is read at `levels`, multiples of its mean positive value: which ReLUs fired how hard.
    With none it is read at 0 alone: which fired.

    A share of few images is no sample: every change is made of at least `least` images of a part,
    where there are so many. And a share of very many is more than a head learns from: shares are of
    `most` images of a part at most, drawn anew for each change, so that a fit of 100,000 images
    takes little longer than one of 4,500 (on ResNet-20 more than three quarters of 3,600 sources
    brought nothing). `large` is what to fit on instead where images have 64 pixels a side or
    more: a step costs a hundred times what it does at 32, and other things happen to photographs.

    Attacked images are seldom sent as they are. A share of every attack's goes through the harmless
    changes `then`, and is an attack again where the model still answers wrong, and would not after
    the change alone: a group each, of so much of the attack's own weight.

    Measured in 8 x 8 blocks on heads of .8 of the images, mean and worst AUROC of the default
    recipe's attacks: on ResNet-20 at 0 and 1.5 .951 and .883, at .5 and 2 .959 and .894, at .5, 1.5
    and 3 .962 and .898, at .5, 1, 2 and 3 .964 and .903; on a plain network for Fashion-MNIST .971
    and .911 at the first, .983 and .959 at three. Multiples of each channel's own mean are no
    better. Quantiles of each channel tell an untouched background by its exact value there, which
    another processor need not give.
    """

    name: str
    attacks: tuple[Portion, ...]
    benign: tuple[Portion, ...]
    head: HeadSettings = field(default_factory=HeadSettings)
    fit: float = 0.60
    calibrate: float = 0.28
    test: float = 0.12
    levels: tuple[float, ...] = (0.5, 1.5, 3.0)
    least: Mapping[str, int] = field(
        default_factory=lambda: MappingProxyType({"fit": 60, "test": 30})
    )
    most: Mapping[str, int] = field(
        default_factory=lambda: MappingProxyType({"fit": 2700, "test": 600})
    )
    then: tuple[Portion, ...] = ()
    large: "Recipe | None" = None

    def __post_init__(self) -> None:
        names = ["clean", *(p.change.name for p in (*self.attacks, *self.benign))]
        names += [p.change.name for p in self.then]
        joined = [name for name in names if SEPARATOR in name]
        if joined:
            raise DataError(f"expected names of changes without a {SEPARATOR}, got {joined[0]}")
        attacks = [p.change.name for p in self.then if isinstance(p.change, Attack)]
        if attacks:
            raise DataError(f"expected harmless changes after attacks, got {', '.join(attacks)}")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"expected every change of a recipe once, got {', '.join(twice)} twice")

    @property
    def shares(self) -> dict[str, float]:
        """How much of the images each part gets."""
        return {"fit": self.fit, "calibrate": self.calibrate, "test": self.test}

    def for_images(self, height: int, width: int, channels: int = 3) -> "Recipe":
        """Return the recipe as it suits images of this shape: sizes are written for 32 x 32."""
        if self.large is not None and min(height, width) >= PHOTOGRAPH:
            return self.large.for_images(height, width, channels)
        suited = (
            tuple(one for p in portions if (one := p.for_images(height, width, channels)))
            for portions in (self.attacks, self.benign, self.then)
        )
        attacks, benign, then = suited
        return replace(self, attacks=attacks, benign=benign, then=then)

    @property
    def weights(self) -> dict[str, float]:
        """How much each change counts among its kind, by name, composed ones too."""
        alone = {p.change.name: p.weight for p in (*self.attacks, *self.benign)}
        return alone | {
            composed_name(attack.change.name, change.change.name): attack.weight * change.weight
            for attack in self.attacks
            for change in self.then
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for the manifest."""
        return {
            "name": self.name,
            "attacks": [portion.to_json() for portion in self.attacks],
            "benign": [portion.to_json() for portion in self.benign],
            **({"then": [portion.to_json() for portion in self.then]} if self.then else {}),
            "weights": self.weights,
            "levels": list(self.levels),
            "head": asdict(self.head),
            "splits": self.shares,
            "least": dict(self.least),
            "most": dict(self.most),
        }
