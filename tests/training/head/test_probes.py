"""Which rates are read, and probes that never describe the images they were fitted on."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from reluguard.detector.taps import Tap
from reluguard.training.head.probes import (
    CODE,
    Probes,
    class_task,
    code_task,
    column_taps,
    fit_probes,
    most_columns,
    select_columns,
    standardise,
)

CLASSES = 4
TAPS = (
    Tap(name="a", op="Relu", shape=(20, 4, 4)),
    Tap(name="b", op="Relu", shape=(15, 2, 2), levels=(0.0, 0.5)),
    Tap(name="c", op="Relu", shape=(10,)),
)
RATES = 20 + 2 * 15 + 10


@dataclass(frozen=True, kw_only=True)
class Table:
    """Readings to fit on: N rows of two per source image, the second its attacked twin."""

    rates: NDArray[np.float32]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    sources: NDArray[np.int64]

    def fit(self, labels: NDArray[np.int64] | None = None) -> Probes:
        """Return probes fitted on it, or on other labels."""
        return fit_probes(
            self.rates,
            class_task(self.labels if labels is None else labels, CLASSES),
            self.sources,
            np.ones(len(self.rates), np.float32),
            taps=TAPS,
            columns=np.arange(RATES),
        )


def table(*, signal: float, count: int = 120, labels: NDArray[np.int64] | None = None) -> Table:
    """Return readings of noise that twins share, and a signal of the class."""
    rng = np.random.default_rng(0)
    sources = np.repeat(np.arange(count), 2)
    classes = rng.integers(CLASSES, size=count) if labels is None else labels
    rates = rng.random((count, RATES)).astype(np.float32).repeat(2, axis=0)
    rates += signal * np.eye(CLASSES, RATES, dtype=np.float32)[classes].repeat(2, axis=0)
    return Table(
        rates=rates,
        logits=rng.normal(0, 1, (2 * count, CLASSES)).astype(np.float32),
        labels=classes.repeat(2),
        sources=sources,
    )


def evidence(x: NDArray[np.float32], probes: Probes) -> NDArray[np.int64]:
    """Return the class that the first probe finds likeliest, from its features."""
    g = probes.features.probes
    log_q = x[:, -g * CLASSES :].reshape(len(x), g, CLASSES)
    likeliest: NDArray[np.int64] = log_q[:, 0].argmax(axis=1)
    return likeliest


def direction(x: NDArray[np.float32], probes: Probes) -> NDArray[np.float32]:
    """Return each probe's scores up to its sharpness, which is one number for all rows."""
    g = probes.features.probes
    log_q = x[:, -g * CLASSES :].reshape(len(x), g, CLASSES)
    centred = log_q - log_q.mean(axis=2, keepdims=True)
    unit: NDArray[np.float32] = centred / np.linalg.norm(centred, axis=2, keepdims=True)
    return unit


def accuracy(data: Table, probes: Probes, *, leaking: bool) -> float:
    """Return how often the first probe is right on the rows it was fitted on."""
    x = (
        probes.features.transform(data.rates, data.logits)
        if leaking
        else probes.out_of_fold(data.rates, data.logits, data.sources)
    )
    return float((evidence(x, probes) == data.labels).mean())


def test_noise_teaches_nothing_about_held_out_rows() -> None:
    """Labels by chance are guessed at chance out of fold; the run-time map does know its rows."""
    data = table(signal=0.0)
    probes = data.fit()
    assert accuracy(data, probes, leaking=True) > 0.6  # the detector sees a leak where there is one
    assert accuracy(data, probes, leaking=False) < 0.36


def test_a_source_never_describes_itself() -> None:
    """Other labels on one image and its twin leave what probes say of them as it was."""
    data = table(signal=0.5)
    rows = data.sources == 7
    labels = np.where(rows, (data.labels + 1) % CLASSES, data.labels)
    held, leaking = [], []
    for probes in (data.fit(), data.fit(labels)):
        x = probes.out_of_fold(data.rates, data.logits, data.sources)
        held.append(direction(x[rows], probes))
        x = probes.features.transform(data.rates, data.logits)
        leaking.append(direction(x[rows], probes))
    np.testing.assert_allclose(held[0], held[1], atol=1e-4)
    assert np.abs(leaking[0] - leaking[1]).max() > 0.02


@pytest.mark.parametrize("period", [CLASSES, 2 * CLASSES])
def test_classes_that_come_in_turn_are_learned(period: int) -> None:
    """Images dealt out class by class do not leave a whole class to one fold."""
    labels = np.arange(160) % period % CLASSES
    data = table(signal=1.0, count=160, labels=labels)
    assert accuracy(data, data.fit(), leaking=False) > 0.8


def test_the_run_time_map_is_the_mean_of_the_folds() -> None:
    """At run time every fold's probe has its say."""
    probes = table(signal=1.0).fit()
    for name in ("probe_weights", "probe_bias"):
        mean = np.mean([getattr(fold, name) for fold in probes.folds], axis=0)
        np.testing.assert_allclose(getattr(probes.features, name), mean, rtol=1e-4, atol=1e-4)
    assert len({fold.probe_weights.tobytes() for fold in probes.folds}) == len(probes.folds) > 1


def test_each_row_is_described_by_one_fold() -> None:
    """Out-of-fold features are some fold's, the same one for an image and its twin."""
    data = table(signal=1.0)
    probes = data.fit()
    x = probes.out_of_fold(data.rates, data.logits, data.sources)
    by_fold = np.stack([fold.transform(data.rates, data.logits) for fold in probes.folds])
    own = np.isclose(by_fold, x, atol=1e-5).all(axis=2)
    assert (own.sum(axis=0) == 1).all()
    fold = own.argmax(axis=0)
    assert_array_equal(fold[::2], fold[1::2])
    assert (np.bincount(fold) > len(fold) / 10).all()


def test_probes_read_all_taps_or_a_run_of_them() -> None:
    """The first probe reads every column, the others a third of the taps each."""
    features = table(signal=1.0).fit().features
    weights = features.probe_weights.reshape(RATES, features.probes, CLASSES)
    read = (weights != 0).any(axis=2)
    assert read[:, 0].all()
    assert_array_equal(read[:, 1:].sum(axis=1), np.ones(RATES))
    assert_array_equal(features.column_taps[read[:, 1]], np.zeros(20))


def test_more_classes_read_fewer_rates() -> None:
    """What a guard holds per rate grows with the classes, and its size stays bounded."""
    assert most_columns(10) == 1400
    assert most_columns(100) * (4 * 100 + 128) <= 440_000 < (most_columns(100) + 1) * 528
    assert most_columns(1000) == 1400
    assert 1400 * (4 * CODE + 128) <= 440_000


@dataclass(frozen=True, kw_only=True)
class Many:
    """A network of 300 classes whose rates hold its answer: clean images and attacked twins."""

    rates: NDArray[np.float32]
    clean: NDArray[np.float32]
    attacked: NDArray[np.float32]

    @property
    def sources(self) -> NDArray[np.int64]:
        """int64, (2 n,): clean images, then their twins."""
        return np.tile(np.arange(len(self.clean)), 2)

    @property
    def logits(self) -> NDArray[np.float32]:
        """What the network says: to twins what their attacker wants."""
        return np.concatenate([self.clean, self.attacked])

    def fit(self, rows: NDArray[np.bool_], sources: NDArray[np.int64] | None = None) -> Probes:
        """Return probes fitted on the clean images of these sources and on their twins."""
        both = np.tile(rows, 2)
        known = np.flatnonzero(rows)
        own = self.sources[both] if sources is None else sources
        return fit_probes(
            self.rates[both],
            code_task(self.clean[rows], known, own),
            own,
            np.ones(both.sum(), np.float32),
            taps=TAPS,
            columns=np.arange(RATES),
        )


def many(count: int = 400) -> Many:
    """Return readings of eight directions of meaning: rates know those of the clean image."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(8, 300))
    meaning = rng.normal(size=(count, 8))
    seen = np.tile(meaning @ rng.normal(size=(8, RATES)), (2, 1))
    rates = 0.5 + 0.05 * seen + 0.02 * rng.normal(size=seen.shape)
    return Many(
        rates=rates.astype(np.float32),
        clean=(meaning @ weights).astype(np.float32),
        attacked=(rng.permutation(meaning) @ weights).astype(np.float32),
    )


def test_a_code_names_classes_that_no_image_showed() -> None:
    """Probes recognise the answers of held-out images, also those no image of the fit had."""
    data = many()
    answers = data.clean.argmax(axis=1)
    shown = answers % 2 == 0
    features = data.fit(shown).features
    assert not set(answers[shown]) & set(answers[~shown])
    assert features.code.shape == (300, 8)
    likely = features.probe_classes(data.rates)[len(shown) :][~shown]
    top = np.argsort(-likely[:, 0], axis=1)[:, :10]
    among = (top == answers[~shown, None]).any(axis=1)
    assert among.mean() > 0.9  # of 300 classes; by chance 10 in 300
    twins = data.attacked[~shown].argmax(axis=1)
    assert (top == twins[:, None]).any(axis=1).mean() < 0.3


def test_a_code_keeps_what_clean_logits_differ_in() -> None:
    """Coded and decoded, clean logits are what they were, up to what a softmax does not see."""
    data = many()
    code = data.fit(np.ones(len(data.clean), np.bool_)).features.code
    centred = data.clean - data.clean.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(data.clean @ code @ code.T, centred, atol=0.05)
    assert_array_equal(code, code.astype(np.float16))


def test_sources_without_a_clean_image_teach_a_code_nothing() -> None:
    """Rows of unknown sources leave the probes as they are, whatever their rates."""
    data = many(count=200)
    everyone = np.ones(200, np.bool_)
    sources = data.sources.copy()
    sources[390:] += 1000
    first = data.fit(everyone, sources).features
    rates = data.rates.copy()
    rates[390:] = 1 - rates[390:]
    second = Many(rates=rates, clean=data.clean, attacked=data.attacked).fit(everyone, sources)
    assert_array_equal(first.probe_weights, second.features.probe_weights)


def test_coded_rows_that_were_fitted_on_are_described_by_their_own_fold() -> None:
    """Out-of-fold features are some fold's, of an image and its twin the same one's."""
    data = many()
    fitted = data.fit(np.ones(len(data.clean), np.bool_))
    folds = tuple(replace(fold, limit=1e30) for fold in fitted.folds)
    probes = replace(fitted, folds=folds)
    x = probes.out_of_fold(data.rates, data.logits, data.sources)
    by_fold = [fold.transform(data.rates, data.logits) for fold in probes.folds]
    own = np.stack([np.isclose(one, x, atol=1e-3).all(axis=1) for one in by_fold])
    assert (own.sum(axis=0) == 1).all()
    images, twins = np.split(own.argmax(axis=0), 2)
    assert_array_equal(images, twins)


def test_standardised_features_are_centred_and_scaled() -> None:
    """Every map gets the same centre and spread, and nothing else changes."""
    data = table(signal=1.0)
    raw = data.fit()
    x = np.random.default_rng(0).normal(3, 2, (50, raw.features.width)).astype(np.float32)
    x[:, 5] = 1.0
    probes = standardise(raw, x.mean(axis=0), x.std(axis=0), limit=7.0)
    for features in (probes.features, *probes.folds):
        scaled = (x - features.center) / features.spread
        np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(np.delete(scaled, 5, axis=1).std(axis=0), 1, rtol=1e-3)
        assert features.limit == 7.0
    assert_array_equal(probes.features.probe_weights, raw.features.probe_weights)


def test_rates_belong_to_their_taps() -> None:
    """A tap with a level has two rates per channel."""
    assert_array_equal(column_taps(TAPS), np.repeat([0, 1, 2], [20, 30, 10]))


@pytest.mark.parametrize("limit", [1, 3, 8, 100])
def test_selected_columns_tell_sides_apart(limit: int) -> None:
    """Ascending, no more than asked for, none that never changes, and the telling ones first."""
    rng = np.random.default_rng(0)
    clean = rng.normal(0, 1, (300, 10)).astype(np.float32)
    clean[:, 2] = 0.25
    attacked = [rng.normal(0, 1, (300, 10)).astype(np.float32) for _ in range(8)]
    attacked[3][:, 7] += 3  # a signal of one attack among eight
    for rates in attacked:
        rates[:, 4] += 1
        rates[:, 2] = 0.25
    columns = select_columns(clean, attacked, limit=limit)
    assert_array_equal(columns, np.unique(columns))
    assert len(columns) == min(limit, 9)
    assert 2 not in columns
    assert {7, 4} & set(columns.tolist()) == {7, 4} if limit > 1 else {7}
    assert len(select_columns(clean, [], limit=limit)) == min(limit, 9)
