"""The red team: its guard is the real one, its images keep every promise, its figures are true."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from detector.artifact import GuardArtifact, read_guard
from detector.model import load_production
from detector.runtime import Guard
from training.attacks import Victim
from training.aware import (
    Aware,
    Bank,
    CombinedLogit,
    Lagrangian,
    Mimicry,
    Orthogonal,
    ScoreSearch,
    Selective,
)
from training.data import Dataset, load_data
from training.errors import AttackError, DataError
from training.holdout import unseen_rows
from training.pipeline import FitSettings, work_folder
from training.redteam import print_red_team, publish, redteam
from training.relaxed import RelaxedGuard
from training.twin import to_pixels

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


def test_the_search_counts_its_questions(
    digits: Dataset, guard: Guard, digits_victim: Victim
) -> None:
    """The black box asks no more than allowed and rests once it evades."""
    attack = ScoreSearch(guard=guard, threshold=guard.threshold, size=64.0, most_queries=40)
    found = attack(digits.images[:10], digits.labels[:10], digits_victim, seed=0)
    assert found.queries is not None
    assert found.queries.max() <= 40
    verdicts = guard.inspect(found.images)
    evades = found.success & (verdicts.score <= guard.threshold)
    assert (found.queries[~evades] == 40).all()
    assert found.linf.max() <= 64


def test_wrong_settings_are_refused(relaxed: RelaxedGuard) -> None:
    """No steps, no budget and other norms are errors that say so."""
    with pytest.raises(AttackError, match="positive steps and restarts, got 0 and 1"):
        Selective(guard=relaxed, threshold=0.0, steps=0)
    with pytest.raises(AttackError, match="norm of linf or l2, got 'l1'"):
        Selective(guard=relaxed, threshold=0.0, norm="l1")


def test_only_the_test_split_of_the_guards_own_data_is_unseen(
    digits: Dataset, fitted: GuardArtifact, fit_settings: FitSettings
) -> None:
    """What fitting or calibrating saw is never judged on; other data are taken whole."""
    manifest = fitted.manifest
    own = load_data(fit_settings.data)
    rows = unseen_rows(own, manifest)
    assert len(rows) == manifest.provenance["images"]["test"]
    work = work_folder(fit_settings)
    seen = [np.load(file)["sources"] for file in work.glob("*/fit-*.npz")]
    assert seen
    assert not np.isin(rows, np.concatenate(seen)).any()
    other = digits.take(np.arange(300, 500))
    assert len(unseen_rows(other, manifest)) == 200


@pytest.fixture(scope="module")
def card(
    fitted: GuardArtifact, fit_settings: FitSettings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("red")
    found = redteam(
        fit_settings.model,
        fitted.path,
        fit_settings.data,
        out,
        budgets=(32.0, 64.0),
        steps=6,
        restarts=1,
        queries=20,
        limit=12,
        ladders={"linf": (16.0, 255.0), "l2": (1.0, 4.0)},
        threads=1,
    )
    return found, out


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
    print_red_team(found)


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


def test_publishing_changes_the_manifest_only(
    card: tuple[dict[str, Any], Path], fitted: GuardArtifact, tmp_path: Path
) -> None:
    """The figures go into the manifest; head, golden and reports stay; others' are refused."""
    folder = tmp_path / "guard"
    shutil.copytree(fitted.path, folder)
    before = read_guard(folder)
    after = publish(folder, card[0])
    assert after.manifest.metrics["red_team"] == card[0]["summary"]
    assert after.digest != before.digest
    for name in ("report.json", "report.html"):
        assert (folder / name).read_bytes() == (fitted.path / name).read_bytes()
    for name, value in before.head.to_arrays().items():
        assert_array_equal(value, after.head.to_arrays()[name])
    with pytest.raises(DataError, match="got another guard's"):
        publish(folder, card[0])
