"""Do attacked images look inside like real ones? N images, C channels, K classes, B bits.

Source: Dong et al. 2017, arXiv 1708.05493 (a reconstruction). The paper grades how alike the labels
of a neuron's favourite images are by their distance in WordNet. Here a small tree of words grades
them where it knows all classes; elsewhere two labels are alike if they are equal and not otherwise.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.training.analysis.checks import Floats, Ints, Packed, check_packed, check_rows
from reluguard.training.errors import LabelError, ShapeError

__all__ = [
    "class_cosine",
    "class_prototypes",
    "distance_ratio",
    "flip_rates",
    "level_of_consistency",
    "twin_cosine",
]


def level_of_consistency(
    codes: NDArray[Any], labels: Ints, *, top: int = 10, likeness: Floats | None = None
) -> Floats:
    """Return how alike the labels of two of a channel's favourite images are: float64, (C,).

    One means the channel answers to one class only; where labels are alike only if they are equal,
    chance is about 1 / K. Of images that tie for the last places each is as likely a favourite as
    the other, and the level is the mean over them.

    Args:
        codes: (N, C). The channel's mean output per image.
        labels: int64, (N,).
        top: how many favourites, two or more.
        likeness: float64, (K, K), symmetric, in [0, 1]; by default labels are alike if equal.

    Raises:
        ShapeError: fewer images than favourites.
    """
    n = check_rows(codes, labels)
    if not 2 <= top <= n:
        raise ShapeError(f"expected 2 to {n} favourites among {n} images, got {top}")
    last = np.partition(codes, n - top, axis=0)[n - top]
    found = np.unique(labels)
    own = (labels == found[:, None]).astype(np.float64)
    a, b = own @ (codes > last), own @ (codes == last)  # per class: sure of a place, and tied
    alike = np.eye(len(found)) if likeness is None else likeness[np.ix_(found, found)]
    rivals = b.sum(axis=0)
    places = top - a.sum(axis=0)
    one = places / rivals  # how likely a tied image is to get a place, and two of them both
    both = one * (places - 1) / np.maximum(rivals - 1, 1)
    itself = np.diagonal(alike)  # an image makes no pair with itself
    pairs = (
        _graded(a, alike, a) - itself @ a
        + 2 * _graded(a, alike, b) * one
        + (_graded(b, alike, b) - itself @ b) * both
    )  # fmt: skip
    level: Floats = pairs / (top * (top - 1))
    return level


def _graded(a: Floats, alike: Floats, b: Floats) -> Floats:
    graded: Floats = np.einsum("kc,kl,lc->c", a, alike, b)
    return graded


def twin_cosine(clean: NDArray[Any], attacked: NDArray[Any]) -> Floats:
    """Return how alike each image's code is before and after the attack: float64, (N,).

    Codes are centred on the clean mean first; raw means of ReLU outputs all point one way.
    """
    check_rows(clean, attacked)
    center = clean.mean(axis=0, dtype=np.float64)
    return _row_cosine(clean - center, attacked - center)


def _row_cosine(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = np.einsum("ij,ij->i", a, b, dtype=np.float64)
    cosine: Floats = np.divide(dots, norms, out=np.zeros(len(dots)), where=norms > 0)
    return np.clip(cosine, -1, 1)


def class_prototypes(codes: NDArray[Any], labels: Ints, classes: int) -> Floats:
    """Return the mean code of each class: float64, (K, C).

    Raises:
        LabelError: a class has no image.
    """
    check_rows(codes, labels)
    counts = np.bincount(labels, minlength=classes)
    if (counts[:classes] == 0).any():
        missing = np.flatnonzero(counts[:classes] == 0).tolist()
        raise LabelError(f"expected images of all {classes} classes, got none of {missing}")
    sums = np.zeros((classes, codes.shape[1]))
    np.add.at(sums, labels, codes)
    means: Floats = sums / counts[:classes, None]
    return means


def class_cosine(codes: NDArray[Any], classes: Ints, prototypes: Floats) -> Floats:
    """Return how alike each code is to the prototype of its class: float64, (N,).

    Args:
        codes: (N, C). Not the images the prototypes were made of.
        classes: int64, (N,). The class each is held against: the true one, or the answer.
        prototypes: (K, C); centred on their mean before comparing.
    """
    check_rows(codes, classes)
    center = prototypes.mean(axis=0)
    return _row_cosine(codes - center, prototypes[classes] - center)


def distance_ratio(codes: NDArray[Any], true: Ints, answers: Ints, prototypes: Floats) -> Floats:
    """Return distance to the true class by distance to the answer: float64, (N,).

    Above one, the code lies closer to what the network answers than to what the image shows.
    """
    check_rows(codes, true, answers)
    to_true = np.linalg.norm(codes - prototypes[true], axis=1)
    to_answer = np.linalg.norm(codes - prototypes[answers], axis=1)
    ratio: Floats = to_true / np.maximum(to_answer, 1e-12)
    return ratio


def flip_rates(
    clean: Packed, attacked: Packed, shape: tuple[int, ...], channel_axis: int = 0
) -> Floats:
    """Return in which share of cases the attack flips a bit of each channel: float64, (C,).

    Args:
        clean: uint8, (N, W), packed.
        attacked: uint8, (N, W). The same images in the same order.
        shape: of the tap per image.
        channel_axis: which axis of it counts channels.
    """
    bits = int(np.prod(shape))
    check_packed(clean, bits)
    check_packed(attacked, bits)
    check_rows(clean, attacked)
    total = np.zeros(bits, np.int64)
    for start in range(0, len(clean), 256):
        flipped = clean[start : start + 256] ^ attacked[start : start + 256]
        total += np.unpackbits(flipped, axis=1, count=bits).sum(axis=0, dtype=np.int64)
    others = tuple(a for a in range(len(shape)) if a != channel_axis)
    rates: Floats = (total.reshape(shape) / len(clean)).mean(axis=others)
    return rates
