"""What the red team found goes out with the guard, and a signature never vouches for less."""

import json
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from numpy.testing import assert_array_equal

from reluguard.detector.artifact import GuardArtifact, read_guard
from reluguard.detector.errors import GuardError
from reluguard.detector.metrics import RedTeamSummary
from reluguard.detector.signature import SIGNATURE, sign, vouched
from reluguard.training.errors import DataError
from reluguard.training.pages.publication import publish

SUMMARY = {
    "threat_model": "white box",
    "images": 12,
    "settings": {"steps": 6, "restarts": 1, "seed": 0},
    "evaded": {"2.55": {"0.05": {"value": 0.5, "low": 0.3, "high": 0.7, "n": 12}}},
    "black_box": {},
    "median_budget": {"l2": {"0.05": 1.0, "bare model": 0.5}},
    "checks": {"a larger budget evades more often": True},
}


@pytest.fixture
def guard(fitted: GuardArtifact, tmp_path: Path) -> GuardArtifact:
    shutil.copytree(fitted.path, tmp_path / "guard")
    return read_guard(tmp_path / "guard")


def told(guard: GuardArtifact, key: Path | None = None) -> GuardArtifact:
    """Publish figures of this guard."""
    summary = RedTeamSummary.from_json(SUMMARY)
    return publish(guard.path, summary, digest=guard.digest, key=key)


def test_publishing_changes_manifest_and_report_only(guard: GuardArtifact) -> None:
    """The figures are in the manifest, the JSON and the page; head and golden inputs stay."""
    page = (guard.path / "report.html").read_text()
    after = told(guard)
    assert after.manifest.metrics["red_team"] == SUMMARY
    assert after.manifest.thresholds == guard.manifest.thresholds
    assert after.digest != guard.digest
    assert json.loads((guard.path / "report.json").read_text())["red_team"] == SUMMARY
    assert "evades at 0.05" not in page
    assert "evades at 0.05" in (guard.path / "report.html").read_text()
    for name, value in guard.head.to_arrays().items():
        assert_array_equal(value, after.head.to_arrays()[name])
    assert_array_equal(guard.golden.score, after.golden.score)


def test_another_guards_figures_are_refused(guard: GuardArtifact) -> None:
    """Figures belong to one digest, so they can't be published twice either."""
    told(guard)
    with pytest.raises(DataError, match="got another guard's"):
        told(guard)


def keys(folder: Path) -> tuple[Path, Path]:
    """Write a new pair of keys as PEM files: private, public."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / "key.pem", folder / "key.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def test_a_signed_guard_is_signed_anew_or_left_alone(guard: GuardArtifact, tmp_path: Path) -> None:
    """Without a key nothing changes; with one, the new manifest is what is vouched for."""
    private, public = keys(tmp_path)
    sign(guard, private)
    signature = (guard.path / SIGNATURE).read_bytes()
    with pytest.raises(DataError, match="expected a key to sign"):
        told(guard)
    read_guard(guard.path, vouch=vouched(guard.path, public))
    after = told(guard, private)
    read_guard(guard.path, vouch=vouched(guard.path, public))
    assert read_guard(guard.path).digest == after.digest
    (guard.path / SIGNATURE).write_bytes(signature)
    with pytest.raises(GuardError, match="is not that of"):
        read_guard(guard.path, vouch=vouched(guard.path, public))
