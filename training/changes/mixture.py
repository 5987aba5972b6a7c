"""A benign change of varying strength: each image gets one of several changes, by chance."""

from dataclasses import dataclass

import numpy as np

from reluguard.detector.images import Images
from reluguard.training.changes import Change
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

    def apply(self, images: Images, generator: np.random.Generator) -> Images:
        """Return each image changed by one of the changes."""
        chosen = generator.integers(len(self.changes), size=len(images))
        changed = images.copy()
        for index, change in enumerate(self.changes):
            rows = np.flatnonzero(chosen == index)
            if len(rows):
                changed[rows] = change(images[rows], seed=int(generator.integers(2**31)))
        return changed
