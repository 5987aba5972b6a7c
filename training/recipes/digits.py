"""The recipe of the demo: 8 x 8 digits, whose strokes take larger budgets to rewrite.

reluguard demo
"""

from reluguard.training.attacks import FGSM, PGD, DeepFool
from reluguard.training.changes import Brightness, GaussianNoise, SignNoise
from reluguard.training.changes.mixture import Mixture
from reluguard.training.head.fit import HeadSettings
from reluguard.training.recipes.recipe import Portion, Recipe

__all__ = ["digits"]


def digits() -> Recipe:
    """Return the recipe."""
    return Recipe(
        name="digits",
        attacks=(
            Portion(FGSM(size=48.0)),
            Portion(PGD(size=32.0)),
            Portion(PGD(size=48.0)),
            Portion(PGD(norm="l2", size=1.5)),
            Portion(DeepFool(), 0.5),
        ),
        benign=(
            Portion(Mixture("gaussian", tuple(GaussianNoise(sigma=s) for s in (8.0, 16.0, 32.0)))),
            Portion(Mixture("sign", tuple(SignNoise(size=s) for s in (16.0, 32.0, 48.0)))),
            Portion(Mixture("brightness", tuple(Brightness(amount=a) for a in (-0.1, 0.1)))),
        ),
        head=HeadSettings(epochs=40, batch=128),
        fit=0.5,
        calibrate=0.3,
        test=0.2,
    )
