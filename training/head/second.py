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

__all__ = ["SUSPICIOUS", "BothReadings", "calibrate_second", "fit_second", "joint_readings"]

SUSPICIOUS = 0.1  # of clean images that are to be looked at again
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

    In half precision, and from 256 MiB on in a file.

    Args:
        workspace: the shards, made with a second look.
        jobs: of one slug and split.
        joint: of the taps of both looks.
        columns: of the second look's harvested rates those that it reads; all by default.

    Raises:
        DataError: a shard is damaged, or was made without a second look.
    """
    first = workspace.readings(jobs)
    width = sum(run.rates for run in joint.runs)
    rates = empty_array((len(first), width), np.float16)
    most = np.finfo(np.float16).max
    start = 0
    for job in jobs:
        again, scores = workspace.second(job)
        part = slice(start, start + len(scores))
        if columns is not None:
            again = again[:, columns]
        own = first.rates[part].astype(np.float32)
        rates[part] = np.clip(joint.read(own, first.logits[part], again, scores), -most, most)
        start = part.stop
    release(rates)
    return replace(first, rates=rates)


def fit_second(
    groups: Sequence[Readings],
    joint: Joint,
    *,
    settings: HeadSettings,
    seed: int,
    progress: Callable[[float], None] = lambda _: None,
) -> Fitted:
    """Return a head over joint readings, uncalibrated.

    Args:
        groups: joint readings of the fitting sources, the same rows as the first head's.
        joint: of the taps of both looks.
        settings: as of the first head.
        seed: of folds, initial weights and batches.
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
    return fit_judged(groups, reading=reading, settings=settings, seed=seed, progress=progress)


def calibrate_second(
    first: tuple[Head, Fitted],
    fitted: Fitted,
    clean: BothReadings,
    golden: BothReadings,
    second: Second,
    joint: Joint,
    *,
    rates: Sequence[float],
    prevalence: float,
) -> SecondLook:
    """Return the second look, calibrated.

    The bound is a quantile of the first scores that fitting images got from members that did not
    see them: no calibration image has a part in it, so the order of the two looks is a fixed one.

    Args:
        first: the first head, and how it was fitted.
        fitted: the head over joint readings.
        clean: calibration readings of both looks, of images that no step of fitting saw.
        golden: of the golden inputs.
        second: who looks again.
        joint: of the taps of both looks.
        rates: the false-positive rates it must be able to promise.
        prevalence: the share of attacks that the likelihood assumes.

    Raises:
        DataError: too few clean images for the lowest rate.
    """
    head, before = first
    seen = ~np.isnan(before.scores)
    bound = float(np.float32(np.quantile(before.scores[seen & before.clean], 1 - SUSPICIOUS)))
    slope, intercept = fitted.head.slope, fitted.head.intercept
    chosen = np.zeros(0, np.int64)
    if len(fitted.scores) == len(before.scores):
        chosen = np.flatnonzero(seen & ~np.isnan(fitted.scores) & (before.scores > bound))
    attacked = fitted.attacked[chosen]
    if min(attacked.sum(), (~attacked).sum()) >= LEAST:
        slope, intercept = logistic(fitted.scores[chosen], attacked, fitted.weights[chosen])
    read = clean.joined(joint)
    calibrated = calibrate(fitted.head, read, rates=rates, prevalence=prevalence)
    scores = _scores(fitted.head, read)
    order = np.argsort(scores, kind="stable")
    ours = _scores(head, clean.first)
    return SecondLook(
        look=second.look,
        taps=second.taps,
        head=replace(calibrated, clean_scores=scores[order]),
        first_scores=ours[order],
        bound=bound,
        suspicious_slope=slope,
        suspicious_intercept=intercept + float(np.log(prevalence / (1 - prevalence))),
        golden_score=_scores(fitted.head, golden.joined(joint)),
    )


def _scores(head: Head, readings: Readings) -> Floats:
    return head.score(np.asarray(readings.rates), readings.logits).score
