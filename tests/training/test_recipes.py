"""Shipped recipes and what a recipe refuses."""

import json
from dataclasses import replace

import pytest

from reluguard.training.attacks import FGSM, PGD, Attack, Patch, SparsePGD, Varied
from reluguard.training.changes import GaussianNoise
from reluguard.training.changes.mixture import Mixture
from reluguard.training.errors import AttackError, DataError
from reluguard.training.recipes import Portion, Recipe, recipe_named

SHIPPED = ("default", "quick", "digits")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_sound(name: str) -> None:
    """Each has attacks and harmless changes, three parts that use every image, and plain JSON."""
    recipe = recipe_named(name)
    assert recipe.name == name
    assert all(isinstance(portion.change, Attack) for portion in recipe.attacks)
    assert recipe.benign
    assert not any(isinstance(portion.change, Attack) for portion in recipe.benign)
    assert recipe.fit + recipe.calibrate + recipe.test == pytest.approx(1)
    assert json.loads(json.dumps(recipe.to_json())) == recipe.to_json()
    assert recipe_named(name) == recipe


@pytest.mark.parametrize("name", SHIPPED)
def test_slugs_are_folder_names(name: str) -> None:
    """A slug names a folder of shards, so it is one plain word."""
    recipe = recipe_named(name)
    for portion in (*recipe.attacks, *recipe.benign):
        slug = portion.change.name
        assert slug.replace("-", "").replace(".", "").isalnum(), slug
        assert not slug.startswith(".")


@pytest.mark.parametrize("name", ["default", "quick"])
def test_black_box_users_are_served(name: str) -> None:
    """Without a twin some attacks are left."""
    changes = [portion.change for portion in recipe_named(name).attacks]
    assert sum(isinstance(c, Attack) and not c.needs_gradients for c in changes) >= 2


def test_json_tells_settings_apart() -> None:
    """Two recipes whose attacks differ in one setting, or a share, are written differently."""
    one = Recipe(name="x", attacks=(Portion(PGD(size=4.0)),), benign=())
    others = [
        replace(one, attacks=(Portion(PGD(size=4.0, steps=9)),)),
        replace(one, attacks=(Portion(PGD(size=4.0), 0.5),)),
        replace(one, levels=()),
        replace(one, test=0.1),
    ]
    texts = {json.dumps(recipe.to_json()) for recipe in (one, *others)}
    assert len(texts) == 5


def test_an_unknown_recipe_names_the_known() -> None:
    """The message lists what there is."""
    with pytest.raises(DataError, match="among default, quick, digits, got 'nix'"):
        recipe_named("nix")


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_is_a_share(share: float) -> None:
    """Each change applies to some of the images, at most to all."""
    with pytest.raises(DataError, match="expected a share of sources in"):
        Portion(FGSM(size=1.0), share)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_is_positive(weight: float) -> None:
    """A group that weighs nothing would divide by nothing."""
    with pytest.raises(DataError, match="expected a positive weight"):
        Portion(FGSM(size=1.0), weight=weight)


def test_a_change_comes_once() -> None:
    """Two changes of one name would share their shards, and `clean` is taken."""
    with pytest.raises(DataError, match="once, got fgsm-linf-1 twice"):
        Recipe(name="x", attacks=(Portion(FGSM(size=1.0)),) * 2, benign=())
    with pytest.raises(DataError, match="once, got clean twice"):
        Recipe(
            name="x",
            attacks=(Portion(FGSM(size=1.0)),),
            benign=(Portion(Mixture("clean", (GaussianNoise(sigma=1.0),))),),
        )


def test_a_mixture_needs_something_to_mix() -> None:
    """No change to choose from is an error."""
    with pytest.raises(AttackError, match="at least one change to mix, got none"):
        Mixture("nothing", ())


def test_a_recipe_fits_the_size_of_the_images() -> None:
    """At 32 pixels it is what it says; places grow with the side, norms do not."""
    recipe = Recipe(
        name="mine",
        attacks=(
            Portion(PGD(size=2.0)),
            Portion(SparsePGD(places=20)),
            Portion(Varied("patches", (Patch(side=4), Patch(side=8))), 0.5, weight=2.0),
        ),
        benign=(Portion(GaussianNoise(sigma=2.0)),),
    )
    assert recipe.for_images(32, 32) == recipe
    large = recipe.for_images(64, 64).attacks
    assert large[0] == recipe.attacks[0]
    assert large[1] == Portion(SparsePGD(places=40))
    assert large[2] == Portion(Varied("patches", (Patch(side=8), Patch(side=16))), 0.5, weight=2.0)
    assert recipe.for_images(2, 2).attacks[1] == Portion(SparsePGD(places=1))


@pytest.mark.parametrize("name", SHIPPED)
def test_no_patch_is_larger_than_a_small_image(name: str) -> None:
    """Every shipped recipe has room on 8 x 8 digits."""
    for portion in recipe_named(name).for_images(8, 8).attacks:
        parts = portion.change.attacks if isinstance(portion.change, Varied) else [portion.change]
        assert all(part.side <= 8 for part in parts if isinstance(part, Patch))
