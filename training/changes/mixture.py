"""A benign change of varying strength: each image gets one of several changes, by chance."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from reluguard.detector.images import Images
from reluguard.training.changes.base import Change
from reluguard.training.errors import AttackError

__all__ = ["Mixture"]


@dataclass(frozen=True, slots=True)
class Mixture(Change):
    """Each image is changed by one of `changes`, so that no single strength is learned."""

    label: str
    changes: tuple[Change, ...]

    def __post_init__(self) -> None:
        if not self.changes:
            raise AttackError("expected at least one change to mix, got none")

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

    def in_grey(self) -> Self:
        """Return the mixture of those that change grey images too.

        Raises:
            AttackError: there are none.
        """
        return replace(self, changes=tuple(c for c in self.changes if not c.needs_colour))

    def apply(self, images: Images, generator: np.random.Generator) -> Images:
        """Return each image changed by one of the changes."""
        chosen = generator.integers(len(self.changes), size=len(images))
        changed = images.copy()
        for index, change in enumerate(self.changes):
            rows = np.flatnonzero(chosen == index)
            if len(rows):
                changed[rows] = change(images[rows], seed=int(generator.integers(2**31)))
        return changed
