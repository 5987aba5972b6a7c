import numpy as np
import pytest

from service.capture import sample
from service.drift import Drift, measure

FPR = 0.05
RNG = np.random.default_rng(0)
CLEAN = np.sort(RNG.normal(0, 1, 4000))
THRESHOLD = float(np.quantile(CLEAN, 1 - FPR))


def drift_of(traffic: np.ndarray, share: float = 0.2) -> Drift:
    """Sample this traffic as production would, and measure."""
    p = (1 + len(CLEAN) - np.searchsorted(CLEAN, traffic)) / (1 + len(CLEAN))
    ids = [str(i) for i in range(len(traffic))]
    _, weight = sample(ids, p, fpr=FPR, share=share, key=bytes(32))
    kept = weight > 0
    prediction = np.arange(len(traffic))[kept] % 3
    return measure(
        traffic[kept],
        weight[kept],
        prediction.astype(np.float64),
        clean=CLEAN,
        threshold=THRESHOLD,
        fpr=FPR,
    )


@pytest.mark.parametrize("share", [0.05, 0.2, 1.0])
def test_calm_traffic_asks_for_nothing_whatever_share_is_kept(share: float) -> None:
    """The weights undo the sampling: the verdict rate is the target's, and nothing moved."""
    drift = drift_of(np.random.default_rng(1).normal(0, 1, 20_000), share)
    assert drift.advice == "none"
    assert drift.statistics["verdict_rate"] == pytest.approx(FPR, abs=0.015)
    assert drift.statistics["psi"] < 0.05
    assert drift.samples > 500


def test_shifted_clean_inputs_ask_for_recalibration() -> None:
    """The bulk moved."""
    drift = drift_of(np.random.default_rng(2).normal(0.6, 1, 10_000))
    assert drift.advice == "recalibrate"
    assert drift.statistics["bulk_ks"] > 0.1


def test_something_new_above_the_threshold_asks_for_retraining() -> None:
    """The bulk stayed and ten percent more lie above."""
    rng = np.random.default_rng(3)
    traffic = rng.permutation(np.concatenate([rng.normal(0, 1, 9000), rng.normal(5, 1, 1000)]))
    drift = drift_of(traffic)
    assert drift.advice == "retrain"
    assert drift.statistics["verdict_excess"] == pytest.approx(0.095, abs=0.02)


def test_few_samples_say_nothing() -> None:
    """No statistic is shown that a handful of images made."""
    drift = drift_of(np.random.default_rng(4).normal(3, 1, 60), share=1.0)
    assert drift.advice == "wait"
    assert drift.statistics == {}


def test_nothing_captured_is_no_error() -> None:
    """An empty index waits."""
    assert drift_of(np.zeros(0)).advice == "wait"


def test_another_mix_of_classes_is_seen() -> None:
    """Total variation between the halves: 0 for the same mix, 1 for disjoint classes."""
    score, weight = np.zeros(400), np.ones(400)
    options = {"clean": CLEAN, "threshold": THRESHOLD, "fpr": FPR}
    same = measure(score, weight, np.arange(400.0) % 2, **options)  # type: ignore[arg-type] # mixed
    other = measure(score, weight, np.repeat([0.0, 1.0], 200), **options)  # type: ignore[arg-type] # mixed
    assert same.statistics["class_mix"] == 0
    assert other.statistics["class_mix"] == 1
