"""Study 3, second half: simple classifiers on bits. L taps, A attacks, M classifiers, B bits.

Each is fitted on clean images and their attacked versions, and then asked three things of other
source images: what it calls attacked among clean ones, among attacked ones, and among those with
harmless noise as large as the attack, none of which it was fitted on.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.training.analysis.checks import Floats, Ints
from reluguard.training.analysis.material import Material
from reluguard.training.analysis.similarity import bit_rates
from reluguard.training.analysis.studies.halves import (
    KINDS,
    Halves,
    Kind,
    fooled_enough,
    halves_of,
    patterns_of,
    rates_of,
)
from reluguard.training.analysis.voting import VOTERS, best_threshold, gather_bits

__all__ = ["CLASSIFIERS", "LOGISTIC", "VOTE", "ClassifierStudy", "study_classifiers"]

CLASSIFIERS = (
    "vote of 100 bits",
    "naive Bayes on 2,000 bits",
    "logistic regression on 2,000 bits",
    "logistic regression on firing rates",
)
VOTE, _BAYES, LOGISTIC, _RATES = range(len(CLASSIFIERS))
_BITS = 2000

_Predict = Callable[[NDArray[Any]], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierStudy:
    """What simple classifiers call attacked, among test images of each of `KINDS`.

    Attributes:
        attacks: names, A: those that fooled the network often enough.
        too_few: names of the others.
        tested: int64, (A,). Test images of each kind.
        called: int64, (A, M, 3). Called attacked by each of CLASSIFIERS on the bits of all taps.
        tap_called: int64, (A, L, 3). By the logistic regression on the bits of one tap; none where
            no bit of the tap changes.
        bits_per_tap: int64, (A, L). Where the 2,000 most telling bits of all taps lie.
    """

    attacks: tuple[str, ...]
    too_few: tuple[str, ...]
    tested: Ints
    called: Ints
    tap_called: Ints
    bits_per_tap: Ints

    @property
    def trials(self) -> Ints:
        """int64, (A,): test images, half of them clean and half attacked."""
        return 2 * self.tested

    @property
    def hits(self) -> Ints:
        """int64, (A, M): test images told right over all taps, noise not counted."""
        return self._right(self.called)

    @property
    def tap_hits(self) -> Ints:
        """int64, (A, L): test images told right at one tap."""
        return self._right(self.tap_called)

    def _right(self, called: Ints) -> Ints:
        right: Ints = self.tested[:, None] - called[:, :, 0] + called[:, :, 1]
        return right


@dataclass(frozen=True, slots=True, kw_only=True)
class _Telling:
    """The most telling bits of one tap: which, by how much rates differ, on means attacked."""

    tap: int
    indices: Ints
    margins: Floats
    on_means_attacked: NDArray[np.bool_]


def study_classifiers(material: Material) -> ClassifierStudy:
    """Return the study.

    Raises:
        ShapeError: the main attack has too few successes to fit and test on.
    """
    attacks = fooled_enough(material)
    count = len(material.taps)
    called = np.zeros((len(attacks), len(CLASSIFIERS), len(KINDS)), np.int64)
    tap_called = np.zeros((len(attacks), count, len(KINDS)), np.int64)
    where = np.zeros((len(attacks), count), np.int64)
    tested = np.zeros(len(attacks), np.int64)
    for a, name in enumerate(attacks):
        halves = halves_of(material, name)
        tested[a] = len(halves.test)
        changes = [_changes(material, name, i, halves.fit) for i in range(count)]
        chosen = _most_telling(changes)
        where[a] = [len(one.indices) for one in chosen]
        called[a] = _over_all_taps(material, name, chosen, halves)
        for i in range(count):
            own = [_telling(i, changes[i], _least(changes[i]))]
            if len(own[0].indices):
                fit, tests = _bits(material, name, own, halves)
                predict = _logistic(fit.astype(np.float32), _truth(halves))
                tap_called[a, i] = [predict(x.astype(np.float32)).sum() for x in tests]
    return ClassifierStudy(
        attacks=attacks,
        too_few=tuple(name for name in material.success if name not in attacks),
        tested=tested,
        called=called,
        tap_called=tap_called,
        bits_per_tap=where,
    )


def _truth(halves: Halves) -> NDArray[np.bool_]:
    return np.arange(2 * len(halves.fit)) >= len(halves.fit)


def _changes(material: Material, name: str, tap: int, rows: Ints) -> Floats:
    """Return by how much more often the attack leaves each bit of a tap on: float64, (B,)."""
    clean, attacked = (
        bit_rates(patterns_of(material, name, kind, tap, rows), material.taps[tap].bits)
        for kind in KINDS[:2]
    )
    return attacked.astype(np.float64) - clean


def _least(changes: Floats) -> float:
    """Return the change that the 2,000 largest ones reach."""
    most = min(_BITS, len(changes))
    return max(float(np.partition(np.abs(changes), -most)[-most]), 1e-12)


def _telling(tap: int, changes: Floats, least: float) -> _Telling:
    index = np.flatnonzero(np.abs(changes) >= least).astype(np.int64)
    return _Telling(
        tap=tap,
        indices=index,
        margins=np.abs(changes[index]),
        on_means_attacked=changes[index] > 0,
    )


def _most_telling(changes: list[Floats]) -> list[_Telling]:
    """Return each tap's share of the network's most telling bits."""
    least = _least(np.concatenate(changes))
    return [_telling(i, one, least) for i, one in enumerate(changes)]


def _bits(
    material: Material, name: str, chosen: list[_Telling], halves: Halves
) -> tuple[NDArray[np.bool_], list[NDArray[np.bool_]]]:
    """Return chosen bits to fit on, clean ones first, and those to test on by kind."""

    def read(kind: Kind, rows: Ints) -> NDArray[np.bool_]:
        parts = [
            gather_bits(patterns_of(material, name, kind, one.tap, rows), one.indices)
            for one in chosen
            if len(one.indices)
        ]
        return np.concatenate(parts, axis=1)

    fit = np.concatenate([read(kind, halves.fit) for kind in KINDS[:2]])
    return fit, [read(kind, halves.test) for kind in KINDS]


def _over_all_taps(
    material: Material, name: str, chosen: list[_Telling], halves: Halves
) -> list[list[int]]:
    """Return what each of CLASSIFIERS calls attacked: (M, 3)."""
    truth = _truth(halves)
    fit, tests = _bits(material, name, chosen, halves)
    rates = np.concatenate([rates_of(material, name, kind, halves.fit) for kind in KINDS[:2]])
    rate_tests = [rates_of(material, name, kind, halves.test) for kind in KINDS]
    predictors: list[tuple[_Predict, list[NDArray[Any]]]] = [
        (_vote(fit, truth, chosen), list(tests)),
        (_bayes(fit, truth), list(tests)),
        (_logistic(fit.astype(np.float32), truth), [x.astype(np.float32) for x in tests]),
        (_logistic(rates, truth, scaled=True), list(rate_tests)),
    ]
    return [[int(predict(x).sum()) for x in parts] for predict, parts in predictors]


def _vote(fit: NDArray[np.bool_], truth: NDArray[np.bool_], chosen: list[_Telling]) -> _Predict:
    order = np.argsort(-np.concatenate([one.margins for one in chosen]), kind="stable")[:VOTERS]
    signs = np.concatenate([one.on_means_attacked for one in chosen])[order]

    def votes(x: NDArray[Any]) -> Floats:
        share: Floats = (x[:, order] == signs).mean(axis=1)
        return share

    cut = best_threshold(votes(fit[~truth]), votes(fit[truth]))
    return lambda x: votes(x) > cut


def _bayes(fit: NDArray[np.bool_], truth: NDArray[np.bool_]) -> _Predict:
    from sklearn.naive_bayes import BernoulliNB

    model = BernoulliNB().fit(fit, truth)
    return lambda x: np.asarray(model.predict(x), np.bool_)


def _logistic(
    fit: NDArray[np.float32], truth: NDArray[np.bool_], *, scaled: bool = False
) -> _Predict:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    logistic = LogisticRegression(C=0.01, max_iter=500)
    model = make_pipeline(StandardScaler(), logistic) if scaled else logistic
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an unconverged fit is still the fit that is judged
        model.fit(fit, truth)
    return lambda x: np.asarray(model.predict(x), np.bool_)
