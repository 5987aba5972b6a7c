"""Rounds: a new guard of the same model, fitted on what got past the old one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from reluguard.commands.app import app
from reluguard.detector.artifact import GuardArtifact, read_guard
from reluguard.detector.runtime import Guard
from reluguard.training.data.dataset import Dataset, save_dataset
from reluguard.training.errors import DataError
from reluguard.training.pages.red_team_text import print_rounds
from reluguard.training.red_team.report import RedTeamReport
from reluguard.training.retraining.kept import open_kept
from reluguard.training.rounds import refit_in_rounds
from tests.training.fitting import Order

EFFORT = (
    *("--steps", 2, "--restarts", 1, "--queries", 4),
    *("--budget", 48, "--no-ladders", "--asking", 0),
)


def test_half_an_order_is_wrong_usage(
    fit_settings: Order, tmp_path: Path, words: tuple[object, ...], message: str
) -> None:
    """Before anything is attacked."""
    done = redteam(fit_settings, tmp_path / "guard", tmp_path / "red", *words)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_other_images_are_refused(
    fitted: GuardArtifact, fit_settings: Order, digits: Dataset, tmp_path: Path
) -> None:
    """Their split would mean nothing: fitting would leak into judging."""
    save_dataset(digits.take(np.arange(300, 400)), tmp_path / "other.npz")
    with pytest.raises(DataError, match="expected the images the guard was fitted on"):
        refit_in_rounds(
            fit_settings.model, fitted.path, tmp_path / "other.npz", out=tmp_path / "out"
        )


def test_no_round_is_no_order(fitted: GuardArtifact, fit_settings: Order, tmp_path: Path) -> None:
    """It would be the same guard under another name."""
    with pytest.raises(DataError, match="expected rounds, images and steps of 1 or more, got 0"):
        refit_in_rounds(fit_settings.model, fitted.path, None, out=tmp_path / "out", rounds=0)
