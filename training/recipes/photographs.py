"""What the shipped recipes do where images have 64 pixels a side or more.

At 224 pixels a step of an attack costs a hundred times what it does at 32, and there are fewer
images. So attacks take fewer steps where the gain is least, on smaller shares of the images.

EfficientNet-Lite0, 224 pixels, one busy core of an AMD EPYC (Zen 4): forward and backward in the
twin @@@ ms an image, a question to ONNX Runtime 12 ms. The figures below are seconds of one core
from that, for photographs that the model answers right in mirror image as well.

"""

from reluguard.training.attacks import (
    APGD,
    CWL2,
    FGSM,
    FMN,
    PGD,
    DeepFool,
    Patch,
    RandomSearch,
    SparsePGD,
    Spatial,
    Square,
    Varied,
    VariedQueries,
)
from reluguard.training.recipes.harmless import harmless, in_the_field
from reluguard.training.recipes.recipe import Portion, Recipe

__all__ = ["default_on_photographs", "quick_on_photographs"]


def default_on_photographs() -> Recipe:
    """Return the default recipe for them.

    1,700 photographs are 1,840 to attack in fitting, mirror images among them, and 180 in testing.
    PGD of ten steps takes .8 s each on 1.27 of 2,020 images in all, 2,050 s with its L2 and L1;
    APGD 280, FGSM 300, CW 45 steps on .18 1,240, DeepFool and FMN 590, squares 600, turns 280, few
    places and patches 840. That is 6,200 s; harmless changes are 10,000 forward passes, 180 s. With
    two cores it comes to 53 minutes, and fitting the head after that.
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
        ),
        benign=(*harmless(0.2), *in_the_field(0.2)),
    )


def quick_on_photographs() -> Recipe:
    """Return the quick recipe for them.

    450 photographs are 490 to attack in fitting, mirror images among them, and 48 in testing, and
    what is costly gets 60 and 30 of these. FGSM takes 40 s, PGD of ten steps 540, DeepFool 110,
    squares 80, turns 70, few places and patches 170, chance 20: 1,030 s. Harmless changes are 2,000
    forward passes, 40 s. With two cores it comes to 9 minutes, and a minute for the head.
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
        ),
        benign=(*harmless(0.1), *in_the_field(0.1)),
    )
