"""Choosing taps under a budget: the most worth for the time they take. L taps, F rates.

What a tap costs is measured, not modelled: the guarded graph against the plain one, pair by pair in
one process.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.arrays import DAMAGE
from reluguard.detector.artifact import write_file
from reluguard.detector.bench import pair_ratio, plain_seconds, reading_ratios
from reluguard.detector.errors import SettingsError
from reluguard.detector.features import feature_width
from reluguard.detector.head import Head
from reluguard.detector.images import InputSpec
from reluguard.detector.model import Production
from reluguard.detector.taps import Tap
from reluguard.training.errors import DataError

__all__ = ["Economy", "Measures", "check_overhead", "choose_taps", "cut_head", "tap_order"]

ROUNDS = 40
SESSIONS = 3  # the middle one counts: a noisy second spoils one of them
READING_ROUNDS = 15
# a plain model faster than this is not cut: a ratio of so little is mostly the call itself
LEAST_PLAIN_S = 0.002
LEAST_COST = 0.001  # of the plain model: less than that is not told apart from nothing
LEAST_TAPS = 3
_DAMAGE: tuple[type[Exception], ...] = (*DAMAGE, KeyError, TypeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """How time is taken; each is one of `reluguard.detector.bench`.

    Attributes:
        plain: seconds of the plain model for (production, spec, batch, rounds).
        reading: ratios of reading alone, for (production, spec, taps, batch, rounds).
        guarded: the ratio for (production, spec, taps, head, batch, rounds).
    """

    plain: Callable[..., float] = plain_seconds
    reading: Callable[..., tuple[float, Mapping[str, float]]] = reading_ratios
    guarded: Callable[..., float] = pair_ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Economy:
    """Which taps are read under a budget, and what was measured.

    Attributes:
        max_overhead: the largest ratio of guarded to plain time that was asked for.
        taps: names of those that are read.
        of: how many could be.
        plain_s: seconds of the plain model at the smallest batch.
        overhead: the ratio with these taps by batch size; empty where none was needed.
    """

    max_overhead: float
    taps: tuple[str, ...]
    of: int
    plain_s: float
    overhead: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_kept(self) -> bool:
        """Whether the budget is, as far as was measured."""
        return all(ratio <= self.max_overhead for ratio in self.overhead.values())

    @property
    def words(self) -> str:
        """What people are told."""
        measured = ", ".join(f"{r:.3f} at batch {b}" for b, r in self.overhead.items())
        some = f"reads {len(self.taps)} of {self.of} taps"
        if not self.overhead:
            return f"{some}: the model takes {self.plain_s * 1e3:.2f} ms, too little to cut"
        if not self.is_kept:
            return (
                f"no choice of taps keeps guarded / plain time under {self.max_overhead}; "
                f"{some}, those of most worth for their cost: {measured}"
            )
        return f"{some} to keep guarded / plain time under {self.max_overhead}: {measured}"

    def indices(self, taps: Sequence[Tap]) -> NDArray[np.int64]:
        """Return which of the taps are read, ascending: int64."""
        return np.flatnonzero([tap.name in self.taps for tap in taps])

    def save(self, file: Path) -> None:
        """Write it where `read` finds it, so that a fit that goes on reads the same taps."""
        write_file(file, json.dumps(asdict(self), indent=2).encode())

    @classmethod
    def read(cls, file: Path, taps: Sequence[Tap], max_overhead: float) -> "Economy | None":
        """Return what was chosen before, None where nothing was for this budget and these taps.

        Raises:
            DataError: it can't be read.
        """
        if not file.exists():
            return None
        try:
            stored: dict[str, Any] = json.loads(file.read_bytes())
            known = cls(**(stored | {"taps": tuple(stored["taps"])}))
        except _DAMAGE as error:
            raise DataError(
                f"expected a choice of taps, {file} holds something else: remove it"
            ) from error
        names = {tap.name for tap in taps}
        same = known.max_overhead == max_overhead and known.of == len(taps)
        return known if same and names.issuperset(known.taps) and known.taps else None


def check_overhead(max_overhead: float | None) -> float | None:
    """Return the budget, None where 0 says that there is none.

    Raises:
        SettingsError: it is a ratio that no guard keeps.
    """
    if not max_overhead:
        return None
    if not max_overhead > 1:
        raise SettingsError(
            f"expected a guarded / plain time above 1, or 0 for no limit, got {max_overhead}"
        )
    return max_overhead


def tap_order(head: Head, taps: Sequence[Tap], costs: Mapping[str, float]) -> NDArray[np.int64]:
    """Return the taps' indices, first the one with most worth for its cost: int64, (L,).

    A tap is worth what the head's first layer makes of its rates.

    Args:
        head: fitted on all of them.
        taps: L of them.
        costs: what each takes to read, by its name, as a share of the plain model's time.
    """
    weight = (head.weights[0][: len(head.features.columns)] ** 2).sum(axis=1)
    worth = np.bincount(head.features.column_taps, weight, minlength=len(taps))
    cost = np.maximum([costs[tap.name] for tap in taps], LEAST_COST)
    return np.argsort(-worth / cost, kind="stable")


def choose_taps(
    production: Production,
    spec: InputSpec,
    taps: Sequence[Tap],
    head: Head,
    *,
    max_overhead: float,
    batches: Sequence[int] = (1, 8),
    measures: Measures | None = None,
) -> Economy:
    """Return as many taps as the budget allows.

    All of them where the plain model takes less than 2 ms; a few of most worth for their cost where
    none fit.

    Args:
        production: the model.
        spec: how images go into it.
        taps: all that could be read.
        head: fitted on all of them.
        max_overhead: largest ratio of guarded to plain time, at the worst batch size.
        batches: batch sizes to measure at.
        measures: how time is taken.
    """
    by = measures or Measures()
    sizes = [spec.batch] if spec.batch else list(batches)
    plain = by.plain(production, spec, batch=sizes[0], rounds=READING_ROUNDS)

    def economy(chosen: Sequence[int], overhead: Mapping[str, float]) -> Economy:
        return Economy(
            max_overhead=max_overhead,
            taps=tuple(taps[i].name for i in chosen),
            of=len(taps),
            plain_s=plain,
            overhead=overhead,
        )

    every = range(len(taps))
    if plain < LEAST_PLAIN_S:
        return economy(every, {})

    def tried(some: Sequence[int]) -> Economy:
        chosen = sorted(some)
        small = cut_head(head, np.array(chosen))
        overhead: dict[str, float] = {}
        for batch in sizes:
            if overhead and max(overhead.values()) > max_overhead:
                break  # more can't make it fit
            several = [
                by.guarded(
                    production, spec, [taps[i] for i in chosen], small, batch=batch, rounds=ROUNDS
                )
                for _ in range(SESSIONS)
            ]
            overhead[str(batch)] = float(np.median(several))
        return economy(chosen, overhead)

    best = tried(every)
    if best.is_kept:
        return best
    _, ratios = by.reading(production, spec, taps, batch=sizes[0], rounds=READING_ROUNDS)
    order = tap_order(head, taps, {name: ratio - 1 for name, ratio in ratios.items()}).tolist()
    few = min(LEAST_TAPS, len(taps))
    best = tried(order[:few])
    if not best.is_kept:
        return best
    low, high = few, len(taps)
    while high - low > 1:
        middle = (low + high) // 2
        found = tried(order[:middle])
        if found.is_kept:
            low, best = middle, found
        else:
            high = middle
    return best


def cut_head(head: Head, chosen: NDArray[np.int64]) -> Head:
    """Return the head without the other taps: right in its shapes and cost, not in its scores.

    Args:
        head: of L taps.
        chosen: ascending indices of the taps to keep.
    """
    f = head.features
    kept = np.flatnonzero(np.isin(f.column_taps, chosen))
    width = feature_width(len(kept), f.classes, f.probes, f.code.shape[1])
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
