"""Composed attacks in a recipe, a fit and an evaluation: groups of their own, one family."""

import json
from pathlib import Path

import numpy as np
import pytest

from reluguard.detector.artifact import GuardArtifact
from reluguard.training.attacks import FGSM, PGD
from reluguard.training.changes import Blur, GaussianNoise
from reluguard.training.composed import attack_of, change_of, composed_name, is_composed
from reluguard.training.errors import DataError
from reluguard.training.evaluation.leave_out import family
from reluguard.training.evaluation.report_card import ReportCard
from reluguard.training.pages.report_card_text import print_card
from reluguard.training.provenance import FittedWith, provenance_of
from reluguard.training.recipes import Portion, Recipe, recipe_named
from reluguard.training.recipes.afterwards import COMPOSED, judged_afterwards
from tests.training.fitting import Order


def test_a_name_tells_both_parts() -> None:
    """Together, apart, and nothing of a plain attack."""
    name = composed_name("pgd-linf-4", "changed")
    assert (attack_of(name), change_of(name), is_composed(name)) == ("pgd-linf-4", "changed", True)
    assert (attack_of("fgsm"), change_of("fgsm"), is_composed("fgsm")) == ("fgsm", "", False)


@pytest.mark.parametrize("attack", ["pgd-linf-4", "cw-l2-k10", "spatial", "patch-6", "mine-3"])
def test_it_is_of_the_attacks_family(attack: str) -> None:
    """Or a family that is left out would be seen after a change."""
    assert family(composed_name(attack, "changed")) == family(attack)


@pytest.mark.parametrize("name", ["default", "quick"])
@pytest.mark.parametrize("side", [32, 224])
def test_shipped_recipes_change_what_they_attacked(name: str, side: int) -> None:
    """Every attack, as one group each, that weighs a part of what the attack does."""
    recipe = recipe_named(name).for_images(side, side)
    stored = FittedWith.from_json(json.loads(json.dumps(recipe.to_json())))
    assert len(stored.composed) == len(recipe.attacks)
    assert all(stored.kinds[slug] == "attack" for slug in stored.composed)
    for slug in stored.composed:
        assert 0 < stored.weights[slug] < stored.weights[attack_of(slug)]


def test_a_recipe_refuses_what_it_cannot_tell_apart() -> None:
    """Attacks after attacks, names taken twice, names that look composed."""
    attack = Portion(FGSM(size=1.0))
    with pytest.raises(DataError, match="harmless changes after attacks, got pgd-linf-8"):
        Recipe(name="x", attacks=(attack,), benign=(), then=(Portion(PGD()),))
    noise = Portion(GaussianNoise(sigma=1.0))
    with pytest.raises(DataError, match="once, got gaussian-1 twice"):
        Recipe(name="x", attacks=(attack,), benign=(noise,), then=(noise,))

    class Odd(Blur):
        @property
        def name(self) -> str:
            return "a+b"

    with pytest.raises(DataError, match=r"names of changes without a \+, got a\+b"):
        Recipe(name="x", attacks=(attack,), benign=(Portion(Odd(sigma=1.0)),))


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (96, 80, 3), (96, 96, 1)])
def test_an_evaluation_changes_images_of_any_shape(shape: tuple[int, int, int]) -> None:
    """Both kinds give whole pixels, and change most images."""
    made = judged_afterwards(*shape)
    assert made.keys() == COMPOSED.keys()
    images = np.random.default_rng(0).integers(0, 256, (12, *shape), np.uint8)
    for change in made.values():
        changed = change(images, seed=0)
        assert changed.shape == images.shape
        assert (changed != images).any(axis=(1, 2, 3)).sum() >= 8


def test_a_fit_reports_them_apart(
    fitted: GuardArtifact, fit_settings: Order, capsys: pytest.CaptureFixture[str]
) -> None:
    """By attack, beside the plain figures and outside their mean; never more than were attacked."""
    card = ReportCard.from_json(json.loads((fitted.path / "report.json").read_text()))
    (entry,) = card.composed.values()
    assert entry.attacks.keys() == card.attacks.keys()
    assert not any(is_composed(slug) for slug in card.attacks)
    for slug, figures in entry.attacks.items():
        assert figures.succeeded <= card.attacks[slug].succeeded
        assert figures.tried <= card.attacks[slug].tried
    areas = [one.auroc.value for one in card.attacks.values() if one.auroc]
    assert card.summary.mean_auroc == pytest.approx(np.mean(areas))
    assert "Attacked, then changed" in (fitted.path / "report.html").read_text()
    print_card(card)
    assert "attacked, then changed: mean AUROC" in capsys.readouterr().out
    recipe = provenance_of(fitted.manifest).recipe
    assert recipe is not None
    for slug in recipe.composed:
        assert sorted(Path(fit_settings.shards / slug).glob("fit-*.npz"))
