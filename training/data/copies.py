"""Which images are copies of others: equal, encoded again, brighter or noisier.

N images, H rows, W columns, C channels, D values of a thumbnail.

Two looks. Thumbnails that are alike up to brightness and contrast make a candidate; then the edges
of the whole pictures must agree, which those of two flowers or two ships in the same pose do not:
on 1,700 photographs of flowers and 500 of ImageNet, no two pictures agree by more than .08, and
JPEG 50 of the same by .71 or more. Drawings of one shape on one ground, such as digits, agree far
more. So how much is asked for comes from pairs of different classes, which are no copies.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.images import Images
from reluguard.training.data.mapped import release

__all__ = ["find_copies", "image_keys"]

Floats = NDArray[np.float32]
Pairs = NDArray[np.int64]

SIDE = 16
COARSE_SIDE = 8  # above MANY images thumbnails are grey and of this side
MANY = 8_000
MOST = 100_000  # above, only equal images are found
ALIKE = 0.94
NEIGHBOURS = 5
LEAST_AGREEMENT = 0.4
STRICTER = 2.3
DIFFERENT = 200  # pairs of different classes that say how alike pictures are that are no copies
_ROWS = 512


def find_copies(images: Images, labels: NDArray[np.int64]) -> list[list[int]]:
    """Return groups of rows that hold the same picture, two or more in each, ascending.

    Args:
        images: uint8, (N, H, W, C).
        labels: int64, (N,).
    """
    first: dict[bytes, int] = {}
    parent = np.arange(len(images))
    for place, key in enumerate(image_keys(images)):
        parent[place] = first.setdefault(key, place)
    rows = np.array(sorted(first.values()))
    if 1 < len(rows) <= MOST:
        for low, high in rows[_near(images, labels, rows)]:
            a, b = sorted((_root(parent, int(low)), _root(parent, int(high))))
            parent[b] = a
    roots = np.array([_root(parent, row) for row in range(len(images))], np.int64)
    groups: dict[int, list[int]] = {}
    for row in np.flatnonzero(np.bincount(roots, minlength=len(roots))[roots] > 1):
        groups.setdefault(int(roots[row]), []).append(int(row))
    return list(groups.values())


def image_keys(images: Images) -> Iterator[bytes]:
    """Yield 16 bytes per image that are equal for equal pixels alone."""
    for row, image in enumerate(images):
        yield hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
        if row % _ROWS == 0:
            release(images)


def _root(parent: NDArray[np.int64], row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = int(parent[row])
    return row


def _near(images: Images, labels: NDArray[np.int64], rows: NDArray[np.int64]) -> Pairs:
    """Return pairs of places in `rows` whose pictures are near copies: int64, (P, 2)."""
    thumbnails = _unit(
        np.concatenate([_thumbnails(_taken(images, part), len(rows)) for part in _parts(rows)])
    )
    alike, different = _candidates(thumbnails, labels[rows])
    usual = _agreement(images, rows[different])
    level = float(np.quantile(usual, 0.9)) if len(usual) else 0.0
    asked = max(LEAST_AGREEMENT, float(np.tanh(STRICTER * np.arctanh(np.clip(level, 0, 0.999)))))
    return alike[_agreement(images, rows[alike]) >= asked]


def _taken(images: Images, rows: NDArray[np.int64]) -> Images:
    some = images[rows]
    release(images)
    return some


def _parts(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(rows), _ROWS):
        yield rows[start : start + _ROWS]


def _thumbnails(images: Images, count: int) -> Floats:
    """Return means over blocks: float32, (N, D)."""
    n, h, w, c = images.shape
    side = SIDE if count <= MANY else COARSE_SIDE
    down, across = max(1, h // side), max(1, w // side)
    blocks = images[:, : h // down * down, : w // across * across]
    blocks = blocks.reshape(n, h // down, down, w // across, across, c)
    axes = (2, 4) if count <= MANY else (2, 4, 5)
    means: Floats = blocks.mean(axis=axes, dtype=np.float32).reshape(n, -1)
    return means


def _unit(values: Floats) -> Floats:
    values = values - values.mean(axis=1, keepdims=True)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    unit: Floats = values / np.maximum(length, 1e-6)
    return unit


def _candidates(unit: Floats, labels: NDArray[np.int64]) -> tuple[Pairs, Pairs]:
    """Return pairs that look alike, and the most alike pairs of different classes."""
    alike, different, likeness = [], [], []
    for start in range(0, len(unit), _ROWS):
        part = np.arange(start, min(start + _ROWS, len(unit)))
        found = unit[part] @ unit.T
        found[part[:, None] <= np.arange(len(unit))] = -1  # each pair once
        other = np.where(labels[part][:, None] != labels, found, -1)
        best = other.argmax(axis=1)
        different.append(np.stack([part, best], axis=1))
        likeness.append(other[np.arange(len(part)), best])
        k = min(NEIGHBOURS, len(unit))
        nearest = np.argpartition(found, -k, axis=1)[:, -k:]
        i, j = np.nonzero(np.take_along_axis(found, nearest, axis=1) >= ALIKE)
        alike.append(np.stack([part[i], nearest[i, j]], axis=1))
    every, far = np.concatenate(different), np.concatenate(likeness)
    most = np.argsort(-far, kind="stable")[:DIFFERENT]
    return np.concatenate(alike), every[most[far[most] > -1]]


def _agreement(images: Images, pairs: Pairs) -> Floats:
    """Return how far the edges of two pictures agree, from -1 to 1: float32, (P,)."""
    found = np.empty(len(pairs), np.float32)
    for place, (a, b) in enumerate(pairs):
        found[place] = _edges_agree(images[a], images[b])
        if place % _ROWS == 0:
            release(images)
    return found


def _edges_agree(one: Images, other: Images) -> float:
    a, b = _edges(one), _edges(other)
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length else 0.0


def _edges(image: Images) -> Floats:
    values = image.astype(np.float32)
    down, across = np.diff(values, axis=0)[:, :-1], np.diff(values, axis=1)[:-1]
    return np.concatenate([down.ravel(), across.ravel()])
