"""What the shipped recipes do on photographs."""

from reluguard.training.attacks import FGSM
from reluguard.training.recipes.harmless import harmless, in_the_field
from reluguard.training.recipes.recipe import Portion, Recipe

__all__ = ["default_on_photographs", "quick_on_photographs"]


def default_on_photographs() -> Recipe:
    """Return it."""
    return Recipe(
        name="default",
        attacks=(Portion(FGSM(size=1.0), 0.7),),
        benign=(*harmless(0.2), *in_the_field(0.2)),
    )


def quick_on_photographs() -> Recipe:
    """Return it."""
    return Recipe(
        name="quick",
        attacks=(Portion(FGSM(size=1.0), 0.7),),
        benign=(*harmless(0.1), *in_the_field(0.1)),
    )
