"""Fitting and calibrating heads on made-up readings."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from reluguard.detector.errors import SettingsError
from reluguard.detector.head import Head, threshold_at
from reluguard.detector.taps import Tap
from reluguard.training.errors import DataError
from reluguard.training.harvest.readings import Kind, Readings
from reluguard.training.head.fit import HeadSettings, calibrate, fit_head
from reluguard.training.statistics.metrics import auroc

TAPS = (Tap(name="a", op="Relu", shape=(8, 4, 4)), Tap(name="b", op="Relu", shape=(6,)))
RATES, CLASSES = 14, 3
SETTINGS = HeadSettings(units=16, epochs=6, batch=64)

Group = Callable[..., Readings]


def group(
    kind: Kind,
    sources: NDArray[np.int64],
    *,
    seed: int,
    shift: float = 0.0,
    name: str = "",
    weight: float = 1.0,
) -> Readings:
    """Return noise, its first four rates moved by `shift`."""
    rng = np.random.default_rng(seed)
    rates = rng.normal(0.5, 0.1, (len(sources), RATES))
    rates[:, :4] += shift
    logits = rng.normal(0, 1, (len(sources), CLASSES))
    labels = sources % CLASSES
    if kind == "benign":  # a harmless change leaves the answer right
        logits[np.arange(len(sources)), labels] = logits.max(axis=1) + 1
    return Readings(
        name=name or kind,
        kind=kind,
        rates=rates.astype(np.float16),
        logits=logits.astype(np.float32),
        sources=sources,
        labels=labels,
        weight=weight,
    )


def groups(*, shift: float, seed: int = 0, count: int = 300) -> list[Readings]:
    """Return clean, benign and attacked readings of the same sources."""
    sources = np.arange(count)
    return [
        group("clean", sources, seed=seed),
        group("benign", sources[::2], seed=seed + 1),
        group("attack", sources[: count // 2], seed=seed + 2, shift=shift),
        group("attack", sources[count // 2 :], seed=seed + 3, shift=shift, name="other"),
    ]


def fitted(readings: list[Readings], seed: int = 0) -> Head:
    return fit_head(readings, taps=TAPS, settings=SETTINGS, seed=seed)


def fresh_auroc(head: Head, shift: float) -> float:
    clean, attacked = (
        group("clean", np.arange(1000), seed=seed, shift=s) for seed, s in ((90, 0.0), (91, shift))
    )
    scores = [head.score(g.rates, g.logits).score for g in (clean, attacked)]
    return auroc(*scores)


def test_a_seed_repeats_every_bit() -> None:
    """The same seed gives the same head, another another, and torch's global state stays."""
    data = groups(shift=0.1, count=120)
    state = torch.random.get_rng_state()
    first, again, other = (fitted(data, seed).to_arrays() for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.keys() == again.keys()
    for name, value in first.items():
        assert_array_equal(value, again[name], err_msg=name)
    assert not np.array_equal(first["weight_0"], other["weight_0"])


def test_separable_readings_are_told_apart() -> None:
    """Rates that attacks move are found, on images the fit never saw."""
    head = fitted(groups(shift=0.2))
    assert fresh_auroc(head, 0.2) > 0.9
    assert 0.4 < fresh_auroc(head, 0.0) < 0.6


def with_accidents() -> tuple[list[Readings], Readings]:
    """Return the groups with harmless changes among them that the model answers wrong."""
    accidents = group("benign", np.arange(100), seed=7, shift=0.3)
    wrong = replace(accidents, logits=np.roll(accidents.logits, 1, axis=1))
    data = groups(shift=0.1)
    return [_joined(g, wrong) if g.kind == "benign" else g for g in data], wrong


def test_accidents_need_not_teach() -> None:
    """With no share on either side, harmless changes answered wrong leave no trace in the head."""
    settings = replace(SETTINGS, accident_share=0.0, accident_kept=0.0, alarms=0.0)
    plain, beside = (
        fit_head(data, taps=TAPS, settings=settings, seed=0).to_arrays()
        for data in (groups(shift=0.1), with_accidents()[0])
    )
    for name, value in plain.items():
        assert_array_equal(value, beside[name])


def test_accidents_teach_a_little() -> None:
    """The more of them is positive and the less harmless, the higher their like score."""
    data, wrong = with_accidents()
    heads = [
        fit_head(
            data,
            taps=TAPS,
            settings=replace(SETTINGS, accident_share=share, accident_kept=kept),
            seed=0,
        )
        for share, kept in ((0.0, 1.0), (0.02, 0.5), (0.02, 0.0))
    ]
    low, middle, high = (head.score(wrong.rates, wrong.logits).score for head in heads)
    assert (middle > low).mean() > 0.9
    assert (high > middle).mean() > 0.9
    without = fresh_auroc(fitted(groups(shift=0.1)), 0.1)
    assert abs(fresh_auroc(heads[1], 0.1) - without) < 0.1


def _joined(first: Readings, second: Readings) -> Readings:
    return replace(
        first,
        rates=np.concatenate([first.rates, second.rates]),
        logits=np.concatenate([first.logits, second.logits]),
        sources=np.concatenate([first.sources, second.sources]),
        labels=np.concatenate([first.labels, second.labels]),
    )


def test_noise_is_not_told_apart() -> None:
    """Where nothing differs, fresh images score by chance and the likelihood stays near a half."""
    head = fitted(groups(shift=0.0))
    assert 0.45 < fresh_auroc(head, 0.0) < 0.55
    unseen = group("clean", np.arange(1000), seed=90)
    likelihood = head.score(unseen.rates, unseen.logits).likelihood
    assert 0.4 < likelihood.mean() < 0.6
    assert likelihood.std() < 0.15


def learned_by_heart(*, own_sources: bool) -> tuple[float, float]:
    """Fit on ten equal rows of noise per image, each image on one side only.

    Returns AUROC on those rows and their largest likelihood.
    """
    rows = np.repeat(np.random.default_rng(0).permutation(120), 10)
    noise = np.random.default_rng(1).normal(0.5, 0.1, (120, RATES)).astype(np.float16)
    kinds: tuple[Kind, Kind] = ("clean", "attack")
    sides = [
        Readings(
            name=kind,
            kind=kind,
            rates=noise[part],
            logits=np.zeros((600, CLASSES), np.float32),
            sources=np.arange(600) + 600 * index if own_sources else part,
            labels=part % CLASSES,
        )
        for index, (kind, part) in enumerate(zip(kinds, (rows[:600], rows[600:]), strict=True))
    ]
    eager = HeadSettings(units=64, epochs=40, batch=64, weight_decay=0.0, dropout=0.0)
    head = fit_head(sides, taps=TAPS, settings=eager, seed=0)
    seen = [head.score(side.rates, side.logits) for side in sides]
    largest = max(float(said.likelihood.max()) for said in seen)
    return auroc(seen[0].score, seen[1].score), largest


def test_rows_of_one_source_stay_in_one_fold() -> None:
    """Knowing images by heart earns no trust: their other rows are held out with them."""
    area, likelihood = learned_by_heart(own_sources=True)
    assert area > 0.95  # this is what a leak looks like
    assert likelihood > 0.95
    area, likelihood = learned_by_heart(own_sources=False)
    assert area < 0.8
    assert likelihood < 0.8


def test_sides_weigh_the_same() -> None:
    """Ten clean images per attacked one do not lower the likelihood: it is at even odds."""
    sources = np.arange(600)
    head = fitted([group("clean", sources, seed=0), group("attack", sources[::10], seed=1)])
    unseen = group("clean", np.arange(500), seed=90)
    assert 0.35 < head.score(unseen.rates, unseen.logits).likelihood.mean() < 0.65


def test_groups_count_by_weight_not_by_size() -> None:
    """A heavy group is what the head learns, though a light one is many times as large."""
    sources = np.arange(400)
    up, down = np.where(np.arange(RATES) < 4, 0.12, 0.0), np.where(np.arange(RATES) < 4, -0.12, 0.0)
    clean = group("clean", sources, seed=0)

    def attack(move: NDArray[np.float64], rows: NDArray[np.int64], weight: float) -> Readings:
        made = group("attack", rows, seed=1, name=f"move {move[0]}", weight=weight)
        return replace(made, rates=(made.rates + move).astype(np.float16))

    light_up = fitted([clean, attack(up, sources, 0.02), attack(down, sources[:80], 1.0)])
    unseen = group("clean", np.arange(500), seed=90)
    risen, fallen = (
        light_up.score((unseen.rates + move).astype(np.float16), unseen.logits).score.mean()
        for move in (up, down)
    )
    assert fallen > risen


def test_the_scaler_never_sees_attacks() -> None:
    """Centre and spread of the rates are those of clean and benign rows alone."""
    data = groups(shift=0.2)
    head = fitted(data)
    columns = head.features.columns
    harmless = np.concatenate([g.rates for g in data if g.kind != "attack"]).astype(np.float32)
    count = len(columns)
    np.testing.assert_allclose(
        head.features.center[:count], harmless[:, columns].mean(axis=0), atol=1e-5
    )
    np.testing.assert_allclose(
        head.features.spread[:count], harmless[:, columns].std(axis=0), atol=1e-5
    )
    everything = np.concatenate([g.rates for g in data]).astype(np.float32)
    assert np.abs(head.features.center[:4] - everything[:, :4].mean(axis=0)).min() > 0.05


def test_a_head_is_small_and_points_at_the_tap() -> None:
    """The large matrix fits half precision, and evidence rises at the tap that attacks move."""
    head = fitted(groups(shift=0.15))
    assert head.to_arrays()["weight_0"].dtype == np.float16
    attacked = group("attack", np.arange(500), seed=91, shift=0.15)
    clean = group("clean", np.arange(500), seed=90)
    lead = [
        head.score(g.rates, g.logits).evidence.mean(axis=0, dtype=np.float64)
        for g in (attacked, clean)
    ]
    moved, still = lead[0] - lead[1]
    assert moved > 4 * abs(still)


def test_progress_ends_at_one() -> None:
    """The share done rises to one."""
    told: list[float] = []
    fit_head(
        groups(shift=0.1, count=60), taps=TAPS, settings=SETTINGS, seed=0, progress=told.append
    )
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_calibration_counts_clean_scores() -> None:
    """Thresholds are order statistics of the scores of unseen clean images."""
    head = fitted(groups(shift=0.1))
    clean = group("clean", np.arange(99), seed=50)
    done = calibrate(head, clean, rates=[0.05, 0.2], prevalence=0.5)
    assert_array_equal(done.clean_scores, np.sort(head.score(clean.rates, clean.logits).score))
    assert done.intercept == head.intercept
    limit = threshold_at(0.05, done.clean_scores)
    assert (done.clean_scores > np.float32(limit)).sum() == 4


@pytest.mark.parametrize("prevalence", [0.01, 0.5, 0.9])
def test_prevalence_moves_the_odds(prevalence: float) -> None:
    """The likelihood's odds are the even ones times those of an attack."""
    head = replace(fitted(groups(shift=0.1, count=120)), slope=0.5)
    clean = group("clean", np.arange(60), seed=50)
    done = calibrate(head, clean, rates=[0.05], prevalence=prevalence)
    before, after = (h.score(clean.rates, clean.logits).likelihood for h in (head, done))
    odds = before / (1 - before) * prevalence / (1 - prevalence)
    np.testing.assert_allclose(after, odds / (1 + odds), rtol=1e-3)


@pytest.mark.parametrize(("fpr", "needed"), [(0.05, 19), (0.01, 99), (0.001, 999)])
def test_too_few_calibration_images_says_how_many(fpr: float, needed: int) -> None:
    """One image short is refused with the number, and that number suffices."""
    head = fitted(groups(shift=0.1, count=60))
    clean = group("clean", np.arange(needed), seed=50)
    with pytest.raises(
        DataError, match=f"needs {needed} clean calibration images, got {needed - 1}"
    ):
        calibrate(head, clean.rows(np.arange(needed - 1)), rates=[0.5, fpr], prevalence=0.5)
    done = calibrate(head, clean, rates=[fpr], prevalence=0.5)
    assert threshold_at(fpr, done.clean_scores) == done.clean_scores[-1]


def test_a_rate_is_between_zero_and_one() -> None:
    """No number of images promises a rate of zero."""
    with pytest.raises(SettingsError, match="between 0 and 1, got 0"):
        calibrate(
            fitted(groups(shift=0.1, count=60)),
            group("clean", np.arange(9), seed=5),
            rates=[0.0],
            prevalence=0.5,
        )


def test_both_sides_are_needed() -> None:
    """A head needs clean images and attacks that succeeded."""
    clean, benign, attack, _ = groups(shift=0.1, count=60)
    for some in ([clean, benign], [benign, attack], [clean, attack.rows(np.zeros(30, np.bool_))]):
        with pytest.raises(DataError, match="clean images and at least one attack that succeeded"):
            fitted(some)


def test_too_few_successes_are_told() -> None:
    """A single attacked image can't be held out and learned from."""
    clean, benign, attack, _ = groups(shift=0.1, count=60)
    outcomes = []
    for seed in range(4):
        try:
            fitted([clean, benign, attack.rows(np.array([0]))], seed)
        except DataError as error:
            outcomes.append(str(error))
    assert outcomes
    assert "succeeded on more source images, got 1 of 60" in outcomes[0]


def test_rows_of_readings() -> None:
    """Rows are chosen by mask or index, all columns alike."""
    readings = group("attack", np.arange(5), seed=0)
    some = readings.rows(np.array([3, 1]))
    assert_array_equal(some.sources, [3, 1])
    assert_array_equal(some.rates, readings.rates[[3, 1]])
    assert_array_equal(some.predictions, readings.logits[[3, 1]].argmax(axis=1))
    assert len(readings.rows(readings.sources > 2)) == 2
