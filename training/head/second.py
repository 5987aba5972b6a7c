"""Fitting a second look's head on what both looks read, calibrated with the first as one.

N images, n clean calibration images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.head import Head
from reluguard.detector.looks.joint import Joint
from reluguard.detector.looks.second import SecondLook
from reluguard.training.data.mapped import empty_array, release
from reluguard.training.harvest.orders import Job
from reluguard.training.harvest.rates import StoredRates
from reluguard.training.harvest.readings import Readings
from reluguard.training.harvest.workspace import Workspace
from reluguard.training.head.fit import (
    Fitted,
    HeadSettings,
    Reading,
    calibrate,
    fit_judged,
    logistic,
)
from reluguard.training.head.probes import column_taps
from reluguard.training.looks.choice import Second

__all__ = [
    "SUSPICIOUS",
    "BothReadings",
    "calibrate_second",
    "fit_second",
    "joint_readings",
    "suspicious_from",
    "suspicious_rows",
]

SUSPICIOUS = 0.1  # of clean images that are to be looked at again
MAPPED_BYTES = 2**20
LEAST = 50  # rows of each side to fit the likelihood of suspicious images on
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BothReadings:
    """What the two looks read of the same images, in the same order."""

    first: Readings
    second_rates: Floats
    second_logits: Floats

    def joined(self, joint: Joint) -> Readings:
        """Return joint readings, in full precision."""
        rates = joint.read(
            np.asarray(self.first.rates),
            self.first.logits,
            self.second_rates,
            self.second_logits,
        )
        return replace(self.first, rates=rates)


def joint_readings(
    workspace: Workspace,
    jobs: Sequence[Job],
    joint: Joint,
    columns: NDArray[np.int64] | None = None,
) -> Readings:
    """Return what both looks read in the shards of one slug and split; of attacks, the successes.

    In half precision, in a file unless they are few: a fit has many of them at a time. What only
    the first look read is left out.

    Args:
        workspace: the shards, made with a second look.
        jobs: of one slug and split.
        joint: of the taps of both looks.
        columns: of the second look's harvested rates those that it reads; all by default.

    Raises:
        DataError: a shard is damaged, or was made without a second look.
    """
    first = workspace.readings(jobs)
    seen = [workspace.seen_twice(job) for job in jobs]
    if not all(rows.all() for rows in seen):
        first = first.rows(np.concatenate(seen))
    width = sum(run.rates for run in joint.runs)
    rates = empty_array((len(first), width), np.float16, mapped_bytes=MAPPED_BYTES)
    most = np.finfo(np.float16).max
    start = 0
    for job, rows in zip(jobs, seen, strict=True):
        if not rows.any():
            continue
        again, scores = workspace.second(job)
        part = slice(start, start + len(scores))
        if columns is not None and again.shape[1] > len(columns):  # what was added has these alone
            again = again[:, columns]
        own = first.rates[part].astype(np.float32)
        rates[part] = np.clip(joint.read(own, first.logits[part], again, scores), -most, most)
        start = part.stop
    release(rates)
    return replace(first, rates=StoredRates.joined([rates]))


def fit_second(
    groups: Sequence[Readings],
    joint: Joint,
    *,
    settings: HeadSettings,
    seed: int,
    beside: Head | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> Fitted:
    """Return a head over joint readings, uncalibrated.

    Args:
        groups: joint readings of the fitting sources, the same rows as the first head's.
        joint: of the taps of both looks.
        settings: as of the first head.
        seed: of folds, initial weights and batches.
        beside: the first look's head, whose scores of the same rows are wanted too.
        progress: called with the share done.

    Raises:
        DataError: as `fit_judged` has it.
    """
    runs = joint.runs
    reading = Reading(
        taps=runs,
        always=np.flatnonzero(column_taps(runs) == len(runs) - 1),
        blocks=joint.blocks,
        evidence=False,
    )
    return fit_judged(
        groups, reading=reading, settings=settings, seed=seed, beside=beside, progress=progress
    )


def suspicious_from(before: Fitted) -> float:
    """Return the bound of first scores above which an image is looked at again.

    A quantile of the first scores that fitting images got from members that did not see them: no
    calibration image has a part in it, so the order of the two looks is a fixed one.

    Args:
        before: the first head as it was fitted.
    """
    clean = before.scores[~np.isnan(before.scores) & before.clean]
    return float(np.float32(np.quantile(clean, 1 - SUSPICIOUS)))


def suspicious_rows(before: Fitted, fitted: Fitted, bound: float) -> NDArray[np.bool_]:
    """Return which rows of the joint head's fit are suspicious: bool, (N,).

    Args:
        before: the first head as it was fitted.
        fitted: the joint head.
        bound: of the first scores.
    """
    if len(fitted.scores) != len(before.scores):
        return np.zeros(len(fitted.scores), np.bool_)
    suspicious: NDArray[np.bool_] = before.scores > bound  # no number is above NaN
    return suspicious


def calibrate_second(
    head: Head,
    bound: float,
    fitted: Fitted,
    suspicious: NDArray[np.bool_],
    clean: BothReadings,
    golden: BothReadings,
    second: Second,
    joint: Joint,
    *,
    rates: Sequence[float],
    prevalence: float,
) -> SecondLook:
    """Return the second look, calibrated.

    Args:
        head: the first look's; the second goes by class where that does.
        bound: of the first scores, chosen without the calibration images.
        fitted: the head over joint readings.
        suspicious: bool, (N,). The rows of its fit that the likelihood of suspicious images is
            fitted on; with too few of either side it is that of all images.
        clean: calibration readings of both looks, of images that no step of fitting saw.
        golden: of the golden inputs.
        second: who looks again.
        joint: of the taps of both looks.
        rates: the false-positive rates it must be able to promise.
        prevalence: the share of attacks that the likelihood assumes.

    Raises:
        DataError: too few clean images for the lowest rate.
    """
    slope, intercept = fitted.head.slope, fitted.head.intercept
    chosen = np.flatnonzero(suspicious & ~np.isnan(fitted.scores))
    attacked = fitted.attacked[chosen]
    if min(attacked.sum(), (~attacked).sum()) >= LEAST:
        slope, intercept = logistic(fitted.scores[chosen], attacked, fitted.weights[chosen])
    read = clean.joined(joint)
    calibrated = calibrate(
        fitted.head,
        read,
        rates=rates,
        prevalence=prevalence,
        class_groups=head.class_groups,
    )
    scores = _scores(fitted.head, read)
    order = np.argsort(scores, kind="stable")
    ours = _scores(head, clean.first)
    return SecondLook(
        look=second.look,
        taps=second.taps,
        head=calibrated,
        first_scores=ours[order],
        bound=bound,
        suspicious_slope=slope,
        suspicious_intercept=intercept + float(np.log(prevalence / (1 - prevalence))),
        golden_score=_scores(fitted.head, golden.joined(joint)),
    )


def _scores(head: Head, readings: Readings) -> Floats:
    return head.score(np.asarray(readings.rates), readings.logits).score
