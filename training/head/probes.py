"""Fitting the feature map: which rates to read, and probes for the class an image came from.

A probe is a linear classifier that is asked of which class the *source* image was, and is fitted on
clean, harmlessly changed and attacked images alike: it learns to see through attacks. Where it
disagrees with the network's answer, something is wrong.

Of more classes than MAX_CLASSES most have few images or none. There a probe is asked of the code of
what the network said to the clean source image: a linear regression that needs no label and says
something of every class. N images, D harvested rates, F rates read, L taps, K classes, G probes,
R numbers of a code.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.features import FeatureMap, feature_width
from reluguard.training.harvest.rates import StoredRates
from reluguard.training.head.moments import Moments, row_blocks

__all__ = [
    "CODE",
    "FOLDS",
    "MAX_CLASSES",
    "RUNS",
    "Probes",
    "Task",
    "class_task",
    "code_task",
    "column_taps",
    "fit_probes",
    "most_columns",
    "select_columns",
    "source_folds",
    "standardise",
]

Floats = NDArray[np.float32]
Rates = NDArray[Any] | StoredRates

MAX_COLUMNS = 1400
GUARD_VALUES = 440_000  # per rate and probe output or hidden unit; keeps a guard under 1 MB
HIDDEN = 128
MAX_CLASSES = 128
CODE = 32
SHORTEST = 1e-3  # of the longest direction; in shorter ones there is only rounding
SPREAD_FLOOR = 1e-4
RIDGE = 3e-3
FOLDS = 4
RUNS = 3
SHARPNESS_ROWS = 200_000  # one number is chosen by them
SHARPNESSES = np.geomspace(1, 40, 25)
SHARPNESS_EQUAL = 1e-6  # nats per image, about what single precision leaves uncertain


@dataclass(frozen=True, slots=True)
class Probes:
    """A feature map, and its likes fitted without one fold of the source images each.

    Rows that the probes were fitted on are described by the map of their own fold, so that the head
    sees probes as they will be on fresh images.
    """

    features: FeatureMap
    folds: tuple[FeatureMap, ...]

    def out_of_fold(
        self, rates: NDArray[Any], logits: NDArray[Any], sources: NDArray[np.int64]
    ) -> Floats:
        """Return features of rows that took part in fitting: float32, (N, X).

        Args:
            rates: (N, D).
            logits: (N, K).
            sources: int64, (N,).
        """
        x = np.empty((len(rates), self.features.width), np.float32)
        of_row = source_folds(sources)
        for fold, features in enumerate(self.folds):
            rows = of_row == fold
            if rows.any():
                x[rows] = features.transform(rates[rows], logits[rows])
        return x


class Read(Protocol):
    """What rates are read of: a tap, or a run of a joint reading."""

    @property
    def rates(self) -> int:
        """How many it gives."""


def column_taps(taps: Sequence[Read]) -> NDArray[np.int64]:
    """Return the tap of each harvested rate: int64, (D,)."""
    return np.repeat(np.arange(len(taps)), [tap.rates for tap in taps])


def most_columns(classes: int) -> int:
    """Return how many rates a guard of so many classes may read."""
    outputs = (RUNS + 1) * (classes if classes <= MAX_CLASSES else min(CODE, classes))
    return min(MAX_COLUMNS, GUARD_VALUES // (outputs + HIDDEN))


def select_columns(
    clean: Rates,
    attacked: Sequence[Rates],
    *,
    limit: int = MAX_COLUMNS,
    always: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Return the rates that tell attacked from clean best, ascending: int64, (F,).

    A rate counts by the standardised difference of means, averaged over the attacks. The largest
    that any attack shows is mostly chance where each succeeded on a few dozen images. Rates that
    never change are left out.

    Measured, mean AUROC of small heads on images kept from them, by the largest, the root mean
    square and the mean: EfficientNet-Lite0, 600 photographs, all 33 taps .919, .936, .957, fifteen
    of them .949, .957, .957; ResNet-20, 4,500 images .932, .932, .931.

    Args:
        clean: (N, D).
        attacked: one (M, D) per attack.
        limit: F at most.
        always: those that are chosen whatever they show, unless they never change.
    """
    moments = _moments(clean)
    spread = moments.spread
    alive = np.flatnonzero(spread > SPREAD_FLOOR)
    if len(alive) <= limit or not attacked:
        return alive[:limit]
    shift = np.mean([np.abs(_moments(rates).mean - moments.mean) for rates in attacked], axis=0)
    shift[[] if always is None else always] = np.inf
    order = np.argsort(-shift[alive] / spread[alive], kind="stable")
    return np.sort(alive[order[:limit]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What probes are asked of each row.

    Attributes:
        classes: K.
        labels: int64, (N,). The class of each source image that a posterior is sharpened for.
        code: float32, (K, R), or (0, 0) where classes stand for themselves.
        targets: float32, (M, K or R). What is to be found of each of M kinds of source.
        kinds: int64, (N,). Which of them each row's source is, or -1: nothing is asked of it.
    """

    classes: int
    labels: NDArray[np.int64]
    code: Floats
    targets: Floats
    kinds: NDArray[np.int64]

    def scores(self, found: Floats) -> Floats:
        """Return scores of classes, (n, K), of what a probe found, (n, K or R)."""
        return found @ self.code.T if self.code.size else found


def class_task(labels: NDArray[np.int64], classes: int) -> Task:
    """Return the task of finding the class, (N,), of each source image."""
    return Task(
        classes=classes,
        labels=labels,
        code=np.zeros((0, 0), np.float32),
        targets=(np.eye(classes) - 1 / classes).astype(np.float32),
        kinds=labels,
    )


def code_task(clean: Floats, clean_sources: NDArray[np.int64], sources: NDArray[np.int64]) -> Task:
    """Return the task of finding the code of what the network said to each clean source image.

    Args:
        clean: float32, (M, K). Logits of clean images.
        clean_sources: int64, (M,). Which images those are; mirrored ones count as the same.
        sources: int64, (N,). The source image of each row; of others nothing is asked.
    """
    known, places = np.unique(clean_sources, return_inverse=True)
    centred = clean - clean.mean(axis=1, keepdims=True)
    answers = np.zeros((len(known), clean.shape[1]))
    np.add.at(answers, places, centred)
    answers /= np.bincount(places)[:, None]
    code = _halved(_directions(centred.astype(np.float64)))
    kinds = np.minimum(np.searchsorted(known, sources), len(known) - 1)
    kinds[known[kinds] != sources] = -1
    return Task(
        classes=clean.shape[1],
        labels=answers.argmax(axis=1)[kinds],
        code=code,
        targets=(answers @ code).astype(np.float32),
        kinds=kinds,
    )


def _directions(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the unit directions, at most CODE, that these logits, (M, K), lie in most: (K, R)."""
    _, lengths, directions = np.linalg.svd(logits, full_matrices=False)
    found: NDArray[np.float64] = directions[:CODE][lengths[:CODE] >= SHORTEST * lengths[0]].T
    return found


def fit_probes(
    rates: Rates,
    task: Task,
    sources: NDArray[np.int64],
    weights: Floats,
    *,
    taps: Sequence[Read],
    columns: NDArray[np.int64],
    blocks: Sequence[Sequence[int]] | None = None,
) -> Probes:
    """Return feature maps with fitted probes, not yet standardised.

    One probe reads all taps; three more read the early, the middle and the late ones, or others
    that are named. Each is a ridge regression on the one-hot class or the code, its scores
    sharpened to a calibrated posterior.

    Args:
        rates: (N, D). Of clean, benign and attacked images together.
        task: what the probes are asked.
        sources: int64, (N,). The source image; folds go by it.
        weights: (N,). How much each row counts.
        taps: the taps the rates were read at.
        columns: int64, (F,). The rates to read.
        blocks: the taps that each of the further probes reads.
    """
    of_column = column_taps(taps)[columns]
    asked = weights * (task.kinds >= 0)
    share = (asked / asked.mean()).astype(np.float64)
    table = _Standardised(rates, columns, share)
    of_row = source_folds(sources)
    read = _blocks(of_column, len(taps), blocks)
    solutions = _solve(table, task, share.astype(np.float32), of_row, read)
    some = np.arange(0, len(sources), -(-len(sources) // SHARPNESS_ROWS))
    held = _held_out(table, solutions, of_row, some)
    outputs = task.targets.shape[1]
    sharpness = np.concatenate(
        [
            np.full(
                outputs,
                _sharpness(
                    task.scores(held[:, g * outputs :][:, :outputs]), task.labels[some], share[some]
                ),
            )
            for g in range(len(read))
        ]
    )
    mean, spread = table.mean, table.spread
    maps = []
    for solution in [*solutions, np.mean(solutions, axis=0)]:
        sharp = solution * sharpness
        weights_in = sharp[:-1] / spread[:, None]
        bias = sharp[-1] - mean @ weights_in
        stacked = np.concatenate([weights_in, bias[None]])
        maps.append(_feature_map(columns, of_column, len(taps), task, stacked))
    return Probes(maps[-1], tuple(maps[:-1]))


def source_folds(sources: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the fold of each source image, whatever order the images come in: int64, (N,).

    By the number itself, images dealt out class by class would leave whole classes to one fold.
    Source: the finaliser of SplitMix64, Steele et al. 2014.
    """
    x = sources.astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    folds: NDArray[np.int64] = (x % np.uint64(FOLDS)).astype(np.int64)
    return folds


def _blocks(
    of_column: NDArray[np.int64], taps: int, named: Sequence[Sequence[int]] | None
) -> list[NDArray[np.int64]]:
    """Return the columns each probe reads: all, then runs of neighbouring taps, or those named."""
    if named is not None:
        some = [np.flatnonzero(np.isin(of_column, list(own))) for own in named]
        return [np.arange(len(of_column)), *(columns for columns in some if len(columns))]
    cuts = np.unique(np.linspace(0, taps, min(RUNS, taps) + 1).round().astype(int))
    runs = [np.flatnonzero((of_column >= low) & (of_column < high)) for low, high in pairwise(cuts)]
    return [np.arange(len(of_column)), *(run for run in runs if 0 < len(run) < len(of_column))]


class _Standardised:
    """The rates that are read, each column of weighted mean 0 and spread 1, block by block.

    Args:
        rates: (N, D).
        columns: int64, (F,).
        share: float64, (N,). How much each row counts.
    """

    def __init__(
        self, rates: Rates, columns: NDArray[np.int64], share: NDArray[np.float64]
    ) -> None:
        self._rates, self._columns, self._share = rates, columns, share
        total = share[:, None].sum(axis=0)
        self.mean = self._summed(lambda read: read) / total
        variance = self._summed(lambda read: (read - self.mean) ** 2) / total
        self.spread = np.sqrt(variance) + SPREAD_FLOOR

    def blocks(self) -> Iterator[tuple[slice, Floats]]:
        """Yield runs of rows and their values, a column of ones last: float32, (n, F + 1)."""
        for block, read in self._read():
            x = np.concatenate([(read - self.mean) / self.spread, np.ones((len(read), 1))], axis=1)
            yield block, x.astype(np.float32)

    def _read(self) -> Iterator[tuple[slice, Floats]]:
        for block in row_blocks(len(self._share), len(self._columns) + 1):
            yield block, self._rates[block][:, self._columns].astype(np.float32)

    def _summed(self, of: Callable[[Floats], NDArray[Any]]) -> NDArray[np.float64]:
        total = np.zeros(len(self._columns))
        for block, read in self._read():
            total += np.multiply(of(read), self._share[block, None]).sum(axis=0)
        return total


def _solve(
    table: _Standardised,
    task: Task,
    weights: Floats,
    of_row: NDArray[np.int64],
    blocks: Sequence[NDArray[np.int64]],
) -> list[NDArray[np.float64]]:
    """Return one solution per fold, fitted without it: (F + 1, G * K or R), the bias last.

    The normal equations are sums over rows, so they are summed block by block.
    """
    width, outputs = len(table.mean) + 1, task.targets.shape[1]
    grams = [np.zeros((width, width)) for _ in range(FOLDS)]
    crosses = [np.zeros((width, outputs)) for _ in range(FOLDS)]
    for run, x in table.blocks():
        target = task.targets[task.kinds[run]]
        for fold in range(FOLDS):
            rows = of_row[run] == fold
            weighted = x[rows] * weights[run][rows, None]
            grams[fold] += (weighted.T @ x[rows]).astype(np.float64)
            crosses[fold] += (weighted.T @ target[rows]).astype(np.float64)
    gram, cross = np.sum(grams, axis=0), np.sum(crosses, axis=0)
    bias = width - 1
    solutions = []
    for own_gram, own_cross in zip(grams, crosses, strict=True):
        solution = np.zeros((bias + 1, len(blocks) * outputs))
        for g, block in enumerate(blocks):
            chosen = np.append(block, bias)
            system = (gram - own_gram)[np.ix_(chosen, chosen)]
            penalty = np.full(len(chosen), RIDGE * weights.sum())
            penalty[-1] = 1e-6 * weights.sum()
            right = (cross - own_cross)[chosen]
            solved = np.linalg.solve(system + np.diag(penalty), right)
            solution[chosen, g * outputs : (g + 1) * outputs] = solved
        solutions.append(solution)
    return solutions


def _held_out(
    table: _Standardised,
    solutions: Sequence[NDArray[np.float64]],
    of_row: NDArray[np.int64],
    some: NDArray[np.int64],
) -> Floats:
    """Return what the probes that were fitted without them say of some rows: (n, G * K or R)."""
    held = np.empty((len(some), solutions[0].shape[1]), np.float32)
    for run, x in table.blocks():
        low, high = np.searchsorted(some, [run.start, run.stop])
        chosen = some[low:high] - run.start
        own, part = of_row[some[low:high]], held[low:high]
        for fold, solution in enumerate(solutions):
            part[own == fold] = x[chosen[own == fold]] @ solution.astype(np.float32)
    return held


def _moments(rates: Rates) -> Moments:
    moments = Moments()
    for block in row_blocks(len(rates), rates.shape[1]):
        moments.add(rates[block].astype(np.float32))
    return moments


def _sharpness(scores: Floats, labels: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
    """Return the factor on a probe's scores under which the true classes are likeliest.

    Of factors that rounding alone tells apart, as probes that are always right have, the smallest.
    """
    rows = np.arange(len(labels))

    def likelihood(factor: float) -> float:
        sharp = factor * scores
        top = sharp.max(axis=1)
        total = top + np.log(np.exp(sharp - top[:, None]).sum(axis=1))
        return float(np.average(sharp[rows, labels] - total, weights=weights))

    found = np.array([likelihood(factor) for factor in SHARPNESSES])
    return float(SHARPNESSES[np.argmax(found >= found.max() - SHARPNESS_EQUAL)])


def _feature_map(
    columns: NDArray[np.int64],
    of_column: NDArray[np.int64],
    taps: int,
    task: Task,
    probes: NDArray[np.float64],
) -> FeatureMap:
    count = probes.shape[1] // task.targets.shape[1]
    width = feature_width(len(columns), task.classes, count, task.code.shape[1])
    return FeatureMap(
        columns=columns,
        column_taps=of_column,
        taps=taps,
        classes=task.classes,
        probe_weights=_halved(probes[:-1]) if task.code.size else probes[:-1].astype(np.float32),
        probe_bias=probes[-1].astype(np.float32),
        center=np.zeros(width, np.float32),
        spread=np.ones(width, np.float32),
        code=task.code,
    )


def _halved(x: NDArray[np.float64]) -> Floats:
    """Return what half precision keeps of these numbers, none of them too large for it."""
    most = float(np.finfo(np.float16).max)
    return np.clip(x, -most, most).astype(np.float16).astype(np.float32)


def standardise(
    probes: Probes, mean: NDArray[Any], spread: NDArray[Any], *, limit: float
) -> Probes:
    """Return the maps with their features centred and scaled.

    Args:
        probes: as `fit_probes` gave them.
        mean: (X,). Of features of images that are not attacked, before any scaling.
        spread: (X,). Their standard deviation.
        limit: to cut standardised features at.
    """
    center = mean.astype(np.float32)
    floored = np.maximum(spread, SPREAD_FLOOR).astype(np.float32)

    def scaled(features: FeatureMap) -> FeatureMap:
        return replace(features, center=center, spread=floored, limit=limit)

    return Probes(scaled(probes.features), tuple(map(scaled, probes.folds)))
