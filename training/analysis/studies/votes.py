"""Study 3: bits that discriminate, and their vote. L taps, A attacks."""

from dataclasses import dataclass

import numpy as np

from reluguard.training.analysis.checks import Floats, Ints
from reluguard.training.analysis.material import Material
from reluguard.training.analysis.studies.halves import (
    KINDS,
    Halves,
    fooled_enough,
    halves_of,
    patterns_of,
)
from reluguard.training.analysis.voting import (
    VOTERS,
    Voter,
    best_threshold,
    fit_voter,
    name_channels,
)
from reluguard.training.errors import ConstantError
from reluguard.training.statistics.metrics import auroc

__all__ = ["VoteStudy", "study_votes"]

_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteStudy:
    """How well the most telling bits of one tap tell attacked from clean.

    All figures on source images that no step of fitting saw, as many clean as attacked.

    Attributes:
        attacks: names, A: those that fooled the network often enough.
        auroc: (A, L). Of the vote at one tap.
        accuracy: (A, L). Share told right by the vote, threshold from the fitting half.
        channels: int64, (L, 5). Channels named most by the vote against the main attack, -1: none.
        votes: int64, (L, 5). How many of the 100 votes they hold.
    """

    attacks: tuple[str, ...]
    auroc: Floats
    accuracy: Floats
    channels: Ints
    votes: Ints


def study_votes(material: Material) -> VoteStudy:
    """Return the study.

    Raises:
        ShapeError: the main attack has too few successes to fit and test on.
    """
    attacks = fooled_enough(material)
    count = len(material.taps)
    aurocs, accuracies = np.full((2, len(attacks), count), np.nan)
    channels, votes = np.full((count, _NAMED), -1, np.int64), np.zeros((count, _NAMED), np.int64)
    for a, name in enumerate(attacks):
        halves = halves_of(material, name)
        for i in range(count):
            voter = _voter(material, name, i, halves.fit)
            if voter is None:
                continue
            aurocs[a, i], accuracies[a, i] = _judge(material, name, i, voter, halves)
            if a == 0:
                tap = material.taps[i]
                named = name_channels(voter.indices, tap.shape, tap.channel_axis)[:_NAMED]
                channels[i, : len(named)] = [c for c, _ in named]
                votes[i, : len(named)] = [n for _, n in named]
    return VoteStudy(
        attacks=attacks, auroc=aurocs, accuracy=accuracies, channels=channels, votes=votes
    )


def _voter(material: Material, name: str, tap: int, rows: Ints) -> Voter | None:
    clean, attacked = (patterns_of(material, name, kind, tap, rows) for kind in KINDS[:2])
    try:
        return fit_voter(clean, attacked, material.taps[tap].bits, voters=VOTERS)
    except ConstantError:
        return None


def _judge(
    material: Material, name: str, tap: int, voter: Voter, halves: Halves
) -> tuple[float, float]:
    fit, test = (
        [voter.score(patterns_of(material, name, kind, tap, rows)) for kind in KINDS[:2]]
        for rows in (halves.fit, halves.test)
    )
    cut = best_threshold(fit[0], fit[1])
    right = (test[1] > cut).mean() + (test[0] <= cut).mean()
    return auroc(test[0], test[1]), float(right / 2)
