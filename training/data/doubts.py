"""Whether labels and images are what the model was trained for. N images, K classes.

What a model answers speaks of its owner's mistakes: folders in another order than its outputs,
labels that count from 1, images that it learned by heart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reluguard.training.data.dataset import Labels

__all__ = ["Reordered", "is_guessing", "least_share", "perfect_words", "reordered"]

GUESSING = 2.0  # a classifier right less often than so many times chance is fed wrong pixels
MORE_THAN_CHANCE = 0.2  # of the way from chance to perfect, below which two classes tell nothing
GAINED = 0.1  # of the images that another order must make right
MOSTLY = 0.5  # of a label's images that must be answered by the one class it moves to
LEAST_OF_LABEL = 3  # images of a label, below which it is not said to be another
LISTED = 3
PERFECT, CERTAIN = 0.995, 0.99  # shares right, and mean confidence: few classifiers reach both
LEAST_PERFECT = 100  # images, below which all of them right is no wonder


def least_share(classes: int) -> float:
    """Return the share of right answers below which a model of K classes hardly beats chance."""
    return min(GUESSING / classes, 0.5)


def is_guessing(answers: Labels, labels: Labels, classes: int) -> bool:
    """Return whether a model answers hardly better than chance.

    Of two classes, each counts alike however many images it has: right on .6 of them is the least.

    Args:
        answers: int64, (N,).
        labels: int64, (N,), of two classes or more.
        classes: K.
    """
    right = answers == labels
    if classes > 2:
        return bool(right.mean() < least_share(classes))
    recalls = [right[labels == label].mean() for label in np.unique(labels)]
    return float(np.mean(recalls)) < 0.5 + MORE_THAN_CHANCE / 2


@dataclass(frozen=True, slots=True)
class Reordered:
    """An order of the classes that suits the model's answers better than the one given.

    Attributes:
        moved: the class that each label should be, of those that should be another.
        given: the share of images that is answered right as labelled.
        share: the same in the other order.
    """

    moved: Mapping[int, int]
    given: float
    share: float

    def words(self, folders: Mapping[str, int]) -> str:
        """Return what was found and what to do, with the folders' names where there are any."""
        names = {label: name for name, label in folders.items()}
        moves = [f"{names.get(old, f'label {old}')} were class {new}" for old, new in self.listed]
        more = len(self.moved) - len(moves)
        text = ", ".join(moves) + (f" and {more} more moved" if more else "")
        found = (
            f"the model answers {self.given:.1%} of these images right as they are labelled, and "
            f"would {self.share:.1%} if {text}"
        )
        if folders:
            return (
                f"{found}: the folders are not in the order of the model's outputs; give --classes "
                "FILE with the names of all classes in that order"
            )
        if {old - new for old, new in self.moved.items()} == {1}:
            return f"{found}: labels seem to count from 1, and the first class is 0"
        return f"{found}: give as labels places among the model's outputs"

    @property
    def listed(self) -> Sequence[tuple[int, int]]:
        """The first few moves."""
        return sorted(self.moved.items())[:LISTED]


def reordered(answers: Labels, labels: Labels, classes: int) -> Reordered | None:
    """Return the one-to-one order of classes that makes clearly more answers right, if any.

    Args:
        answers: int64, (N,).
        labels: int64, (N,), below K.
        classes: K.
    """
    there = np.unique(labels)
    counts = np.zeros((len(there), classes), np.int64)
    np.add.at(counts, (np.searchsorted(there, labels), answers), 1)
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(counts, maximize=True)
    best = {int(there[row]): int(column) for row, column in zip(rows, columns, strict=True)}
    sizes = counts.sum(axis=1)
    moved = {}
    for row, column in zip(rows, columns, strict=True):
        label = int(there[row])
        enough = sizes[row] >= LEAST_OF_LABEL and counts[row, column] >= MOSTLY * sizes[row]
        if column != label and enough:
            moved[label] = best[label]
    if len(set(moved.values()) | (set(map(int, there)) - set(moved))) < len(there):
        return None  # a class that stays where it is would be moved to
    right = answers == labels
    after = answers == np.array([moved.get(int(label), int(label)) for label in labels])
    if after.sum() - right.sum() < GAINED * len(labels):
        return None
    return Reordered(moved, float(right.mean()), float(after.mean()))


def perfect_words(
    logits: NDArray[np.float32], labels: Labels, given: NDArray[np.bool_]
) -> str | None:
    """Return a word where a model answers so well that it may have learned these very images.

    That can't be proved from answers: an easy task looks the same. So it is said, and nothing is
    refused.

    On 800 images of CIFAR-10 that they were trained on, ResNet-20 is right on .996 and .995 sure,
    ResNet-44 on all and .9996: both are told. On 800 fresh ones they are right on .920 and .933,
    .971 and .976 sure, and nothing is said.

    Args:
        logits: float32, (N, K), class scores before any softmax.
        labels: int64, (N,).
        given: bool, (N,). Which of them are answered right.
    """
    if len(labels) < LEAST_PERFECT or given.mean() < PERFECT:
        return None
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=1, keepdims=True)
    confidence = float((1 / np.exp(exact).sum(axis=1)).mean())
    if confidence < CERTAIN:
        return None
    return (
        f"the model answers {int(given.sum())} of {len(labels)} images right and is "
        f"{confidence:.1%} sure on average: unless it does as well on fresh images, it was trained "
        "on these, and a guard fitted on them flags far more clean images than it promises. Fit on "
        "images that the model never saw"
    )
