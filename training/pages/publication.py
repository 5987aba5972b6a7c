"""The red team's figures go out with the guard they are about."""

import json
from dataclasses import replace
from pathlib import Path

from reluguard.detector.artifact import GuardArtifact, Manifest, read_guard, write_guard
from reluguard.detector.metrics import RED_TEAM, RedTeamSummary
from reluguard.detector.signature import SIGNATURE, sign
from reluguard.training.errors import DataError
from reluguard.training.evaluation.report_card import ReportCard
from reluguard.training.pages.report_card import report_page

__all__ = ["publish"]


def publish(
    guard: Path, summary: RedTeamSummary, *, digest: str, key: Path | None = None
) -> GuardArtifact:
    """Write the summary into the guard's manifest, `metrics["red_team"]`, and return the guard.

    Head, thresholds and golden inputs stay, so verdicts do too; the report is made anew. The digest
    changes with the manifest. A signature vouches for a digest: that of a signed guard would vouch
    for nothing any more, so it is signed anew or left as it is.

    Args:
        guard: the folder.
        summary: of the red team's report.
        digest: of the guard that it is about.
        key: PEM, an Ed25519 private key to sign with.

    Raises:
        DataError: the figures are another guard's, or the guard is signed and no key was given.
        SettingsError: it isn't such a key; the guard is then published and not signed.
        GuardError: the guard can't be read.
    """
    artifact = read_guard(guard)
    if digest != artifact.digest:
        raise DataError(f"expected figures of the guard in {guard}, got another guard's")
    if key is None and (guard / SIGNATURE).is_file():
        raise DataError(
            f"expected a key to sign {guard} with: it is signed, and what is published changes it"
        )
    manifest = replace(
        artifact.manifest, metrics={**artifact.manifest.metrics, RED_TEAM: summary.to_json()}
    )
    written = write_guard(
        guard,
        manifest=manifest,
        head=artifact.head,
        golden=artifact.golden,
        second=artifact.second,
        reports=_reports(manifest, guard) if "clean" in manifest.metrics else None,
    )
    if key is not None:
        sign(written, key)
    return written


def _reports(manifest: Manifest, guard: Path) -> dict[str, bytes]:
    page = report_page(ReportCard.from_json(manifest.metrics), manifest)
    text = json.dumps(manifest.metrics, indent=2)
    made = {"report.json": text.encode(), "report.html": page.encode()}
    return {name: data for name, data in made.items() if (guard / name).is_file()}
