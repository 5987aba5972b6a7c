"""What a secret decides and what is told of it: laws of the benchmark, then a real small guard."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from benchmarks.secrecy.attacking import MeanOfGuards, Plan
from benchmarks.secrecy.forms import kinds_of
from benchmarks.secrecy.guards import Form, Party
from benchmarks.secrecy.judging import Outcome, cost_of, difference, times
from benchmarks.secrecy.keys import hidden_columns, picked
from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.looks.joint import Run
from reluguard.training.harvest.workspace import work_folder
from reluguard.training.twin.twin import to_pixels
from tests.training.fitting import Order

TAPS = [Run(20), Run(30), Run(50)]


def test_a_secret_decides_what_is_read_and_without_one_all_is() -> None:
    """The same secret reads the same, another one something else, as much as was asked for."""
    mine = hidden_columns(TAPS, "mine", 0.5)
    assert_array_equal(mine, hidden_columns(TAPS, "mine", 0.5))
    assert len(mine) == len(set(mine)) == 50
    assert (np.diff(mine) > 0).all()
    assert 10 < len(set(mine) & set(hidden_columns(TAPS, "yours", 0.5))) < 40
    assert_array_equal(hidden_columns(TAPS, "mine", 1.0), np.arange(100))


def test_a_secret_takes_whole_taps() -> None:
    """A tap is read with all its rates or not at all."""
    of_rate = np.repeat([0, 1, 2], [20, 30, 50])
    chosen = {tuple(set(of_rate[hidden_columns(TAPS, f"{i}", 0.3, "taps")])) for i in range(20)}
    assert chosen == {(0,), (1,), (2,)}
    assert len(hidden_columns(TAPS, "0", 1 / 3, "taps")) in {20, 30, 50}


def test_a_judge_is_picked_by_secret_and_pixels() -> None:
    """Each judge sees its share; another secret, or one changed pixel, draws anew."""
    images = np.random.default_rng(0).integers(0, 256, (400, 4, 4, 1), np.uint8)
    mine = picked(images, "mine", 4)
    assert_array_equal(mine, picked(images, "mine", 4))
    assert np.bincount(mine, minlength=4).min() > 60
    moved = images.copy()
    moved[:, 0, 0] ^= 1
    for other in (picked(images, "yours", 4), picked(moved, "mine", 4)):
        assert 0.15 < (other == mine).mean() < 0.35


def test_guards_that_are_evaded_alike_differ_by_nothing() -> None:
    """Beside itself a guard is 1 time as far and 0 less; what nothing evades counts as the most."""
    near = np.array([1.0, 2.0, np.inf])
    assert times(near, near, most=8.0).value == times(near, near, most=8.0).low == 1
    assert times(np.array([4.0, 4.0, np.inf]), near, most=8.0).value == 2
    assert times(np.full(3, np.inf), np.ones(3), most=8.0).value == 8
    assert difference(near[:2], near[:2]).high == 0
    outcome = Outcome(
        {"linf-2": np.array([[True, False], [True, True]])}, np.array([[1, 3], [2, 9]])
    )
    assert_array_equal(outcome.shares("linf-2"), [1, 0.5])
    assert_array_equal(outcome.middle, [1, 3])


def test_what_a_guard_loses_is_counted_by_source() -> None:
    """A guard loses nothing beside itself, and all that the other flags where it flags nothing."""
    rng = np.random.default_rng(0)
    sources = np.arange(40)
    scored = {
        "clean": (rng.normal(size=40).astype(np.float32), sources),
        "fgsm": (np.full(40, 3, np.float32), sources),
        "pgd": (np.full(20, 3, np.float32), sources[:20]),
    }
    same = cost_of([(scored, 1.0)], [(scored, 1.0)])
    assert (same.detected, same.lost.low, same.lost.high) == (1, 0, 0)
    assert same.auroc > 0.95
    blind = cost_of([(scored, 4.0)], [(scored, 1.0)])
    assert (blind.detected, blind.lost.value, blind.lost.low) == (0, 1, 1)


def test_whoever_has_the_weights_is_not_told_as_someone_without() -> None:
    """Rows of guards whose weights are known are no row of the others, nor of what a form costs."""
    rows = kinds_of(3, ["mirror", "blur"])
    known = [row for row in rows if "weights" in row.attackers[0][1]]
    assert [len(row.forms) for row in known] == [1, 1]
    assert not any(row.costs for row in known)
    assert {row.beside for row in rows} <= {row.name for row in rows if row.costs}


@pytest.mark.slow
def test_without_a_secret_a_guard_is_what_fit_makes_and_the_mean_is_of_its_scores(
    fitted: GuardArtifact, fit_settings: Order, tmp_path: Path
) -> None:
    """Reading all of it gives the fit's own head; half reads that half; the graph says the mean."""
    shutil.copytree(fitted.path, tmp_path / "owner.guard")
    shutil.copytree(work_folder(fitted.path), tmp_path / "owner.guard.work")
    party = Party("owner", fit_settings.model, Path(fit_settings.data), tmp_path, recipe="", seed=0)
    plain, half = Form("plain"), Form("half", share=0.5, secret="mine", seed=1)
    view = Form("view", view="mirror")
    mine, own = party.head(plain).to_arrays(), fitted.head.to_arrays()
    for name, value in own.items():
        assert_array_equal(mine[name], value, err_msg=name)
    read = party.head(half).features.columns
    assert set(read) <= set(hidden_columns(fitted.manifest.taps, "mine", 0.5))
    images = fitted.golden.images
    seen = party.read(images, ["mirror"])
    plan = Plan("both", party, (plain, half, view))
    relaxed = MeanOfGuards(plan, images)
    with torch.no_grad():
        said = relaxed.read(to_pixels(images)).score.numpy()
    mean = np.mean([party.scores(form, seen) for form in plan.forms], axis=0)
    assert_allclose(said, mean, atol=1e-3)
