"""How much each harmless change counts in a fit: by how often a first head takes it for an attack.

What is easily taken for an attack differs from network to network: on ResNet-20 and CIFAR-10 little
is, on a plain network and Fashion-MNIST sign noise and JPEG are. N images.

Measured on heads of .8 of the images, on images kept from them: on Fashion-MNIST, of all harmless
kinds at most .11 are flagged for .16, for .976 of PGD 2/255 in place of .980 (AUROC); on ResNet-20
.043 on average for .046, at the same detection.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from reluguard.detector.features import Floats
from reluguard.detector.head import Head
from reluguard.training.harvest.readings import Readings
from reluguard.training.head.moments import row_blocks
from reluguard.training.head.probes import source_folds

__all__ = ["false_alarms", "scores_of", "weighed"]

FPR = 0.05
LEAST = 60  # clean images to set a threshold on, and harmless ones to count alarms on
POWER = 1.5
BOUNDS = (0.5, 4.0)


def false_alarms(
    groups: Sequence[Readings], fit: Callable[[Sequence[Readings]], Head]
) -> dict[str, float]:
    """Return the share of each harmless change that a head flags at 5 % of clean images.

    Args:
        groups: as for `fit_head`. A quarter of the source images is kept from the head.
        fit: returns a head.

    Returns:
        By name; nothing of kinds of too few images, and nothing at all without enough clean ones.
    """
    held = [group.rows(source_folds(group.sources) == 0) for group in groups]
    clean = next(group for group in held if group.kind == "clean")
    judged = [group for group in held if group.kind == "benign" and len(group) >= LEAST]
    rest = [group.rows(source_folds(group.sources) != 0) for group in groups]
    attacked = sum(len(group) for group in rest if group.kind == "attack")
    if len(clean) < LEAST or not judged or attacked < LEAST:
        return {}
    head = fit([group for group in rest if len(group)])
    limit = np.quantile(scores_of(head, clean), 1 - FPR)
    return {group.name: float((scores_of(head, group) > limit).mean()) for group in judged}


def scores_of(head: Head, group: Readings) -> Floats:
    """Return the scores, (N,), a few rows at a time: there may be very many."""
    blocks = row_blocks(len(group), head.features.width)
    return np.concatenate([head.score(group.rates[b], group.logits[b]).score for b in blocks])


def weighed(
    groups: Sequence[Readings], found: dict[str, float], *, wanted: float, share: float
) -> tuple[list[Readings], float]:
    """Return the groups, harmless ones weighed anew, and their share of all negatives.

    A kind that is flagged more often than wanted counts more, one that is flagged less often counts
    less; together they count as much more or less beside the clean images.

    Args:
        groups: as for `fit_head`.
        found: false alarms by name, as `false_alarms` gives them; what is not there stays.
        wanted: share of a harmless change that may be flagged.
        share: of the weight of all negatives that the harmless have so far, in [0, 1).
    """
    factors = {
        name: float(np.clip((rate / wanted) ** POWER, *BOUNDS)) for name, rate in found.items()
    }
    anew = [
        replace(group, weight=group.weight * factors.get(group.name, 1.0))
        if group.kind == "benign"
        else group
        for group in groups
    ]
    before, after = (
        sum(group.weight for group in some if group.kind == "benign") for some in (groups, anew)
    )
    odds = share / (1 - share) * after / before if before else 0.0
    return anew, odds / (1 + odds)
