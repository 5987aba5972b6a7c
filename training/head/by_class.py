"""Which classes have a threshold of their own, and which share one. K classes, n images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ClassGroups", "images_by_class"]

RANK = 5  # images of a class that lie above its threshold; one alone would make it a matter of luck


def images_by_class(fpr: float) -> int:
    """Return how many calibration images give a class a threshold of its own: 99 for .05."""
    return int(np.ceil(RANK / fpr - 1e-9)) - 1


@dataclass(frozen=True, slots=True)
class ClassGroups:
    """Classes by the threshold they share.

    Attributes:
        groups: int64, (K,). The group of each class, as `Head` has it.
        own: how many classes are alone in theirs.
        words: the same for people.
    """

    groups: NDArray[np.int64]
    own: int
    words: str

    @classmethod
    def of(cls, answers: NDArray[np.int64], classes: int, fpr: float) -> "ClassGroups":
        """Return the groups that calibration images suffice for.

        A class of enough images stands alone. The others are one group; where they have too few
        together, the smallest of the former join them one by one. Only how many images of each
        answer there are decides, no score does, so that the promise holds in every group.

        Args:
            answers: int64, (n,). What the model answers of clean calibration images.
            classes: K.
            fpr: the rate to promise.
        """
        counts = np.bincount(answers, minlength=classes)
        needed = images_by_class(fpr)
        order = np.argsort(-counts, kind="stable")
        alone = int((counts >= needed).sum())
        while 0 < alone < classes and counts[order[alone:]].sum() < needed:
            alone -= 1
        groups = np.zeros(classes, np.int64)
        rest = int(alone < classes)
        groups[order[:alone]] = np.arange(alone) + rest
        each = f"{needed} clean calibration images that {fpr:g} needs by class"
        if not alone:
            most = int(counts.max(initial=0))
            words = f"thresholds by class: no class has the {each}, {most} at most: all share one"
        elif alone == classes:
            words = f"thresholds by class: all {classes} classes have the {each}"
        else:
            words = (
                f"thresholds by class: {alone} of {classes} classes have the {each}, the others "
                "share one"
            )
        return cls(groups, alone, words)
