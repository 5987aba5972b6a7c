"""The quick recipe: a usable guard in a few minutes, from the cheapest attacks of each kind.

reluguard fit --recipe quick --model MODEL.onnx --data IMAGES.npz --out GUARD
"""

from reluguard.training.attacks import (
    FGSM,
    PGD,
    DeepFool,
    Patch,
    Pushed,
    RandomSearch,
    SparsePGD,
    Spatial,
    Square,
)
from reluguard.training.recipes.afterwards import afterwards
from reluguard.training.recipes.harmless import harmless
from reluguard.training.recipes.photographs import quick_on_photographs
from reluguard.training.recipes.recipe import Portion, Recipe

__all__ = ["quick"]


def quick() -> Recipe:
    """Return the recipe."""
    return Recipe(
        name="quick",
        attacks=(
            Portion(FGSM(size=2.0), 0.5),
            Portion(FGSM(size=8.0), 0.25),
            Portion(PGD(size=1.0), 0.25),
            Portion(PGD(size=2.0), 0.3),
            Portion(PGD(size=4.0), 0.15),
            Portion(PGD(size=8.0), 0.15),
            Portion(PGD(norm="l2", size=0.25), 0.15),
            Portion(DeepFool(steps=15), 0.06),
            Portion(Square(size=8.0, most_queries=150), 0.08),
            Portion(Spatial(), 0.1),
            Portion(SparsePGD(steps=20), 0.06),
            Portion(Patch(steps=20), 0.06),
            Portion(RandomSearch(), 0.1, weight=0.5),
            Portion(Pushed(), 0.15, weight=2.0),
        ),
        benign=harmless(0.15),
        then=(afterwards(0.6, weight=0.5),),
        large=quick_on_photographs(),
    )
