"""From rates and logits to features."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from reluguard.detector.errors import GuardError
from reluguard.detector.features import (
    CONFIDENCE,
    EVIDENCE,
    IDENTITY,
    LOG_FLOOR,
    FeatureMap,
    confidence,
    feature_width,
)
from reluguard.detector.head import Head
from reluguard.detector.taps import Tap

TAPS = (Tap(name="a", op="Relu", shape=(6, 2, 2)), Tap(name="b", op="Relu", shape=(4,)))


def readings(count: int = 40) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(3)
    rates = rng.random((count, 10)).astype(np.float32)
    return rates, rng.normal(0, 2, (count, 5)).astype(np.float32)


@pytest.fixture
def features(make_head: Callable[..., Head]) -> FeatureMap:
    """Probes with neither centre nor limit, so that raw features come out."""
    made = make_head(TAPS, *readings()).features
    width = made.width
    zeros, ones = np.zeros(width, np.float32), np.ones(width, np.float32)
    return replace(made, center=zeros, spread=ones, limit=1e30)


def test_a_shift_of_the_logits_moves_only_their_height() -> None:
    """Probability, margin and entropy stay; the largest logit and the energy follow the shift."""
    _, logits = readings()
    moved = confidence(logits + np.float32(3)) - confidence(logits)
    expected = np.array([3.0 if name in {"top", "energy"} else 0.0 for name in CONFIDENCE])
    np.testing.assert_allclose(moved.astype(np.float64), np.tile(expected, (40, 1)), atol=1e-5)


def test_confidence_by_hand() -> None:
    """Two even classes: log 1/2, no margin, a top of 0, log 2 of energy and of entropy."""
    by_name = dict(zip(CONFIDENCE, confidence(np.zeros((1, 2), np.float32))[0], strict=True))
    assert by_name == pytest.approx(
        {"log_top": -np.log(2), "margin": 0, "top": 0, "energy": np.log(2), "entropy": np.log(2)}
    )


def test_identity_names_answer_runner_up_and_probabilities(features: FeatureMap) -> None:
    """One-hot answer, one-hot runner-up, then the probabilities."""
    rates, logits = readings()
    start = len(features.columns) + len(CONFIDENCE)
    identity = features.transform(rates, logits)[:, start : start + len(IDENTITY) * 5]
    order = np.argsort(-logits, axis=1)
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = np.concatenate([np.eye(5)[order[:, 0]], np.eye(5)[order[:, 1]], probability], axis=1)
    np.testing.assert_allclose(identity.astype(np.float64), expected, atol=1e-6)


def test_probes_are_linear_classifiers_held_against_the_answer(features: FeatureMap) -> None:
    """What each probe says of answer and runner-up, computed image by image in float64."""
    rates, logits = readings()
    x = features.transform(rates, logits).astype(np.float64)
    g, k = features.probes, features.classes
    start = len(features.columns) + len(CONFIDENCE) + len(IDENTITY) * k
    evidence = x[:, start : start + len(EVIDENCE) * g].reshape(len(x), len(EVIDENCE), g)
    s = rates.astype(np.float64) @ features.probe_weights + features.probe_bias
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for image in range(len(x)):
        answer, second = np.argsort(-logits[image])[:2]
        for probe in range(g):
            scores = s[image, probe * k : (probe + 1) * k]
            log_q = scores - np.log(np.exp(scores).sum())
            expected = [
                log_q[answer],
                log_q[second],
                log_q[answer] - np.delete(log_q, answer).max(),
                -(np.exp(log_q) * log_q).sum(),
                (np.exp(log_q) * probability[image]).sum(),
            ]
            np.testing.assert_allclose(evidence[image, :, probe], expected, atol=1e-4)
            every = x[image, start + len(EVIDENCE) * g :].reshape(g, k)[probe]
            np.testing.assert_allclose(every, log_q, atol=1e-4)


def test_a_code_stands_for_many_classes() -> None:
    """The code of the logits, evidence on decoded scores and the codes probes find, in float64."""
    rng = np.random.default_rng(5)
    k, r, g, count = 90, 6, 2, 12
    rates = rng.random((count, 10)).astype(np.float32)
    logits = rng.normal(0, 2, (count, k)).astype(np.float32)
    raw = coded(classes=k, numbers=r, probes=g)
    x = raw.transform(rates, logits).astype(np.float64)
    assert x.shape[1] == raw.width == 10 + len(CONFIDENCE) + r + g * (len(EVIDENCE) + r)
    np.testing.assert_array_equal(raw.feature_taps, [0] * 6 + [1] * 4 + [-1] * (raw.width - 10))
    start = 10 + len(CONFIDENCE)
    np.testing.assert_allclose(x[:, start : start + r], logits @ raw.code, atol=1e-4)
    found = rates.astype(np.float64) @ raw.probe_weights + raw.probe_bias
    np.testing.assert_allclose(x[:, -g * r :], found, atol=1e-5)
    evidence = x[:, start + r : -g * r].reshape(count, len(EVIDENCE), g)
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for image in range(count):
        answer, second = np.argsort(-logits[image])[:2]
        for probe in range(g):
            scores = raw.code @ found[image, probe * r : (probe + 1) * r]
            log_q = np.maximum(scores - np.log(np.exp(scores).sum()), LOG_FLOOR)
            expected = [
                log_q[answer],
                log_q[second],
                log_q[answer] - np.delete(log_q, answer).max(),
                -(np.exp(log_q) * log_q).sum(),
                (np.exp(log_q) * probability[image]).sum(),
            ]
            np.testing.assert_allclose(evidence[image, :, probe], expected, atol=1e-3)
            np.testing.assert_allclose(raw.probe_classes(rates)[image, probe], log_q, atol=1e-4)


def test_a_code_is_one_row_per_class() -> None:
    """A code of another number of classes is refused."""
    with pytest.raises(
        GuardError, match=r"expected a code of 90 classes, got one of shape \(89, 6"
    ):
        replace(coded(classes=90, numbers=6, probes=2), code=np.zeros((89, 6), np.float32))


def coded(*, classes: int, numbers: int, probes: int) -> FeatureMap:
    """Return a map with a drawn code that neither centres nor cuts."""
    rng = np.random.default_rng(0)
    width = feature_width(10, classes, probes, numbers)
    return FeatureMap(
        columns=np.arange(10),
        column_taps=np.repeat([0, 1], [6, 4]),
        taps=2,
        classes=classes,
        probe_weights=rng.normal(size=(10, probes * numbers)).astype(np.float32),
        probe_bias=rng.normal(size=probes * numbers).astype(np.float32),
        center=np.zeros(width, np.float32),
        spread=np.ones(width, np.float32),
        limit=1e30,
        code=rng.normal(size=(classes, numbers)).astype(np.float32),
    )


def test_features_are_cut_at_the_limit(features: FeatureMap) -> None:
    """Nothing standardised is further out than the limit."""
    cut = replace(features, limit=0.5).transform(*readings())
    raw = features.transform(*readings())
    np.testing.assert_array_equal(cut, np.clip(raw, -0.5, 0.5))
    assert np.abs(raw).max() > 0.5


def test_every_feature_knows_its_tap(features: FeatureMap) -> None:
    """Rates belong to their tap, what is read from all of them to none."""
    expected = [0] * 6 + [1] * 4 + [-1] * (5 + 3 * 5 + 2 * (5 + 5))
    np.testing.assert_array_equal(features.feature_taps, expected)
    assert features.width == len(expected)
