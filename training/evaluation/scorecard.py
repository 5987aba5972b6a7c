"""The figures of an evaluation, from scored groups of images. N images.

Headline figures are on attacks that succeeded, from sources the model answers right; thresholds are
the guard's own, so from clean calibration images alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import Manifest
from reluguard.detector.metrics import Interval, Rates
from reluguard.detector.plain import UNSAID, Plain, named
from reluguard.training.composed import attack_of, change_of, is_composed
from reluguard.training.evaluation.comparison import Group, mean
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
from reluguard.training.evaluation.threats import THREATS
from reluguard.training.showing import Flagged, Shown, groups_shown
from reluguard.training.statistics.metrics import auroc_interval, rate_interval

__all__ = [
    "Attacked",
    "ByClass",
    "ByThreat",
    "Composed",
    "Overview",
    "Part",
    "Scorecard",
    "Unfitted",
    "scorecard",
]

Scores = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(Plain):
    """Some of an attack's images: what is flagged of them, and AUROC where it was reckoned."""

    flagged: Rates
    auroc: Interval | None = field(default=None, metadata=UNSAID)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacked(Plain):
    """One attack.

    Attributes:
        tried: images, all answered right before.
        succeeded: those that fooled the model, in whole pixels.
        failed: those that did not.
        every: both.
        unnoticed: of all tries, the share that fooled the model and is not flagged.
        auroc, detected: of those that succeeded.
        fitted_on: whether the guard knows this very attack.
        threat: what the attacker knows and may do.
    """

    tried: int
    succeeded: int
    failed: Part
    every: Part = field(metadata=named("all"))
    unnoticed: Rates
    auroc: Interval | None = field(default=None, metadata=UNSAID)
    detected: Rates = field(default_factory=dict, metadata=UNSAID)
    fitted_on: bool
    threat: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ByClass(Plain):
    """One true class: what is flagged of its clean and its attacked images."""

    false_positive_rate: Rates
    detected: Rates


@dataclass(frozen=True, slots=True, kw_only=True)
class ByThreat(Plain):
    """One threat model: mean and worst over its attacks, and which the worst is."""

    knows: str
    attacks: int
    mean_auroc: float
    worst_auroc: float
    worst: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfitted(Plain):
    """AUROC over the attacks that the guard was not fitted on, None where there are none."""

    attacks: int
    mean_auroc: float | None
    worst_auroc: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview(Plain):
    """AUROC over all attacks that succeeded, and over those the guard was not fitted on."""

    attacks: int
    mean_auroc: float | None
    worst_auroc: float | None
    not_fitted_on: Unfitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed(Plain):
    """Attacks whose images went through one harmless change, or two, before they came.

    Attributes:
        change: what that was.
        attacks: by slug: an image succeeded where the model still answers wrong.
        mean_auroc, worst_auroc: over the attacks that did, None where none did.
        worst: which that is.
    """

    change: str
    attacks: Mapping[str, Attacked]
    mean_auroc: float | None
    worst_auroc: float | None
    worst: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorecard(Shown, Plain):
    """What a guard does on images it never saw.

    Attributes:
        clean: images as they came.
        attacks: by slug.
        composed: attacked images that were changed afterwards, by the change.
        benign: what is flagged of harmless changes, by slug.
        answered_right: of those, what is flagged where the model still answers right.
        severity: of harmless changes that have levels, by kind and level.
        classes: by true class.
        answers: what is flagged of clean images, by the class the model answers.
        threats: by threat model.
        summary: over all attacks.
        precision: by threshold.
        promises: what each promised rate of false alarms can come to.
    """

    clean: Clean
    attacks: Mapping[str, Attacked]
    composed: Mapping[str, Composed] = field(default_factory=dict, metadata=UNSAID)
    benign: Mapping[str, Rates]
    answered_right: Mapping[str, Rates]
    severity: Mapping[str, Mapping[str, Rates]]
    classes: Mapping[str, ByClass]
    answers: Mapping[str, Rates]
    threats: Mapping[str, ByThreat]
    summary: Overview
    precision: Mapping[str, Precision]
    promises: Mapping[str, Promise] = field(default_factory=dict, metadata=UNSAID)

    def _shown(self) -> Sequence[Flagged]:
        """Return the kinds of images and what is flagged of them."""
        benign = {
            name: (max(share.n for share in one.values()), one) for name, one in self.benign.items()
        }
        clean = self.clean.images, self.clean.false_positive_rate
        return groups_shown(clean, benign, self.attacks, self.composed)


def scorecard(
    groups: Mapping[str, Group],
    manifest: Manifest,
    known: frozenset[str],
    threats: Mapping[str, str],
    seed: int,
    changes: Mapping[str, str] = MappingProxyType({}),
) -> Scorecard:
    """Return the figures.

    Args:
        groups: scored images by name, "clean" among them.
        manifest: of the guard.
        known: attacks the guard was fitted on.
        threats: the threat model of each attack, by its name.
        seed: of the bootstrap.
        changes: what came after attacks, in words, by the change's name.
    """
    thresholds = manifest.thresholds
    clean = groups["clean"]
    attacks = {
        slug: _attacked(clean, group, thresholds, slug in known, threats[slug], seed)
        for slug, group in groups.items()
        if group.kind == "attack" and not is_composed(slug)
    }
    harmless = {
        slug: flagged(group.score, thresholds)
        for slug, group in groups.items()
        if group.kind == "benign"
    }
    found = {slug: one.auroc.value for slug, one in attacks.items() if one.auroc is not None}
    unseen = [value for slug, value in found.items() if slug not in known]
    figures = clean_figures(clean.score, ~clean.wrong, thresholds)
    return Scorecard(
        clean=figures,
        attacks=attacks,
        composed=_composed(groups, thresholds, known, threats, seed, changes),
        benign={slug: entry for slug, entry in harmless.items() if _severity(slug) is None},
        answered_right={
            slug: flagged(group.score[~group.wrong], thresholds)
            for slug, group in groups.items()
            if group.kind == "benign"
        },
        severity=_severities(harmless),
        classes=_by_class(groups, thresholds),
        answers=by_answer(clean.score, clean.shard.logits.argmax(axis=1), thresholds),
        threats=_by_threat(attacks),
        summary=Overview(
            attacks=len(found),
            mean_auroc=mean([*found.values()]),
            worst_auroc=min(found.values(), default=None),
            not_fitted_on=Unfitted(
                attacks=len(unseen), mean_auroc=mean(unseen), worst_auroc=min(unseen, default=None)
            ),
        ),
        precision=precision(figures, attacks),
        promises=promises(manifest.calibration_images, map(float, thresholds)),
    )


def _attacked(
    clean: Group,
    group: Group,
    thresholds: Mapping[str, float],
    fitted_on: bool,
    threat: str,
    seed: int,
) -> Attacked:
    hit = group.hits

    def area(chosen: NDArray[np.bool_]) -> Interval | None:
        if not chosen.any():
            return None
        scores, sources = group.score[chosen], group.shard.sources[chosen]
        return auroc_interval(clean.score, clean.shard.sources, scores, sources, seed=seed)

    return Attacked(
        tried=len(hit),
        succeeded=int(hit.sum()),
        failed=Part(flagged=flagged(group.score[~hit], thresholds)),
        every=Part(
            flagged=flagged(group.score, thresholds), auroc=area(np.ones(len(hit), np.bool_))
        ),
        # of all tries: a wrong answer that nobody is told of
        unnoticed={
            rate: rate_interval(int((hit & (group.score <= limit)).sum()), len(hit))
            for rate, limit in thresholds.items()
        },
        auroc=area(hit),
        detected=flagged(group.score[hit], thresholds),
        fitted_on=fitted_on,
        threat=threat,
    )


def _composed(
    groups: Mapping[str, Group],
    thresholds: Mapping[str, float],
    known: frozenset[str],
    threats: Mapping[str, str],
    seed: int,
    changes: Mapping[str, str],
) -> dict[str, Composed]:
    """Return the figures of attacks that were changed afterwards, by the change."""
    table: dict[str, dict[str, Attacked]] = {}
    for slug, group in groups.items():
        if is_composed(slug):
            attack = attack_of(slug)
            figures = _attacked(
                groups["clean"], group, thresholds, slug in known, threats[attack], seed
            )
            table.setdefault(change_of(slug), {})[attack] = figures
    found = {}
    for change, attacks in table.items():
        areas = {a: entry.auroc.value for a, entry in attacks.items() if entry.auroc is not None}
        found[change] = Composed(
            change=changes.get(change, change),
            attacks=attacks,
            mean_auroc=mean([*areas.values()]),
            worst_auroc=min(areas.values(), default=None),
            worst=min(areas, key=lambda attack: areas[attack], default=None),
        )
    return found


def _severity(slug: str) -> tuple[str, str] | None:
    """Return kind and level of a change named by severity, like jpeg-c3."""
    kind, mark, level = slug.rpartition("-c")
    return (kind, level) if mark and level.isdigit() else None


def _severities(harmless: Mapping[str, Rates]) -> dict[str, dict[str, Rates]]:
    curves: dict[str, dict[str, Rates]] = {}
    for slug, entry in harmless.items():
        place = _severity(slug)
        if place is not None:
            curves.setdefault(place[0], {})[place[1]] = entry
    return curves


def _by_class(groups: Mapping[str, Group], thresholds: Mapping[str, float]) -> dict[str, ByClass]:
    """Return for each true class what is flagged of its clean and its attacked images."""
    clean = groups["clean"]
    attacked = [g for s, g in groups.items() if g.kind == "attack" and not is_composed(s)]
    labels = np.concatenate([g.shard.labels[g.hits] for g in attacked])
    scores = np.concatenate([g.score[g.hits] for g in attacked])
    return {
        str(label): ByClass(
            false_positive_rate=flagged(clean.score[clean.shard.labels == label], thresholds),
            detected=flagged(scores[labels == label], thresholds),
        )
        for label in np.unique(clean.shard.labels)
    }


def _by_threat(attacks: Mapping[str, Attacked]) -> dict[str, ByThreat]:
    """Return mean and worst of each threat model's attacks, those that succeeded at all."""
    table = {}
    for threat, knows in THREATS.items():
        found = {
            slug: entry.auroc.value
            for slug, entry in attacks.items()
            if entry.threat == threat and entry.auroc is not None
        }
        if found:
            table[threat] = ByThreat(
                knows=knows,
                attacks=len(found),
                mean_auroc=float(np.mean([*found.values()])),
                worst_auroc=min(found.values()),
                worst=min(found, key=lambda slug: found[slug]),
            )
    return table
