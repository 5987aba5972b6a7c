"""Recipes: what a guard is fitted on, as typed values. One file each, its results beside it."""

from collections.abc import Callable, Mapping

from reluguard.training.errors import DataError
from reluguard.training.lent import Lent
from reluguard.training.recipes.default import default
from reluguard.training.recipes.digits import digits
from reluguard.training.recipes.quick import quick
from reluguard.training.recipes.recipe import Portion, Recipe

__all__ = ["Portion", "Recipe", "recipe_named"]

_KNOWN: Mapping[str, Callable[[], Recipe]] = {"default": default, "quick": quick, "digits": digits}


def recipe_named(name: str) -> Recipe:
    """Return a shipped recipe, or as `module:name` yours: a `Recipe`, or a function that makes one.

    Raises:
        DataError: there is none of this name, or what is there is no recipe.
    """
    if name in _KNOWN:
        return _KNOWN[name]()
    if ":" not in name:
        raise DataError(
            f"expected a recipe among {', '.join(_KNOWN)}, or module:name of yours, got {name!r}"
        )
    lent = Lent(name, "recipe", DataError)
    found = lent.find()
    made = lent.make(found) if callable(found) else found
    if not isinstance(made, Recipe):
        raise DataError(f"expected {name} to be a Recipe, got {type(made).__name__}")
    return made
