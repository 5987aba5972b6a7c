"""Hardening: a new guard of the same model, fitted on what got past the old one."""

from pathlib import Path

import numpy as np
import pytest

from detector.artifact import GuardArtifact
from detector.runtime import Guard
from training.data import Dataset, save_dataset
from training.errors import DataError
from training.pipeline import FitSettings
from training.rounds import harden_guard


def test_a_hardened_guard_opens_and_says_where_it_came_from(
    fitted: GuardArtifact, fit_settings: FitSettings, tmp_path: Path
) -> None:
    """It has another head and its own thresholds, and the old guard stays as it was."""
    before = {file.name: file.read_bytes() for file in fitted.path.iterdir()}
    hardened = harden_guard(
        fit_settings.model,
        fitted.path,
        fit_settings.data,
        tmp_path / "hardened",
        rounds=1,
        images=240,
        steps=12,
        threads=1,
    )
    guard = Guard.open(fit_settings.model, tmp_path / "hardened", threads=1)
    assert guard.artifact.manifest.provenance["hardened"]["from"] == fitted.digest
    assert guard.artifact.manifest.provenance["hardened"]["rounds"][0]["fooled"] > 0
    assert not np.array_equal(hardened.head.weights[0], fitted.head.weights[0])
    assert before == {file.name: file.read_bytes() for file in fitted.path.iterdir()}


def test_other_images_are_refused(
    fitted: GuardArtifact, fit_settings: FitSettings, digits: Dataset, tmp_path: Path
) -> None:
    """Its split would mean nothing: fitting would leak into judging."""
    save_dataset(digits.take(np.arange(300, 400)), tmp_path / "other.npz")
    with pytest.raises(DataError, match="expected the images the guard was fitted on"):
        harden_guard(fit_settings.model, fitted.path, str(tmp_path / "other.npz"), tmp_path / "out")
