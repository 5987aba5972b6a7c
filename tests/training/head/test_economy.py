"""What is read is the least time at which little is lost, or what a limit allows."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from reluguard.detector.artifact import GuardArtifact, read_guard
from reluguard.detector.bench import ReadingTime, pair_ratio, plain_seconds, reading_seconds
from reluguard.detector.compile.guarded import compile_guard
from reluguard.detector.errors import SettingsError
from reluguard.detector.images import InputSpec
from reluguard.detector.model import Production, load_production
from reluguard.detector.taps import Tap
from reluguard.training.errors import DataError
from reluguard.training.harvest.readings import Kind, Readings
from reluguard.training.head.economy import (
    Economy,
    Measures,
    blank_head,
    check_overhead,
    choose_taps,
)
from reluguard.training.head.fit import HeadSettings
from reluguard.training.head.worth import column_of, order_pieces
from tests.training.fitting import Order

CHANNELS, ROWS, CLASSES = 4, 600, 3
SETTINGS = HeadSettings()


@pytest.fixture
def production(digits_model: Path) -> Production:
    """The guarded model."""
    return load_production(digits_model)


def made_up(count: int, levels: int = 2) -> tuple[Tap, ...]:
    """Return so many taps that no network has."""
    at = tuple(0.5 + j for j in range(levels))
    return tuple(
        Tap(name=f"t{i}", op="Relu", shape=(CHANNELS, 4, 4), levels=at) for i in range(count)
    )


def read(taps: Sequence[Tap], telling: dict[tuple[int, int], float]) -> list[Readings]:
    """Return clean and attacked rows, of which some levels of some taps tell so many deviations."""
    rng = np.random.default_rng(0)
    places = column_of(taps)

    def group(name: str, kind: Kind) -> Readings:
        rates = 0.5 + 0.05 * rng.normal(size=(ROWS, sum(tap.rates for tap in taps)))
        for piece, apart in telling.items():
            if kind == "attack":
                rates[:, places[piece][0]] += 0.05 * apart
        return Readings(
            name=name,
            kind=kind,
            rates=np.clip(rates, 0, 1).astype(np.float32),
            logits=rng.normal(size=(ROWS, CLASSES)).astype(np.float32),
            sources=np.arange(ROWS),
            labels=rng.integers(0, CLASSES, ROWS),
        )

    return [group("clean", "clean"), group("fgsm", "attack")]


def even(taps: Sequence[Tap], seconds: float = 1e-4) -> list[ReadingTime]:
    """Return times by which all take the same, half of it for all levels together."""
    return [
        ReadingTime(sample=seconds / 2, levels=(seconds / 2 / len(t.levels),) * len(t.levels))
        for t in taps
    ]


def measures(
    times: Sequence[ReadingTime],
    taps: Sequence[Tap],
    *,
    judged: Callable[[int], float] = lambda _: 0.9,
    plain: float = 0.01,
) -> Measures:
    """Return ratios by these times, and an AUROC by how many rates are read."""
    by_name = {tap.name: time for tap, time in zip(taps, times, strict=True)}

    def guarded(_: Production, __: object, some: Sequence[Tap], *___: Any, **____: Any) -> float:
        return 1 + sum(by_name[t.name].of(range(len(t.levels))) for t in some) / plain

    return Measures(
        plain=lambda *_, **__: plain,
        reading=lambda *_, **__: times,
        guarded=guarded,
        judged=lambda groups, **_: judged(groups[0].rates.shape[1]),
    )


def chosen(
    production: Production,
    taps: Sequence[Tap],
    groups: Sequence[Readings],
    by: Measures,
    asked: float | None,
) -> Economy:
    spec = InputSpec(name="x", height=4, width=4, channels=1)
    return choose_taps(
        production,
        spec,
        taps,
        groups,
        max_overhead=asked,
        settings=SETTINGS,
        seed=0,
        measures=by,
    )


def test_what_adds_most_for_its_time_comes_first() -> None:
    """What tells nothing comes last; of what tells the same, the cheaper one is first."""
    taps = made_up(5)
    groups = read(taps, {(0, 1): 1.0, (3, 0): 1.0, (4, 1): 0.7})
    times = even(taps)
    dear = [times[0], times[1], times[2], ReadingTime(sample=1e-2, levels=(1e-3, 1e-3)), times[4]]
    order, telling = order_pieces(groups, taps, times)
    assert set(order[:2]) == {(0, 1), (3, 0)}
    assert order.index((4, 1)) < telling < 10
    assert sorted(order) == sorted(column_of(taps))
    otherwise, _ = order_pieces(groups, taps, dear)
    assert otherwise[0] == (0, 1)
    assert otherwise.index((4, 1)) < otherwise.index((3, 0))


def test_what_is_said_already_adds_nothing() -> None:
    """Two levels that say the same are not both read early."""
    taps = made_up(4)
    groups = read(taps, {(0, 0): 1.5, (2, 1): 0.8})
    places = column_of(taps)
    for group in groups:
        group.rates[:, places[1, 0]] = group.rates[:, places[0, 0]]
    order, _ = order_pieces(groups, taps, even(taps))
    assert {order[0], order[1]} in ({(0, 0), (2, 1)}, {(1, 0), (2, 1)})


def test_of_many_classes_some_are_asked_of() -> None:
    """The order of a model of hundreds is found as that of ten."""
    taps = made_up(3)
    groups = read(taps, {(0, 0): 1.0})
    logits = np.random.default_rng(1).normal(size=(ROWS, 400)).astype(np.float32)
    many = [replace(group, logits=logits) for group in groups]
    assert order_pieces(many, taps, even(taps))[0][0] == (0, 0)


def test_the_limit_that_was_asked_for_is_kept(production: Production) -> None:
    """As much as fits: one more level would not."""
    taps = made_up(9, 1)
    groups = read(taps, {(i, 0): 1.0 + i / 10 for i in range(9)})
    found = chosen(production, taps, groups, measures(even(taps, 2e-4), taps), 1.11)
    assert sum(map(len, found.chosen)) == 5
    assert found.is_kept
    assert found.overhead == pytest.approx({"1": 1.1, "8": 1.1})
    assert found.lost == 0
    assert "reads 5 of 9 taps at 5 levels in all to keep it under 1.11: guarded" in found.words
    assert "1.100 at batch 1, 1.100 at batch 8; a small head has no less mean AUROC" in found.words
    assert {"t7", "t8"} < {tap.name for tap in found.taps(taps)}
    assert len(found.columns(taps)) == 5 * CHANNELS


def test_all_are_read_where_all_fit(production: Production) -> None:
    """Nothing is dropped that the limit allows, nor judged."""
    taps = made_up(6)
    groups = read(taps, {(0, 0): 1.0})
    for asked in (1.07, None):
        found = chosen(production, taps, groups, measures(even(taps, 4e-5), taps), asked)
        assert found.taps(taps) == taps
        assert found.lost is None


def test_the_least_at_which_little_is_lost(production: Production) -> None:
    """Without a limit: the first three, six, twelve and so on, or all, and halfway between them."""
    taps = made_up(9, 1)
    groups = read(taps, {(i, 0): 1.0 + i / 10 for i in range(9)})

    def found(needed: int) -> Economy:
        by = measures(
            even(taps, 2.3e-4), taps, judged=lambda rates: 0.95 if rates >= needed else 0.94
        )
        return chosen(production, taps, groups, by, None)

    for needed, count in ((3, 3), (4, 4), (6, 6), (7, 7)):
        least = found(needed * CHANNELS)
        assert sum(map(len, least.chosen)) == count
        assert least.limit is None
        assert least.overhead == pytest.approx(dict.fromkeys("18", 1 + 0.023 * count))
        assert least.lost == 0
        assert (
            f"reads {count} of 9 taps at {count} levels in all, as few as tell nearly as much as "
            f"more or all would: guarded / plain time {1 + 0.023 * count:.3f} at batch 1, "
        ) in least.words


def test_more_is_not_read_where_less_tells_more(production: Production) -> None:
    """Of few images a head may learn more from some rates than from few or from all."""
    taps = made_up(9, 1)
    groups = read(taps, {(i, 0): 1.0 + i / 10 for i in range(9)})
    told = {3: 0.92, 4: 0.93, 5: 0.94, 6: 0.95, 9: 0.94}
    by = measures(even(taps, 2.3e-4), taps, judged=lambda rates: told[rates // CHANNELS])
    found = chosen(production, taps, groups, by, None)
    assert sum(map(len, found.chosen)) == 6
    assert "no less mean AUROC than with the best that was tried, on images" in found.words


def test_what_can_not_be_judged_is_read_whole(production: Production) -> None:
    """Where no attack has rows among the images kept, nothing says what less would lose."""
    taps = made_up(9, 1)
    groups = read(taps, {(0, 0): 1.0})
    by = measures(even(taps, 2.3e-4), taps, judged=lambda _: float("nan"))
    found = chosen(production, taps, groups, by, None)
    assert found.taps(taps) == taps
    assert found.lost is None
    assert "nan" not in found.words


def test_few_images_don_t_tell_what_is_lost(production: Production) -> None:
    """All is read where a small head is judged by a dozen images, unless a limit was asked for."""
    taps = made_up(9, 1)
    few = [group.rows(np.arange(40)) for group in read(taps, {(0, 0): 1.0})]
    found = chosen(production, taps, few, measures(even(taps, 2.3e-4), taps), None)
    assert found.taps(taps) == taps
    assert found.limit is None
    assert re.search(r"can't be told by \d\d? clean images .* 40 are needed: guarded", found.words)
    asked = chosen(production, taps, few, measures(even(taps, 2.3e-4), taps), 1.09)
    assert sum(map(len, asked.chosen)) == 3


def test_a_limit_wins_over_what_is_lost(production: Production) -> None:
    """Who asks for a ratio gets it, and is told what it costs."""
    taps = made_up(9, 1)
    groups = read(taps, {(i, 0): 1.0 + i / 10 for i in range(9)})
    by = measures(even(taps, 2e-4), taps, judged=lambda rates: rates / 100)
    found = chosen(production, taps, groups, by, 1.09)
    assert sum(map(len, found.chosen)) == 4
    assert found.lost == pytest.approx(0.2)
    assert "a small head has 0.200 less mean AUROC than with all" in found.words


def test_where_none_fit_the_best_few_are_read(production: Production) -> None:
    """With a word that the limit is not kept, rather than no guard."""
    taps = made_up(6, 1)
    groups = read(taps, {(i, 0): 1.0 for i in range(6)})
    found = chosen(production, taps, groups, measures(even(taps, 2e-3), taps), 1.05)
    assert sum(map(len, found.chosen)) == 3
    assert not found.is_kept
    assert "no choice of taps keeps guarded / plain time under 1.05; reads 3 of 6" in found.words


def test_fast_models_are_not_cut(production: Production) -> None:
    """Under .4 ms all taps are read, whatever they take."""
    taps = made_up(3)
    by = measures(even(taps, 1.0), taps, plain=0.0003)
    found = chosen(production, taps, read(taps, {}), by, 1.01)
    assert found.taps(taps) == taps
    assert "the model takes 0.30 ms, too little to cut" in found.words


def test_a_choice_is_kept_for_its_limit(tmp_path: Path) -> None:
    """Read back as it was; another limit, other taps or none is none; damage is told."""
    taps = made_up(2)
    file = tmp_path / "taps.json"
    assert Economy.read(file, taps, 1.1) is None
    made = Economy(
        asked=1.1, limit=1.1, chosen=((), (1,)), plain_s=0.01, overhead={"1": 1.05}, lost=0.001
    )
    made.save(file)
    assert Economy.read(file, taps, 1.1) == made
    assert_array_equal(made.columns(taps), np.arange(12, 16))
    assert made.taps(taps) == (replace(taps[1], levels=(1.5,)),)
    assert Economy.read(file, taps, 1.2) is None
    assert Economy.read(file, taps, None) is None
    assert Economy.read(file, taps[:1], 1.1) is None
    assert Economy.read(file, made_up(2, 1), 1.1) is None
    file.write_text(json.dumps({"max_overhead": 1.1, "taps": ["t1"], "of": 2, "plain_s": 1}))
    assert Economy.read(file, taps, 1.1) is None  # of a version before
    file.write_text("{}")
    with pytest.raises(DataError, match=r"expected a choice of taps, .* something else: remove it"):
        Economy.read(file, taps, 1.1)


def test_limits_have_a_meaning() -> None:
    """Above one; 0 says that there is none."""
    assert check_overhead(1.08) == 1.08
    assert check_overhead(0) == 0
    assert check_overhead(None) is None
    for wrong in (0.9, 1.0, -1.0, float("nan")):
        with pytest.raises(SettingsError, match="expected a guarded / plain time above 1"):
            check_overhead(wrong)


def test_times_are_measured(fitted: GuardArtifact, production: Production) -> None:
    """Every tap and level takes some time; a blank head has the operators of a fitted one."""
    spec, taps = fitted.manifest.input, fitted.manifest.taps
    times = reading_seconds(production, spec, taps, batch=2, rounds=3)
    assert [len(time.levels) for time in times] == [len(tap.levels) for tap in taps]
    for time, tap in zip(times, taps, strict=True):
        assert all(seconds > 0 for seconds in time.levels)
        assert time.of([0]) <= time.of(range(len(tap.levels)))
        assert time.of([]) == 0
    blank = blank_head(taps, 10, SETTINGS)
    ours = compile_guard(production, taps, fitted.head, fpr=0.5)
    theirs = compile_guard(production, taps, blank, fpr=0.5)
    apart = len(ours.graph.node) - len(theirs.graph.node)
    assert abs(apart) <= 2  # picking rates, where not all are read
    assert plain_seconds(production, spec, batch=2, rounds=3) > 0
    assert pair_ratio(production, spec, taps, blank, batch=2, rounds=3) > 0


@pytest.mark.slow
def test_a_fit_goes_on_with_the_taps_it_chose(
    fitted: GuardArtifact, fit_settings: Order, tmp_path: Path
) -> None:
    """The choice in the work folder is taken, not made again, and the report says so."""
    work = fit_settings.shards
    taps = fitted.manifest.taps
    known = Economy(
        asked=1.3,
        limit=1.3,
        chosen=((0, 2), *[()] * (len(taps) - 1)),
        plain_s=0.01,
        overhead={"1": 1.2},
    )
    known.save(work / "taps.json")
    out = tmp_path / "cheap"
    replace(fit_settings, out=out, work=work, max_overhead=1.3).run()
    manifest = read_guard(out).manifest
    assert manifest.taps == (replace(taps[0], levels=(taps[0].levels[0], taps[0].levels[2])),)
    assert any("reads 1 of" in word for word in manifest.metrics["words"])
