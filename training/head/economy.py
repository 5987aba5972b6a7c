"""Choosing taps under a budget: the most worth for the time they take. L taps, F rates.

What a tap costs is measured, not modelled: the guarded graph against the plain one, pair by pair in
one process.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.bench import pair_ratio
from reluguard.detector.features import feature_width
from reluguard.detector.head import Head
from reluguard.detector.images import InputSpec
from reluguard.detector.model import Production
from reluguard.detector.taps import Tap
from reluguard.training.errors import DataError

__all__ = ["choose_taps", "cut_head", "tap_order"]

ROUNDS = 40
# what the operators of one more tap cost, in bits read: two microseconds at 0.2 ns a bit
NODE_BITS = 10_000


def tap_order(head: Head, taps: Sequence[Tap]) -> NDArray[np.int64]:
    """Return the taps' indices, first the one with most worth for its cost: int64, (L,).

    A tap is worth what the head's first layer makes of its rates, and costs the bits to read.

    Args:
        head: fitted on all of them.
        taps: L of them.
    """
    weight = (head.weights[0][: len(head.features.columns)] ** 2).sum(axis=1)
    worth = np.bincount(head.features.column_taps, weight, minlength=len(taps))
    cost = np.array([_bits_read(tap) + NODE_BITS for tap in taps])
    return np.argsort(-worth / cost, kind="stable")


def _bits_read(tap: Tap) -> float:
    """Return how many values are compared and counted for a tap."""
    places = float(np.prod(tap.sampled)) if tap.is_strided else tap.bits / tap.channels
    return places * tap.rates


def choose_taps(
    production: Production,
    spec: InputSpec,
    taps: Sequence[Tap],
    head: Head,
    *,
    max_overhead: float,
    batches: Sequence[int] = (1, 8),
    measure: Callable[..., float] = pair_ratio,
) -> NDArray[np.int64]:
    """Return as many taps as the budget allows, ascending: int64.

    Args:
        production: the model.
        spec: how images go into it.
        taps: all that could be read.
        head: fitted on all of them.
        max_overhead: largest ratio of guarded to plain time, at the worst batch size.
        batches: batch sizes to measure at.
        measure: the ratio for (production, spec, taps, head, batch, rounds).

    Raises:
        DataError: not even one tap fits.
    """
    order = tap_order(head, taps)

    def fits(count: int) -> bool:
        chosen = np.sort(order[:count])
        some = [taps[i] for i in chosen]
        small = cut_head(head, chosen)
        sizes = [spec.batch] if spec.batch else batches
        return all(
            measure(production, spec, some, small, batch=batch, rounds=ROUNDS) <= max_overhead
            for batch in sizes
        )

    if fits(len(taps)):
        return np.arange(len(taps))
    if not fits(1):
        raise DataError(f"no tap of this model can be read at {max_overhead} times its plain time")
    low, high = 1, len(taps)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return np.sort(order[:low])


def cut_head(head: Head, chosen: NDArray[np.int64]) -> Head:
    """Return the head without the other taps: right in its shapes and cost, not in its scores.

    Args:
        head: of L taps.
        chosen: ascending indices of the taps to keep.
    """
    f = head.features
    kept = np.flatnonzero(np.isin(f.column_taps, chosen))
    width = feature_width(len(kept), f.classes, f.probes)
    rest = np.arange(len(f.columns), f.width)
    of_feature = np.concatenate([kept, rest])
    assert len(of_feature) == width
    features = replace(
        f,
        columns=np.arange(len(kept)),
        column_taps=np.searchsorted(chosen, f.column_taps[kept]),
        taps=len(chosen),
        probe_weights=f.probe_weights[kept],
        center=f.center[of_feature],
        spread=f.spread[of_feature],
    )
    return replace(
        head,
        features=features,
        weights=(head.weights[0][of_feature], *head.weights[1:]),
        evidence_weights=head.evidence_weights[of_feature],
        evidence_bias=head.evidence_bias[chosen],
        clean_scores=np.zeros(100, np.float32),
    )
