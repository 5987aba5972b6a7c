"""A challenger put on disk: judged by the gate, with a report card of its own."""

import json
from dataclasses import replace

from reluguard.detector.artifact import GuardArtifact, write_guard
from reluguard.detector.model import Production
from reluguard.detector.runtime import Guard
from reluguard.training.evaluation.report_card import report_card
from reluguard.training.pages.report_card import report_page
from reluguard.training.retraining.gate import GateResult
from reluguard.training.retraining.kept import Kept

__all__ = ["write_challenger"]


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
        Guard(production, draft, threads=threads),
        kept.workspace,
        kept.split("test"),
        thresholds=draft.manifest.thresholds,
        seed=seed,
    )
    card["gate"] = judged.to_json()
    manifest = replace(draft.manifest, metrics=json.loads(json.dumps(card)))
    return write_guard(
        draft.path,
        manifest=manifest,
        head=draft.head,
        golden=draft.golden,
        reports={
            "report.json": json.dumps(card, indent=2).encode(),
            "report.html": report_page(card, manifest).encode(),
        },
    )
