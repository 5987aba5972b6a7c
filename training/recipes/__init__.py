"""Recipes: what a guard is fitted on, as typed values. One file each, its results beside it."""

from collections.abc import Callable, Mapping

from reluguard.training.errors import DataError
from reluguard.training.plugged import Shelf
from reluguard.training.recipes.default import default
from reluguard.training.recipes.digits import digits
from reluguard.training.recipes.quick import quick
from reluguard.training.recipes.recipe import Portion, Recipe

__all__ = ["Portion", "Recipe", "recipe_named"]

GROUP = "reluguard.recipes"

_KNOWN: Mapping[str, Callable[[], Recipe]] = {"default": default, "quick": quick, "digits": digits}


def recipe_named(name: str) -> Recipe:
    """Return a recipe: shipped, another distribution's, or yours as `module:name`.

    Yours may be in a file, `mine.py:name`. It is a `Recipe`, or a function that makes one.

    Raises:
        DataError: there is none of this name, or what is there is no recipe.
    """
    return Shelf(what="recipe", kind=Recipe, group=GROUP, own=_KNOWN, refusal=DataError).named(name)
