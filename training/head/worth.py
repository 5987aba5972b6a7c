"""What each level of each tap is worth beside those that are read already. L taps, D rates, N rows.

A quick stand-in for fitting a head on every choice: ridge regressions, one level of a tap at a
time, of what is left to be said of two questions: whether an image was attacked, and of which class
it was before, which is what probes are asked. What the network's own answer says is said first, for
it costs nothing. A level counts by what it explains on images that its regression did not see.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.bench import ReadingTime
from reluguard.detector.features import Floats, confidence
from reluguard.detector.taps import Tap
from reluguard.training.harvest.readings import Readings
from reluguard.training.head.moments import Moments, row_blocks
from reluguard.training.head.probes import SPREAD_FLOOR, source_folds

__all__ = ["Piece", "column_of", "order_pieces"]

ROWS = 6_000  # of all groups together: more tell no more of the order
COLUMNS = 24  # of a level: the rates that attacks move most
CLASSES = 32  # that are asked of: the most frequent ones
OF_CLASS = 0.5  # what explaining the class counts beside explaining the attack
RIDGE = 0.02  # per row
LIMIT = 8.0  # standard deviations
LEAST_GAIN = 1e-5  # of all there is to explain: below, it is chance
LEAST_SECONDS = 2e-6  # what calling any operator takes

Piece = tuple[int, int]
"""A level of a tap: the tap's place and the level's place among its own."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """Standardised columns, (N, P), what is to be explained, (N, T), and which rows judge, (N,)."""

    x: Floats
    y: Floats
    held: NDArray[np.bool_]


def column_of(taps: Sequence[Tap]) -> dict[Piece, NDArray[np.int64]]:
    """Return which of the D harvested rates each level of each tap gives: int64, (channels,)."""
    found: dict[Piece, NDArray[np.int64]] = {}
    start = 0
    for i, tap in enumerate(taps):
        for j in range(len(tap.levels)):
            found[i, j] = np.arange(start, start + tap.channels)
            start += tap.channels
    return found


def order_pieces(
    groups: Sequence[Readings], taps: Sequence[Tap], times: Sequence[ReadingTime]
) -> tuple[list[Piece], int]:
    """Return the levels, first the one that adds most for its time, and how many add anything.

    A tap is brought to its size once, so that further levels of it cost less. Those that add
    nothing that is seen here come after the others, by what each tells alone.

    Args:
        groups: as for `fit_head`.
        taps: L of them, as the groups' rates were read.
        times: what each takes.
    """
    places = column_of(taps)
    some = _sampled(groups)
    own, columns = _columns(some, places)
    rows = _rows(some, columns)
    x, y, held = rows.x, rows.y, rows.held
    base = [_squares(y[held])]
    answer = _of_answer(some)
    x, y = _less(answer, x, held), _less(answer, y, held)
    left = list(own)
    order: list[Piece] = []
    sampled: set[int] = set()
    alone: dict[Piece, float] = {}
    scale = np.array([1.0, *[OF_CLASS / max(1, y.shape[1] - 1)] * (y.shape[1] - 1)])
    while left:
        now = _squares(y[held])
        best, most = None, 0.0
        for piece in left:
            fitted = _predicted(x[:, own[piece]], y, held)
            gain = float(((now - _squares(y[held] - fitted[held])) / base[0]) @ scale)
            i, j = piece
            seconds = times[i].levels[j] + (0.0 if i in sampled else times[i].sample)
            worth = gain / max(seconds, LEAST_SECONDS)
            if not order:
                alone[piece] = worth
            if gain > LEAST_GAIN and worth > most:
                best, most = piece, worth
        if best is None:
            break
        chosen = x[:, own[best]].copy()
        x, y = _less(chosen, x, held), _less(chosen, y, held)
        order.append(best)
        sampled.add(best[0])
        left.remove(best)
    telling = len(order)
    order += sorted(left, key=lambda piece: (-alone[piece], piece))
    return order, telling


def _squares(values: Floats) -> NDArray[np.float64]:
    found: NDArray[np.float64] = (values.astype(np.float64) ** 2).sum(axis=0)
    return found


def _predicted(x: Floats, y: Floats, held: NDArray[np.bool_]) -> Floats:
    """Return what a ridge regression on the rows that don't judge says of all: (N, T)."""
    seen = x[~held]
    system = seen.T @ seen + np.float32(RIDGE * len(seen)) * np.eye(x.shape[1], dtype=np.float32)
    found: Floats = x @ np.linalg.solve(system, seen.T @ y[~held])
    return found


def _less(known: Floats, values: Floats, held: NDArray[np.bool_]) -> Floats:
    """Return values without what is known of them."""
    return values - _predicted(known, values, held)


def _sampled(groups: Sequence[Readings]) -> list[Readings]:
    """Return at most ROWS rows, of each group the same share and at least a few."""
    total = sum(len(group) for group in groups)
    step = max(1, -(-total // ROWS))
    return [group.rows(np.arange(0, len(group), step)) for group in groups if len(group)]


def _columns(
    groups: Sequence[Readings], places: dict[Piece, NDArray[np.int64]]
) -> tuple[dict[Piece, NDArray[np.int64]], NDArray[np.int64]]:
    """Return for each level its places among the columns that are looked at, and these columns."""
    clean = next(_moments(group) for group in groups if group.kind == "clean")
    spread = np.maximum(clean.spread, SPREAD_FLOOR)
    moved = np.zeros(len(spread))
    for group in groups:
        if group.kind == "attack":
            moved = np.maximum(moved, np.abs(_moments(group).mean - clean.mean) / spread)
    moved[clean.spread <= SPREAD_FLOOR] = 0
    own: dict[Piece, NDArray[np.int64]] = {}
    columns: list[NDArray[np.int64]] = []
    count = 0
    for piece, of_rate in places.items():
        alive = of_rate[moved[of_rate] > 0]
        best = np.sort(alive[np.argsort(-moved[alive], kind="stable")[:COLUMNS]])
        if len(best):
            own[piece] = np.arange(count, count + len(best))
            columns.append(best)
            count += len(best)
    return own, np.concatenate(columns) if columns else np.zeros(0, np.int64)


def _moments(group: Readings) -> Moments:
    moments = Moments(np.float64)
    for block in row_blocks(len(group), group.rates.shape[1]):
        moments.add(np.asarray(group.rates[block]).astype(np.float32))
    return moments


def _rows(groups: Sequence[Readings], columns: NDArray[np.int64]) -> _Rows:
    """Return the rows, each weighed by the root of what its group counts."""
    x = np.concatenate([np.asarray(group.rates[:, columns]) for group in groups]).astype(np.float32)
    labels = np.concatenate([group.labels for group in groups])
    attacked = np.concatenate([np.full(len(group), group.kind == "attack") for group in groups])
    held = source_folds(np.concatenate([group.sources for group in groups])) == 0
    root = _roots(groups)
    share = root[:, None] ** 2
    mean = (x * share).sum(axis=0) / share.sum()
    spread = np.sqrt(((x - mean) ** 2 * share).sum(axis=0) / share.sum())
    x = np.clip((x - mean) / np.maximum(spread, SPREAD_FLOOR), -LIMIT, LIMIT) * root[:, None]
    counts = np.bincount(labels)
    asked = np.argsort(-counts, kind="stable")[:CLASSES]
    asked = asked[counts[asked] > 0]
    y = np.concatenate([attacked[:, None], labels[:, None] == asked], axis=1).astype(np.float32)
    y -= (y * share).sum(axis=0) / share.sum()
    return _Rows(
        (x * root[:, None]).astype(np.float32), (y * root[:, None]).astype(np.float32), held
    )


def _of_answer(groups: Sequence[Readings]) -> Floats:
    """Return what the network's own answer says of each row: float32, (N, A)."""
    logits = np.concatenate([group.logits for group in groups]).astype(np.float32)
    sure = confidence(logits)
    sure = (sure - sure.mean(axis=0)) / np.maximum(sure.std(axis=0), SPREAD_FLOOR)
    answers = logits.argmax(axis=1)
    counts = np.bincount(answers)
    asked = np.argsort(-counts, kind="stable")[:CLASSES]
    one = np.ones((len(sure), 1))
    said = np.concatenate([one, np.clip(sure, -LIMIT, LIMIT), answers[:, None] == asked], axis=1)
    found: Floats = (said * _roots(groups)[:, None]).astype(np.float32)
    return found


def _roots(groups: Sequence[Readings]) -> NDArray[np.float64]:
    """Return the root of each row's weight: both sides count the same, groups by their weight."""
    of_side = {
        attack: sum(g.weight for g in groups if (g.kind == "attack") == attack)
        for attack in (True, False)
    }
    parts = [np.full(len(g), g.weight / of_side[g.kind == "attack"] / len(g)) for g in groups]
    weights = np.concatenate(parts)
    roots: NDArray[np.float64] = np.sqrt(weights / weights.mean())
    return roots
