"""A challenger: drafted from the champion, judged by the gate, put on disk with a report card."""

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from reluguard.detector.artifact import GuardArtifact, write_guard
from reluguard.detector.head import Head
from reluguard.detector.metrics import GateResult
from reluguard.detector.model import Production
from reluguard.detector.reference import KEY as REFERENCE
from reluguard.detector.reference import reference_of
from reluguard.detector.runtime import Guard, Reader
from reluguard.training.evaluation.report_card import promised_rates, report_card
from reluguard.training.harvest.readings import Readings
from reluguard.training.pages.report_card import report_page
from reluguard.training.progress import Progress
from reluguard.training.provenance import REFITS, Refits, Step
from reluguard.training.retraining.kept import Kept

__all__ = ["told_of_looks", "with_head", "with_origin", "write_challenger"]


def told_of_looks(champion: GuardArtifact, progress: Progress) -> GuardArtifact:
    """Return the guard as one that looks once, and say so of one that looks twice."""
    if champion.second is not None:
        progress.say("the new guard looks once: the second look of the old one is left out")
    return replace(champion, second=None)


def with_head(champion: GuardArtifact, head: Head, reader: Reader) -> GuardArtifact:
    """Return the champion with another calibrated head and what that says of the golden inputs."""
    rates, logits = reader.read(champion.golden.images)
    manifest = replace(
        champion.manifest,
        thresholds=promised_rates(
            head.clean_scores, champion.manifest.fpr, fewest=head.fewest_clean
        ),
        calibration_images=len(head.clean_scores),
    )
    golden = replace(champion.golden, rates=rates, score=head.score(rates, logits).score)
    # its second look was calibrated with the head it had
    return replace(champion, digest="", head=head, manifest=manifest, golden=golden, second=None)


def with_origin(
    draft: GuardArtifact,
    champion: GuardArtifact,
    kept: Kept,
    clean: Readings,
    *,
    out: Path,
    step: Step,
    refits: Refits | None = None,
) -> GuardArtifact:
    """Return a draft as it will be written but for its report card: where it came from is told.

    Args:
        draft: the champion with its new head.
        champion: its parent.
        kept: the harvest, with what was added to it.
        clean: the calibration readings.
        out: where it will lie.
        step: what made it of its parent, for the lineage.
        refits: the rounds it came out of.
    """
    before = champion.manifest.provenance
    provenance: dict[str, Any] = {
        **{key: value for key, value in before.items() if key != "forced"},
        "work": str(kept.workspace.folder.resolve()),
        REFERENCE: reference_of(clean.rates, clean.logits, champion.manifest.taps).to_json(),
        "added": [one.to_json() for one in kept.added],
        "lineage": [*before.get("lineage", ()), step.to_json()],
    }
    if refits is not None:
        provenance[REFITS] = refits.to_json()
    created = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    manifest = replace(draft.manifest, created_at=created, provenance=provenance, metrics={})
    return replace(draft, path=out, manifest=manifest)


def write_challenger(
    draft: GuardArtifact,
    production: Production,
    kept: Kept,
    judged: GateResult,
    *,
    seed: int,
    threads: int | None = None,
) -> GuardArtifact:
    """Write a guard to `draft.path` with the gate's word in its manifest, and return it.

    Args:
        draft: the guard; its metrics are made here.
        production: its model.
        kept: its harvest; the report card is on the test split.
        judged: what the gate said of the draft.
        seed: of the bootstrap.
        threads: of ONNX Runtime.

    Raises:
        GuardError: the place holds something else than a guard.
        DataError: a shard is damaged.
    """
    card = report_card(
        Guard(production, draft, threads=threads, looks="first"),
        kept.workspace,
        kept.split("test"),
        thresholds=draft.manifest.thresholds,
        seed=seed,
    )
    card = replace(card, gate=judged)
    manifest = replace(draft.manifest, metrics=card.to_json())
    return write_guard(
        draft.path,
        manifest=manifest,
        head=draft.head,
        golden=draft.golden,
        second=draft.second,
        reports={
            "report.json": json.dumps(card.to_json(), indent=2).encode(),
            "report.html": report_page(card, manifest).encode(),
        },
    )
