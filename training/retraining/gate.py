"""The gate: champion against challenger on images that neither was fitted on.

It refuses a challenger that forgets an old attack, misses the new one more than before, flags clean
images at another rate than promised, flags harmless changes more often, or costs more; and one that
learned from labels of which too many contradict the rest. An attack is lost only if it loses more
than the margin and more than chance explains: of the images, by a paired bootstrap, and where the
head was fitted anew, of the fit, by how far a control moves that learned nothing new. N images, B
bootstrap draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.errors import ModelMismatchError
from reluguard.detector.head import Head
from reluguard.detector.metrics import GateLimits, GateResult, GateRow
from reluguard.detector.model import Production
from reluguard.detector.runtime import Guard
from reluguard.training.errors import DataError
from reluguard.training.harvest.readings import CLEAN, Readings
from reluguard.training.retraining.contradictions import Contradicted
from reluguard.training.retraining.kept import Kept
from reluguard.training.statistics.metrics import auroc

__all__ = ["Both", "gate"]

Floats = NDArray[np.float32]
DRAWS = 400
FEWEST = 10  # attacked images below which an AUROC says nothing
CHANCE = 0.01  # how often a right false-positive rate may be refused
WARM_UP = 5
BOTH_LOOKS = ", both looks"
SURE = 0.6  # of the limit on labels: the interval must lie above this, or a few labels refuse all


@dataclass(frozen=True, slots=True, kw_only=True)
class Both:
    """What both looks read of held-out images, to judge two guards that look twice.

    Attributes:
        groups: joint readings, named.
        control: a joint head fitted as the challenger's was, by another seed and on nothing new.
    """

    groups: tuple[Readings, ...]
    control: Head


def gate(
    production: Production,
    champion: GuardArtifact,
    challenger: GuardArtifact,
    kept: Kept,
    *,
    new: Sequence[str] = (),
    control: Head | None = None,
    both: Both | None = None,
    labels: Contradicted | None = None,
    limits: GateLimits | None = None,
    seed: int = 0,
    threads: int | None = 1,
) -> GateResult:
    """Compare two guards on the held-out readings.

    Args:
        production: the model of both.
        champion: the guard in use.
        challenger: the guard to take its place.
        kept: the challenger's harvest.
        new: the groups in it that the champion has not seen.
        control: a head fitted as the challenger was, by another seed and on nothing new.
        both: of two guards that look twice, what both looks read.
        labels: how many of those learned from contradict the rest.
        limits: what the challenger may cost.
        seed: of the resampling.
        threads: of the timed runs.

    Raises:
        ModelMismatchError: the two were fitted to different models.
        DataError: they read different taps, so the harvest of one is no use to the other.
    """
    if champion.manifest.model_sha256 != challenger.manifest.model_sha256:
        raise ModelMismatchError("expected two guards of one model, got guards of two")
    if champion.manifest.taps != challenger.manifest.taps:
        raise DataError("expected a challenger that reads the champion's taps, it reads others")
    limits = limits or GateLimits()
    groups = {group.name: group for group in kept.groups("test") if len(group)}
    if CLEAN not in groups:
        raise DataError("expected held-out clean readings to judge by, found none")
    fprs = (champion.manifest.fpr, challenger.manifest.fpr)
    pair = (_Side(champion.head, fprs[0]), _Side(challenger.head, fprs[1]))
    rows = _rows(pair, list(groups.values()), new, control, limits, seed)
    if both is not None and champion.second is not None and challenger.second is not None:
        pair = (_Side(champion.second.head, fprs[0]), _Side(challenger.second.head, fprs[1]))
        twice = _rows(pair, both.groups, new, both.control, limits, seed)
        rows += [_of_both(row) for row in twice]
    rows += [_labels_row(labels, limits.contradicted)] if labels else []
    rows.append(_cost_row(production, (champion, challenger), limits, threads))
    reasons = tuple(row.refused for row in rows if row.refused)
    return GateResult(
        champion=champion.digest,
        passed=not reasons,
        reasons=reasons,
        rows=tuple(rows),
        limits=limits,
    )


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two: a calibrated head, and the rate it is judged at."""

    head: Head
    fpr: float

    def flags(self, scores: Floats, group: Readings) -> NDArray[np.bool_]:
        """Return which images of a group are flagged by their scores: bool, (N,)."""
        return self.head.flags(scores, group.predictions, self.fpr)


Pair = tuple[_Side, _Side]


def _rows(
    pair: Pair,
    groups: Sequence[Readings],
    new: Sequence[str],
    control: Head | None,
    limits: GateLimits,
    seed: int,
) -> list[GateRow]:
    """Return what two heads make of the held-out readings."""
    clean = next(group for group in groups if group.name == CLEAN)
    clean_scores = _scores(pair, clean)
    rows = [_clean_row(pair, clean, clean_scores)]
    rest = [group for group in groups if group is not clean]
    old = [group for group in rest if group.kind == "attack" and group.name not in new]
    noise = _noise(pair[0].head, control, clean, old) if control else 0.0
    for group in rest:
        if group.kind == "attack":
            what: Literal["new attack", "old attack"] = (
                "new attack" if group.name in new else "old attack"
            )
            rows.append(
                _attack_row(pair, clean, clean_scores, group, what, limits.auroc, noise, seed)
            )
        else:
            rows.append(_benign_row(pair, group, limits.benign, seed))
    return rows


def _of_both(row: GateRow) -> GateRow:
    """Return a row as one of both looks."""
    refused = row.refused and f"both looks, {row.refused}"
    return replace(row, name=f"{row.name}{BOTH_LOOKS}", refused=refused)


def _scores(pair: Pair, group: Readings) -> tuple[Floats, Floats]:
    first, second = (side.head.score(group.rates, group.logits).score for side in pair)
    return first, second


def _clean_row(pair: Pair, clean: Readings, scores: tuple[Floats, Floats]) -> GateRow:
    """Judge the share of clean images above the challenger's threshold.

    With n calibration images and the threshold at the k-th largest, the number flagged among fresh
    ones is beta-binomial with parameters k and n + 1 - k: the chance in both sets counts. Of
    thresholds by class it is the sum of such numbers.

    Source: Vovk 2012, Conditional validity of inductive conformal predictors.
    """
    rates = [float(side.flags(own, clean).mean()) for side, own in zip(pair, scores, strict=True)]
    fpr, images = pair[1].fpr, len(scores[1])
    low, high = _expected_alarms(pair[1], clean)
    refused = ""
    if not low <= rates[1] <= high:
        refused = f"clean images: {rates[1]:.3f} flagged, expected {low:.3f} to {high:.3f}"
    return GateRow(
        what="clean",
        name=CLEAN,
        figure=f"flagged at {fpr:g}",
        champion=rates[0],
        challenger=rates[1],
        low=low - rates[0],
        high=high - rates[0],
        images=images,
        refused=refused,
    )


def _expected_alarms(side: _Side, clean: Readings) -> tuple[float, float]:
    """Return between which shares of clean images the flagged ones lie, but for `CHANCE`."""
    from scipy import stats

    groups = side.head.groups_of(clean.predictions)
    law = np.ones(1)
    for group, fresh in zip(*np.unique(groups, return_counts=True), strict=True):
        n = len(side.head.clean_of(int(group)))
        rank = int(np.floor(side.fpr * (n + 1) + 1e-9))
        law = np.convolve(law, stats.betabinom(fresh, rank, n + 1 - rank).pmf(range(fresh + 1)))
    low, high = np.searchsorted(np.cumsum(law), [CHANCE / 2, 1 - CHANCE / 2])
    return float(low / len(groups)), float(high / len(groups))


def _attack_row(
    pair: Pair,
    clean: Readings,
    clean_scores: tuple[Floats, Floats],
    group: Readings,
    what: Literal["new attack", "old attack"],
    margin: float,
    noise: float,
    seed: int,
) -> GateRow:
    scores = _scores(pair, group)
    before, after = (auroc(c, a) for c, a in zip(clean_scores, scores, strict=True))
    sources = np.concatenate([clean.sources, group.sources])
    attacked = np.arange(len(sources)) >= len(clean)
    levels = [
        np.unique(np.concatenate(both), return_inverse=True)[1]
        for both in zip(clean_scores, scores, strict=True)
    ]
    drawn = []
    for weight in _resampled(sources, seed):
        first, second = (_weighted_auroc(level, attacked, weight) for level in levels)
        drawn.append(second - first)
    spread = np.random.default_rng(seed).normal(0, noise, len(drawn))
    low, high = np.nanquantile(drawn + spread, [0.025, 0.975])
    refused = ""
    if len(group) >= FEWEST and before - after > margin and high < max(0.0, -margin):
        refused = (
            f"{what} {group.name}: AUROC falls from {before:.3f} to {after:.3f}, "
            f"more than {margin:g}"
        )
    return GateRow(
        what=what,
        name=group.name,
        figure="AUROC",
        champion=before,
        challenger=after,
        low=float(low),
        high=float(high),
        images=len(group),
        refused=refused,
    )


def _noise(champion: Head, control: Head, clean: Readings, old: Sequence[Readings]) -> float:
    """Return by how much AUROC of an old attack moves from one fit to the next, for no reason.

    A standard deviation: the root of the mean square over attacks of enough images.
    """
    first, second = (head.score(clean.rates, clean.logits).score for head in (champion, control))
    moved = [
        auroc(second, control.score(group.rates, group.logits).score)
        - auroc(first, champion.score(group.rates, group.logits).score)
        for group in old
        if len(group) >= FEWEST
    ]
    return float(np.sqrt(np.mean(np.square(moved)))) if moved else 0.0


def _labels_row(labels: Contradicted, limit: float) -> GateRow:
    refused = ""
    if labels.share > limit and labels.low > SURE * limit:
        refused = (
            f"labels: {labels.share:.2f} of {labels.labels} contradict the rest, more than "
            f"{limit:g}: {labels.of_attacks:.2f} of the attacked look harmless, "
            f"{labels.of_clean:.2f} of the clean look attacked"
        )
    return GateRow(
        what="labels",
        name="captured",
        figure="contradicted",
        champion=0.0,
        challenger=labels.share,
        low=labels.low,
        high=labels.high,
        images=labels.labels,
        refused=refused,
    )


def _benign_row(pair: Pair, group: Readings, margin: float, seed: int) -> GateRow:
    flags = [side.flags(own, group) for side, own in zip(pair, _scores(pair, group), strict=True)]
    moved = flags[1].astype(np.float64) - flags[0]
    drawn = [np.average(moved, weights=w) for w in _resampled(group.sources, seed) if w.any()]
    low, high = np.quantile(drawn, [0.025, 0.975])
    before, after = (float(flag.mean()) for flag in flags)
    refused = ""
    if after - before > margin and low > 0:
        refused = f"harmless {group.name}: flagged {after:.3f}, was {before:.3f}"
    return GateRow(
        what="harmless",
        name=group.name,
        figure=f"flagged at {pair[1].fpr:g}",
        champion=before,
        challenger=after,
        low=float(low),
        high=float(high),
        images=len(group),
        refused=refused,
    )


def _cost_row(
    production: Production,
    pair: tuple[GuardArtifact, GuardArtifact],
    limits: GateLimits,
    threads: int | None,
) -> GateRow:
    """Time both on one image, in turn, which one first changing from pair to pair."""
    guards = [Guard(production, artifact, threads=threads, looks="first") for artifact in pair]
    tensor = pair[0].manifest.input.to_tensor(pair[0].golden.images[:1])
    seconds = np.empty((limits.rounds, 2))
    for turn in range(-WARM_UP, limits.rounds):
        for side in (0, 1) if turn % 2 else (1, 0):
            started = perf_counter()
            guards[side].run(tensor)
            if turn >= 0:
                seconds[turn, side] = perf_counter() - started
    ratio = seconds[:, 1] / seconds[:, 0]
    low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
    refused = ""
    if low > 1 + limits.cost:  # three runs of four are slower: not the neighbours' noise
        refused = f"run time grows by a factor of {middle:.2f}"
    return GateRow(
        what="run time",
        name="one image",
        figure="ratio",
        champion=1.0,
        challenger=float(middle),
        low=float(low) - 1,
        high=float(high) - 1,
        images=limits.rounds,
        refused=refused,
    )


def _resampled(sources: NDArray[np.int64], seed: int) -> list[NDArray[np.float64]]:
    """Return B draws of a weight per row, source images drawn with repetition."""
    unique, index = np.unique(sources, return_inverse=True)
    rng, count = np.random.default_rng(seed), len(unique)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=DRAWS)
    return [draw[index].astype(np.float64) for draw in draws]


def _weighted_auroc(
    levels: NDArray[np.int64], attacked: NDArray[np.bool_], weight: NDArray[np.float64]
) -> float:
    positive = np.bincount(levels, weight * attacked)
    negative = np.bincount(levels, weight * ~attacked)
    total = positive.sum() * negative.sum()
    below = np.cumsum(negative) - negative / 2  # ties share a level: half of it lies below
    return float((positive * below).sum() / total) if total else float("nan")
