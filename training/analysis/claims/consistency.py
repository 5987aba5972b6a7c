"""What Dong et al. claim of attacked representations and of training against them."""

import numpy as np

from reluguard.training.analysis.claims.claim import Aside, Claim, claim, untold
from reluguard.training.analysis.hardening import HardenReport
from reluguard.training.analysis.studies.consistency import ConsistencyStudy
from reluguard.training.statistics.intervals import mean_of
from reluguard.training.statistics.metrics import Interval

__all__ = ["inconsistency", "inconsistency_asides", "training"]

_DONG = "Dong et al. 2017, arXiv 1708.05493"
_NETWORKS = "AlexNet, VGG-16 and ResNet-18 on ILSVRC-2012"
_SETUP = f"{_NETWORKS}, images attacked on three networks at once"
_TRAINED = f"{_NETWORKS}; both cross-entropies and the plain distance of codes, FGSM"
_LAST = -1


def inconsistency(study: ConsistencyStudy, seed: int) -> list[Claim]:
    """Return what the paper says of neurons and representations."""
    level = np.nan_to_num(study.level_real[_LAST] - study.level_attacked[_LAST], nan=0.0)
    known = np.isfinite(study.level_real[_LAST])
    return [
        claim(
            _DONG,
            "Attacked representations are inconsistent with real ones of the same class",
            theirs="inconsistent, no figure",
            setup=_SETUP,
            measure="cosine to the true class's prototype, real minus attacked, last tap; images "
            "resampled, attacked on this network alone",
            ours=mean_of(study.real[_LAST] - study.attacked_true[_LAST], seed=seed),
        ),
        claim(
            _DONG,
            "Neurons answer to one concept on real images, not on attacked ones",
            theirs="lower level of consistency, no figure",
            setup=f"{_SETUP}; labels graded by WordNet",
            measure="share of favourite pairs of one label, real minus attacked, last tap's "
            "channels; labels are alike if they are equal",
            ours=mean_of(level[known], seed=seed) if known.any() else None,
        ),
        untold(
            _DONG,
            "Late neurons answer to discriminative patches, not to objects or their parts",
            theirs="no figure known",
            setup=f"{_NETWORKS}, favourite images looked at",
            measure="-",
            why="it takes pictures whose objects and parts are outlined",
        ),
    ]


def inconsistency_asides(study: ConsistencyStudy, seed: int) -> list[Aside]:
    """Return what stands beside them."""
    return [
        Aside(
            near=_DONG,
            measure="cosine to the prototype of the class that is answered, real minus attacked, "
            "last tap",
            ours=_difference(study, seed),
        )
    ]


def _difference(study: ConsistencyStudy, seed: int) -> Interval | None:
    values = study.real[_LAST] - study.attacked_answer[_LAST]
    return mean_of(values, seed=seed) if np.isfinite(values).any() else None


def training(report: HardenReport | None) -> list[Claim]:
    """Return what the paper says of training with the consistent loss."""
    lines = (
        ("narrows that gap", "cosine of last-tap codes before and after the attack, gain", 0.0),
        ("makes the network more robust", "accuracy under PGD, gain", 0.0),
        ("costs little clean accuracy", "clean accuracy, gain; little is up to 10 points", -0.1),
    )
    if report is None:
        return [
            untold(
                _DONG,
                f"Consistent-loss training {name}",
                theirs="no figure known",
                setup=_TRAINED,
                measure="-",
                why="no network was hardened: give --papers",
            )
            for name, _, _ in lines
        ]
    gains = (report.consistency_gain, report.robust_gain, report.clean_gain)
    return [
        claim(
            _DONG,
            f"Consistent-loss training {name}",
            theirs="no figure known",
            setup=_TRAINED,
            measure=f"{what}; codes' distance is by their mean length, the paper's is plain",
            ours=gain,
            target=target,
        )
        for (name, what, target), gain in zip(lines, gains, strict=True)
    ]
