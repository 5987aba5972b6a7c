"""Fitting the feature map: which rates to read, and probes for the class an image came from.

A probe is a linear classifier that is asked of which class the *source* image was, and is fitted on
clean, harmlessly changed and attacked images alike: it learns to see through attacks. Where it
disagrees with the network's answer, something is wrong. N images, D harvested rates, F rates read,
L taps, K classes, G probes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.features import FeatureMap, feature_width
from detector.taps import Tap

__all__ = ["Probes", "column_taps", "fit_probes", "select_columns", "standardise"]

Floats = NDArray[np.float32]

MAX_COLUMNS = 1400  # keeps a guard under 1 MB
MAX_CLASSES = 64
SPREAD_FLOOR = 1e-4
RIDGE = 3e-3
FOLDS = 4
RUNS = 3
SHARPNESSES = np.geomspace(1, 40, 25)


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
        of_row = _folds(sources)
        for fold, features in enumerate(self.folds):
            rows = of_row == fold
            x[rows] = features.transform(rates[rows], logits[rows])
        return x


def column_taps(taps: Sequence[Tap]) -> NDArray[np.int64]:
    """Return the tap of each harvested rate: int64, (D,)."""
    return np.repeat(np.arange(len(taps)), [tap.rates for tap in taps])


def select_columns(
    clean: Floats, attacked: Sequence[Floats], *, limit: int = MAX_COLUMNS
) -> NDArray[np.int64]:
    """Return the rates that tell attacked from clean best, ascending: int64, (F,).

    A rate counts by the largest standardised difference of means that any attack shows, so that one
    attack's signal is not averaged away. Rates that never change are left out.

    Args:
        clean: (N, D).
        attacked: one (M, D) per attack.
        limit: F at most.
    """
    spread = clean.std(axis=0)
    alive = np.flatnonzero(spread > SPREAD_FLOOR)
    if len(alive) <= limit or not attacked:
        return alive[:limit]
    center = clean.mean(axis=0)
    shift = np.max([np.abs(rates.mean(axis=0) - center) for rates in attacked], axis=0)
    order = np.argsort(-shift[alive] / spread[alive], kind="stable")
    return np.sort(alive[order[:limit]])


def fit_probes(
    rates: NDArray[Any],
    labels: NDArray[np.int64],
    sources: NDArray[np.int64],
    weights: Floats,
    *,
    taps: Sequence[Tap],
    columns: NDArray[np.int64],
    classes: int,
) -> Probes:
    """Return feature maps with fitted probes, not yet standardised.

    One probe reads all taps; three more read the early, the middle and the late ones. Each is a
    ridge regression on the one-hot class, its scores sharpened to a calibrated posterior. Models of
    more than 64 classes go without.

    Args:
        rates: (N, D). Of clean, benign and attacked images together.
        labels: int64, (N,). The true class of each source image.
        sources: int64, (N,). The source image; folds go by it.
        weights: (N,). How much each row counts.
        taps: the taps the rates were read at.
        columns: int64, (F,). The rates to read.
        classes: K.
    """
    of_column = column_taps(taps)[columns]
    if classes > MAX_CLASSES:
        blank = _feature_map(columns, of_column, len(taps), 0, np.zeros((len(columns) + 1, 0)))
        return Probes(blank, (blank,) * FOLDS)
    read = rates[:, columns].astype(np.float32)
    share = (weights / weights.mean()).astype(np.float64)
    mean = np.average(read, axis=0, weights=share)
    spread = np.sqrt(np.average((read - mean) ** 2, axis=0, weights=share)) + SPREAD_FLOOR
    x = np.concatenate([(read - mean) / spread, np.ones((len(read), 1))], axis=1)
    x = x.astype(np.float32)
    target = (np.eye(classes)[labels] - 1 / classes).astype(np.float32)
    of_row = _folds(sources)
    blocks = _blocks(of_column, len(taps))
    solutions = _solve(x, target, share.astype(np.float32), of_row, blocks)
    held = np.empty((len(x), len(blocks) * classes), np.float32)
    for fold, solution in enumerate(solutions):
        held[of_row == fold] = x[of_row == fold] @ solution.astype(np.float32)
    sharpness = np.concatenate(
        [
            np.full(classes, _sharpness(held[:, g * classes :][:, :classes], labels, share))
            for g in range(len(blocks))
        ]
    )
    maps = []
    for solution in [*solutions, np.mean(solutions, axis=0)]:
        sharp = solution * sharpness
        weights_in = sharp[:-1] / spread[:, None]
        bias = sharp[-1] - mean @ weights_in
        stacked = np.concatenate([weights_in, bias[None]])
        maps.append(_feature_map(columns, of_column, len(taps), classes, stacked))
    return Probes(maps[-1], tuple(maps[:-1]))


def _folds(sources: NDArray[np.int64]) -> NDArray[np.int64]:
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


def _blocks(of_column: NDArray[np.int64], taps: int) -> list[NDArray[np.int64]]:
    """Return the columns each probe reads: all, then runs of neighbouring taps."""
    cuts = np.unique(np.linspace(0, taps, min(RUNS, taps) + 1).round().astype(int))
    runs = [np.flatnonzero((of_column >= low) & (of_column < high)) for low, high in pairwise(cuts)]
    return [np.arange(len(of_column)), *(run for run in runs if 0 < len(run) < len(of_column))]


def _solve(
    x: Floats,
    target: Floats,
    weights: Floats,
    of_row: NDArray[np.int64],
    blocks: Sequence[NDArray[np.int64]],
) -> list[NDArray[np.float64]]:
    """Return one solution per fold, fitted without it: (F + 1, G * K), the bias last."""
    grams, crosses = [], []
    for fold in range(FOLDS):
        rows = of_row == fold
        weighted = x[rows] * weights[rows, None]
        grams.append((weighted.T @ x[rows]).astype(np.float64))
        crosses.append((weighted.T @ target[rows]).astype(np.float64))
    gram, cross = np.sum(grams, axis=0), np.sum(crosses, axis=0)
    bias, classes = x.shape[1] - 1, target.shape[1]
    solutions = []
    for own_gram, own_cross in zip(grams, crosses, strict=True):
        solution = np.zeros((bias + 1, len(blocks) * classes))
        for g, block in enumerate(blocks):
            chosen = np.append(block, bias)
            system = (gram - own_gram)[np.ix_(chosen, chosen)]
            penalty = np.full(len(chosen), RIDGE * weights.sum())
            penalty[-1] = 1e-6 * weights.sum()
            right = (cross - own_cross)[chosen]
            solved = np.linalg.solve(system + np.diag(penalty), right)
            solution[chosen, g * classes : (g + 1) * classes] = solved
        solutions.append(solution)
    return solutions


def _sharpness(scores: Floats, labels: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
    """Return the factor on a probe's scores under which the true classes are likeliest."""
    rows = np.arange(len(labels))

    def likelihood(factor: float) -> float:
        sharp = factor * scores
        top = sharp.max(axis=1)
        total = top + np.log(np.exp(sharp - top[:, None]).sum(axis=1))
        return float(np.average(sharp[rows, labels] - total, weights=weights))

    return float(max(SHARPNESSES, key=likelihood))


def _feature_map(
    columns: NDArray[np.int64],
    of_column: NDArray[np.int64],
    taps: int,
    classes: int,
    probes: NDArray[np.float64],
) -> FeatureMap:
    count = probes.shape[1] // classes if classes else 0
    width = feature_width(len(columns), classes, count)
    return FeatureMap(
        columns=columns,
        column_taps=of_column,
        taps=taps,
        classes=classes,
        probe_weights=probes[:-1].astype(np.float32),
        probe_bias=probes[-1].astype(np.float32),
        center=np.zeros(width, np.float32),
        spread=np.ones(width, np.float32),
    )


def standardise(probes: Probes, x: Floats) -> Probes:
    """Return the maps with their features centred and scaled on these.

    Args:
        probes: as `fit_probes` gave them.
        x: float32, (N, X). Features of images that are not attacked, before any scaling.
    """
    center = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    spread = np.maximum(x.std(axis=0, dtype=np.float64), SPREAD_FLOOR).astype(np.float32)

    def scaled(features: FeatureMap) -> FeatureMap:
        return replace(features, center=center, spread=spread)

    return Probes(scaled(probes.features), tuple(map(scaled, probes.folds)))
