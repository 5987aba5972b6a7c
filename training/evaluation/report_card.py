"""The report card: what a guard does on images that no step of fitting saw.

Headline figures are on attacks that succeeded from sources the model answers right, with thresholds
from clean calibration images alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import read_guard
from reluguard.detector.features import confidence
from reluguard.detector.head import threshold_at
from reluguard.detector.metrics import GateResult, Interval, Rates, RedTeamSummary
from reluguard.detector.plain import UNSAID, Plain
from reluguard.detector.runtime import Guard
from reluguard.detector.taps import GateCounts
from reluguard.training.composed import attack_of, change_of, is_composed
from reluguard.training.evaluation.figures import (
    Clean,
    Precision,
    Promise,
    by_answer,
    clean_figures,
    flagged,
    precision,
    promises,
)
from reluguard.training.evaluation.two_looks import TwoLooks, two_looks
from reluguard.training.harvest.orders import Job
from reluguard.training.harvest.readings import Readings
from reluguard.training.harvest.workspace import Workspace
from reluguard.training.showing import Flagged, Shown, groups_shown
from reluguard.training.statistics.metrics import auroc_interval

__all__ = [
    "REPORTED_RATES",
    "AttackFigures",
    "BenignFigures",
    "ComposedFigures",
    "ReportCard",
    "Summary",
    "promised_rates",
    "report_card",
]

REPORTED_RATES = (0.001, 0.01, 0.05)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackFigures(Plain):
    """One attack: how often it fooled the model, and what the guard sees of that."""

    tried: int
    succeeded: int
    auroc: Interval | None = field(default=None, metadata=UNSAID)
    detected: Rates = field(default_factory=dict, metadata=UNSAID)
    confidence_only_auroc: float | None = field(default=None, metadata=UNSAID)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenignFigures(Plain):
    """One harmless change: what is flagged of it, and of those the model still answers right."""

    images: int
    flagged: Rates
    answered_right: Rates = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary(Plain):
    """AUROC over the attacks that succeeded, None where none did."""

    mean_auroc: float | None = None
    worst_auroc: float | None = None
    attacks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposedFigures(Plain):
    """Attacks whose images went through a harmless change afterwards, by attack.

    An image counts where the model still answers wrong.
    """

    attacks: Mapping[str, AttackFigures]
    summary: Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportCard(Shown, Plain):
    """What a guard does on unseen images, as its manifest and `report.json` hold it.

    Attributes:
        clean: images as they came.
        attacks: by slug.
        benign: harmless changes by slug.
        composed: attacks and what came afterwards, by the change.
        answers: what is flagged of clean images, by the class the model answers.
        summary: over the attacks.
        precision: by threshold.
        promises: what each promised rate of false alarms can come to.
        gates: how many the model has and how many are read.
        seconds: of the fit.
        resumed: whether the fit went on from shards that lay there.
        words: what people were told of the images.
        looks: both looks side by side, of a guard that looks again.
        gate: what the gate said of a guard that was retrained.
        red_team: what the red team published with it.
    """

    clean: Clean
    attacks: Mapping[str, AttackFigures]
    benign: Mapping[str, BenignFigures]
    composed: Mapping[str, ComposedFigures] = field(default_factory=dict, metadata=UNSAID)
    answers: Mapping[str, Rates] = field(default_factory=dict, metadata=UNSAID)
    summary: Summary = Summary()
    precision: Mapping[str, Precision] = field(default_factory=dict)
    promises: Mapping[str, Promise] = field(default_factory=dict, metadata=UNSAID)
    gates: GateCounts | None = field(default=None, metadata=UNSAID)
    seconds: float | None = field(default=None, metadata=UNSAID)
    resumed: bool | None = field(default=None, metadata=UNSAID)
    words: tuple[str, ...] = field(default=(), metadata=UNSAID)
    looks: TwoLooks | None = field(default=None, metadata=UNSAID)
    gate: GateResult | None = field(default=None, metadata=UNSAID)
    red_team: RedTeamSummary | None = field(default=None, metadata=UNSAID)

    @classmethod
    def of(cls, guard: Guard | Path | str) -> "ReportCard":
        """Return the report card that a guard carries.

        Args:
            guard: opened, as `fit` returns it, or its folder.

        Raises:
            GuardError: the guard can't be read.
        """
        artifact = guard.artifact if isinstance(guard, Guard) else read_guard(guard)
        return cls.from_json(artifact.manifest.metrics)

    def _shown(self) -> Sequence[Flagged]:
        """Return the kinds of images and what is flagged of them."""
        benign = {name: (one.images, one.flagged) for name, one in self.benign.items()}
        clean = self.clean.images, self.clean.false_positive_rate
        return groups_shown(clean, benign, self.attacks, self.composed)


def promised_rates(
    clean_scores: NDArray[np.float32], own: float, *, fewest: int | None = None
) -> dict[str, float]:
    """Return the thresholds a guard's calibration images suffice for, keyed by the rate.

    Args:
        clean_scores: ascending, (n,).
        own: the guard's rate.
        fewest: how many of them the smallest group of a guard by class has; all by default.
    """
    rates, count = sorted({*REPORTED_RATES, own}), len(clean_scores) if fewest is None else fewest
    enough = [rate for rate in rates if np.floor(rate * (count + 1) + 1e-9) >= 1]
    return {f"{rate:g}": threshold_at(rate, clean_scores) for rate in enough}


def report_card(
    guard: Guard,
    workspace: Workspace,
    jobs: Mapping[str, Sequence[Job]],
    *,
    thresholds: Mapping[str, float],
    seed: int,
) -> ReportCard:
    """Return the report card.

    Every score comes from the compiled guard's arithmetic on the harvested readings of the test
    split.

    Args:
        guard: the finished guard.
        workspace: holds the shards.
        jobs: the shards of the test split by slug.
        thresholds: by false-positive rate.
        seed: of the bootstrap.
    """
    rates = [float(rate) for rate in thresholds]
    groups = {slug: _scored(guard, workspace.readings(made), rates) for slug, made in jobs.items()}
    clean = next(one for slug, one in groups.items() if jobs[slug][0].kind == "clean")
    attacks: dict[str, AttackFigures] = {}
    benign: dict[str, BenignFigures] = {}
    for slug, group in groups.items():
        kind = jobs[slug][0].kind
        if kind == "benign":
            right = group.readings.answered_right
            benign[slug] = BenignFigures(
                images=len(group.scores),
                flagged=flagged(group.scores, thresholds),
                answered_right=flagged(group.scores[right], thresholds),
            )
        if kind == "attack":
            tried = sum(len(job.sources) for job in jobs[slug])
            attacks[slug] = _attack_figures(clean, group, tried, thresholds, seed)
    composed: dict[str, dict[str, AttackFigures]] = {}
    for slug in [slug for slug in attacks if is_composed(slug)]:
        composed.setdefault(change_of(slug), {})[attack_of(slug)] = attacks.pop(slug)
    figures = clean_figures(clean.scores, clean.readings.answered_right, thresholds)
    return ReportCard(
        clean=figures,
        attacks=attacks,
        benign=benign,
        composed={
            change: ComposedFigures(attacks=entries, summary=_summary(entries))
            for change, entries in composed.items()
        },
        answers=by_answer(clean.scores, clean.readings.predictions, thresholds),
        summary=_summary(attacks),
        precision=precision(figures, attacks),
        promises=promises(
            len(guard.artifact.head.clean_scores), {*REPORTED_RATES, guard.artifact.manifest.fpr}
        ),
        looks=two_looks(guard.artifact, workspace, jobs, rates=[*thresholds], seed=seed),
    )


def _summary(attacks: Mapping[str, AttackFigures]) -> Summary:
    found = [entry.auroc.value for entry in attacks.values() if entry.auroc is not None]
    return Summary(
        mean_auroc=float(np.mean(found)) if found else None,
        worst_auroc=float(np.min(found)) if found else None,
        attacks=len(found),
    )


@dataclass(frozen=True, slots=True)
class _Scored:
    """Readings of N images, and what the guard says of them: levelled scores, float32 (N,)."""

    readings: Readings
    scores: NDArray[np.float32]


def _scored(guard: Guard, group: Readings, rates: Sequence[float]) -> _Scored:
    if not len(group):
        return _Scored(group, np.zeros(0, np.float32))
    head = guard.artifact.head
    scores = head.score(group.rates, group.logits).score
    return _Scored(group, head.levelled(scores, group.predictions, rates))


def _attack_figures(
    clean: _Scored, attacked: _Scored, tried: int, thresholds: Mapping[str, float], seed: int
) -> AttackFigures:
    if not len(attacked.scores):
        return AttackFigures(tried=tried, succeeded=0)
    sources = (clean.readings.sources, attacked.readings.sources)
    baseline = [-confidence(one.readings.logits)[:, 1] for one in (clean, attacked)]
    return AttackFigures(
        tried=tried,
        succeeded=len(attacked.scores),
        auroc=auroc_interval(clean.scores, sources[0], attacked.scores, sources[1], seed=seed),
        detected=flagged(attacked.scores, thresholds),
        confidence_only_auroc=auroc_interval(
            baseline[0], sources[0], baseline[1], sources[1], seed=seed, draws=1
        ).value,
    )
