"""How often harmless changes are taken for attacks, and what they count by it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from reluguard.detector.head import Head
from reluguard.detector.taps import Tap
from reluguard.training.harvest.readings import Kind, Readings
from reluguard.training.head.alarms import false_alarms, weighed
from reluguard.training.head.fit import HeadSettings, fit_head

TAPS = (Tap(name="a", op="Relu", shape=(8, 4, 4)), Tap(name="b", op="Relu", shape=(6, 4, 4)))
SETTINGS = HeadSettings(members=1, units=8, epochs=6, alarms=0.0)


def group(name: str, kind: Kind, rows: int, shift: float, weight: float = 1.0) -> Readings:
    rng = np.random.default_rng(len(name))
    rates = rng.random((rows, 14), np.float32)
    rates[:, :7] += np.float32(shift)
    labels = rng.integers(0, 3, rows)
    logits = rng.normal(size=(rows, 3)).astype(np.float32)
    logits[np.arange(rows), labels] += 8  # answered right
    return Readings(
        name=name, kind=kind, rates=rates, logits=logits, sources=np.arange(rows), labels=labels,
        weight=weight,
    )  # fmt: skip


def groups() -> list[Readings]:
    """One harmless change that looks like the attack, one that looks like nothing."""
    return [
        group("clean", "clean", 800, 0.0),
        group("alike", "benign", 800, 0.4),
        group("quiet", "benign", 800, 0.0),
        group("few", "benign", 40, 0.4),
        group("attack", "attack", 800, 0.5),
    ]


def first(some: Sequence[Readings]) -> Head:
    return fit_head(some, taps=TAPS, settings=SETTINGS, seed=0)


def test_alarms_are_counted_on_images_the_head_never_saw() -> None:
    """What looks like an attack is flagged often, the rest at 5 %; few images are not judged."""
    seen: list[set[int]] = []

    def watched(some: Sequence[Readings]) -> Head:
        seen.append({int(source) for group in some for source in group.sources})
        return first(some)

    found = false_alarms(groups(), watched)
    assert set(found) == {"alike", "quiet"}
    assert found["alike"] > 0.3
    assert found["quiet"] == pytest.approx(0.05, abs=0.05)
    assert 500 < len(seen[0]) < 700  # three quarters


@pytest.mark.parametrize("kind", ["clean", "attack"])
def test_of_too_few_images_nothing_is_said(kind: Kind) -> None:
    """Without enough clean or attacked images weights stay as they are."""
    few = [g.rows(np.arange(50)) if g.kind == kind else g for g in groups()]
    assert false_alarms(few, first) == {}


def test_kinds_count_by_their_alarms() -> None:
    """More alarms, more weight, within bounds; the share of all harmless goes with their sum."""
    found = {"alike": 0.14, "quiet": 0.001}
    anew, share = weighed(groups(), found, wanted=0.07, share=0.5)
    weights = {g.name: g.weight for g in anew}
    assert weights == pytest.approx(
        {"clean": 1, "alike": 2**1.5, "quiet": 0.5, "few": 1, "attack": 1}
    )
    sums = 2**1.5 + 0.5 + 1
    assert share == pytest.approx(sums / (sums + 3))


def test_at_what_is_wanted_nothing_changes() -> None:
    """Nor without anything harmless."""
    given = groups()
    anew, share = weighed(given, {"alike": 0.07, "quiet": 0.07}, wanted=0.07, share=0.65)
    assert [g.weight for g in anew] == [g.weight for g in given]
    assert share == pytest.approx(0.65)
    plain = [g for g in given if g.kind != "benign"]
    assert weighed(plain, {}, wanted=0.07, share=0.65) == (plain, 0.0)


def test_a_head_flags_less_of_what_it_flagged_much() -> None:
    """With alarms counted, the harmless change that looks like the attack is flagged less often."""
    flagged = []
    for wanted in (0.0, 0.07):
        settings = replace(SETTINGS, alarms=wanted, benign_share=0.3)
        head = fit_head(groups(), taps=TAPS, settings=settings, seed=0)
        fresh = [
            group(name, "clean", 900, shift) for name, shift in (("fresh", 0.0), ("more", 0.4))
        ]
        clean, alike = (head.score(g.rates, g.logits).score for g in fresh)
        flagged.append(float((alike > np.quantile(clean, 0.95)).mean()))
    assert flagged[1] < flagged[0]
