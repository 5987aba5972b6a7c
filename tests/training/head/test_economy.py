"""Under a budget the taps of most worth for their measured time are read."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from reluguard.detector.artifact import GuardArtifact, read_guard
from reluguard.detector.errors import SettingsError
from reluguard.detector.model import Production, load_production
from reluguard.detector.taps import Tap
from reluguard.training.errors import DataError
from reluguard.training.head.economy import (
    Economy,
    Measures,
    check_overhead,
    choose_taps,
    tap_order,
)
from tests.training.fitting import Order


@pytest.fixture
def production(digits_model: Path) -> Production:
    """The guarded model."""
    return load_production(digits_model)


def measures(costs: Sequence[float], taps: Sequence[Tap], plain: float = 0.01) -> Measures:
    """Return times by which each tap takes its share of the plain model's, at any batch."""
    by_name = {tap.name: cost for tap, cost in zip(taps, costs, strict=True)}

    def guarded(_: Production, __: object, some: Sequence[Tap], *___: Any, **____: Any) -> float:
        return 1 + sum(by_name[tap.name] for tap in some)

    return Measures(
        plain=lambda *_, **__: plain,
        reading=lambda *_, **__: (
            1 + sum(by_name.values()),
            {name: 1 + cost for name, cost in by_name.items()},
        ),
        guarded=guarded,
    )


def wide(fitted: GuardArtifact, count: int) -> GuardArtifact:
    """Return a guard of so many taps: its own, again and again by other names."""
    manifest, head = fitted.manifest, fitted.head
    f = head.features
    taps, columns, tap_of, rows, start = [], [], [], [], 0
    probe, own = [], len(manifest.taps)
    for i in range(count):
        tap = manifest.taps[i % own]
        mine = np.flatnonzero(f.column_taps == i % own)
        taps.append(replace(tap, name=f"{tap.name} {i}"))
        columns.append(np.arange(start, start + len(mine)))
        tap_of.append(np.full(len(mine), i))
        rows.append(mine)
        probe.append(f.probe_weights[mine])
        start += len(mine)
    kept = np.concatenate(rows)
    of_feature = np.concatenate([kept, np.arange(len(f.columns), f.width)])
    features = replace(
        f,
        columns=np.concatenate(columns),
        column_taps=np.concatenate(tap_of),
        taps=count,
        probe_weights=np.concatenate(probe),
        center=f.center[of_feature],
        spread=f.spread[of_feature],
    )
    return replace(
        fitted,
        manifest=replace(manifest, taps=tuple(taps)),
        head=replace(
            head,
            features=features,
            weights=(head.weights[0][of_feature], *head.weights[1:]),
            evidence_weights=head.evidence_weights[of_feature],
            evidence_bias=np.resize(head.evidence_bias, count),
        ),
    )


def chosen(
    fitted: GuardArtifact, production: Production, costs: Sequence[float], budget: float
) -> Economy:
    guard = wide(fitted, len(costs))
    taps = guard.manifest.taps
    return choose_taps(
        production,
        guard.manifest.input,
        taps,
        guard.head,
        max_overhead=budget,
        measures=measures(costs, taps),
    )


def test_what_costs_most_for_its_worth_goes_first(fitted: GuardArtifact) -> None:
    """Of taps of equal worth the cheaper one; a tap that costs nothing at all is no wonder."""
    guard = wide(fitted, 6)
    taps = guard.manifest.taps
    dear = {tap.name: 0.01 * (i + 1) for i, tap in enumerate(taps)}
    assert len(taps) % len(fitted.manifest.taps) == 0
    order = tap_order(guard.head, taps, dear).tolist()
    for i in range(len(fitted.manifest.taps)):
        alike = [j for j in order if j % len(fitted.manifest.taps) == i]
        assert alike == sorted(alike)
    free = dict.fromkeys(dear, -1.0)
    worth = tap_order(guard.head, taps, free)
    assert sorted(worth.tolist()) == list(range(6))


def test_the_budget_is_kept(fitted: GuardArtifact, production: Production) -> None:
    """As many taps as fit: one more would not."""
    costs = [0.02] * 9
    found = chosen(fitted, production, costs, 1.11)
    assert len(found.taps) == 5
    assert found.is_kept
    assert found.overhead == pytest.approx({"1": 1.1, "8": 1.1})
    assert "reads 5 of 9 taps to keep guarded / plain time under 1.11: 1.100" in found.words


def test_all_are_read_where_all_fit(fitted: GuardArtifact, production: Production) -> None:
    """Nothing is dropped that the budget allows."""
    found = chosen(fitted, production, [0.01] * 6, 1.07)
    assert len(found.taps) == found.of == 6


def test_where_none_fit_the_best_few_are_read(
    fitted: GuardArtifact, production: Production
) -> None:
    """With a word that the budget is not kept, rather than no guard."""
    found = chosen(fitted, production, [0.2] * 6, 1.05)
    assert len(found.taps) == 3
    assert not found.is_kept
    assert "no choice of taps keeps guarded / plain time under 1.05; reads 3 of 6" in found.words


def test_fast_models_are_not_cut(fitted: GuardArtifact, production: Production) -> None:
    """Under 2 ms all taps are read, whatever they cost."""
    taps = fitted.manifest.taps
    found = choose_taps(
        production,
        fitted.manifest.input,
        taps,
        fitted.head,
        max_overhead=1.01,
        measures=measures([1.0] * len(taps), taps, plain=0.0019),
    )
    assert found.taps == tuple(tap.name for tap in taps)
    assert "the model takes 1.90 ms, too little to cut" in found.words


def test_a_choice_is_kept_for_its_budget(fitted: GuardArtifact, tmp_path: Path) -> None:
    """Read back as it was; another budget, other taps or none is none; damage is told."""
    taps = fitted.manifest.taps
    file = tmp_path / "taps.json"
    assert Economy.read(file, taps, 1.1) is None
    made = Economy(
        max_overhead=1.1, taps=(taps[1].name,), of=len(taps), plain_s=0.01, overhead={"1": 1.05}
    )
    made.save(file)
    again = Economy.read(file, taps, 1.1)
    assert again == made
    assert again is not None
    assert_array_equal(again.indices(taps), [1])
    assert Economy.read(file, taps, 1.2) is None
    assert Economy.read(file, taps[:1], 1.1) is None
    file.write_text("{}")
    with pytest.raises(DataError, match=r"expected a choice of taps, .* something else: remove it"):
        Economy.read(file, taps, 1.1)


def test_budgets_have_a_meaning() -> None:
    """Above one; 0 says that there is none."""
    assert check_overhead(1.08) == 1.08
    assert check_overhead(0) is None
    assert check_overhead(None) is None
    for wrong in (0.9, 1.0, -1.0, float("nan")):
        with pytest.raises(SettingsError, match="expected a guarded / plain time above 1"):
            check_overhead(wrong)


@pytest.mark.slow
def test_a_fit_goes_on_with_the_taps_it_chose(
    fitted: GuardArtifact, fit_settings: Order, tmp_path: Path
) -> None:
    """The choice in the work folder is taken, not made again, and the report says so."""
    work = fit_settings.shards
    tap = fitted.manifest.taps[0].name
    known = Economy(
        max_overhead=1.3,
        taps=(tap,),
        of=len(fitted.manifest.taps),
        plain_s=0.01,
        overhead={"1": 1.2},
    )
    known.save(work / "taps.json")
    out = tmp_path / "cheap"
    replace(fit_settings, out=out, work=work, max_overhead=1.3).run()
    manifest = read_guard(out).manifest
    assert [one.name for one in manifest.taps] == [tap]
    assert any("reads 1 of" in word for word in manifest.metrics["words"])
