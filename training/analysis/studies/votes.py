"""Study 3: discriminating bits and simple classifiers. L taps, A attacks, M classifiers."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reluguard.training.analysis.checks import Floats, Ints
from reluguard.training.analysis.material import Material
from reluguard.training.analysis.similarity import bit_rates
from reluguard.training.analysis.voting import Voter, fit_voter, gather_bits, name_channels
from reluguard.training.errors import ConstantError, ShapeError
from reluguard.training.statistics.metrics import auroc

__all__ = ["CLASSIFIERS", "VoteStudy", "study_votes"]

CLASSIFIERS = (
    "vote of 100 bits",
    "naive Bayes on 2,000 bits",
    "logistic regression on 2,000 bits",
    "logistic regression on firing rates",
)
_BITS = 2000
_VOTERS = 100
_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteStudy:
    """How well single bits and simple classifiers tell attacked from clean.

    All figures on source images that no step of fitting saw, as many clean as attacked.

    Attributes:
        attacks: names, A.
        auroc: (A, L). Of the vote at one tap.
        accuracy: (A, L). Share told right by the vote, threshold from the fitting half.
        hits: int64, (A, M). Test images told right by each of CLASSIFIERS over all taps.
        trials: int64, (A,). Test images.
        bits_per_tap: int64, (A, L). Where the 2,000 most telling bits lie.
        channels: int64, (L, 5). Channels named most by the vote against the main attack, -1: none.
        votes: int64, (L, 5). How many of the 100 votes they hold.
    """

    attacks: tuple[str, ...]
    auroc: Floats
    accuracy: Floats
    hits: Ints
    trials: Ints
    bits_per_tap: Ints
    channels: Ints
    votes: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class _Halves:
    """Indices into the P images: sources to fit on and sources to test on, successes only."""

    fit: Ints
    test: Ints


def study_votes(material: Material) -> VoteStudy:
    """Return the study.

    Raises:
        ShapeError: an attack has too few successes to fit and test on.
    """
    attacks = tuple(material.attacked)
    count = len(material.taps)
    aurocs, accuracies = np.full((2, len(attacks), count), np.nan)
    hits = np.zeros((len(attacks), len(CLASSIFIERS)), np.int64)
    trials = np.zeros(len(attacks), np.int64)
    where = np.zeros((len(attacks), count), np.int64)
    channels, votes = np.full((count, _NAMED), -1, np.int64), np.zeros((count, _NAMED), np.int64)
    for a, name in enumerate(attacks):
        halves = _halves(material, name)
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
        hits[a], where[a] = _classify(material, name, halves)
        trials[a] = 2 * len(halves.test)
    return VoteStudy(
        attacks=attacks,
        auroc=aurocs,
        accuracy=accuracies,
        hits=hits,
        trials=trials,
        bits_per_tap=where,
        channels=channels,
        votes=votes,
    )


def _halves(material: Material, name: str) -> _Halves:
    rows = np.flatnonzero(material.success[name])
    if len(rows) < 8:
        raise ShapeError(
            f"expected 8 or more successes of {name}, got {len(rows)}: give more images, or by "
            "--attack one that changes more"
        )
    return _Halves(fit=rows[::2], test=rows[1::2])


def _patterns(material: Material, name: str | None, tap: int, rows: Ints) -> NDArray[np.uint8]:
    if name is None:
        return np.asarray(material.clean.patterns[tap][material.rows[rows]])
    return np.asarray(material.attacked[name].patterns[tap][rows])


def _voter(material: Material, name: str, tap: int, rows: Ints) -> Voter | None:
    try:
        return fit_voter(
            _patterns(material, None, tap, rows),
            _patterns(material, name, tap, rows),
            material.taps[tap].bits,
            voters=_VOTERS,
        )
    except ConstantError:
        return None


def _judge(
    material: Material, name: str, tap: int, voter: Voter, halves: _Halves
) -> tuple[float, float]:
    scores = {
        (part, who): voter.score(_patterns(material, who, tap, rows))
        for part, rows in (("fit", halves.fit), ("test", halves.test))
        for who in (None, name)
    }
    cut = best_threshold(scores["fit", None], scores["fit", name])
    right = (scores["test", name] > cut).mean() + (scores["test", None] <= cut).mean()
    return auroc(scores["test", None], scores["test", name]), float(right / 2)


def best_threshold(clean: Floats, attacked: Floats) -> float:
    """Return the score that separates two groups of one size with the fewest errors."""
    candidates = np.unique(np.concatenate([clean, attacked]))
    errors = [(attacked <= c).mean() + (clean > c).mean() for c in candidates]
    return float(candidates[int(np.argmin(errors))])


def _classify(material: Material, name: str, halves: _Halves) -> tuple[Ints, Ints]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import BernoulliNB
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    chosen = _telling_bits(material, name, halves.fit)
    fit = _bits(material, name, chosen, halves.fit)
    test = _bits(material, name, chosen, halves.test)
    y = np.arange(len(fit)) >= len(halves.fit)
    truth = np.arange(len(test)) >= len(halves.test)
    order = np.argsort(-np.concatenate([margin for _, margin, _ in chosen]), kind="stable")
    signs = np.concatenate([sign for _, _, sign in chosen])[order[:_VOTERS]]
    votes = [(x[:, order[:_VOTERS]] == signs).mean(axis=1) for x in (fit, test)]
    cut = best_threshold(votes[0][~y], votes[0][y])
    predictions = [votes[1] > cut]
    predictions.append(BernoulliNB().fit(fit, y).predict(test))
    logistic = LogisticRegression(C=0.01, max_iter=500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an unconverged fit is still the fit that is judged
        predictions.append(logistic.fit(fit.astype(np.float32), y).predict(test))
        rates = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
        x, x_test = (_rates(material, name, rows) for rows in (halves.fit, halves.test))
        predictions.append(rates.fit(x, y).predict(x_test))
    hits = np.array([(p == truth).sum() for p in predictions], np.int64)
    return hits, np.array([len(index) for index, _, _ in chosen], np.int64)


def _telling_bits(
    material: Material, name: str, rows: Ints
) -> list[tuple[Ints, Floats, NDArray[np.bool_]]]:
    """Per tap its share of the most telling bits: (indices, margins, on means attacked)."""
    differences = [
        bit_rates(_patterns(material, name, i, rows), tap.bits).astype(np.float64)
        - bit_rates(_patterns(material, None, i, rows), tap.bits)
        for i, tap in enumerate(material.taps)
    ]
    sizes = np.abs(np.concatenate(differences))
    least = np.partition(sizes, -min(_BITS, len(sizes)))[-min(_BITS, len(sizes))]
    chosen = []
    for difference in differences:
        index = np.flatnonzero(np.abs(difference) >= max(least, 1e-12)).astype(np.int64)
        chosen.append((index, np.abs(difference[index]), difference[index] > 0))
    return chosen


def _bits(
    material: Material,
    name: str,
    chosen: list[tuple[Ints, Floats, NDArray[np.bool_]]],
    rows: Ints,
) -> NDArray[np.bool_]:
    parts = [
        np.concatenate(
            [gather_bits(_patterns(material, who, i, rows), index) for who in (None, name)]
        )
        for i, (index, _, _) in enumerate(chosen)
    ]
    return np.concatenate(parts, axis=1)


def _rates(material: Material, name: str, rows: Ints) -> NDArray[np.float32]:
    clean = np.concatenate([r[material.rows[rows]] for r in material.clean.rates], axis=1)
    attacked = np.concatenate([r[rows] for r in material.attacked[name].rates], axis=1)
    return np.concatenate([clean, attacked])
