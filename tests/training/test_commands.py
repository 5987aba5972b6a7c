"""evaluate and redteam from the command line, and what of it a shelf's status shows."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reluguard.commands.app import app
from reluguard.detector.artifact import GuardArtifact, read_guard
from reluguard.detector.metrics import RedTeamSummary
from reluguard.service.background import running
from reluguard.training.errors import DataError
from tests.training.fitting import Order


@pytest.fixture
def guard(fitted: GuardArtifact, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fitted.path, tmp_path / "guard"))


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def small(settings: Order, guard: Path, out: Path) -> list[object]:
    """Return what both commands take, and so little of it that they take a second."""
    where = ("--model", settings.model, "--guard", guard, "--data", settings.data, "--out", out)
    return [*where, "--limit", 8, "--threads", 1]


EFFORT = (
    *("--steps", 2, "--restarts", 1, "--queries", 4),
    *("--budget", 48, "--no-ladders", "--asking", 0),
)


def test_published_figures_are_what_status_and_evaluate_show(
    guard: Path, fit_settings: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redteam --publish, then promote and status, then evaluate."""
    monkeypatch.setenv("COLUMNS", "200")
    shelf = tmp_path / "shelf"
    where = small(fit_settings, guard, tmp_path / "red")
    told = json.loads(run("redteam", *where, *EFFORT, "--publish", "--json"))
    assert told["images"] == 8
    published = read_guard(guard).manifest.metrics["red_team"]
    assert published == told["summary"]
    run("promote", "--shelf", shelf, "--guard", guard, "--why", "published")
    assert json.loads(run("status", "--shelf", shelf, "--json"))["red_team"] == published
    share = published["evaded"]["48"]["0.05"]["value"]
    assert f"red team, 48/255, 8 images: evades {share:.2f}" in run("status", "--shelf", shelf)
    few = ("--attack", "fgsm-linf-8", "--benign", "sign-2", "--matrix-rows", 0, "--workers", 1)
    fit = ("--fit-work", tmp_path / "nothing")
    text = run("evaluate", *small(fit_settings, guard, tmp_path / "card"), *few, *fit)
    for word in ("clean images flagged", "white box", "baselines"):
        assert word in text
    card = json.loads((tmp_path / "card" / "evaluation.json").read_text())
    assert card["red_team"] == published
    assert "goals" not in card
    assert "to beat" not in text + (tmp_path / "card" / "evaluation.html").read_text()


def test_a_guard_without_figures_says_so(guard: Path, tmp_path: Path) -> None:
    """Nothing published is told, never left out."""
    shelf = tmp_path / "shelf"
    run("promote", "--shelf", shelf, "--guard", guard, "--why", "first")
    assert "nothing published with this guard" in run("status", "--shelf", shelf)


def test_the_black_box_asks_the_server_that_serves_this_guard(
    fitted: GuardArtifact, fit_settings: Order, guard: Path, tmp_path: Path
) -> None:
    """Its questions go by gRPC; a server of another guard is refused before any attack."""
    from reluguard.detector.runtime import Guard
    from reluguard.training.pages.publication import publish

    summary = RedTeamSummary(images=0, settings={}, evaded={}, median_budget={})
    with running(Guard.open(fit_settings.model, fitted.path, threads=1)) as server:
        where = small(fit_settings, fitted.path, tmp_path / "red")
        told = json.loads(run("redteam", *where, *EFFORT, "--server", server.address, "--json"))
        assert server.address in told["black_box"]
        asked = told["budgets"]["48"]["score-search"]
        assert 1 <= asked["mean_queries"] <= 4
        other = publish(guard, summary, digest=fitted.digest)
        where = small(fit_settings, guard, tmp_path / "other")
        done = CliRunner().invoke(
            app,
            [*map(str, ("redteam", *where, *EFFORT, "--server", server.address))],
        )
    assert done.exit_code == 1
    assert f"expected a server of the guard {other.digest[:16]}" in done.output


def test_what_is_left_out_is_a_family_or_an_attack(
    guard: Path, fit_settings: Order, tmp_path: Path
) -> None:
    """Another word is an error that says which there are."""
    where = small(fit_settings, guard, tmp_path / "card")
    with pytest.raises(DataError, match="expected family or attack to be left out"):
        run("evaluate", *where, "--leave-out", "everything", "--fit-work", fit_settings.shards)
