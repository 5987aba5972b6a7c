"""The red team: its guard is the real one, its images keep every promise, its figures are true."""

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.model import load_production
from reluguard.detector.runtime import Guard
from reluguard.training.attacks import Victim
from reluguard.training.data.dataset import Dataset, load_data
from reluguard.training.data.holdout import unseen_rows
from reluguard.training.errors import AttackError, DataError
from reluguard.training.pages.publication import publish
from reluguard.training.pages.red_team_text import print_red_team
from reluguard.training.progress import Step
from reluguard.training.red_team.aware import Aware
from reluguard.training.red_team.aware_attacks import (
    Bank,
    CombinedLogit,
    Lagrangian,
    Mimicry,
    Orthogonal,
    Selective,
)
from reluguard.training.red_team.convergence import checks
from reluguard.training.red_team.relaxed import RelaxedGuard
from reluguard.training.red_team.report import RedTeamReport
from reluguard.training.redteam import redteam
from reluguard.training.twin.twin import to_pixels
from tests.training.fitting import Order
from tests.training.following import assert_told_to_the_end

EFFORT = {"steps": 6, "restarts": 2, "queries": 20, "ladder_steps": 6, "asking": 3}
LOOKS = ("ladder of", "smallest change in")
KINDS = (Selective, Orthogonal, CombinedLogit, Lagrangian, Mimicry)


@pytest.fixture(scope="module")
def guard(digits_model: Path, fitted: GuardArtifact) -> Guard:
    return Guard.open(digits_model, fitted.path, threads=1)


@pytest.fixture(scope="module")
def relaxed(digits: Dataset, digits_model: Path, guard: Guard) -> RelaxedGuard:
    production = load_production(digits_model)
    return RelaxedGuard(production, guard.artifact, digits.images[:64], device="cpu")


def test_with_hard_bits_the_relaxed_guard_is_the_guard(
    digits: Dataset, guard: Guard, relaxed: RelaxedGuard
) -> None:
    """Logits, features and score are those of the compiled graph and of the NumPy reference."""
    images = digits.images[:50]
    with torch.no_grad():
        reading = relaxed.read(to_pixels(images))
    raw = guard.run(guard.spec.to_tensor(images))
    assert_allclose(reading.logits, raw.outputs["logits"], atol=1e-4)
    assert_allclose(reading.score, raw.score, atol=1e-3)
    golden, head = guard.artifact.golden, guard.artifact.head
    with torch.no_grad():
        again = relaxed.read(to_pixels(golden.images.copy()))
    features = head.features.transform(golden.rates, again.logits.numpy())
    assert_allclose(again.features, features, atol=1e-3)
    assert_allclose(again.score, head.score(golden.rates, again.logits.numpy()).score, atol=1e-3)


def test_a_cold_soft_guard_nears_the_hard_one(digits: Dataset, relaxed: RelaxedGuard) -> None:
    """The colder the bits, the nearer the relaxed score is to the true one."""
    pixels = to_pixels(digits.images[:50])
    with torch.no_grad():
        hard = relaxed.read(pixels).score
        far = [
            (relaxed.read(pixels, temperature=t, soft=True).score - hard).abs().mean()
            for t in (1.0, 0.1, 0.001)
        ]
    assert far[0] > far[1] > far[2]


def test_the_score_has_a_gradient_that_lowers_it(digits: Dataset, relaxed: RelaxedGuard) -> None:
    """Steps down the relaxed gradient lower the hard score, which has no gradient of its own."""
    start = to_pixels(digits.images[:50])
    pixels = start.clone()
    for _ in range(10):
        moving = pixels.requires_grad_()
        (gradient,) = torch.autograd.grad(relaxed.read(moving).score.sum(), moving)
        assert gradient.abs().flatten(1).sum(1).min() > 0
        pixels = (moving.detach() - 0.01 * gradient.sign()).clamp(0, 1)
    with torch.no_grad():
        change = relaxed.read(pixels).score - relaxed.read(start).score
    assert change.mean() < 0
    assert (change < 0).float().mean() > 0.8


def attack_of(kind: type[Aware], relaxed: RelaxedGuard, digits: Dataset, **more: Any) -> Aware:
    bank = {"bank": Bank.read(relaxed, digits.images[100:130])} if kind is Mimicry else {}
    settings: dict[str, Any] = {"threshold": 0.0, "steps": 4, **bank, **more}
    return kind(guard=relaxed, **settings)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", KINDS)
def test_attacks_keep_their_budget_and_repeat(
    kind: type[Aware], norm: str, digits: Dataset, relaxed: RelaxedGuard, digits_victim: Victim
) -> None:
    """Whole pixels within the budget, and the same again from the same seed."""
    size = 40.5 if norm == "linf" else 1.0
    attack = attack_of(kind, relaxed, digits, norm=norm, size=size, restarts=2)
    images, labels = digits.images[:6], digits.labels[:6]
    first, second = (attack(images, labels, digits_victim, seed=3) for _ in range(2))
    assert_array_equal(first.images, second.images)
    assert (first.linf if norm == "linf" else first.l2).max() <= size
    assert attack.name.endswith(f"{norm}-{size:g}")


def test_more_budget_and_no_bound_get_through(
    digits: Dataset, guard: Guard, relaxed: RelaxedGuard, digits_victim: Victim
) -> None:
    """Evasions grow with the budget and reach all images: the attack is not blinded."""
    images, labels = digits.images[:20], digits.labels[:20]
    shares = []
    for size in (4.0, 48.0, 255.0):
        attack = attack_of(
            Selective, relaxed, digits, size=size, steps=40, threshold=guard.threshold
        )
        found = attack(images, labels, digits_victim, seed=0)
        verdicts = guard.inspect(found.images)
        shares.append(((verdicts.prediction != labels) & ~verdicts.is_adversarial).mean())
    assert shares[0] <= shares[1] <= shares[2]
    assert shares[2] >= 0.95


def test_wrong_settings_are_refused(relaxed: RelaxedGuard) -> None:
    """No steps, no budget and other norms are errors that say so."""
    with pytest.raises(AttackError, match="positive steps and restarts, got 0 and 1"):
        Selective(guard=relaxed, threshold=0.0, steps=0)
    with pytest.raises(AttackError, match="norm of linf or l2, got 'l1'"):
        Selective(guard=relaxed, threshold=0.0, norm="l1")


def test_only_the_test_split_of_the_guards_own_data_is_unseen(
    digits: Dataset, fitted: GuardArtifact, fit_settings: Order
) -> None:
    """What fitting or calibrating saw is never judged on; other data are taken whole."""
    manifest = fitted.manifest
    own = load_data(fit_settings.data)
    rows = unseen_rows(own, manifest)
    assert len(rows) == manifest.provenance["images"]["test"]
    work = fit_settings.shards
    seen = [np.load(file)["sources"] for file in work.glob("*/fit-*.npz")]
    assert seen
    assert not np.isin(rows, np.concatenate(seen)).any()
    other = digits.take(np.arange(300, 500))
    assert len(unseen_rows(other, manifest)) == 200


@pytest.fixture(scope="module")
def told() -> list[Step]:
    """What a callback is told of the red team."""
    return []


@pytest.fixture(scope="module")
def card(
    fitted: GuardArtifact,
    fit_settings: Order,
    told: list[Step],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("red")
    return red_team(fitted, fit_settings, out, progress=told.append), out


def test_the_whole_red_team_is_told(card: tuple[dict[str, Any], Path], told: list[Step]) -> None:
    """Each attack, ladder and comparison by its plan, to the end of all of it."""
    del card
    kinds = ("selective", "orthogonal", "combined", "lagrangian", "mimicry", "score-search")
    attacks = [f"{kind}-linf-{size}" for size in (32, 64) for kind in kinds]
    climbs = [f"{what} {norm}" for what in LOOKS for norm in ("linf", "l2")]
    assert_told_to_the_end(told, *attacks, *climbs, "answers and flags only", "more steps")


def red_team(
    fitted: GuardArtifact, fit_settings: Order, out: Path, **changes: Any
) -> dict[str, Any]:
    """Return the card of a small red team."""
    settings: dict[str, Any] = {
        "budgets": (32.0, 64.0),
        **EFFORT,
        "limit": 12,
        "ladders": {"linf": (16.0, 255.0), "l2": (1.0, 4.0)},
        "threads": 1,
    }
    asked = settings | changes
    report = redteam(fit_settings.model, fitted.path, fit_settings.data, out=out, **asked)
    return report.to_json()


def test_figures_are_those_of_the_saved_images(
    card: tuple[dict[str, Any], Path], guard: Guard
) -> None:
    """The real guard on the saved images gives the published best per image."""
    found, out = card
    arrays = np.load(out / "evasions.npz")
    verdicts = guard.inspect(arrays["images"])
    wrong = verdicts.prediction != arrays["labels"]
    for rate, limit in found["thresholds"].items():
        evaded = (wrong & (verdicts.score <= np.float32(limit))).mean()
        assert found["budgets"]["64"]["best per image"]["evaded"][rate]["value"] == evaded
    assert json.loads((out / "red_team.json").read_text()) == found
    print_red_team(RedTeamReport.from_json(found))
    assert RedTeamReport.from_json(found).to_json() == found


def test_larger_budgets_evade_at_least_as_often(card: tuple[dict[str, Any], Path]) -> None:
    """Per image the best counts, and no attack does better than the best."""
    budgets = card[0]["budgets"]
    rate = next(iter(card[0]["thresholds"]))
    best = [rows["best per image"]["evaded"][rate]["value"] for rows in budgets.values()]
    assert best[0] <= best[1]
    for rows, limit in zip(budgets.values(), best, strict=True):
        assert all(row["evaded"][rate]["value"] <= limit for row in rows.values())
    for shares in card[0]["ladders"].values():
        for column in shares.values():
            values = [entry["value"] for entry in column.values()]
            assert values == sorted(values)


def test_the_page_tells_it_all(card: tuple[dict[str, Any], Path]) -> None:
    """One self-contained page with every attack, curves by budget and what evaded."""
    page = (card[1] / "red_team.html").read_text()
    for word in ("selective", "mimicry", "score-search", "best per image", "bare model"):
        assert word in page
    assert page.count("<svg") == 2
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_restarts_made_one_at_a_time_are_the_same(
    digits: Dataset, relaxed: RelaxedGuard, digits_victim: Victim
) -> None:
    """The second of two restarts is what one restart from the second on is."""
    images, labels = digits.images[:8], digits.labels[:8]
    never: dict[str, Any] = {"threshold": -1e9, "size": 24.0}  # so that no image rests
    both = attack_of(Selective, relaxed, digits, restarts=2, **never)
    second = attack_of(Selective, relaxed, digits, first=1, **never)
    first = attack_of(Selective, relaxed, digits, **never)
    found = [attack(images, labels, digits_victim, seed=3) for attack in (both, first, second)]
    joined, *single = (result.images for result in found)
    same = [(joined == one).all(axis=(1, 2, 3)) for one in single]
    assert (same[0] | same[1]).all()
    assert same[1].any()


def test_a_stopped_red_team_goes_on(
    card: tuple[dict[str, Any], Path], fitted: GuardArtifact, fit_settings: Order
) -> None:
    """Nothing is tried twice: with one try lost, that one is made again and the rest is read."""
    found, out = card
    files = sorted((out / "work").glob("*/*.npz"))
    before = {file: file.stat().st_mtime_ns for file in files}
    files[0].unlink()
    again = red_team(fitted, fit_settings, out)
    after = {file: file.stat().st_mtime_ns for file in (out / "work").glob("*/*.npz")}
    assert after.keys() == before.keys()
    assert [file for file in files if after[file] != before[file]] == files[:1]
    assert {**again, "seconds": 0} == {**found, "seconds": 0}


def test_publishing_spends_no_try(
    card: tuple[dict[str, Any], Path],
    fitted: GuardArtifact,
    fit_settings: Order,
    tmp_path: Path,
) -> None:
    """The guard with its figures in it is the same guard to attack."""
    shutil.copytree(fitted.path, tmp_path / "guard")
    published = publish(
        tmp_path / "guard",
        RedTeamReport.from_json(card[0]).summary,
        digest=fitted.digest,
    )
    before = {file: file.stat().st_mtime_ns for file in (card[1] / "work").glob("*/*.npz")}
    again = red_team(published, fit_settings, card[1])
    assert {f: f.stat().st_mtime_ns for f in (card[1] / "work").glob("*/*.npz")} == before
    assert again["guard"] == published.digest
    assert again["budgets"] == card[0]["budgets"]
    red_team(fitted, fit_settings, card[1])  # leaves the folder as the other tests know it


def test_tries_at_another_guard_are_not_taken_for_this_ones(
    card: tuple[dict[str, Any], Path], fitted: GuardArtifact, fit_settings: Order
) -> None:
    """A folder of tries belongs to one guard, its images and one seed."""
    with pytest.raises(DataError, match="holds work of another images and seed"):
        red_team(fitted, fit_settings, card[1], seed=5)


def test_sparing_those_that_evaded_changes_no_evasion(
    card: tuple[dict[str, Any], Path],
    fitted: GuardArtifact,
    fit_settings: Order,
    tmp_path: Path,
) -> None:
    """Later attacks try what is left, and at the strictest rate as many evade in the end."""
    spared = red_team(fitted, fit_settings, tmp_path, everyone=False, ladders=False)
    strictest = min(spared["thresholds"], key=spared["thresholds"].get)
    for size, rows in spared["budgets"].items():
        best = card[0]["budgets"][size]["best per image"]["evaded"][strictest]
        assert rows["best per image"]["evaded"][strictest] == best
        tried = [row["images"] for row in rows.values() if "images" in row]
        assert tried[0] == 12
        assert tried == sorted(tried, reverse=True)
        assert tried[-1] < 12


def test_signs_of_a_blinded_attack_are_seen(card: tuple[dict[str, Any], Path]) -> None:
    """Gradients worse than questions, or a guard that holds without a bound, is a bug."""
    found = deepcopy(card[0])
    rate = max(found["thresholds"], key=float)
    assert False not in checks(RedTeamReport.from_json(found)).values()
    found["ladders"]["linf"][rate]["255"]["value"] = 0.5
    rows = found["budgets"]["64"]
    rows["score-search"]["evaded"][rate]["value"] = 1.0
    rows["best per image"]["evaded"][rate]["value"] = 0.0
    signs = checks(RedTeamReport.from_json(found))
    assert sum(held is False for held in signs.values()) == 3


def test_an_empty_test_holds_nothing(
    card: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without evasions, or with one budget, it can't be told whether more of it evades more."""
    first = "a larger budget evades more often"
    found = deepcopy(card[0])
    found["budgets"] = {"64": found["budgets"]["64"]}
    assert checks(RedTeamReport.from_json(found))[first] is None
    found = deepcopy(card[0])
    for rows in found["budgets"].values():
        for row in rows.values():
            for entry in row["evaded"].values():
                entry["value"] = 0.0
    report = RedTeamReport.from_json(found)
    signs = checks(report)
    assert signs[first] is None
    assert signs["gradients do better than questions"] is None
    print_red_team(replace(report, checks=signs))
    assert f"can't be told: 0 evasions: {first}" in capsys.readouterr().out
