"""The two papers on bit vectors: what they claim. L taps, A attacks, M classifiers."""

import numpy as np

from reluguard.training.analysis.claims.claim import Aside, Claim, claim, untold
from reluguard.training.analysis.fiedler import GRAPHS
from reluguard.training.analysis.studies.classifiers import (
    CLASSIFIERS,
    LOGISTIC,
    VOTE,
    ClassifierStudy,
)
from reluguard.training.analysis.studies.halves import FEWEST
from reluguard.training.analysis.studies.splits import SplitStudy
from reluguard.training.statistics.intervals import class_pair_mean, rank_trend
from reluguard.training.statistics.metrics import rate_interval

__all__ = ["detection", "detection_asides", "separation"]

_SPLITS = "Jamil et al. 2023, arXiv 2305.01808"
_VOTES = "Jamil et al. 2022, arXiv 2211.13305"
_PAPER_ATTACK = "fgsm-"
_NETWORK = "images of ImageNet, probably ResNet-50; full text not read"


def separation(splits: SplitStudy, seed: int) -> list[Claim]:
    """Return what the paper says of cuts without labels."""
    normalised = splits.pairs[GRAPHS.index("normalised")]
    pairs = [(i, j) for i in range(len(splits.classes)) for j in range(i)]
    per_pair = np.stack([normalised[:, i, j] for i, j in pairs])
    count = f"{len(pairs)} class pair{'s' if len(pairs) != 1 else ''}"
    rises = "Separation rises with depth"
    deep = len(normalised) > 2
    return [
        claim(
            _SPLITS,
            "The last ReLU separates two classes by the Fiedler vector",
            theirs="> .95 accuracy",
            setup=f"two classes, Hamming similarity of bits, graph Laplacian; {_NETWORK}",
            measure=f"mean split accuracy over {count}, normalised Laplacian, last tap; classes "
            "resampled",
            ours=class_pair_mean(normalised[-1], seed=seed),
            target=0.95,
        ),
        claim(
            _SPLITS,
            rises,
            theirs="rises, no figure",
            setup=f"the same at every layer; {_NETWORK}",
            measure="Spearman's rho of depth and mean split accuracy; class pairs resampled",
            ours=rank_trend(per_pair, seed=seed) if deep else None,
            note="" if deep else "fewer than three taps",
        ),
    ]


def detection(found: ClassifierStudy) -> list[Claim]:
    """Return what both papers say of telling attacked images from clean ones by bits."""
    simple = "Bits tell attacked from clean with a simple classifier"
    known = f"a classifier that is not named, FGSM of unknown strength; {_NETWORK}"
    fgsm = [a for a, name in enumerate(found.attacks) if name.startswith(_PAPER_ATTACK)]
    places = ((None, "all taps"), (-1, "the last tap"))
    lines = [
        claim(
            _SPLITS,
            f"{simple} ({found.attacks[a]}, {place})",
            theirs="> .95 accuracy",
            setup=known,
            measure=f"{CLASSIFIERS[LOGISTIC]} of {place}, share of test images told right, half of "
            "them clean, successful attacks only",
            ours=rate_interval(int(right), int(found.trials[a])),
            target=0.95,
            note=f"it calls {called[2] / found.tested[a]:.0%} of images with harmless noise as "
            f"large attacked, and {called[0] / found.tested[a]:.0%} of clean ones",
        )
        for a in fgsm
        for tap, place in places
        for right, called in [
            (found.hits[a, LOGISTIC], found.called[a, LOGISTIC])
            if tap is None
            else (found.tap_hits[a, tap], found.tap_called[a, tap])
        ]
    ]
    lines += [
        untold(
            _SPLITS,
            f"{simple} ({name})",
            theirs="> .95 accuracy",
            setup=known,
            measure="-",
            why=f"it fooled the network fewer than {FEWEST} times: give more images",
        )
        for name in found.too_few
        if name.startswith(_PAPER_ATTACK)
    ]
    if not lines:
        lines = [
            untold(
                _SPLITS,
                simple,
                theirs="> .95 accuracy",
                setup=known,
                measure="-",
                why="no FGSM among the attacks: give --attack fgsm-linf-8",
            )
        ]
    told = [
        claim(
            _VOTES,
            f"Bits that discriminate can vote on whether an image is attacked ({found.attacks[a]})",
            theirs="no figure known",
            setup="ResNet-50 on ImageNet, FGSM and DAmageNet; full text not read",
            measure=f"{CLASSIFIERS[VOTE]} of all taps, share of test images told right; more than "
            "chance is asked for",
            ours=rate_interval(int(found.hits[a, VOTE]), int(found.trials[a])),
            target=0.5,
            note=f"it calls {found.called[a, VOTE, 2] / found.tested[a]:.0%} of images with "
            "harmless noise as large attacked",
        )
        for a in fgsm
    ]
    told.append(
        untold(
            _VOTES,
            "… and on images of DAmageNet",
            theirs="no figure known",
            setup="50,000 attacked images of ImageNet that were published",
            measure="-",
            why="these images are of ImageNet, and are not shipped with this project",
        )
    )
    return lines + told


def detection_asides(found: ClassifierStudy) -> list[Aside]:
    """Return what other classifiers and attacks come to, and what all of them say of noise."""
    lines = []
    for a, attack in enumerate(found.attacks):
        for m, name in enumerate(CLASSIFIERS):
            if not (attack.startswith(_PAPER_ATTACK) and m in {VOTE, LOGISTIC}):
                lines.append(
                    Aside(
                        near=_SPLITS,
                        measure=f"{name}, share of test images told right ({attack})",
                        ours=rate_interval(int(found.hits[a, m]), int(found.trials[a])),
                    )
                )
            lines.append(
                Aside(
                    near=_SPLITS,
                    measure=f"{name}, fitted on {attack}: share of images with harmless noise as "
                    "large that it calls attacked",
                    ours=rate_interval(int(found.called[a, m, 2]), int(found.tested[a])),
                )
            )
    return lines
