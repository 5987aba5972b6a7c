"""Recipes: what a guard is fitted on, as typed values. One file each, its results beside it."""

from collections.abc import Callable, Mapping

from reluguard.training.errors import DataError
from reluguard.training.recipes.default import default
from reluguard.training.recipes.digits import digits
from reluguard.training.recipes.quick import quick
from reluguard.training.recipes.recipe import Portion, Recipe

__all__ = ["Portion", "Recipe", "recipe_named"]

_KNOWN: Mapping[str, Callable[[], Recipe]] = {"default": default, "quick": quick, "digits": digits}


def recipe_named(name: str) -> Recipe:
    """Return a shipped recipe.

    Raises:
        DataError: there is none of this name.
    """
    if name not in _KNOWN:
        raise DataError(f"expected a recipe among {', '.join(_KNOWN)}, got {name!r}")
    return _KNOWN[name]()
