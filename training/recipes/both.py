"""A share of a recipe's attacks made on both looks at once, for a guard that looks again.

What a second head learns from attacks on the first look alone is that the second one disagrees.
An attack on both leaves nothing of that, and such a head is worse there than the first look: on
ResNet-20 with the mirror PGD 2/255 on both has an AUROC of .72 where the first look has .90. With a
hundred images of each of four such attacks in the fit it comes to .82, whatever they weigh, with
four hundred of each of three to .89: so there are many, of attacks that are quickly made.
"""

from dataclasses import replace

from reluguard.training.attacks import Attack
from reluguard.training.looks.both import AtBoth
from reluguard.training.recipes.recipe import Portion, Recipe

__all__ = ["with_both"]

SHARE = 0.3  # of an attack's images; each costs twice as much
MOST_PASSES = 30  # of an attack for one image: others would take too long


def with_both(recipe: Recipe) -> Recipe:
    """Return the recipe with its attacks that follow gradients led by both looks as well."""
    more = [
        Portion(AtBoth(attack=p.change), p.share * SHARE, p.weight)
        for p in recipe.attacks
        if isinstance(p.change, Attack) and p.change.needs_gradients and _is_quick(p.change)
    ]
    return replace(recipe, attacks=(*recipe.attacks, *more))


def _is_quick(attack: Attack) -> bool:
    passes = attack.passes
    return passes.climbed + passes.exact <= MOST_PASSES
