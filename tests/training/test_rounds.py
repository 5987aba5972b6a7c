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


@pytest.fixture
def work(fit_settings: Order, tmp_path: Path) -> Path:
    """A copy of the harvest: rounds add to it."""
    return Path(shutil.copytree(fit_settings.shards, tmp_path / "work"))


def redteam(settings: Order, guard: Path, out: Path, *more: object) -> Result:
    words = ["redteam", "--model", settings.model, "--guard", guard, "--data", settings.data]
    words += ["--out", out, "--limit", 4, "--threads", 1, *EFFORT, *more]
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_refitted_guard_opens_and_says_where_it_came_from(
    fitted: GuardArtifact, fit_settings: Order, tmp_path: Path, work: Path
) -> None:
    """It has another head, was judged, and keeps what it learned; the old guard stays."""
    before = {file.name: file.read_bytes() for file in fitted.path.iterdir()}
    place = tmp_path / "refitted"
    refitted = refit_in_rounds(
        fit_settings.model,
        fitted.path,
        None,
        out=place,
        rounds=2,
        images=40,
        sizes=(24.0, 48.0),
        steps=6,
        fit_work=work,
        threads=1,
    )
    guard = Guard.open(fit_settings.model, place, threads=1)
    provenance, metrics = guard.artifact.manifest.provenance, guard.artifact.manifest.metrics
    assert provenance["hardened"]["from"] == provenance["lineage"][-1]["parent"] == fitted.digest
    assert metrics["gate"]["champion"] == fitted.digest
    assert metrics["gate"]["passed"] == refitted.gate.passed
    assert not np.array_equal(refitted.guard.head.weights[0], fitted.head.weights[0])
    groups = {group.name: group for group in open_kept(guard.artifact).groups("fit")}
    assert [one.fit for one in refitted.added] == [len(groups[a.name]) for a in refitted.added]
    assert len({one.name for one in refitted.added}) == 2
    assert all(0 < one.fit <= 40 for one in refitted.added)
    assert before == {file.name: file.read_bytes() for file in fitted.path.iterdir()}


def test_the_command_tells_before_and_after(
    fitted: GuardArtifact,
    fit_settings: Order,
    tmp_path: Path,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same unseen images against both guards; the exit code is the gate's word."""
    monkeypatch.setenv("COLUMNS", "160")
    out, place = tmp_path / "red", tmp_path / "refitted"
    more = ("--rounds", 1, "--refitted", place, "--fit-work", work)
    done = redteam(fit_settings, fitted.path, out, *more, "--json")
    told = json.loads(done.stdout)
    assert told == json.loads((out / "rounds.json").read_text())
    assert (told["guard"], told["digest"]) == (str(place), read_guard(place).digest)
    assert told["before"]["guard"] == fitted.digest
    assert told["after"]["guard"] == told["digest"]
    assert told["before"]["images"] == told["after"]["images"] == 4
    assert done.exit_code == (0 if told["gate"]["passed"] else 1)
    print_rounds(*(RedTeamReport.from_json(told[side]) for side in ("before", "after")))
    table = capsys.readouterr().out
    share = told["after"]["budgets"]["48"]["best per image"]["evaded"]["0.05"]["value"]
    for word in ("before at", "after at", "best per image", "score-search", f"{share:.3f}"):
        assert word in table


@pytest.mark.slow
def test_the_old_option_still_works_and_says_its_new_name(
    fitted: GuardArtifact, fit_settings: Order, tmp_path: Path, work: Path
) -> None:
    """What asks by the old names finds its files under them."""
    out, place = tmp_path / "red", tmp_path / "hardened"
    more = ("--harden", 1, "--hardened", place, "--fit-work", work)
    done = redteam(fit_settings, fitted.path, out, *more, "--json")
    assert "--harden and --hardened are now --rounds and --refitted" in done.stderr
    assert json.loads(done.stdout) == json.loads((out / "hardening.json").read_text())
    assert (out / "hardened" / "red_team.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rounds", 1), "expected --rounds ROUNDS and --refitted FOLDER together"),
        (("--refitted", "g2"), "expected --rounds ROUNDS and --refitted FOLDER together"),
        (("--rounds", 1, "--refitted", "g2", "--server", "x:1"), "it serves the old guard only"),
        (("--rounds", 1, "--refitted", "g2", "--looks", "always"), "what they refit looks once"),
    ],
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
