"""What the shipped recipes do where images have 64 pixels a side or more.

At 224 pixels a step of an attack costs some forty times what it does at 32, and there are fewer
images. So attacks take fewer steps where the gain is least, on smaller shares of the images.

EfficientNet-Lite0, 224 pixels, one busy core of an AMD EPYC (Zen 4): a question 12 ms, in batches
of four a step of PGD 75 ms. Measured, seconds an image and the share fooled, of 8 to 32, beside
ResNet-20's on 64 images of 32 pixels at the recipe's longer runs:

    attack               steps     s    fooled  ResNet-20
    pgd-linf-1              10   .76      1.00        .83
    pgd-l2-0.25             10   .77      1.00        .97    size .66; unscaled .44
    pgd-l1-12               10   .79       .94        .97    size 350; unscaled x 7 .12
    deepfool-l2             15   .89      1.00       1.00
    fmn-l2                  15   .79      1.00       1.00
    cw-l2               3 x 15  2.43      1.00       1.00
    square-linf-8          150   .95       .62        .80
    sparse-l0-20            15  1.10       .75        .66    980 places; 140 .06, 392 .38
    patch-6                 15   .90       .88        .92    a side of 42
    spatial                 63   .80       .25        .80
    random-search            8   .12       .25        .50    blocks of the same share; fixed .20

The last two fool what is fragile to turns and blocks, as a network for photographs is not, whatever
their size; `random-search` tries twice as often here.
"""

from reluguard.training.attacks import (
    APGD,
    CWL2,
    FGSM,
    FMN,
    PGD,
    DeepFool,
    Patch,
    Pushed,
    RandomSearch,
    SparsePGD,
    Spatial,
    Square,
    Varied,
    VariedQueries,
)
from reluguard.training.recipes.afterwards import afterwards
from reluguard.training.recipes.harmless import harmless, in_the_field
from reluguard.training.recipes.recipe import Portion, Recipe

__all__ = ["default_on_photographs", "quick_on_photographs"]


def default_on_photographs() -> Recipe:
    """Return the default recipe for them.

    1,700 photographs are 1,840 to attack in fitting, mirror images among them, and 180 in testing.
    Seconds of one core: PGD with L2 and L1, 1.37 times 2,020 images at .78 each, 2,150; APGD 280;
    FGSM 300; CW 890; DeepFool and FMN 370; squares 500; turns 290; places 400 and patches 330;
    chance 80. That is 5,600 s; harmless changes are 9,900 forward passes, 180 s. With two cores it
    comes to 48 minutes, and fitting the head after that. Reckoned and not measured: pushes 150 s,
    and changes afterwards two questions for .6 of 9,400 attacked images, 140 s.
    """
    return Recipe(
        name="default",
        attacks=(
            Portion(FGSM(size=1.0), 0.4),
            Portion(FGSM(size=2.0), 0.4, weight=1.5),
            Portion(FGSM(size=4.0), 0.3),
            Portion(FGSM(size=8.0), 0.2),
            Portion(
                Varied("fgsm-varied", tuple(FGSM(size=s) for s in (3.0, 6.0, 12.0, 16.0))),
                0.2,
                weight=0.5,
            ),
            Portion(PGD(size=1.0), 0.3, weight=1.5),
            Portion(PGD(size=2.0), 0.35, weight=2.0),
            Portion(PGD(size=4.0), 0.15),
            Portion(PGD(size=8.0), 0.12),
            Portion(APGD(loss="dlr", size=2.0, steps=8), 0.2, weight=1.5),
            Portion(PGD(norm="l2", size=0.25), 0.2, weight=1.5),
            Portion(PGD(norm="l2", size=0.75), 0.15),
            Portion(PGD(norm="l1", size=12.0), 0.1),
            Portion(DeepFool(steps=15), 0.1),
            Portion(FMN(norm="l2", steps=15), 0.12),
            Portion(CWL2(searches=3, steps=15), 0.1),
            Portion(CWL2(confidence=10.0, searches=3, steps=15), 0.08, weight=1.5),
            Portion(Square(size=8.0, most_queries=150), 0.1),
            Portion(Square(size=4.0, most_queries=150), 0.1),
            Portion(Spatial(), 0.1),
            Portion(
                VariedQueries(
                    "spatial-varied",
                    (Spatial(padding="border"), Spatial(padding="reflection"), Spatial(degrees=15)),
                ),
                0.08,
                weight=0.5,
            ),
            Portion(SparsePGD(steps=15), 0.12),
            Portion(
                Varied(
                    "sparse-varied", (SparsePGD(places=8, steps=15), SparsePGD(places=40, steps=15))
                ),
                0.06,
                weight=0.5,
            ),
            Portion(Patch(steps=15), 0.12),
            Portion(
                Varied("patch-varied", (Patch(side=4, steps=15), Patch(side=9, steps=15))),
                0.06,
                weight=0.5,
            ),
            Portion(RandomSearch(tries=16), 0.2, weight=0.5),
            Portion(Pushed(), 0.15, weight=4.0),
        ),
        benign=(*harmless(0.2), *in_the_field(0.2)),
        then=(afterwards(0.6, weight=0.5, photographs=True),),
    )


def quick_on_photographs() -> Recipe:
    """Return the quick recipe for them.

    450 photographs are 490 to attack in fitting, mirror images among them, and 48 in testing, and
    what is costly gets 60 and 30 of these. In seconds of one core: FGSM 40, PGD 510, DeepFool 80,
    squares 70, turns 70, few places 80 and patches 70, chance 20: 940. Harmless changes are 2,000
    forward passes, 40 s. With two cores it comes to 8 minutes, and a minute or two for the head.
    """
    return Recipe(
        name="quick",
        attacks=(
            Portion(FGSM(size=2.0), 0.5),
            Portion(FGSM(size=8.0), 0.25),
            Portion(PGD(size=1.0), 0.25),
            Portion(PGD(size=2.0), 0.25),
            Portion(PGD(size=4.0), 0.1),
            Portion(PGD(size=8.0), 0.1),
            Portion(PGD(norm="l2", size=0.25), 0.1),
            Portion(PGD(norm="l2", size=0.75), 0.1),
            Portion(DeepFool(steps=10), 0.06),
            Portion(Square(size=8.0, most_queries=100), 0.06),
            Portion(Spatial(), 0.06),
            Portion(SparsePGD(steps=12), 0.06),
            Portion(Patch(steps=12), 0.06),
            Portion(RandomSearch(tries=16), 0.1, weight=0.5),
            Portion(Pushed(), 0.1, weight=2.0),
        ),
        benign=(*harmless(0.1), *in_the_field(0.1)),
        then=(afterwards(0.6, weight=0.5, photographs=True),),
    )
