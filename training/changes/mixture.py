"""Benign changes by chance: each image gets one of several, or a few of them in turn."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from reluguard.detector.images import Images
from reluguard.training.changes.base import Change
from reluguard.training.errors import AttackError

__all__ = ["InTurn", "Mixture"]


@dataclass(frozen=True, slots=True)
class _Several(Change):
    """Is made of other changes."""

    label: str
    changes: tuple[Change, ...]

    @property
    def name(self) -> str:
        """What the report calls it."""
        return self.label

    @property
    def needs_colour(self) -> bool:
        """Whether each of them does."""
        return all(change.needs_colour for change in self.changes)

    def for_images(self, height: int, width: int) -> Self:
        """Each change as it suits them."""
        changes = tuple(change.for_images(height, width) for change in self.changes)
        return replace(self, changes=changes)


@dataclass(frozen=True, slots=True)
class Mixture(_Several):
    """Each image is changed by one of `changes`, so that no single strength is learned."""

    def __post_init__(self) -> None:
        if not self.changes:
            raise AttackError("expected at least one change to mix, got none")

    def in_grey(self) -> Self:
        """Return the mixture of those that change grey images too.

        Raises:
            AttackError: there are none.
        """
        return replace(self, changes=_in_grey(self.changes))

    def apply(self, images: Images, generator: np.random.Generator) -> Images:
        """Return each image changed by one of the changes."""
        chosen = generator.integers(len(self.changes), size=len(images))
        changed = images.copy()
        for index, change in enumerate(self.changes):
            rows = np.flatnonzero(chosen == index)
            if len(rows):
                changed[rows] = change(images[rows], seed=int(generator.integers(2**31)))
        return changed


@dataclass(frozen=True, slots=True)
class InTurn(_Several):
    """Each image goes through one to `most` of `changes`, different ones, one after the other.

    As what is uploaded: cropped, then encoded again.
    """

    most: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.most <= len(self.changes):
            raise AttackError(
                f"expected 1 to {len(self.changes)} of the changes of {self.label} in turn, "
                f"got {self.most}"
            )

    def in_grey(self) -> Self:
        """Return those that change grey images too, mixtures among them without the others.

        Raises:
            AttackError: there are none.
        """
        grey = _in_grey(self.changes)
        return replace(self, changes=grey, most=min(self.most, max(1, len(grey))))

    def apply(self, images: Images, generator: np.random.Generator) -> Images:
        """Return the images, each after its changes."""
        count = generator.integers(1, self.most + 1, size=len(images))
        orders = np.argsort(generator.random((len(images), len(self.changes))), axis=1)
        changed = images.copy()
        for place in range(self.most):
            for index, change in enumerate(self.changes):
                rows = np.flatnonzero((orders[:, place] == index) & (count > place))
                if len(rows):
                    changed[rows] = change(changed[rows], seed=int(generator.integers(2**31)))
        return changed


def _in_grey(changes: tuple[Change, ...]) -> tuple[Change, ...]:
    """Return those that change grey images too, mixtures among them likewise."""
    kept = (change for change in changes if not change.needs_colour)
    return tuple(c.in_grey() if isinstance(c, Mixture) else c for c in kept)
