"""What Dong et al. claim of attacked representations and of training against them."""

import numpy as np

from reluguard.training.analysis.checks import Floats
from reluguard.training.analysis.claims.claim import Aside, Claim, claim, untold
from reluguard.training.analysis.hardening import ConsistentTraining, HardenReport
from reluguard.training.analysis.studies.consistency import ConsistencyStudy
from reluguard.training.statistics.intervals import mean_of
from reluguard.training.statistics.metrics import Interval

__all__ = ["inconsistency", "inconsistency_asides", "training", "training_asides"]

_DONG = "Dong et al. 2017, arXiv 1708.05493"
_NETWORKS = "AlexNet, VGG-16 and ResNet-18 on ILSVRC-2012"
_SETUP = f"{_NETWORKS}, images attacked on three networks at once"
_TRAINED = f"{_NETWORKS}; both cross-entropies and the plain distance of codes, FGSM"
_LAST = -1
_BY_TREE = "by a small tree of words (Wu and Palmer)"
_BY_EQUALITY = "labels are alike if they are equal"


_TRAINING = (
    ("narrows that gap", "cosine of last-tap codes before and after the attack, gain", 0.0),
    ("makes the network more robust", "accuracy under PGD, gain", 0.0),
    ("costs little clean accuracy", "clean accuracy, gain; little is up to 10 points", -0.1),
)


def inconsistency(study: ConsistencyStudy, seed: int) -> list[Claim]:
    """Return what the paper says of neurons and representations."""
    graded = _fall(study.tree_real, study.tree_attacked, seed)
    by_tree = graded is not None
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
            measure="likeness of two favourites' labels, real minus attacked, last tap's channels; "
            + (_BY_TREE if by_tree else _BY_EQUALITY),
            ours=graded if by_tree else _fall(study.level_real, study.level_attacked, seed),
            note="" if by_tree else "the tree of words lacks a class, or classes have no names",
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
    lines = [
        Aside(
            near=_DONG,
            measure="cosine to the prototype of the class that is answered, real minus attacked, "
            "last tap",
            ours=_difference(study, seed),
        )
    ]
    if np.isfinite(study.tree_real[_LAST]).any():
        lines.append(
            Aside(
                near=_DONG,
                measure="share of favourite pairs of one label, real minus attacked, last tap's "
                "channels",
                ours=_fall(study.level_real, study.level_attacked, seed),
            )
        )
    return lines


def _fall(real: Floats, attacked: Floats, seed: int) -> Interval | None:
    """Return by how much a level is lower for attacked images at the last tap; over channels."""
    fall = real[_LAST] - attacked[_LAST]
    return mean_of(fall, seed=seed) if np.isfinite(fall).any() else None


def _difference(study: ConsistencyStudy, seed: int) -> Interval | None:
    values = study.real[_LAST] - study.attacked_answer[_LAST]
    return mean_of(values, seed=seed) if np.isfinite(values).any() else None


def training(both: ConsistentTraining | None) -> list[Claim]:
    """Return what the paper says of training with the consistent loss, as it is published."""
    if both is None:
        return [
            untold(
                _DONG,
                f"Consistent-loss training {name}",
                theirs="no figure known",
                setup=_TRAINED,
                measure="-",
                why="no network was hardened: give --papers",
            )
            for name, _, _ in _TRAINING
        ]
    return [
        claim(
            _DONG,
            f"Consistent-loss training {name}",
            theirs="no figure known",
            setup=_TRAINED,
            measure=f"{what}; plain distance of codes, this network fine-tuned once",
            ours=gain,
            target=target,
        )
        for (name, what, target), gain in zip(_TRAINING, _gains(both.published), strict=True)
    ]


def training_asides(both: ConsistentTraining | None) -> list[Aside]:
    """Return the same with the distance by the codes' mean length, which nobody claimed."""
    if both is None:
        return []
    return [
        Aside(near=_DONG, measure=f"{what}; distance by the codes' mean length", ours=gain)
        for (_, what, _), gain in zip(_TRAINING, _gains(both.normalised), strict=True)
    ]


def _gains(report: HardenReport) -> tuple[Interval, Interval, Interval]:
    return report.consistency_gain, report.robust_gain, report.clean_gain
