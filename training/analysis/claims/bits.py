"""The two papers on bit vectors: what they claim. L taps, A attacks, M classifiers."""

import numpy as np

from reluguard.training.analysis.claims.claim import Aside, Claim, claim, untold
from reluguard.training.analysis.fiedler import GRAPHS
from reluguard.training.analysis.studies.splits import SplitStudy
from reluguard.training.analysis.studies.votes import CLASSIFIERS, VoteStudy
from reluguard.training.statistics.intervals import class_pair_mean, rank_trend
from reluguard.training.statistics.metrics import rate_interval

__all__ = ["detection", "detection_asides", "separation"]

_SPLITS = "Jamil et al. 2023, arXiv 2305.01808"
_VOTES = "Jamil et al. 2022, arXiv 2211.13305"
_PAPER_ATTACK = "fgsm-"
_PAPER_CLASSIFIER = 2  # of CLASSIFIERS
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


def detection(votes: VoteStudy) -> list[Claim]:
    """Return what both papers say of telling attacked images from clean ones by bits."""
    simple = "Bits tell attacked from clean with a simple classifier"
    known = f"a classifier that is not named, FGSM of unknown strength; {_NETWORK}"
    measured = [a for a, name in enumerate(votes.attacks) if votes.trials[a]]
    fgsm = [a for a in measured if votes.attacks[a].startswith(_PAPER_ATTACK)]
    lines = [
        claim(
            _SPLITS,
            f"{simple} ({votes.attacks[a]})",
            theirs="> .95 accuracy",
            setup=known,
            measure=f"{CLASSIFIERS[_PAPER_CLASSIFIER]} of all taps, share of test images told "
            "right, half of them clean, successful attacks only",
            ours=rate_interval(int(votes.hits[a, _PAPER_CLASSIFIER]), int(votes.trials[a])),
            target=0.95,
        )
        for a in fgsm
    ]
    if not fgsm:
        lines = [
            untold(
                _SPLITS,
                simple,
                theirs="> .95 accuracy",
                setup=known,
                measure="-",
                why="no FGSM among the attacks that fooled the network often enough",
            )
        ]
    told = [
        claim(
            _VOTES,
            f"Bits that discriminate can vote on whether an image is attacked ({votes.attacks[a]})",
            theirs="no figure known",
            setup="ResNet-50 on ImageNet, FGSM and DAmageNet; full text not read",
            measure=f"{CLASSIFIERS[0]} of all taps, share of test images told right; more than "
            "chance is asked for",
            ours=rate_interval(int(votes.hits[a, 0]), int(votes.trials[a])),
            target=0.5,
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


def detection_asides(votes: VoteStudy) -> list[Aside]:
    """Return what other classifiers and attacks come to."""
    return [
        Aside(
            near=_SPLITS,
            measure=f"{name}, share of test images told right ({attack})",
            ours=rate_interval(int(votes.hits[a, m]), int(votes.trials[a])),
        )
        for a, attack in enumerate(votes.attacks)
        if votes.trials[a]
        for m, name in enumerate(CLASSIFIERS)
        if not (attack.startswith(_PAPER_ATTACK) and m in {0, _PAPER_CLASSIFIER})
    ]
