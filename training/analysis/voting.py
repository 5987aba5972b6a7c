"""Bits that tell two groups of images apart, and their vote. N images, B bits, C channels.

The transparent baseline: pick the bits whose firing rate differs most between clean and attacked
images, let each cast one vote. Every vote has a name: this channel, this place.

Source: Jamil et al. 2022, arXiv 2211.13305 (a reconstruction: the text gives no selection rule).
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reluguard.training.analysis.checks import Floats, Ints, Packed, check_packed
from reluguard.training.analysis.similarity import bit_rates
from reluguard.training.errors import ConstantError, ShapeError

__all__ = ["VOTERS", "Voter", "best_threshold", "fit_voter", "gather_bits", "name_channels"]

VOTERS = 100  # of the studies


@dataclass(frozen=True, slots=True, kw_only=True)
class Voter:
    """The most telling bits of one layer.

    Attributes:
        indices: int64, (V,). Which bits, most telling first.
        on_means_attacked: bool, (V,). Whether the bit is on more often in attacked images.
        margins: float64, (V,). By how much the firing rates differ, in [0, 1].
        bits: B, of the layer.
    """

    indices: Ints
    on_means_attacked: NDArray[np.bool_]
    margins: Floats
    bits: int

    def score(self, packed: Packed) -> Floats:
        """Return the share of votes for "attacked": float64, (N,), in [0, 1].

        Raises:
            ShapeError: patterns of another layer.
        """
        check_packed(packed, self.bits)
        votes: Floats = (gather_bits(packed, self.indices) == self.on_means_attacked).mean(axis=1)
        return votes


def gather_bits(packed: Packed, indices: Ints) -> NDArray[np.bool_]:
    """Return chosen bits of every pattern without unpacking the rest: bool, (N, V)."""
    check_packed(packed)
    if len(indices) and not 0 <= indices.min() <= indices.max() < 8 * packed.shape[1]:
        raise ShapeError(f"expected bits below {8 * packed.shape[1]}, got {indices.max()}")
    shift = (7 - indices % 8).astype(np.uint8)
    return ((packed[:, indices // 8] >> shift) & 1).astype(np.bool_)


def fit_voter(clean: Packed, attacked: Packed, bits: int, *, voters: int = VOTERS) -> Voter:
    """Return the bits that differ most between two groups.

    Args:
        clean: uint8, (N, W), packed.
        attacked: uint8, (M, W), packed, of **other** source images than will be scored.
        bits: B.
        voters: how many bits vote, at most B.

    Raises:
        ShapeError: not packed patterns of this many bits.
        ConstantError: no bit differs.
    """
    if voters < 1:
        raise ShapeError(f"expected one or more voters, got {voters}")
    difference = bit_rates(attacked, bits).astype(np.float64) - bit_rates(clean, bits)
    size = np.abs(difference)
    if not size.any():
        raise ConstantError(f"the layer is constant: none of its {bits} bits differs by group")
    # stable, so that equal margins keep the order of the bits and a rerun names the same ones
    order = np.argsort(-size, kind="stable")[: min(voters, bits)]
    return Voter(
        indices=order.astype(np.int64),
        on_means_attacked=difference[order] > 0,
        margins=size[order],
        bits=bits,
    )


def best_threshold(clean: Floats, attacked: Floats) -> float:
    """Return the score that separates two groups of one size with the fewest errors."""
    candidates = np.unique(np.concatenate([clean, attacked]))
    errors = [(attacked <= c).mean() + (clean > c).mean() for c in candidates]
    return float(candidates[int(np.argmin(errors))])


def name_channels(
    indices: Ints, shape: tuple[int, ...], channel_axis: int = 0
) -> list[tuple[int, int]]:
    """Return which channels the chosen bits lie in, most frequent first: [(channel, bits), ...].

    Args:
        indices: (V,), into the flattened layer.
        shape: of the layer per image, for example (C, H, W).
        channel_axis: which axis of it counts channels.
    """
    channels = np.unravel_index(indices, shape)[channel_axis]
    return [(int(c), n) for c, n in sorted(Counter(channels.tolist()).items(), key=_most_first)]


def _most_first(item: tuple[int, int]) -> tuple[int, int]:
    return -item[1], item[0]
