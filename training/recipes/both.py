"""A share of a recipe's attacks made on both looks at once, for a guard that looks again."""

from dataclasses import replace

from reluguard.training.attacks import Attack
from reluguard.training.looks.both import AtBoth
from reluguard.training.recipes.recipe import Portion, Recipe

__all__ = ["with_both"]

SHARE = 0.15  # of an attack's images; each costs twice as much
WEIGHT = 0.5  # of an attack's


def with_both(recipe: Recipe) -> Recipe:
    """Return the recipe with its attacks that follow gradients led by both looks as well."""
    more = [
        Portion(AtBoth(attack=p.change), p.share * SHARE, p.weight * WEIGHT)
        for p in recipe.attacks
        if isinstance(p.change, Attack) and p.change.needs_gradients
    ]
    return replace(recipe, attacks=(*recipe.attacks, *more))
