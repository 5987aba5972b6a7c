"""What the networks are attacked with where whether all works matters, not how well."""

from dataclasses import replace

from reluguard.training.attacks import FGSM, PGD
from reluguard.training.changes import JPEG, GaussianNoise
from reluguard.training.head.fit import HeadSettings
from reluguard.training.recipes import Portion, Recipe, recipe_named

__all__ = ["EVALUATED", "HARMLESS", "few", "tiny"]

EVALUATED = ("fgsm-linf-4", "pgd-linf-2")
HARMLESS = ("gaussian-c1", "jpeg-c1")


def tiny() -> Recipe:
    """Return a recipe of a few attacks and harmless changes."""
    return Recipe(
        name="tiny",
        attacks=(
            Portion(FGSM(size=4.0)),
            Portion(PGD(size=2.0, steps=5), 0.5),
            Portion(PGD(size=8.0, steps=5), 0.3),
        ),
        benign=(Portion(GaussianNoise(sigma=4.0), 0.5), Portion(JPEG(quality=75), 0.5)),
        head=HeadSettings(epochs=20, batch=64),
    )


def few() -> Recipe:
    """Return all of the quick recipe for photographs, on as few of them as tell that it works."""
    quick = recipe_named("quick")
    assert quick.large is not None
    return replace(quick.large, name="few", least={"fit": 12, "test": 6})
