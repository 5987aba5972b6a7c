"""The report card: what a guard does on images that no step of fitting saw.

Headline figures are on attacks that succeeded from sources the model answers right, with thresholds
from clean calibration images alone.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.features import confidence
from reluguard.detector.head import threshold_at
from reluguard.detector.runtime import Guard
from reluguard.training.harvest.orders import Job
from reluguard.training.harvest.readings import Kind, Readings
from reluguard.training.harvest.workspace import Workspace
from reluguard.training.statistics.metrics import (
    auroc_interval,
    interval_text,
    rate_above,
    rate_interval,
)

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "REPORTED_RATES",
    "answered_right",
    "flagged",
    "precision",
    "prevalence_table",
    "print_card",
    "print_precision",
    "promised_rates",
    "report_card",
]

REPORTED_RATES = (0.001, 0.01, 0.05)
PREVALENCES = (1e-2, 1e-3, 1e-5)


def promised_rates(clean_scores: NDArray[np.float32], own: float) -> dict[str, float]:
    """Return the thresholds a guard's calibration images suffice for, keyed by the rate."""
    rates = sorted({*REPORTED_RATES, own})
    enough = [rate for rate in rates if np.floor(rate * (len(clean_scores) + 1) + 1e-9) >= 1]
    return {f"{rate:g}": threshold_at(rate, clean_scores) for rate in enough}


def report_card(
    guard: Guard,
    workspace: Workspace,
    jobs: Mapping[str, Sequence[Job]],
    *,
    thresholds: Mapping[str, float],
    seed: int,
) -> dict[str, Any]:
    """Return the report card as plain values.

    Every score comes from the compiled guard's arithmetic on the harvested readings of the test
    split.

    Args:
        guard: the finished guard.
        workspace: holds the shards.
        jobs: the shards of the test split by slug.
        thresholds: by false-positive rate.
        seed: of the bootstrap.
    """
    kinds: dict[str, Kind] = {slug: made[0].kind for slug, made in jobs.items()}
    readings = {slug: workspace.readings(made) for slug, made in jobs.items()}
    scores = {slug: _scores(guard, group) for slug, group in readings.items()}
    clean = next(slug for slug, kind in kinds.items() if kind == "clean")
    right = readings[clean].answered_right
    card: dict[str, Any] = {
        "clean": {
            "images": len(right),
            "accuracy": rate_interval(int(right.sum()), len(right)).to_json(),
            "false_positive_rate": flagged(scores[clean], thresholds),
            "misclassified_flagged": flagged(scores[clean][~right], thresholds),
        },
        "attacks": {},
        "benign": {},
        "answers": _by_answer(scores[clean], readings[clean].predictions, thresholds),
    }
    baseline = -confidence(readings[clean].logits)[:, 1]
    for slug, group in readings.items():
        if kinds[slug] == "benign":
            card["benign"][slug] = {
                "images": len(group),
                "flagged": flagged(scores[slug], thresholds),
                "answered_right": flagged(scores[slug][group.answered_right], thresholds),
            }
        if kinds[slug] == "attack":
            tried = sum(len(job.sources) for job in jobs[slug])
            entry: dict[str, Any] = {"tried": tried, "succeeded": len(group)}
            if len(group):
                entry |= _detection(
                    (scores[clean], readings[clean]), (scores[slug], group), thresholds, seed
                )
                entry["confidence_only_auroc"] = auroc_interval(
                    baseline,
                    readings[clean].sources,
                    -confidence(group.logits)[:, 1],
                    group.sources,
                    seed=seed,
                    draws=1,
                ).value
            card["attacks"][slug] = entry
    found = [entry["auroc"]["value"] for entry in card["attacks"].values() if "auroc" in entry]
    card["summary"] = {
        "mean_auroc": float(np.mean(found)) if found else None,
        "worst_auroc": float(np.min(found)) if found else None,
        "attacks": len(found),
    }
    card["precision"] = precision(card)
    return card


def _by_answer(
    scores: NDArray[np.float32], answers: NDArray[np.int64], thresholds: Mapping[str, float]
) -> dict[str, Any]:
    """Return for each class the model answers what is flagged of clean images."""
    return {
        str(answer): flagged(scores[answers == answer], thresholds) for answer in np.unique(answers)
    }


def precision(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return at each threshold what share of flagged requests are attacks, by their prevalence.

    Args:
        card: with the realised false-positive rates and what is detected of each attack.
    """
    table = {}
    for rate, flagged in card["clean"]["false_positive_rate"].items():
        found = [e["detected"][rate]["value"] for e in card["attacks"].values() if "detected" in e]
        if found:
            table[rate] = {
                "mean_detected": float(np.mean(found)),
                "false_positive_rate": flagged["value"],
                "precision": prevalence_table(float(np.mean(found)), flagged["value"]),
            }
    return table


def _scores(guard: Guard, group: Readings) -> NDArray[np.float32]:
    if not len(group):
        return np.zeros(0, np.float32)
    return guard.artifact.head.score(group.rates, group.logits).score


def flagged(scores: NDArray[np.floating[Any]], thresholds: Mapping[str, float]) -> dict[str, Any]:
    """Return the share of scores (N,) above each threshold, by its rate; nothing where N is 0."""
    if not len(scores):
        return {}
    return {rate: rate_above(scores, limit).to_json() for rate, limit in thresholds.items()}


def _detection(
    clean: tuple[NDArray[np.float32], Readings],
    attacked: tuple[NDArray[np.float32], Readings],
    thresholds: Mapping[str, float],
    seed: int,
) -> dict[str, Any]:
    interval = auroc_interval(
        clean[0], clean[1].sources, attacked[0], attacked[1].sources, seed=seed
    )
    return {"auroc": interval.to_json(), "detected": flagged(attacked[0], thresholds)}


def prevalence_table(detected: float, fpr: float) -> dict[str, float]:
    """Return the positive predictive value at each prevalence of attacks among requests."""
    return {
        f"{p:g}": detected * p / (detected * p + fpr * (1 - p)) if detected else 0.0
        for p in PREVALENCES
    }


def print_card(card: Mapping[str, Any]) -> None:
    """Print the report card as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    rate = max(card["clean"]["false_positive_rate"], key=float)
    clean = card["clean"]
    console.print(
        f"clean accuracy {interval_text(clean['accuracy'])} on {clean['images']} unseen images"
    )
    for fpr, value in clean["false_positive_rate"].items():
        console.print(f"clean images flagged at the {fpr} threshold: {interval_text(value)}")
    attacks = Table("attack", "succeeded", "AUROC", f"detected at {rate}", "confidence alone")
    for slug, entry in card["attacks"].items():
        share = f"{entry['succeeded']} / {entry['tried']}"
        if "auroc" in entry:
            detected, alone = entry["detected"][rate], f"{entry['confidence_only_auroc']:.3f}"
            attacks.add_row(
                slug, share, interval_text(entry["auroc"]), interval_text(detected), alone
            )
        else:
            attacks.add_row(slug, share, "-", "-", "-")
    console.print(attacks)
    benign = Table("harmless change", "images", f"flagged at {rate}", "where answered right")
    for slug, entry in card["benign"].items():
        figures = (
            interval_text(entry["flagged"][rate]),
            answered_right(entry["answered_right"], rate),
        )
        benign.add_row(slug, str(entry["images"]), *figures)
    console.print(benign)
    print_precision(console, card.get("precision", {}))


def print_precision(console: "Console", table: Mapping[str, Any]) -> None:
    """Print what share of flagged requests are attacks."""
    from rich.table import Table

    if not table:
        return
    shares = next(iter(table.values()))["precision"]
    heads = (f"attacks among flagged, 1 request in {1 / float(p):,.0f}" for p in shares)
    rows = Table("threshold for", *heads)
    for rate, entry in table.items():
        rows.add_row(rate, *(f"{value:.2g}" for value in entry["precision"].values()))
    console.print(rows)


def answered_right(rates: Mapping[str, Any], rate: str) -> str:
    """Return what is flagged of the images that the model still answers right, and how many."""
    return f"{rates[rate]['value']:.3f} of {rates[rate]['n']}" if rates else "-"
