"""What attacked images go through before they reach a classifier: in a fit, and in an evaluation.

Nobody uploads an attacked image as it is. A change that leaves the answer wrong hides an attack
from a guard that never saw the two together.

Chosen on ResNet-20 and 3,000 images of CIFAR-10, heads of one member and at most 250 rows a group,
18 attacks; mean and worst AUROC after a mild change and after one of the recipe's strengths, and
mean and most of the harmless changes flagged at 5 %:

    without                              .918 / .838   .842 / .742   .061   .122
    all that are answered wrong still    .927 / .847   .883 / .783   .086   .178
    of them what the attack caused       .926 / .858   .845 / .729   .069   .122
    without, alarms weighed              .911 / .834   .839 / .753   .052   .122
    all, alarms weighed                  .923 / .840   .876 / .772   .089   .178
    what the attack caused, likewise     .925 / .852   .856 / .746   .056   .111

What a change flips by itself is an accident, whatever was done before: taking it for an attack
teaches that harmless changes are attacks. So a fit leaves it out; an evaluation counts it.
"""

from reluguard.training.changes import (
    JPEG,
    Blur,
    Brightness,
    Change,
    Contrast,
    GaussianNoise,
    Shift,
)
from reluguard.training.changes.base import PHOTOGRAPH
from reluguard.training.changes.mixture import InTurn, Mixture
from reluguard.training.recipes.harmless import families, field_families
from reluguard.training.recipes.recipe import Portion

__all__ = ["COMPOSED", "afterwards", "judged_afterwards"]

# no noise that would flip the answer by itself
_ON_THE_WAY = ("gaussian", "jpeg", "blur", "pixelate", "brightness", "contrast", "shift")
_PHOTOGRAPHS_TOO = ("encoded", "resized", "cropped", "sharpened", "light", "colour", "turned")

COMPOSED = {
    "mild": "one mild change: JPEG, light or contrast by a tenth, a pixel's shift, noise, blur",
    "strong": "one harmless change of a recipe's strengths",
}


def afterwards(share: float, *, weight: float = 1.0, photographs: bool = False) -> Portion:
    """Return what a fit does to attacked images: one harmless change, or two in turn.

    Args:
        share: of the attacked images.
        weight: as a share of the attack's own.
        photographs: for images of 64 pixels a side or more, whose own changes are among them.
    """
    known = {mixture.name: mixture for mixture in (*families(), *field_families())}
    names = (*_ON_THE_WAY, *(_PHOTOGRAPHS_TOO if photographs else ()))
    return Portion(InTurn("changed", tuple(known[name] for name in names)), share, weight)


def judged_afterwards(height: int, width: int, channels: int) -> dict[str, Change]:
    """Return what an evaluation does to attacked images of this shape: the keys of `COMPOSED`."""
    mild = Mixture(
        "mild",
        (
            *(JPEG(quality=q) for q in (90, 75)),
            *(Brightness(amount=a) for a in (-0.1, 0.1)),
            *(Contrast(factor=f) for f in (0.9, 1.1)),
            *(Shift(down=d, right=r) for d, r in ((1, 0), (-1, 0), (0, 1), (0, -1))),
            GaussianNoise(sigma=4.0),
            Blur(sigma=0.4),
        ),
    )
    field = field_families() if min(height, width) >= PHOTOGRAPH else ()
    portions = (Portion(mild), Portion(Mixture("strong", (*families(), *field))))
    suited = (portion.for_images(height, width, channels) for portion in portions)
    return {one.change.name: one.change for one in suited if one and isinstance(one.change, Change)}
