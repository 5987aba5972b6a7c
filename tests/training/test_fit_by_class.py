"""A fit with thresholds by class, and what becomes of it in retraining and under attack."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from reluguard.detector.artifact import GuardArtifact, read_guard
from reluguard.detector.metrics import GateLimits
from reluguard.detector.runtime import Guard
from reluguard.training.data.dataset import Dataset, save_dataset
from reluguard.training.head.by_class import images_by_class
from reluguard.training.red_team.smallest import Smallest
from reluguard.training.red_team.target import open_target
from reluguard.training.retrain import retrain
from reluguard.training.twin.twin import to_pixels
from tests.training.fitting import Order

FPR = 0.3  # for which 16 calibration images of a class are enough
FAST = GateLimits(rounds=3, cost=10.0)


@pytest.fixture(scope="module")
def order(fit_settings: Order, digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Order:
    """The brief recipe on 600 digits: a dozen or two calibration images of each class."""
    folder = tmp_path_factory.mktemp("by-class")
    save_dataset(digits.take(np.arange(600)), folder / "digits.npz")
    return replace(
        fit_settings,
        data=str(folder / "digits.npz"),
        out=folder / "guard",
        second="blur",
        target_fpr=FPR,
        per_class=True,
        max_overhead=0.0,
    )


@pytest.fixture(scope="module")
def guard(order: Order) -> GuardArtifact:
    """Fitted so."""
    return order.run()


@pytest.mark.slow
def test_a_fit_keeps_its_rate_by_class(guard: GuardArtifact, order: Order, digits: Dataset) -> None:
    """Classes of enough images stand alone; both looks go by class."""
    head = guard.head
    assert head.is_by_class
    counts = np.bincount(head.clean_groups)
    assert (counts >= images_by_class(FPR)).all()
    assert len(counts) > 3
    assert guard.second is not None
    np.testing.assert_array_equal(guard.second.head.class_groups, head.class_groups)
    assert any("thresholds by class" in word for word in guard.manifest.metrics["words"])
    assert set(guard.manifest.metrics["answers"]) <= {str(label) for label in range(10)}
    fresh = digits.images[600:]
    for looks in ("first", "always"):
        opened = Guard.open(order.model, guard.path, threads=1, looks=looks)
        found = opened.inspect(fresh)
        own = head if looks == "first" else guard.second.head
        np.testing.assert_allclose(found.p_value, own.p_values(found.score, found.prediction))
        groups = own.groups_of(found.prediction)
        for group in np.unique(groups):
            mine = found.is_adversarial[groups == group]
            # of 16 calibration images or more and dozens of fresh ones: .3, give or take .3
            assert mine.mean() < 0.6


@pytest.mark.slow
def test_what_is_done_with_it_goes_by_class(
    guard: GuardArtifact, order: Order, digits: Dataset, tmp_path: Path
) -> None:
    """Attacks see the limits that the guard judges by; a retrained one keeps its classes."""
    save_dataset(digits.take(np.arange(600, 700)), tmp_path / "fresh.npz")
    for looks in ("first", "suspicious", "always"):
        target = open_target(
            order.model, guard.path, str(tmp_path / "fresh.npz"), seed=0, limit=6, threads=1,
            looks=looks,
        )  # fmt: skip
        attack = Smallest(guard=target.relaxed, threshold=target.believed, steps=25, restarts=1)
        scores, images, _ = target.fool(attack, np.arange(len(target)))
        evades = scores <= np.float32(target.strictest)
        verdicts = target.guard.inspect(images)
        wrong = verdicts.prediction != target.labels
        np.testing.assert_array_equal(evades, wrong & (verdicts.p_value > FPR))
        with torch.no_grad():
            believed = target.relaxed.read(to_pixels(images)).score.numpy()
        np.testing.assert_array_equal(believed <= target.believed, verdicts.p_value > FPR)
    found = retrain(
        guard.path,
        order.model,
        [],
        tmp_path / "g2",
        attacks=["deepfool-l2"],
        limits=FAST,
        threads=1,
    )
    after = read_guard(found.guard.path)
    np.testing.assert_array_equal(after.head.class_groups, guard.head.class_groups)
    assert after.second is not None
    assert after.second.head.is_by_class
