"""The red team's figures go out with the guard they are about."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from reluguard.detector.artifact import GuardArtifact, read_guard, write_guard
from reluguard.detector.signature import SIGNATURE, sign
from reluguard.training.errors import DataError
from reluguard.training.pages.report_card import report_page

__all__ = ["publish"]


def publish(guard: Path, card: Mapping[str, Any], *, key: Path | None = None) -> GuardArtifact:
    """Write the summary into the guard's manifest, `metrics["red_team"]`, and return the guard.

    Head, thresholds and golden inputs stay, so verdicts do too; the report is made anew. The digest
    changes with the manifest. A signature vouches for a digest: that of a signed guard would vouch
    for nothing any more, so it is signed anew or left as it is.

    Args:
        guard: the folder.
        card: as `redteam` made it.
        key: PEM, an Ed25519 private key to sign with.

    Raises:
        DataError: the figures are another guard's, or the guard is signed and no key was given.
        SettingsError: it isn't such a key; the guard is then published and not signed.
        GuardError: the guard can't be read.
    """
    artifact = read_guard(guard)
    if card["guard"] != artifact.digest:
        raise DataError(f"expected figures of the guard in {guard}, got another guard's")
    if key is None and (guard / SIGNATURE).is_file():
        raise DataError(
            f"expected a key to sign {guard} with: it is signed, and what is published changes it"
        )
    manifest = replace(
        artifact.manifest, metrics={**artifact.manifest.metrics, "red_team": card["summary"]}
    )
    written = write_guard(
        guard,
        manifest=manifest,
        head=artifact.head,
        golden=artifact.golden,
        reports=_reports(manifest.metrics, guard, report_page(manifest.metrics, manifest))
        if "clean" in manifest.metrics
        else None,
    )
    if key is not None:
        sign(written, key)
    return written


def _reports(metrics: Mapping[str, Any], guard: Path, page: str) -> dict[str, bytes]:
    made = {"report.json": json.dumps(metrics, indent=2).encode(), "report.html": page.encode()}
    return {name: data for name, data in made.items() if (guard / name).is_file()}
