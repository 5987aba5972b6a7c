from typing import Any

import numpy as np
import pytest

from reluguard.detector.errors import GuardError
from reluguard.detector.reference import (
    KEY,
    Histogram,
    layer_rates,
    read_reference,
    reference_of,
)
from reluguard.detector.taps import Tap

TAPS = (
    Tap(name="a", op="Relu", shape=(3, 4, 4)),
    Tap(name="b", op="Relu", shape=(2, 2, 2), levels=(0.0, 0.5)),
)
RATES = np.random.default_rng(0).random((200, 3 + 2 * 2)).astype(np.float32)
LOGITS = np.eye(4, dtype=np.float32)[np.arange(200) % 4]


def test_a_layers_rate_is_the_mean_over_its_channels() -> None:
    """Of a tap with a second level the first counts."""
    rates = layer_rates(RATES, TAPS)
    np.testing.assert_allclose(rates[:, 0], RATES[:, :3].mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(rates[:, 1], RATES[:, 3:5].mean(axis=1), rtol=1e-6)


def test_the_same_values_have_the_same_histogram() -> None:
    """Counting what it was made of gives its shares, ties and constants included."""
    for values in (RATES[:, 0].astype(float), np.round(RATES[:, 0], 1).astype(float), np.ones(9)):
        histogram = Histogram.of(values)
        np.testing.assert_allclose(histogram.count(values), histogram.shares, atol=1e-6)
        assert histogram.shares.sum() == pytest.approx(1)


def test_a_reference_comes_back_from_the_manifest() -> None:
    """To plain values and back; a guard without one has none."""
    reference = reference_of(RATES, LOGITS, TAPS)
    found = read_reference({KEY: reference.to_json()}, TAPS)
    assert found is not None
    assert found.images == 200
    np.testing.assert_allclose(found.classes, 0.25)
    for one, other in zip(found.layers, reference.layers, strict=True):
        np.testing.assert_allclose(one.edges, other.edges)
        np.testing.assert_allclose(one.shares, other.shares)
    assert read_reference({}, TAPS) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": []}, "expected a reference of 2 taps, got one of 0"),
        ({"layers": [{"edges": [1.0], "shares": [1.0]}] * 2}, "one share more than edges"),
        ({"layers": [{"edges": [2.0, 1.0], "shares": [1, 0, 0]}] * 2}, "ascending edges"),
        ({"layers": 3}, "reference for drift is damaged"),
        ({"images": 0}, "from 0 images"),
    ],
)
def test_a_damaged_reference_is_refused(changes: dict[str, Any], message: str) -> None:
    """Each by its own sentence."""
    stored = reference_of(RATES, LOGITS, TAPS).to_json()
    with pytest.raises(GuardError, match=message):
        read_reference({KEY: stored | changes}, TAPS)
