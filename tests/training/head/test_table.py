"""Fitting from disk in blocks gives what fitting in memory gives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from reluguard.detector.arrays import find_place
from reluguard.detector.artifact import write_file
from reluguard.detector.taps import Tap
from reluguard.training.errors import DataError
from reluguard.training.harvest.rates import StoredRates, places, stored
from reluguard.training.harvest.readings import Kind, Readings
from reluguard.training.head import moments
from reluguard.training.head.fit import HeadSettings, fit_head
from reluguard.training.head.moments import Moments, row_blocks
from reluguard.training.statistics.metrics import auroc

TAPS = (Tap(name="a", op="Relu", shape=(12, 4, 4)), Tap(name="b", op="Relu", shape=(8, 10, 10)))
CLASSES = 3
SETTINGS = HeadSettings(units=16, epochs=3, batch=64)


def rates(count: int, seed: int, shift: float) -> NDArray[np.float32]:
    """Return rates a network could give, of which an attack moves half."""
    rng = np.random.default_rng(seed)
    counts = places(TAPS)
    moved = np.clip(rng.normal(0.5, 0.1, (count, len(counts))), 0, 1)
    moved[:, ::2] += shift
    whole: NDArray[np.float32] = (np.rint(np.clip(moved, 0, 1) * counts) / counts).astype(
        np.float32
    )
    return whole


def group(kind: Kind, count: int, *, seed: int, shift: float = 0.0) -> Readings:
    rng = np.random.default_rng(seed + 100)
    sources = np.arange(count)
    return Readings(
        name=kind,
        kind=kind,
        rates=rates(count, seed, shift),
        logits=rng.normal(0, 1, (count, CLASSES)).astype(np.float32),
        sources=sources,
        labels=sources % CLASSES,
    )


def on_disk(readings: Readings, folder: Path) -> Readings:
    """Return the same readings, their rates in shards of 100 rows."""
    parts = []
    for start in range(0, len(readings), 100):
        arrays = stored(readings.rates[start : start + 100], places(TAPS))
        file = folder / f"{readings.name}-{start}.npz"
        write_file(file, npz=arrays, compress=False)
        place = find_place(file, "rates", error=DataError)
        assert place is not None
        parts.append(StoredRates.at(place, arrays["steps"]))
    return Readings(
        name=readings.name,
        kind=readings.kind,
        rates=StoredRates.joined(parts),
        logits=readings.logits,
        sources=readings.sources,
        labels=readings.labels,
    )


@pytest.fixture
def data() -> list[Readings]:
    """Clean images and attacked ones, 700 rows."""
    return [group("clean", 400, seed=0), group("attack", 300, seed=1, shift=0.1)]


def test_blocks_cover_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, none larger than the room, one row at least."""
    monkeypatch.setattr(moments, "BLOCK_VALUES", 100)
    for rows, width in ((23, 10), (20, 10), (5, 1000), (0, 3)):
        blocks = list(row_blocks(rows, width))
        assert_array_equal([i for b in blocks for i in range(rows)[b]], np.arange(rows))
        assert all((b.stop - b.start) * width <= max(100, width) for b in blocks)


def test_moments_of_blocks_are_those_of_the_whole() -> None:
    """To the last digits in blocks, to the bit in one."""
    x = np.random.default_rng(0).normal(3, 2, (1000, 7)).astype(np.float32)
    one, many = Moments(), Moments(np.float64)
    one.add(x)
    for start in range(0, 1000, 130):
        many.add(x[start : start + 130])
    assert_array_equal(one.mean, x.mean(axis=0))
    assert_array_equal(one.spread, x.std(axis=0))
    assert_allclose(many.mean, x.mean(axis=0, dtype=np.float64), rtol=1e-12)
    assert_allclose(many.spread, x.std(axis=0, dtype=np.float64), rtol=1e-12)


def test_where_rates_lie_changes_no_bit(data: list[Readings], tmp_path: Path) -> None:
    """A head fitted on shards is the head fitted on arrays."""
    # what a byte can't hold exactly differs, so both get what it holds
    shards = [on_disk(readings, tmp_path) for readings in data]
    plain = [
        Readings(
            name=g.name,
            kind=g.kind,
            rates=np.asarray(s.rates),
            logits=g.logits,
            sources=g.sources,
            labels=g.labels,
        )
        for g, s in zip(data, shards, strict=True)
    ]
    one, two = (fit_head(g, taps=TAPS, settings=SETTINGS, seed=0) for g in (plain, shards))
    for name, value in one.to_arrays().items():
        assert_array_equal(value, two.to_arrays()[name], err_msg=name)


def test_small_blocks_fit_the_same_features(
    data: list[Readings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums over thirty blocks or one: the same probes and scales up to rounding."""
    whole = fit_head(data, taps=TAPS, settings=SETTINGS, seed=0).features
    monkeypatch.setattr(moments, "BLOCK_VALUES", 21 * 23)
    parts = fit_head(data, taps=TAPS, settings=SETTINGS, seed=0).features
    assert_array_equal(whole.columns, parts.columns)
    for name in ("probe_weights", "probe_bias", "center", "spread"):
        one, two = getattr(whole, name), getattr(parts, name)
        assert_allclose(one, two, atol=1e-4 * np.abs(one).max(), err_msg=name)


def test_features_made_anew_teach_as_well(data: list[Readings], tmp_path: Path) -> None:
    """Without room for features in memory the head is as good; a seed repeats it; torch is left."""
    shards = [on_disk(readings, tmp_path) for readings in data]
    state = torch.random.get_rng_state()
    heads = [
        fit_head(shards, taps=TAPS, settings=SETTINGS, seed=0, kept_bytes=room)
        for room in (2**30, 0, 0)
    ]
    assert torch.equal(state, torch.random.get_rng_state())
    for name, value in heads[1].to_arrays().items():
        assert_array_equal(value, heads[2].to_arrays()[name], err_msg=name)
    fresh = [group("clean", 500, seed=7), group("attack", 500, seed=8, shift=0.1)]
    areas = []
    for head in heads[:2]:
        scores = [head.score(g.rates, g.logits).score for g in fresh]
        areas.append(auroc(*scores))
    assert min(areas) > 0.9
    assert abs(areas[0] - areas[1]) < 0.02


def test_the_scale_is_of_harmless_images(data: list[Readings]) -> None:
    """Attacked images, however far they moved, leave the centre and spread of features alone."""
    head = fit_head(data, taps=TAPS, settings=SETTINGS, seed=0)
    clean, attacked = (head.features.transform(g.rates, g.logits) for g in data)
    columns = len(head.features.columns)  # rates; what follows depends on folds
    assert_allclose(clean[:, :columns].mean(axis=0), 0, atol=1e-3)
    assert_allclose(clean[:, :columns].std(axis=0), 1, atol=1e-2)
    assert abs(attacked[:, :columns].mean(axis=0)).max() > 0.5
