"""Shipped recipes and what a recipe refuses."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from reluguard.training.attacks import FGSM, PGD, Attack, Patch, SparsePGD, Varied
from reluguard.training.changes import Blur, Change, GaussianNoise, Grey
from reluguard.training.changes.mixture import Mixture
from reluguard.training.errors import AttackError, DataError
from reluguard.training.recipes import Portion, Recipe, recipe_named
from reluguard.training.recipes.harmless import in_the_field

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
    with pytest.raises(
        DataError, match="a recipe of default, quick, digits, or module:name of yours, got"
    ):
        recipe_named("nix")


def test_a_recipe_of_yours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the working folder lends one, made or to be made; else it is named."""
    (tmp_path / "my_recipes.py").write_text(
        "from reluguard.training.attacks import FGSM\n"
        "from reluguard.training.recipes import Portion, Recipe\n"
        "small = Recipe(name='small', attacks=(Portion(FGSM(size=3.0)),), benign=())\n"
        "def made(): return small\n"
        "number = 7\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    try:
        small = Recipe(name="small", attacks=(Portion(FGSM(size=3.0)),), benign=())
        assert recipe_named("my_recipes:small") == recipe_named("my_recipes:made") == small
        with pytest.raises(DataError, match="expected my_recipes:number to be a Recipe, got int"):
            recipe_named("my_recipes:number")
        with pytest.raises(DataError, match="can't find the recipe my_recipes:missing"):
            recipe_named("my_recipes:missing")
    finally:
        sys.modules.pop("my_recipes", None)


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
    """At 32 pixels it is what it says; L2, places, patches and blurs grow, 8-bit steps do not."""
    recipe = Recipe(
        name="mine",
        attacks=(
            Portion(PGD(size=2.0)),
            Portion(SparsePGD(places=20)),
            Portion(Varied("patches", (Patch(side=4), Patch(side=8))), 0.5, weight=2.0),
            Portion(PGD(norm="l2", size=0.5)),
        ),
        benign=(Portion(GaussianNoise(sigma=2.0)), Portion(Blur(sigma=0.5))),
    )
    assert recipe.for_images(32, 32) == recipe
    large = recipe.for_images(128, 128)
    assert large.attacks == (
        recipe.attacks[0],
        Portion(SparsePGD(places=320, step=960.0)),
        Portion(Varied("patches", (Patch(side=16), Patch(side=32))), 0.5, weight=2.0),
        Portion(PGD(norm="l2", size=1.0)),
    )
    assert large.benign == (recipe.benign[0], Portion(Blur(sigma=1.0)))
    small = recipe.for_images(2, 2)
    assert small.attacks[1] == Portion(SparsePGD(places=1))
    assert small.attacks[3] == recipe.attacks[3]
    assert small.benign == recipe.benign


def test_a_budget_tells_the_truth_after_growing() -> None:
    """The name that reports and the manifest show is that of what is done."""
    recipe = recipe_named("default").for_images(224, 224)
    for portion in recipe.attacks:
        change = portion.change
        assert isinstance(change, Attack)
        if not isinstance(change, Varied) and change.budget.norm in {"l2", "l1", "linf"}:
            assert change.name.endswith(str(change.budget))
    assert {"pgd-l2-0.661", "patch-42", "sparse-l0-980"} <= {p.change.name for p in recipe.attacks}


@pytest.mark.parametrize("name", ["default", "quick"])
def test_photographs_meet_what_happens_to_photographs(name: str) -> None:
    """From 64 pixels a side on the recipe is another; at 32 it is just what it was."""
    recipe = recipe_named(name)
    field = {portion.change.name for portion in in_the_field(1.0)}
    for side, expected in ((28, set()), (32, set()), (63, set()), (64, field), (224, field)):
        suited = recipe.for_images(side, side)
        assert suited.name == name
        assert {portion.change.name for portion in suited.benign} & field == expected
    assert recipe.for_images(32, 32) == recipe
    assert "large" not in recipe.to_json()


@pytest.mark.parametrize("name", SHIPPED)
def test_grey_images_get_no_changes_of_colour(name: str) -> None:
    """Every harmless change of a recipe for grey photographs changes them."""
    suited = recipe_named(name).for_images(96, 96, 1)
    for portion in suited.benign:
        parts = portion.change.changes if isinstance(portion.change, Mixture) else [portion.change]
        assert not [part for part in parts if isinstance(part, Change) and part.needs_colour]
    grey_alone = Recipe(name="x", attacks=(), benign=(Portion(Grey()),))
    assert grey_alone.for_images(96, 96, 1).benign == ()
    assert grey_alone.for_images(96, 96, 3) == grey_alone


def test_a_share_of_few_images_is_filled_up() -> None:
    """A portion is its share of the images, at least so many, and no more than there are."""
    portion = Portion(FGSM(size=1.0), 0.1)
    counts = {count: portion.images(count, 60) for count in (5, 60, 300, 600, 5000)}
    assert counts == {5: 5, 60: 60, 300: 60, 600: 60, 5000: 500}
    assert portion.images(3, 0) == 1
    assert [portion.images(count, 60, 600) for count in (300, 600, 5000, 10**6)] == [
        portion.images(count, 60) for count in (300, 600, 600, 600)
    ]


@pytest.mark.parametrize("name", SHIPPED)
def test_no_patch_is_larger_than_a_small_image(name: str) -> None:
    """Every shipped recipe has room on 8 x 8 digits."""
    for portion in recipe_named(name).for_images(8, 8).attacks:
        parts = portion.change.attacks if isinstance(portion.change, Varied) else [portion.change]
        assert all(part.side <= 8 for part in parts if isinstance(part, Patch))
