"""The figures of an evaluation, from scored groups of images. N images.

Headline figures are on attacks that succeeded, from sources the model answers right; thresholds are
the guard's own, so from clean calibration images alone.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import Manifest
from reluguard.training.evaluation.comparison import Group, mean
from reluguard.training.evaluation.report_card import flagged, precision
from reluguard.training.evaluation.threats import THREATS
from reluguard.training.statistics.metrics import auroc_interval, rate_interval

__all__ = ["scorecard"]

Scores = NDArray[np.floating[Any]]


def scorecard(
    groups: Mapping[str, Group], manifest: Manifest, threats: Mapping[str, str], seed: int
) -> dict[str, Any]:
    """Return the figures as plain values.

    Args:
        groups: scored images by name, "clean" among them.
        manifest: of the guard.
        threats: the threat model of each attack, by its name.
        seed: of the bootstrap.
    """
    thresholds = manifest.thresholds
    clean = groups["clean"]
    recipe = manifest.provenance.get("recipe", {})
    known = {portion["slug"] for portion in recipe.get("attacks", ())}
    attacks = {
        slug: _attack_entry(clean, group, thresholds, seed)
        | {"fitted_on": slug in known, "threat": threats[slug]}
        for slug, group in groups.items()
        if group.kind == "attack"
    }
    harmless = {
        slug: flagged(group.score, thresholds)
        for slug, group in groups.items()
        if group.kind == "benign"
    }
    found = {slug: entry["auroc"]["value"] for slug, entry in attacks.items() if "auroc" in entry}
    unseen = [value for slug, value in found.items() if slug not in known]
    card: dict[str, Any] = {
        "clean": {
            "images": len(clean.score),
            "accuracy": rate_interval(int((~clean.wrong).sum()), len(clean.wrong)).to_json(),
            "false_positive_rate": flagged(clean.score, thresholds),
            "misclassified_flagged": flagged(clean.score[clean.wrong], thresholds),
        },
        "attacks": attacks,
        "benign": {slug: entry for slug, entry in harmless.items() if _severity(slug) is None},
        "answered_right": {
            slug: flagged(group.score[~group.wrong], thresholds)
            for slug, group in groups.items()
            if group.kind == "benign"
        },
        "severity": _severities(harmless),
        "classes": _by_class(groups, thresholds),
        "answers": _by_answer(clean, thresholds),
        "threats": _by_threat(attacks),
        "summary": {
            "attacks": len(found),
            "mean_auroc": mean([*found.values()]),
            "worst_auroc": min(found.values(), default=None),
            "not_fitted_on": {
                "attacks": len(unseen),
                "mean_auroc": mean(unseen),
                "worst_auroc": min(unseen, default=None),
            },
        },
    }
    return card | {"precision": precision(card)}


def _attack_entry(
    clean: Group, group: Group, thresholds: Mapping[str, float], seed: int
) -> dict[str, Any]:
    hit = group.hits
    entry: dict[str, Any] = {
        "tried": len(hit),
        "succeeded": int(hit.sum()),
        "failed": {"flagged": flagged(group.score[~hit], thresholds)},
        "all": {"flagged": flagged(group.score, thresholds)},
        # of all tries: a wrong answer that nobody is told of
        "unnoticed": {
            rate: rate_interval(int((hit & (group.score <= limit)).sum()), len(hit)).to_json()
            for rate, limit in thresholds.items()
        },
    }
    for name, chosen in (("succeeded", hit), ("all", np.ones(len(hit), np.bool_))):
        if not chosen.any():
            continue
        area = auroc_interval(
            clean.score,
            clean.shard.sources,
            group.score[chosen],
            group.shard.sources[chosen],
            seed=seed,
        ).to_json()
        if name == "all":
            entry["all"]["auroc"] = area
        else:
            entry |= {"auroc": area, "detected": flagged(group.score[chosen], thresholds)}
    return entry


def _severity(slug: str) -> tuple[str, str] | None:
    """Return kind and level of a change named by severity, like jpeg-c3."""
    kind, mark, level = slug.rpartition("-c")
    return (kind, level) if mark and level.isdigit() else None


def _severities(harmless: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    curves: dict[str, dict[str, Any]] = {}
    for slug, entry in harmless.items():
        place = _severity(slug)
        if place is not None:
            curves.setdefault(place[0], {})[place[1]] = entry
    return curves


def _by_class(
    groups: Mapping[str, Group], thresholds: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Return for each true class what is flagged of its clean and its attacked images."""
    clean = groups["clean"]
    attacked = [g for g in groups.values() if g.kind == "attack"]
    labels = np.concatenate([g.shard.labels[g.hits] for g in attacked])
    scores = np.concatenate([g.score[g.hits] for g in attacked])
    return {
        str(label): {
            "false_positive_rate": flagged(clean.score[clean.shard.labels == label], thresholds),
            "detected": flagged(scores[labels == label], thresholds),
        }
        for label in np.unique(clean.shard.labels)
    }


def _by_answer(clean: Group, thresholds: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Return for each class the model answers what is flagged of clean images."""
    answers = clean.shard.logits.argmax(axis=1)
    return {
        str(answer): flagged(clean.score[answers == answer], thresholds)
        for answer in np.unique(answers)
    }


def _by_threat(attacks: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return mean and worst of each threat model's attacks, those that succeeded at all."""
    table = {}
    for threat, knows in THREATS.items():
        found = {
            slug: entry["auroc"]["value"]
            for slug, entry in attacks.items()
            if entry["threat"] == threat and "auroc" in entry
        }
        if found:
            table[threat] = {
                "knows": knows,
                "attacks": len(found),
                "mean_auroc": mean([*found.values()]),
                "worst_auroc": min(found.values()),
                "worst": min(found, key=lambda slug: found[slug]),
            }
    return table
