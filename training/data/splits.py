"""How images are dealt out to parts that share nothing. N images."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from reluguard.training.errors import DataError

__all__ = ["Copies", "split_sources"]

Copies = Sequence[Sequence[int]]
"""Rows that hold the same picture, two or more in each group, ascending."""

_PARTS = ("fit", "calibrate", "test")
_HELD_OUT = {"calibrate", "test"}


def _dealt(part: str) -> tuple[int, str]:
    """Return a part's place in the order of dealing."""
    return (_PARTS.index(part) if part in _PARTS else len(_PARTS), part)


def split_sources(
    labels: NDArray[np.int64], fractions: Mapping[str, float], seed: int, *, copies: Copies = ()
) -> dict[str, NDArray[np.int64]]:
    """Return disjoint parts of the source images by name, as sorted row numbers.

    Stratified: every class is dealt out in the given shares, off by less than one image per class
    and part. The same labels, fractions, seed and copies give the same parts, in whatever order the
    fractions come: a manifest sorts its keys. A picture and its copies go to one part; where images
    are counted, for calibration and for tests, only the first of them does, for the others tell
    nothing new.

    Args:
        labels: int64, (N,).
        fractions: each part's share, positive, together at most 1. What is left is in no part.
        seed: of the shuffle.
        copies: rows that hold the same picture, as `find_copies` gives them.

    Raises:
        DataError: the fractions are not shares, a part would stay empty, or a copy is no row.
    """
    total = sum(fractions.values())
    if not fractions or min(fractions.values()) <= 0 or total > 1 + 1e-9:
        raise DataError(f"expected positive fractions of at most 1 in all, got {dict(fractions)}")
    fractions = {name: fractions[name] for name in sorted(fractions, key=_dealt)}
    generator = np.random.default_rng(seed)
    if any(not 0 <= row < len(labels) for group in copies for row in group):
        raise DataError(f"expected copies among the {len(labels)} images, got others")
    others = np.array([row for group in copies for row in group[1:]], np.int64)
    single = np.ones(len(labels), np.bool_)
    single[others] = False
    # Deal a class-sorted random order out along one line: cut by cumulative share within a class,
    # with a per-class random offset so that rounding favours no part.
    edges = np.cumsum([0.0, *fractions.values()])
    parts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in fractions}
    for label in np.unique(labels[single]):
        rows = generator.permutation(np.flatnonzero((labels == label) & single))
        cuts = np.floor(edges * len(rows) + generator.random()).astype(np.int64)
        cuts[0] = 0
        if total > 1 - 1e-9:
            cuts[-1] = len(rows)
        for name, low, high in zip(fractions, cuts[:-1], cuts[1:], strict=True):
            parts[name].append(rows[low : min(high, len(rows))])
    split = {name: np.sort(np.concatenate(rows)) for name, rows in parts.items()}
    empty = [name for name, rows in split.items() if len(rows) == 0]
    if empty:
        raise DataError(
            f"expected enough images for every part, got {int(single.sum())} and none for "
            f"{', '.join(empty)}"
        )
    return {
        name: rows if name in _HELD_OUT else _with_copies(rows, copies)
        for name, rows in split.items()
    }


def _with_copies(rows: NDArray[np.int64], copies: Copies) -> NDArray[np.int64]:
    there = set(rows.tolist())
    more = [row for group in copies if group[0] in there for row in group[1:]]
    return np.sort(np.concatenate([rows, np.array(more, np.int64)])) if more else rows
