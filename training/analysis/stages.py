"""Stages of a network, and how homogeneous each one's codes are. L taps, G stages, F parts.

A stage is a run of taps whose feature maps are of one size; its code is that of its last tap, what
the stage hands on. Later stages are wider, and wider codes have more directions to vary in, so
codes are also brought to one number of columns, that of the narrowest stage, by a fixed random
choice.

Source: Lee and Vijayan, arXiv 2205.10952 (a reconstruction), where stages are composite layers.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.taps import Tap
from reluguard.training.analysis.checks import Floats, Ints
from reluguard.training.analysis.som import bmu_entropy, fit_som, participation_ratio
from reluguard.training.errors import ConstantError

__all__ = ["disjoint_parts", "homogeneity_of", "narrowed", "stage_ends", "stages_of"]

_LEAST = 50  # images in a part
_MOST = 10  # parts
_SIDE, _EPOCHS = 8, 8  # of the maps


def stages_of(taps: Sequence[Tap]) -> Ints:
    """Return the last tap of every stage, first to last: int64, (G,).

    Taps without a place, as those of linear layers, belong to no stage.
    """
    return stage_ends(
        [tuple(s for axis, s in enumerate(tap.shape) if axis != tap.channel_axis) for tap in taps]
    )


def stage_ends(sizes: Sequence[tuple[int, ...]]) -> Ints:
    """Return the last layer of every stage: int64, (G,).

    Args:
        sizes: of each layer's feature maps; empty where it has none.
    """
    ends: dict[int, int] = {}
    stage, before = -1, None
    for i, size in enumerate(sizes):
        if not size:
            continue
        if size != before:
            stage, before = stage + 1, size
        ends[stage] = i
    return np.array(list(ends.values()), np.int64)


def narrowed(codes: Sequence[NDArray[np.float32]], *, seed: int = 0) -> list[NDArray[np.float32]]:
    """Return every stage's codes with as many columns as the narrowest has, chosen at random.

    Args:
        codes: per stage (N, C).
        seed: of the choice.
    """
    width = min(x.shape[1] for x in codes)
    generator = np.random.default_rng(seed)
    return [x[:, np.sort(generator.permutation(x.shape[1])[:width])] for x in codes]


def disjoint_parts(count: int, *, seed: int = 0) -> list[Ints]:
    """Return parts of `count` images, no image in two: up to ten of 50 or more, two at least."""
    order = np.random.default_rng(seed).permutation(count)
    parts = int(np.clip(count // _LEAST, 2, _MOST))
    return [np.sort(part).astype(np.int64) for part in np.array_split(order, parts)]


def homogeneity_of(codes: Sequence[NDArray[np.float32]], *, seed: int = 0) -> Floats:
    """Return participation ratio, codebook distance and entropy of units: float64, (3, F, G).

    NaN where a stage says the same of all images of a part.

    Args:
        codes: per stage (N, C), of the same images.
        seed: of the parts and the maps.
    """
    parts = disjoint_parts(len(codes[0]), seed=seed)
    out = np.full((3, len(parts), len(codes)), np.nan)
    for f, rows in enumerate(parts):
        for g, stage in enumerate(codes):
            part = stage[rows]
            try:
                som = fit_som(part, rows=_SIDE, columns=_SIDE, epochs=_EPOCHS, seed=seed)
            except ConstantError:
                continue
            out[:, f, g] = (
                participation_ratio(part),
                som.codebook_distance(),
                bmu_entropy(som.best(part), _SIDE**2),
            )
    return out
