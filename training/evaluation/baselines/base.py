"""What every baseline is given, and what it must do. N images, M channel means, K classes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.images import Images
from reluguard.detector.taps import Tap
from reluguard.training.errors import DataError
from reluguard.training.harvest.readings import Kind, Readings
from reluguard.training.head.fit import HeadSettings
from reluguard.training.statistics.metrics import auroc

__all__ = [
    "Baseline",
    "Context",
    "Material",
    "Matrix",
    "Scores",
    "balanced",
    "best_setting",
    "clean_of",
    "rows_of",
    "targets",
    "weights",
]

Scores = NDArray[np.float64]
Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """One group of images and what was read of them.

    Attributes:
        readings: rates and logits, sources and labels, and of which kind.
        images: uint8, (N, H, W, C).
        means: float32, (N, M). Each channel's mean output, tap after tap.
    """

    readings: Readings
    images: Images
    means: Matrix

    @property
    def kind(self) -> Kind:
        """Clean, benign or attack."""
        return self.readings.kind

    def __len__(self) -> int:
        return len(self.readings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a baseline may use beside its material.

    Attributes:
        taps: of the guard.
        settings: of the guard's head.
        predict: uint8 images to logits (N, K), the ONNX model.
        activations: uint8 images to one late tap's values (N, ...).
        seed: of every random choice.
        first: uint8 images to the first convolution's output (N, C, H, W), or the first tap's.
        record: uint8 images to means (N, M) and logits (N, K).
        others: other networks of the same classes, as `predict`.
    """

    taps: Sequence[Tap]
    settings: HeadSettings
    predict: Any
    activations: Any
    seed: int
    first: Any = None
    record: Any = None
    others: Sequence[Any] = ()

    @property
    def blocks(self) -> list[slice]:
        """Where each tap's channels lie in `Material.means`."""
        edges = np.cumsum([0, *(tap.channels for tap in self.taps)])
        return [slice(int(a), int(b)) for a, b in pairwise(edges)]


class Baseline(ABC):
    """A detector: `fit` on groups, then `score` of any."""

    name: ClassVar[str]
    note: ClassVar[str] = ""
    needs_fit: ClassVar[bool] = True
    needs_other: ClassVar[bool] = False

    @abstractmethod
    def fit(self, groups: Sequence[Material], context: Context) -> None:
        """Fit on the fitting split's groups; without need of fitting, keep the context."""

    @abstractmethod
    def score(self, material: Material) -> Scores:
        """Return scores: (N,)."""


def clean_of(groups: Sequence[Material]) -> Material:
    """Return the clean group.

    Raises:
        DataError: there is none.
    """
    for group in groups:
        if group.kind == "clean":
            return group
    raise DataError("expected clean images to fit the baselines on, got none")


def rows_of(material: Material, chosen: NDArray[np.bool_]) -> Material:
    """Return these rows only."""
    return Material(
        readings=material.readings.rows(chosen),
        images=material.images[chosen],
        means=material.means[chosen],
    )


def targets(groups: Sequence[Material]) -> NDArray[np.bool_]:
    """Return which rows are attacks: bool, one per row of all groups."""
    return np.concatenate([np.full(len(group), group.kind == "attack") for group in groups])


def weights(groups: Sequence[Material], settings: HeadSettings) -> Scores:
    """Return what each row counts: as much as for the guard's own head before it counts alarms."""
    total = {
        kind: sum(g.readings.weight for g in groups if g.kind == kind)
        for kind in ("attack", "clean", "benign")
    }
    harmless = settings.benign_share if total["benign"] else 0.0
    share = {"attack": 1.0, "clean": 1.0 - harmless, "benign": harmless}
    parts = [
        np.full(len(g), share[g.kind] * g.readings.weight / total[g.kind] / len(g)) for g in groups
    ]
    weights = np.concatenate(parts)
    even: Scores = weights / weights.mean()
    return even


def balanced(groups: Sequence[Material], context: Context) -> NDArray[np.int64]:
    """Return as many rows of attacks as of others, drawn by their weights: int64."""
    rng = np.random.default_rng(context.seed)
    positive, share = targets(groups), weights(groups, context.settings)
    sides = [np.flatnonzero(positive == side) for side in (False, True)]
    count = min(map(len, sides))
    return np.concatenate(
        [rng.choice(side, count, p=share[side] / share[side].sum()) for side in sides]
    )


def best_setting(
    groups: Sequence[Material],
    settings: Sequence[Any],
    scores: Callable[[Any], Sequence[Scores]],
) -> Any:
    """Return the setting of the highest mean AUROC over the fitting rows' attacks.

    A detector without anything to fit is given what the guard's own choices were made by. Of equal
    ones the first.

    Args:
        groups: of the fitting split.
        settings: to choose among.
        scores: of each group, (N,), under a setting.
    """
    clean = next(i for i, group in enumerate(groups) if group.kind == "clean")

    def quality(setting: Any) -> float:
        found = scores(setting)
        areas = [
            auroc(found[clean], found[i])
            for i, group in enumerate(groups)
            if group.kind == "attack" and len(group)
        ]
        return float(np.mean(areas)) if areas else 0.0

    return max(settings, key=quality)
