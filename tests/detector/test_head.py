"""The head: thresholds and p-values are one thing seen twice, and arrays keep every bit."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from reluguard.detector.errors import GuardError, SettingsError
from reluguard.detector.head import (
    NO_SCORE,
    Head,
    conformal_p_values,
    images_needed,
    threshold_at,
)
from reluguard.detector.taps import Tap

TAPS = (
    Tap(name="r1", op="Relu", shape=(8, 4, 4)),
    Tap(name="r2", op="Relu", shape=(5,)),
)
# few distinct values, so that ties are common
scores = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=60)


def readings(count: int = 50) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    rates = rng.random((count, 13)).astype(np.float32)
    return rates, rng.normal(0, 2, (count, 4)).astype(np.float32)


@pytest.fixture(params=[True, False], ids=["profile", "no profile"])
def head(make_head: Callable[..., Head], request: pytest.FixtureRequest) -> Head:
    return make_head(TAPS, *readings(), profile=request.param)


@given(clean=scores, score=st.integers(-5, 5).map(float), fpr=st.floats(0.01, 0.99))
def test_above_the_threshold_is_a_small_p_value(
    clean: list[float], score: float, fpr: float
) -> None:
    """A score is over the threshold at a rate exactly when its p-value is at most that rate."""
    ordered = np.sort(np.array(clean, np.float32))
    if len(clean) < images_needed(fpr):
        return
    p = conformal_p_values(np.array([score], np.float32), ordered)[0]
    assert (score > threshold_at(fpr, ordered)) == (p <= fpr + 1e-9)


@given(clean=scores)
def test_p_values_fall_with_the_score(clean: list[float]) -> None:
    """Higher scores never have higher p-values, and all lie in (0, 1]."""
    p = conformal_p_values(
        np.linspace(-5, 5, 41, dtype=np.float32), np.sort(np.array(clean, np.float32))
    )
    assert (np.diff(p) <= 0).all()
    assert p.min() == 1 / (len(clean) + 1)
    assert p.max() == 1


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.2])
def test_the_promised_rate_is_kept_on_average(fpr: float) -> None:
    """Over draws of calibration and new images, the share over the threshold is as promised."""
    rng = np.random.default_rng(0)
    draws, count = 4000, 150
    over = [
        (rng.normal(size=20) > threshold_at(fpr, np.sort(rng.normal(size=count)).astype("f4")))
        for _ in range(draws)
    ]
    rate = np.mean(over)
    # exact in expectation: floor(fpr (n + 1)) / (n + 1); draws share a threshold within one row
    expected = np.floor(fpr * (count + 1)) / (count + 1)
    error = 4 * np.mean(over, axis=1).std() / np.sqrt(draws)
    assert abs(rate - expected) < error
    assert expected <= fpr


@given(fpr=st.floats(0.001, 0.999))
def test_images_needed_is_the_least_that_works(fpr: float) -> None:
    """With as many images there is a threshold, with one less there is none."""
    needed = images_needed(fpr)
    threshold_at(fpr, np.zeros(needed, np.float32))
    if needed:
        with pytest.raises(SettingsError, match=f"needs {needed} clean calibration images"):
            threshold_at(fpr, np.zeros(needed - 1, np.float32))


def test_an_example_of_thresholds() -> None:
    """At 5 % with 99 images, five of a hundred are over: the fifth highest score is the limit."""
    clean = np.arange(99, dtype=np.float32)
    assert threshold_at(0.05, clean) == 94.0
    p = conformal_p_values(np.array([94, 94.5, 98, 200], np.float32), clean)
    np.testing.assert_allclose(p, np.array([0.06, 0.05, 0.02, 0.01]))
    assert images_needed(0.05) == 19
    assert images_needed(0.01) == 99


def test_arrays_give_the_head_back_bit_for_bit(head: Head) -> None:
    """What from_arrays makes of to_arrays says the same, to the last bit."""
    arrays = head.to_arrays()
    again = Head.from_arrays(arrays)
    for name, value in again.to_arrays().items():
        np.testing.assert_array_equal(value, arrays[name])
        assert value.dtype == arrays[name].dtype
    a, b = head.score(*readings()), again.score(*readings())
    for name in ("score", "likelihood", "evidence"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_half_precision_is_used_only_where_it_loses_nothing(head: Head) -> None:
    """An array of exact halves is stored in two bytes per value, another is not."""
    rounded = head.weights[0].astype(np.float16).astype(np.float32)
    arrays = replace(head, weights=(rounded, head.weights[1])).to_arrays()
    assert arrays["weight_0"].dtype == np.float16
    assert arrays["weight_1"].dtype == np.float32


def test_the_rows_of_a_batch_are_independent(head: Head) -> None:
    """An image's score does not depend on its company, up to rounding."""
    rates, logits = readings()
    whole = head.score(rates, logits)
    alone = head.score(rates[7:8], logits[7:8])
    np.testing.assert_allclose(alone.score, whole.score[7:8], atol=1e-5)
    np.testing.assert_allclose(alone.evidence, whole.evidence[7:8], atol=1e-5)


def test_likelihood_rises_with_the_score(head: Head) -> None:
    """The likelihood orders images as the score does."""
    said = head.score(*readings())
    order = np.argsort(said.score)
    assert (np.diff(said.likelihood[order]) >= 0).all()
    assert 0 <= said.likelihood.min() < said.likelihood.max() <= 1


def test_a_pass_that_overflowed_never_counts_as_clean(head: Head) -> None:
    """Logits that are not numbers give the highest score and a likelihood of one."""
    rates, logits = readings(2)
    logits[1] = np.nan
    said = head.score(rates, logits)
    assert said.score[1] == NO_SCORE
    assert said.likelihood[1] == 1
    assert np.isfinite(said.evidence).all()
    assert said.score[0] < 100


def test_a_head_of_wrong_shapes_is_refused(head: Head) -> None:
    """Each part is held to the width of the one before it."""
    w, b = head.weights, head.biases
    with pytest.raises(GuardError, match="expected one bias per layer of weights"):
        replace(head, biases=b[:1])
    with pytest.raises(GuardError, match="at least one layer"):
        replace(head, weights=(), biases=())
    with pytest.raises(GuardError, match=r"of 16 inputs, got \(15, 1\) and \(1,\)"):
        replace(head, weights=(w[0], w[1][1:]))
    with pytest.raises(GuardError, match="expected a last layer of one unit, got 16"):
        replace(head, weights=w[:1], biases=b[:1])
    with pytest.raises(GuardError, match=r"expected evidence_bias of shape \(2,\), got \(3,\)"):
        replace(head, evidence_bias=np.zeros(3, np.float32))
    with pytest.raises(GuardError, match="in ascending order"):
        replace(head, clean_scores=np.array([2, 1], np.float32))
    with pytest.raises(GuardError, match=r"expected center of shape .* got \(3,\)"):
        replace(head.features, center=np.zeros(3, np.float32))


@pytest.mark.parametrize("fpr", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_outside_of_zero_and_one_is_refused(fpr: float) -> None:
    """A false-positive rate has no meaning outside (0, 1)."""
    with pytest.raises(SettingsError, match="expected a false-positive rate between 0 and 1"):
        images_needed(fpr)
    with pytest.raises(SettingsError, match="expected a false-positive rate between 0 and 1"):
        threshold_at(fpr, np.zeros(10, np.float32))
