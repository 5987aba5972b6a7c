import math
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reluguard.detector.artifact import read_guard, write_guard
from reluguard.detector.images import Images
from reluguard.detector.reference import KEY, reference_of
from reluguard.detector.runtime import Guard
from reluguard.service.captures.capture import Capture, content_of, sample
from reluguard.service.captures.drift import (
    Calibration,
    Drift,
    Sample,
    beta_binomial_tail,
    measure,
    read_drift,
)
from tests.conftest import images
from tests.looking import going_by_class, looking_twice

FPR = 0.05
RNG = np.random.default_rng(0)
CLEAN = np.sort(RNG.normal(0, 1, 4000))
THRESHOLD = float(np.quantile(CLEAN, 1 - FPR))


def drift_of(traffic: np.ndarray, share: float = 0.2, sources: list[str] | None = None) -> Drift:
    """Sample this traffic as production would, and measure."""
    p = (1 + len(CLEAN) - np.searchsorted(CLEAN, traffic)) / (1 + len(CLEAN))
    contents = content_of(list(np.arange(len(traffic))), source="", kind="", key=bytes(32))
    _, weight = sample(contents, p, fpr=FPR, share=share)
    kept = weight > 0
    captured = Sample(
        score=traffic[kept],
        p_value=p[kept],
        weight=weight[kept],
        prediction=np.arange(len(traffic))[kept] % 3,
        layers=np.zeros((int(kept.sum()), 0)),
        source=np.array(sources)[kept] if sources else np.full(int(kept.sum()), "me"),
    )
    return measure(captured, Calibration(clean=CLEAN, threshold=THRESHOLD, fpr=FPR))


@pytest.mark.parametrize("share", [0.05, 0.2, 1.0])
def test_calm_traffic_asks_for_nothing_whatever_share_is_kept(share: float) -> None:
    """The weights undo the sampling: the verdict rate is the target's, and nothing moved."""
    drift = drift_of(np.random.default_rng(1).normal(0, 1, 20_000), share)
    assert drift.advice == "none"
    assert drift.statistics["verdict_rate"] == pytest.approx(FPR, abs=0.015)
    assert drift.statistics["band_rate"] == pytest.approx(FPR, abs=0.015)
    assert drift.statistics["psi"] < 0.05
    assert drift.statistics["p_value_ks"] < 0.1
    assert drift.samples > 500
    assert set(drift.sizes) == set(drift.statistics)


def test_calm_traffic_seldom_looks_like_an_attack() -> None:
    """Over other calibration sets and other traffic of the same kind: never in two hundred."""
    rng = np.random.default_rng(5)
    for _ in range(200):
        clean = np.sort(rng.normal(0, 1, 300))
        traffic = rng.normal(0, 1, 1000)
        p = (1 + len(clean) - np.searchsorted(clean, traffic)) / (1 + len(clean))
        captured = Sample(
            score=traffic,
            p_value=p,
            weight=np.ones(1000),
            prediction=np.zeros(1000, np.int64),
            layers=np.zeros((1000, 0)),
            source=np.array([f"caller-{i % 8}" for i in range(1000)]),
        )
        limit = float(np.quantile(clean, 0.95))
        calibration = Calibration(clean=clean, threshold=limit, fpr=FPR)
        assert measure(captured, calibration).advice != "retrain"


def test_shifted_clean_inputs_ask_for_recalibration() -> None:
    """The bulk moved."""
    drift = drift_of(np.random.default_rng(2).normal(0.6, 1, 10_000))
    assert drift.advice == "recalibrate"
    assert drift.statistics["bulk_ks"] > 0.1


@pytest.mark.parametrize(("attacked", "share"), [(0.02, 1.0), (0.02, 0.05), (0.1, 0.2)])
def test_something_new_above_the_threshold_asks_for_retraining(
    attacked: float, share: float
) -> None:
    """The bulk stayed and two percent lie far above: fewer than the false alarms, and seen."""
    rng = np.random.default_rng(3)
    count = round(10_000 * attacked)
    parts = [rng.normal(0, 1, 10_000 - count), rng.normal(3.5, 1, count)]
    drift = drift_of(rng.permutation(np.concatenate(parts)), share)
    assert drift.advice == "retrain"
    assert drift.statistics["tail_excess"] > attacked / 2


def test_an_attack_of_now_is_not_drowned_in_the_calm_before() -> None:
    """The newest captures are looked at by themselves too."""
    rng = np.random.default_rng(3)
    calm = rng.normal(0, 1, 14_000)
    wave = np.where(rng.random(2000) < 0.03, rng.normal(4, 1, 2000), rng.normal(0, 1, 2000))
    assert drift_of(np.concatenate([calm, wave]), 1.0).advice == "retrain"


def test_a_weak_attack_gives_its_sender_away() -> None:
    """Too few and too low to lift a share above a level, yet unlike what a caller should send."""
    rng = np.random.default_rng(6)
    sources = ["mallory" if i % 50 == 0 else f"caller-{i % 5}" for i in range(8000)]
    weak = np.array([source == "mallory" for source in sources])
    traffic = np.where(weak, rng.normal(1.2, 1, 8000), rng.normal(0, 1, 8000))
    seen = drift_of(traffic, 1.0, sources)
    assert (seen.advice, seen.suspect) == ("retrain", "mallory")
    assert seen.sizes["caller_ks"] == 160
    crowd = drift_of(traffic, 1.0)  # the same requests, all from one
    assert (crowd.advice, crowd.suspect) == ("none", "")


def test_few_samples_say_nothing() -> None:
    """No statistic is shown that a handful of images made."""
    drift = drift_of(np.random.default_rng(4).normal(3, 1, 60), share=1.0)
    assert drift.advice == "wait"
    assert drift.statistics == {}


def test_a_wave_is_seen_before_the_bulk_is_known() -> None:
    """All above the threshold are kept, so they tell when the small uniform share can't yet."""
    rng = np.random.default_rng(4)
    traffic = rng.permutation(np.concatenate([rng.normal(0, 1, 2000), rng.normal(5, 1, 200)]))
    drift = drift_of(traffic, share=0.01)
    assert drift.samples < 100
    assert drift.advice == "retrain"
    assert "ks" not in drift.statistics


def test_nothing_captured_is_no_error() -> None:
    """An empty index waits."""
    assert drift_of(np.zeros(0)).advice == "wait"


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 20))
def test_the_tail_of_beta_binomial_is_scipys(trials: int, alpha: int, beta: int) -> None:
    """The server has no scipy; its own sum agrees."""
    from scipy import stats

    for least in range(trials + 2):
        expected = stats.betabinom(trials, alpha, beta).sf(least - 1)
        assert math.isclose(
            beta_binomial_tail(least, trials, alpha, beta), expected, rel_tol=1e-6, abs_tol=1e-9
        )


@pytest.fixture(scope="module")
def informed(pair: Any, smooth: Callable[[int, int], Images], tmp_path_factory: Any) -> Guard:
    """A guard calibrated on smooth images that keeps what their layers did."""
    artifact, taps = read_guard(pair.guard), read_guard(pair.guard).manifest.taps
    plain = Guard.open(pair.model, pair.guard, threads=1, readings=True)
    read = plain.inspect(smooth(500, 3)).readings
    assert read is not None
    reference = reference_of(read.rates, read.logits, taps).to_json()
    manifest = replace(artifact.manifest, provenance={KEY: reference})
    folder = tmp_path_factory.mktemp("informed") / "guard"
    write_guard(folder, manifest=manifest, head=artifact.head, golden=artifact.golden)
    return Guard.open(pair.model, folder, threads=1, readings=True)


def captured(guard: Guard, folder: Path, images: Images) -> Drift:
    """Capture all of these images, one by one, and read the drift."""
    capture = Capture(
        folder,
        share=1.0,
        max_bytes=10**9,
        ttl_s=1e6,
        with_images=False,
        dropped=lambda *_: None,
    )
    capture.offer(guard.inspect(images), guard, name="r", source="me", raw=None)
    capture.close()
    return read_drift(folder, guard)


def test_darker_clean_images_are_told_from_new_attacks(
    informed: Guard,
    smooth: Callable[[int, int], Images],
    tmp_path: Path,
) -> None:
    """On a real network: calm, the inputs moved, something new among unmoved inputs."""
    calm = smooth(600, 21)
    said = captured(informed, tmp_path / "calm", calm)
    assert said.advice == "none"
    assert set(said.layers) == {tap.name for tap in informed.artifact.manifest.taps}
    assert said.statistics["layer_psi"] == max(said.layers.values()) < 0.25
    assert said.statistics["class_mix"] < 0.15
    dark = captured(informed, tmp_path / "dark", (calm * 0.5).astype(np.uint8))
    assert dark.advice == "recalibrate"
    assert dark.statistics["layer_psi"] > 0.25
    noisy = calm[:60] + np.random.default_rng(0).integers(-120, 121, calm[:60].shape)
    attacked = np.clip(noisy, 0, 255).astype(np.uint8)
    new = captured(informed, tmp_path / "new", np.concatenate([calm[60:], attacked]))
    assert new.advice == "retrain"
    assert new.statistics["verdict_rate"] > informed.fpr


def test_an_index_that_can_not_be_read_says_so(
    informed: Guard, smooth: Callable[[int, int], Images], tmp_path: Path
) -> None:
    """Its error is sqlite's own, for the server to log."""
    captured(informed, tmp_path, smooth(5, 1))
    (tmp_path / "capture.sqlite").write_bytes(b"no database" * 500)
    with pytest.raises(sqlite3.Error):
        read_drift(tmp_path, informed)


def by_class_traffic(
    rng: np.random.Generator, mix: list[float], count: int, lift: float = 0.0
) -> tuple[Sample, Calibration, Calibration]:
    """Traffic of three classes, the second calibrated on 60 images: by class, and the same pooled.

    The classes' clean scores lie far from each other; `lift` moves what is asked.
    """
    sizes, middles = np.array([2000, 60, 2000]), np.array([-4.0, 0.0, 4.0])
    clean = [np.sort(rng.normal(m, 1, n)) for m, n in zip(middles, sizes, strict=True)]
    prediction = rng.choice(3, count, p=mix)
    score = rng.normal(middles[prediction] + lift, 1)
    p = np.ones(count)
    for c, one in enumerate(clean):
        mine = prediction == c
        p[mine] = (1 + len(one) - np.searchsorted(one, score[mine])) / (1 + len(one))
    own = np.concatenate([(len(one) - np.arange(len(one)) + 1) / (len(one) + 1) for one in clean])
    sample = Sample(
        score=-p,
        p_value=p,
        weight=np.ones(count),
        prediction=prediction,
        layers=np.zeros((count, 0)),
        source=np.full(count, "me"),
    )
    by_class = Calibration(
        clean=np.sort(-own),
        threshold=np.nextafter(-FPR, -1),
        fpr=FPR,
        group_of_class=np.arange(3),
        group_sizes=sizes.astype(float),
    )
    pooled = np.sort(np.concatenate(clean))
    return sample, by_class, Calibration(clean=pooled, threshold=np.inf, fpr=FPR)


@pytest.mark.parametrize("mix", [[0.5, 0.015, 0.485], [0.95, 0.05, 0.0], [0.0, 0.0, 1.0]])
def test_another_mix_of_classes_is_no_drift_of_a_guard_by_class(mix: list[float]) -> None:
    """What holds within each class holds for any mix of them; scores over all classes do not."""
    sample, by_class, _ = by_class_traffic(np.random.default_rng(7), mix, 4000)
    found = measure(sample, by_class)
    assert found.advice == "none"
    assert found.statistics["bulk_ks"] < 0.1
    assert found.statistics["verdict_rate"] == pytest.approx(FPR, abs=0.02)


def test_a_class_of_few_calibration_images_raises_no_alarm_by_its_own_chance() -> None:
    """All traffic of a class with 60 images: its realised rate is one draw, for good."""
    rng = np.random.default_rng(8)
    advice = [measure(*by_class_traffic(rng, [0.0, 1.0, 0.0], 3000)[:2]).advice for _ in range(40)]
    assert advice == ["none"] * 40
    sample, by_class, pooled = by_class_traffic(rng, [0.0, 1.0, 0.0], 3000)
    assert by_class.behind(sample) == pytest.approx(60)
    assert pooled.behind(sample) == 4060


def test_moved_inputs_and_attacks_are_seen_within_classes() -> None:
    """By class the watch is no weaker than over all."""
    rng = np.random.default_rng(9)
    moved, by_class, _ = by_class_traffic(rng, [0.5, 0.0, 0.5], 4000, lift=0.6)
    assert measure(moved, by_class).advice == "recalibrate"
    calm, by_class, _ = by_class_traffic(rng, [0.5, 0.0, 0.5], 4000)
    attacked = replace(calm, p_value=calm.p_value.copy(), score=calm.score.copy())
    attacked.p_value[::30] = 1 / 2001
    attacked.score[::30] = -1 / 2001
    assert measure(attacked, by_class).advice == "retrain"


@pytest.mark.parametrize("form", ["by class", "two looks", "both"])
def test_calm_traffic_of_every_form_of_a_guard_is_no_drift(
    form: str, tiny_model: Path, tiny_guard: Path, tmp_path: Path
) -> None:
    """On real networks, read back from what was captured; noise is told from it."""
    folder = tiny_guard
    if form != "by class":
        folder = looking_twice(tiny_model, folder, tmp_path / "twice")
    if form != "two looks":
        folder = going_by_class(tiny_model, folder, tmp_path / "guard")
    guard = Guard.open(tiny_model, folder, threads=1, readings=True)
    calm = captured(guard, tmp_path / "calm", images(500, seed=31))
    assert calm.advice == "none"
    assert calm.statistics["verdict_rate"] < 0.12
    assert calm.statistics["bulk_ks"] == pytest.approx(calm.statistics["p_value_ks"], abs=0.08)
    black = captured(guard, tmp_path / "black", images(500, seed=32) // 8)
    assert black.advice in {"recalibrate", "retrain"}
