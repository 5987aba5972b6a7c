"""Choosing what is read: the least that loses little, or what a limit allows. L taps, F rates.

Time is measured, not modelled: the guarded graph against the plain one, pair by pair in one
process. So is what is lost: small heads on some of the images, judged on the others, none of which
is a test image.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.arrays import DAMAGE
from reluguard.detector.artifact import write_file
from reluguard.detector.bench import ReadingTime, pair_ratio, plain_seconds, reading_seconds
from reluguard.detector.errors import SettingsError
from reluguard.detector.features import FeatureMap, feature_width
from reluguard.detector.head import Head
from reluguard.detector.images import InputSpec
from reluguard.detector.model import Production
from reluguard.detector.taps import Tap
from reluguard.training.errors import DataError
from reluguard.training.expected.speed import here
from reluguard.training.harvest.readings import Readings
from reluguard.training.head.fit import HeadSettings, held_out_auroc
from reluguard.training.head.forecast import small_head_seconds
from reluguard.training.head.probes import (
    CODE,
    FOLDS,
    MAX_CLASSES,
    RUNS,
    column_taps,
    most_columns,
    source_folds,
)
from reluguard.training.head.worth import Piece, column_of, order_pieces

__all__ = [
    "Economy",
    "Measures",
    "blank_head",
    "check_overhead",
    "choice_seconds",
    "choose_taps",
]

HALVINGS = 2  # between the last count that told too little and the first that does not
CHEAP = 1.03  # where nobody asked for a limit, all is read at no more than this
MOST_LOST = 0.005  # of the mean AUROC, where nobody asked for a limit
ROUNDS = (3, 40)
SECONDS = 3.0  # of pairs at one batch size, within these rounds
SESSIONS = 3  # the middle one counts: a noisy second spoils one of them
SLOW_S = 0.3  # a run that takes longer is timed in one session
SLOWEST_S = 1.0  # and a batch that takes longer not at all, but the smallest
READING_ROUNDS = 15
TRIES = 6  # choices that are timed for one limit
# a plain model faster than this is not cut: a ratio of so little is the call itself
LEAST_PLAIN_S = 0.0004
LEAST_PIECES = 3
# for a forecast: choices that are timed and judged in the end, and what opening a session takes of
# each tap, on one core of the reference machine
_USUALLY_TIMED = 2
_TIMED_OF_FEW = 2
_USUALLY_JUDGED = 8
_OPEN_S = 0.02
# clean images kept from the small heads: one of fewer can move an AUROC by more than all these say
LEAST_TOLD = 40
_DAMAGE: tuple[type[Exception], ...] = (*DAMAGE, KeyError, TypeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """How time and loss are taken.

    Attributes:
        plain: seconds of the plain model for (production, spec, batch, rounds).
        reading: seconds of reading each tap, for (production, spec, taps, batch, rounds).
        guarded: the ratio for (production, spec, taps, head, batch, rounds).
        judged: the mean AUROC of a small head, for (groups, taps, settings, seed).
    """

    plain: Callable[..., float] = plain_seconds
    reading: Callable[..., Sequence[ReadingTime]] = reading_seconds
    guarded: Callable[..., float] = pair_ratio
    judged: Callable[..., float] = held_out_auroc


@dataclass(frozen=True, slots=True, kw_only=True)
class Economy:
    """What is read, and what was measured.

    Attributes:
        asked: the largest ratio of guarded to plain time that was asked for; None for as little as
            loses next to nothing.
        limit: the ratio it was chosen for, None where it was not chosen for one.
        chosen: of each tap that could be read, the places of its levels that are; none of some.
        plain_s: seconds of the plain model at the smallest batch.
        overhead: the ratio with these by batch size; empty where none was needed.
        lost: of the mean AUROC beside all, or without a limit beside the best that was tried, by
            small heads on images kept from them; None where not judged.
        kept: clean images that were kept from them, where those were too few to judge by.
    """

    asked: float | None
    limit: float | None
    chosen: tuple[tuple[int, ...], ...]
    plain_s: float
    overhead: Mapping[str, float] = field(default_factory=dict)
    lost: float | None = None
    kept: int | None = None

    @property
    def is_kept(self) -> bool:
        """Whether the limit is, as far as was measured."""
        return self.limit is None or all(ratio <= self.limit for ratio in self.overhead.values())

    @property
    def words(self) -> str:
        """What people are told."""
        taps = sum(bool(levels) for levels in self.chosen)
        levels = sum(map(len, self.chosen))
        some = f"reads {taps} of {len(self.chosen)} taps at {levels} levels in all"
        if not self.overhead:
            return f"{some}: the model takes {self.plain_s * 1e3:.2f} ms, too little to cut"
        measured = "guarded / plain time " + ", ".join(
            f"{ratio:.3f} at batch {batch}" for batch, ratio in self.overhead.items()
        )
        if self.lost is not None:
            less = f"{self.lost:.3f} less" if self.lost >= 0.0005 else "no less"
            other = "with the best that was tried" if self.asked is None else "with all"
            measured += f"; a small head has {less} mean AUROC than {other}, on images kept from it"
        if self.kept is not None:
            return (
                f"{some}, for what less would lose can't be told by {self.kept} clean images kept "
                f"from a small head, {LEAST_TOLD} are needed: {measured}"
            )
        if self.limit is None:
            return f"{some}, as few as tell nearly as much as more or all would: {measured}"
        if not self.is_kept:
            return (
                f"no choice of taps keeps guarded / plain time under {self.limit:g}; {some}, those "
                f"of most worth for their time: {measured}"
            )
        return f"{some} to keep it under {self.limit:g}: {measured}"

    def taps(self, taps: Sequence[Tap]) -> tuple[Tap, ...]:
        """Return those that are read, of all that could be, at their levels."""
        pairs = zip(taps, self.chosen, strict=True)
        return tuple(
            replace(tap, levels=tuple(tap.levels[j] for j in levels))
            for tap, levels in pairs
            if levels
        )

    def columns(self, taps: Sequence[Tap]) -> NDArray[np.int64]:
        """Return which of the rates of all that could be read are, ascending: int64."""
        return _columns(taps, self.chosen)

    def save(self, file: Path) -> None:
        """Write it where `read` finds it, so that a fit that goes on reads the same taps."""
        write_file(file, json.dumps(asdict(self), indent=2).encode())

    @classmethod
    def read(cls, file: Path, taps: Sequence[Tap], asked: float | None) -> "Economy | None":
        """Return what was chosen before, None where nothing was for this limit and these taps.

        Raises:
            DataError: it can't be read.
        """
        if not file.exists():
            return None
        try:
            stored: dict[str, Any] = json.loads(file.read_bytes())
            if "chosen" not in stored and "max_overhead" in stored:
                return None  # of a version that chose whole taps
            chosen = tuple(tuple(map(int, levels)) for levels in stored["chosen"])
            known = cls(**(stored | {"chosen": chosen}))
        except _DAMAGE as error:
            raise DataError(
                f"expected a choice of taps, {file} holds something else: remove it"
            ) from error
        fits = len(chosen) == len(taps) and any(chosen)
        fits = fits and all(
            list(levels) == sorted({*levels} & {*range(len(tap.levels))})
            for tap, levels in zip(taps, chosen, strict=False)
        )
        return known if fits and known.asked == asked else None


def check_overhead(max_overhead: float | None) -> float | None:
    """Return the largest ratio that was asked for, 0 for all taps and None for a ratio of ours.

    Raises:
        SettingsError: it is a ratio that no guard keeps.
    """
    if max_overhead is None or max_overhead == 0:
        return max_overhead
    if not max_overhead > 1:
        raise SettingsError(
            f"expected a guarded / plain time above 1, or 0 for no limit, got {max_overhead}"
        )
    return max_overhead


def choose_taps(
    production: Production,
    spec: InputSpec,
    taps: Sequence[Tap],
    groups: Sequence[Readings],
    *,
    max_overhead: float | None,
    settings: HeadSettings,
    seed: int,
    batches: Sequence[int] = (1, 8),
    measures: Measures | None = None,
) -> Economy:
    """Return what of the taps to read.

    Under a limit that was asked for: as much as it allows, what adds most for its time first; all
    where all fits. Without one: the least that has no more than MOST_LOST less mean AUROC than the
    best of the first three, six, twelve and so on, and all. More is not always better: of few
    images a head learns more from some rates than from all. All also where that costs next to
    nothing, where the plain model takes no time, and where there are too few images to tell what is
    lost.

    Measured on EfficientNet-Lite0 and 600 photographs, mean AUROC of small heads on images kept
    from them: 3 taps .934, 15 taps .949, all 33 taps .921.

    Args:
        production: the model.
        spec: how images go into it.
        taps: all that could be read.
        groups: what was read of the fitting sources, as for `fit_head`.
        max_overhead: largest ratio of guarded to plain time, at the worst batch size; None for as
            little as loses next to nothing.
        settings: of the head.
        seed: of the small heads.
        batches: batch sizes to measure at.
        measures: how time and loss are taken.
    """
    by = measures or Measures()
    sizes = [spec.batch] if spec.batch else list(batches)
    plain = by.plain(production, spec, batch=sizes[0], rounds=READING_ROUNDS)
    every = _all_levels(taps)
    if plain < LEAST_PLAIN_S:
        return Economy(asked=max_overhead, limit=None, chosen=every, plain_s=plain)
    sizes = _quick_enough(sizes, plain)
    classes = groups[0].logits.shape[1]

    def timed(chosen: tuple[tuple[int, ...], ...], limit: float) -> Economy:
        """Return the choice with its ratios, up to the first batch size that breaks the limit."""
        some = Economy(asked=max_overhead, limit=limit, chosen=chosen, plain_s=plain)
        head = blank_head(some.taps(taps), classes, settings)
        overhead: dict[str, float] = {}
        for batch in sizes:
            ratio = partial(by.guarded, production, spec, some.taps(taps), head, batch=batch)
            overhead[str(batch)] = _middle(ratio, plain * batch / sizes[0])
            if overhead[str(batch)] > limit:
                break  # more can't make it fit
        return replace(some, overhead=overhead)

    @cache
    def judged(chosen: tuple[tuple[int, ...], ...]) -> float:
        some = Economy(asked=None, limit=None, chosen=chosen, plain_s=plain)
        less = _only(groups, some.columns(taps))
        return by.judged(less, taps=some.taps(taps), settings=settings, seed=seed)

    kept = None if max_overhead else _too_few(groups)
    all_of_it = timed(every, max_overhead or (CHEAP if kept is None else np.inf))
    if kept is not None:
        return replace(all_of_it, limit=None, kept=kept)
    if all_of_it.is_kept:
        return all_of_it
    times = by.reading(production, spec, taps, batch=sizes[0], rounds=READING_ROUNDS)
    order, _ = order_pieces(groups, taps, times)
    if max_overhead:
        best = _Search(taps, order, times, timed).within(max_overhead)
        return replace(best, lost=judged(every) - judged(best.chosen))
    count, lost = _least(len(order), lambda some: judged(_first(order, taps, some)))
    least = timed(_first(order, taps, count), np.inf)
    return replace(least, limit=None, lost=None if np.isnan(lost) else lost)


def _least(pieces: int, judged: Callable[[int], float]) -> tuple[int, float]:
    """Return how few of an order tell nearly as much as more or all, and what that loses.

    All, and NaN, where nothing could be judged.
    """
    doubled = [LEAST_PIECES * 2**k for k in range(pieces.bit_length())]
    counts = [*(count for count in doubled if count < pieces), pieces]
    most = max(map(judged, counts))
    if np.isnan(most):
        return pieces, most
    place = next(k for k, count in enumerate(counts) if most - judged(count) <= MOST_LOST)
    low, high = counts[max(place - 1, 0)], counts[place]
    for _ in range(HALVINGS):
        middle = (low + high) // 2
        if low < middle and most - judged(middle) <= MOST_LOST:
            high = middle
        else:
            low = middle
    return high, most - judged(high)


def _first(order: Sequence[Piece], taps: Sequence[Tap], count: int) -> tuple[tuple[int, ...], ...]:
    """Return the choice of the first so many."""
    some: list[list[int]] = [[] for _ in taps]
    for i, j in order[:count]:
        some[i].append(j)
    return tuple(tuple(sorted(levels)) for levels in some)


def choice_seconds(
    plain_s: float,
    taps: int,
    clean: int,
    rows: int,
    rates: int,
    classes: int,
    settings: HeadSettings,
) -> float:
    """Return about how long `choose_taps` takes, without a limit that somebody asked for.

    Args:
        plain_s: of the plain model at the smallest batch.
        taps: L.
        clean: images as they came among the rows, a fold of which small heads are judged on.
        rows: of all groups.
        rates: F.
        classes: of the model.
        settings: of the head.
    """
    if plain_s < LEAST_PLAIN_S:
        return 0.0
    timed = 0.0
    for takes in (plain_s, 8 * plain_s):
        if takes > SLOWEST_S and takes > plain_s:
            continue
        rounds = float(np.clip(SECONDS / (2 * takes), *ROUNDS))
        sessions = 1 if takes > SLOW_S else SESSIONS
        timed += sessions * (2 * rounds * takes + here(_OPEN_S * taps))
    if clean < FOLDS * LEAST_TOLD:
        return _TIMED_OF_FEW * timed
    judged = small_head_seconds(rows, rates, classes, settings)
    return _USUALLY_TIMED * timed + _USUALLY_JUDGED * judged


def _quick_enough(sizes: Sequence[int], plain_s: float) -> list[int]:
    """Return the batch sizes that are timed, of which the first takes so long."""
    return [sizes[0], *(size for size in sizes[1:] if plain_s * size / sizes[0] <= SLOWEST_S)]


def _all_levels(taps: Sequence[Tap]) -> tuple[tuple[int, ...], ...]:
    """Return the choice of everything."""
    return tuple(tuple(range(len(tap.levels))) for tap in taps)


def _middle(ratio: Callable[..., float], takes_s: float) -> float:
    """Return the middle one of several sessions, each of so many rounds as time allows."""
    rounds = int(np.clip(SECONDS / (2 * takes_s), *ROUNDS))
    several = [ratio(rounds=rounds) for _ in range(1 if takes_s > SLOW_S else SESSIONS)]
    return float(np.median(several))


def _too_few(groups: Sequence[Readings]) -> int | None:
    """Return how many clean images small heads are judged on, None where they are enough."""
    kept = sum(int((source_folds(g.sources) == 0).sum()) for g in groups if g.kind == "clean")
    return kept if kept < LEAST_TOLD else None


class _Search:
    """Finds how much of an order fits a limit, timing few choices.

    Args:
        taps: all that could be read.
        order: their levels, what adds most for its time first.
        times: what each takes alone.
        timed: times a choice, given a limit at which it may stop.
    """

    def __init__(
        self,
        taps: Sequence[Tap],
        order: Sequence[Piece],
        times: Sequence[ReadingTime],
        timed: Callable[[tuple[tuple[int, ...], ...], float], Economy],
    ) -> None:
        self._taps, self._timed = taps, timed
        self._order = list(order) or [(0, 0)]
        self._seconds = [
            sum(
                time.of(levels)
                for time, levels in zip(times, _first(self._order, taps, k), strict=True)
            )
            for k in range(len(self._order) + 1)
        ]
        self._known: dict[int, Economy] = {}

    def _at(self, count: int, limit: float) -> Economy:
        """Return the first so many, timed at all batch sizes or until they break the limit."""
        known = self._known.get(count)
        if known is None or (known.limit or 0) < limit:  # it may have been stopped before
            known = self._known[count] = self._timed(_first(self._order, self._taps, count), limit)
        return replace(known, limit=limit)

    def within(self, limit: float) -> Economy:
        """Return as many of the first as keep the limit, and a few where not even those do."""
        low, high = min(LEAST_PIECES, len(self._order)), len(self._order)
        best = self._at(low, limit)
        if not best.is_kept or low == high:
            return best
        most = self._at(high, limit)
        if most.is_kept:
            return most
        above = max(most.overhead.values())
        for _ in range(TRIES):
            if high - low < 2:
                break
            below = max(best.overhead.values())
            # by the time they take alone, which is about in proportion
            share = (limit - below) / max(above - below, 1e-9)
            aim = self._seconds[low] + share * (self._seconds[high] - self._seconds[low])
            middle = int(np.searchsorted(self._seconds, aim, side="right")) - 1
            found = self._at(min(max(middle, low + 1), high - 1), limit)
            count = sum(map(len, found.chosen))
            if found.is_kept:
                low, best = count, found
            else:
                high, above = count, max(found.overhead.values())
        return best


def _columns(taps: Sequence[Tap], chosen: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    places = column_of(taps)
    return np.concatenate([places[i, j] for i, levels in enumerate(chosen) for j in levels])


def _only(groups: Sequence[Readings], columns: NDArray[np.int64]) -> list[Readings]:
    """Return the groups with these columns of their rates, which are not read yet if stored."""

    def few(rates: Any) -> Any:
        return rates.only(columns) if hasattr(rates, "only") else rates[:, columns]

    return [replace(group, rates=few(group.rates)) for group in groups]


def blank_head(taps: Sequence[Tap], classes: int, settings: HeadSettings) -> Head:
    """Return a head of zeros, of the shapes that a fit on these taps gives: right in its time.

    Args:
        taps: L of them.
        classes: K, of the model.
        settings: of the head.
    """
    of_rate = column_taps(taps)
    count = min(len(of_rate), most_columns(classes))
    columns = np.linspace(0, len(of_rate) - 1, count).astype(np.int64)
    code = np.zeros((classes, min(CODE, classes)) if classes > MAX_CLASSES else (0, 0), np.float32)
    probes = min(RUNS, len(taps)) + 1
    outputs = probes * (code.shape[1] or classes)
    width = feature_width(count, classes, probes, code.shape[1])
    units = settings.members * settings.units
    return Head(
        features=FeatureMap(
            columns=columns,
            column_taps=of_rate[columns],
            taps=len(taps),
            classes=classes,
            probe_weights=np.zeros((count, outputs), np.float32),
            probe_bias=np.zeros(outputs, np.float32),
            center=np.zeros(width, np.float32),
            spread=np.ones(width, np.float32),
            code=code,
        ),
        weights=(np.zeros((width, units), np.float32), np.zeros((units, 1), np.float32)),
        biases=(np.zeros(units, np.float32), np.zeros(1, np.float32)),
        slope=1.0,
        intercept=0.0,
        evidence_weights=np.zeros(width, np.float32),
        evidence_bias=np.zeros(len(taps), np.float32),
        clean_scores=np.zeros(100, np.float32),
    )
