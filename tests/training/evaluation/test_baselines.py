"""Baselines of 2025 and 2026: what each looks at, and that each is given what the guard gets."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from reluguard.detector.taps import Tap
from reluguard.training.errors import DataError
from reluguard.training.evaluation.baselines import (
    Auxiliary,
    Context,
    LayerShifts,
    Material,
    Roughness,
)
from reluguard.training.evaluation.baselines.base import balanced, best_setting, weights
from reluguard.training.harvest.readings import Kind, Readings
from reluguard.training.head.fit import HeadSettings
from reluguard.training.statistics.metrics import auroc

TAPS = [Tap(name=name, op="Relu", shape=(3, 4, 4)) for name in "abc"]


def material(
    name: str, kind: Kind, means: np.ndarray, images: np.ndarray, weight: float = 1.0
) -> Material:
    n = len(means)
    readings = Readings(
        name=name,
        kind=kind,
        rates=means,
        logits=means[:, :3],
        sources=np.arange(n),
        labels=np.zeros(n, np.int64),
        weight=weight,
    )
    return Material(readings=readings, images=images, means=means)


def context(**given: Any) -> Context:
    known: dict[str, Any] = {"predict": None, "activations": None, "seed": 0}
    return Context(taps=TAPS, settings=HeadSettings(), **{**known, **given})


def means_of(count: int, *, broken: bool, seed: int) -> np.ndarray:
    """Three taps that follow from one another; broken ones have a middle that does not."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 1, (count, 3))
    middle = rng.normal(0, 1, (count, 3)) if broken else base + rng.normal(0, 0.1, (count, 3))
    return np.concatenate([base, 2 * middle, 3 * base], axis=1).astype(np.float32)


def recorded(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    means = np.repeat(images.reshape(len(images), -1)[:, :1], 9, axis=1).astype(np.float32)
    return means, means[:, :3]


def test_shifts_between_layers_are_learned_from_clean_images() -> None:
    """A layer that does not follow from the last one stands out, which no attack had to teach."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (400, 2, 2, 1), np.uint8)
    clean = material("clean", "clean", means_of(400, broken=False, seed=1), pixels)
    broken = material("odd", "attack", means_of(400, broken=True, seed=2), pixels)
    detector = LayerShifts()
    detector.fit([clean, broken], context(record=recorded))
    fresh = material("clean", "clean", means_of(300, broken=False, seed=3), pixels[:300])
    odd = material("odd", "attack", means_of(300, broken=True, seed=4), pixels[:300])
    assert auroc(detector.score(fresh), detector.score(odd)) > 0.85
    again = LayerShifts()
    again.fit([clean, broken], context(record=recorded))
    np.testing.assert_array_equal(again.score(odd), detector.score(odd))


def test_roughness_reads_the_quiet_channels() -> None:
    """Noise in a channel that is silent on clean images counts, in a loud one it does not."""
    rng = np.random.default_rng(0)

    def first(images: np.ndarray) -> np.ndarray:
        smooth = np.linspace(1, 2, 16).reshape(1, 1, 4, 4)
        quiet = 0.01 * smooth + images[:, None, :4, :4, 0] / 2550
        return np.concatenate([quiet, 100 * smooth.repeat(len(images), 0)], axis=1)

    still = np.zeros((200, 4, 4, 1), np.uint8)
    noisy = rng.integers(0, 30, still.shape, np.uint8)
    still[:, 0, 0, 0] = rng.integers(0, 3, 200)
    means = np.zeros((200, 9), np.float32)
    clean = material("clean", "clean", means, still)
    attacked = material("noise", "attack", means, noisy)
    detector = Roughness()
    detector.fit([clean, attacked], context(first=first))
    assert auroc(detector.score(clean), detector.score(attacked)) > 0.99
    np.testing.assert_array_equal(detector.quiet, [0])


def test_another_network_doubts_the_answer() -> None:
    """The score is minus the log-probability that it gives to the model's answer."""
    means = np.eye(3, 9, dtype=np.float32)
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32))
    detector = Auxiliary()
    asked = context(others=[lambda _: logits])
    detector.fit([], asked)
    found = detector.score(material("x", "attack", means, np.zeros((3, 2, 2, 1), np.uint8)))
    np.testing.assert_allclose(found, -np.log([0.7, 0.25, 0.8]), rtol=1e-5)
    with pytest.raises(DataError, match="expected another network of the same classes, got none"):
        Auxiliary().fit([], context())


def test_rows_weigh_what_they_weigh_for_the_guard() -> None:
    """Attacks half, clean images .35 of the other half, and groups by their own weight."""
    pixels = np.zeros((40, 2, 2, 1), np.uint8)
    means = np.zeros((40, 9), np.float32)
    groups = [
        material("clean", "clean", means, pixels),
        material("noise", "benign", means[:10], pixels[:10], weight=3.0),
        material("jpeg", "benign", means, pixels),
        material("pgd", "attack", means, pixels),
        material("cw", "attack", means[:5], pixels[:5]),
    ]
    share = weights(groups, HeadSettings())
    parts = np.split(share, np.cumsum([len(g) for g in groups])[:-1])
    total = [part.sum() / share.sum() for part in parts]
    np.testing.assert_allclose(total, [0.175, 0.24375, 0.08125, 0.25, 0.25])
    rows = balanced(groups, context())
    assert len(rows) == 90
    assert (rows < 40).sum() > 8  # a third of the harmless side, not an eighth of its kinds


def test_the_best_setting_is_the_one_that_tells_attacks() -> None:
    """By mean AUROC over the attacks; harmless changes have no say."""
    pixels, means = np.zeros((20, 2, 2, 1), np.uint8), np.zeros((20, 9), np.float32)
    groups = [
        material("jpeg", "benign", means, pixels),
        material("clean", "clean", means, pixels),
        material("pgd", "attack", means, pixels),
    ]
    low, high = np.arange(20.0), np.arange(20.0) + 5
    found = best_setting(groups, [1.0, -1.0], lambda sign: [sign * high, sign * low, sign * high])
    assert found == 1.0
    swapped = [groups[0], replace(groups[1], means=means), groups[2]]
    assert best_setting(swapped, [1.0, -1.0], lambda s: [s * low, s * high, s * low]) == -1.0
