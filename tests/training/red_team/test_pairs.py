"""What a guard costs an attacker, image by image: laws first, then a real small guard."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.errors import GuardError
from reluguard.training.attacks import Attack, HopSkipJump
from reluguard.training.errors import AttackError
from reluguard.training.pages.red_team_words import pair_sentences
from reluguard.training.progress import Progress
from reluguard.training.red_team.deciding import Deciding
from reluguard.training.red_team.pairs import asking_only, smallest
from reluguard.training.red_team.report import Pair
from reluguard.training.red_team.smallest import NO_GUARD, Smallest
from reluguard.training.red_team.target import Target, open_target
from reluguard.training.red_team.tries import Tries
from tests.training.fitting import Order

SETTINGS: dict[str, Any] = {"steps": 30, "restarts": 2, "progress": Progress()}


@pytest.fixture(scope="module")
def target(fitted: GuardArtifact, fit_settings: Order) -> Target:
    return open_target(
        fit_settings.model, fitted.path, fit_settings.data, seed=0, limit=12, threads=1
    )


def tries_of(target: Target, folder: Path) -> Tries:
    return Tries(target, folder, "the guard in process", Progress())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_guard_that_flags_nothing_costs_nothing(
    norm: Any, target: Target, tmp_path: Path
) -> None:
    """Beside a threshold above any score the two walks are one: the ratio is exactly 1."""
    none = dict.fromkeys(target.thresholds, NO_GUARD)
    blind = replace(target, thresholds=none, believed=NO_GUARD)
    pair = smallest(blind, tries_of(blind, tmp_path), norm, **SETTINGS)
    assert pair.ratio is not None
    assert (pair.ratio.value, pair.ratio.low, pair.ratio.high) == (1, 1, 1)
    assert pair.bare_change == pair.guarded_change
    assert pair.bare.value >= 0.9
    assert pair.unnoticed is not None
    assert pair.unnoticed.value == 1


def test_evading_takes_no_less_than_a_wrong_answer(target: Target, tmp_path: Path) -> None:
    """Of the real guard: what evades is a wrong answer too, so no ratio is below 1."""
    pair = smallest(target, tries_of(target, tmp_path), "l2", **SETTINGS)
    assert pair.ratio is not None
    assert pair.ratio.low >= 1
    assert pair.guarded.value >= 0.5
    assert pair.images == 12
    assert Pair.from_json(pair.to_json()) == pair


def test_what_counts_evades_the_real_guard(target: Target) -> None:
    """The images found evade by the real guard, nearer than the edge of the range, and repeat."""
    attack = Smallest(guard=target.relaxed, threshold=target.believed, steps=30, restarts=2)
    rows = np.arange(len(target))
    (scores, images, _), (_, again, _) = (target.fool(attack, rows) for _ in range(2))
    assert_array_equal(images, again)
    evades = scores <= np.float32(target.strictest)
    verdicts = target.guard.inspect(images[evades])
    assert (verdicts.prediction != target.labels[evades]).all()
    assert not verdicts.is_adversarial.any()
    bare, near, _ = target.fool(replace(attack, threshold=NO_GUARD), rows)
    change = [
        np.linalg.norm((moved.astype(float) - target.images).reshape(len(moved), -1), axis=1)
        for moved in (near, images)
    ]
    both = np.isfinite(bare) & evades
    assert np.median(change[0][both]) <= np.median(change[1][both])


class _Asks(Attack):
    """Remembers what it was told."""

    needs_gradients = False

    def __init__(self) -> None:
        self.told: Any = None

    name = property(lambda _: "asks")
    budget = HopSkipJump.budget

    def run(self, clean: Any, goal: Any, victim: Any, generator: Any) -> Any:
        del goal, generator
        from reluguard.training.twin.twin import from_pixels

        self.told = victim.predict(from_pixels((clean * 255).round().byte()))
        assert victim.twin is None
        return clean


def test_someone_who_asks_is_told_an_answer_or_a_flag_and_no_score(target: Target) -> None:
    """One class an image where nothing is flagged, no class at all where it is."""
    flagging = replace(
        target,
        ask=lambda images: replace(
            target.guard.inspect(images), is_adversarial=np.arange(len(images)) % 2 == 0
        ),
    )
    asks = _Asks()
    for flags in (False, True):
        flagging.fool(Deciding(attack=asks, ask=flagging.ask, flags=flags), np.arange(4))
        assert set(np.unique(asks.told)) <= {0.0, 1.0}
        expected = [0, 1, 0, 1] if flags else [1, 1, 1, 1]
        assert_array_equal(asks.told.sum(axis=1), expected)


def test_answers_and_flags_are_enough_to_evade(target: Target, tmp_path: Path) -> None:
    """HopSkipJump by answers and flags finds what the real guard lets through, farther away."""
    found = asking_only(
        target, tries_of(target, tmp_path), images=4, queries=30, progress=Progress()
    )
    walked, squares = found["hopskipjump-l2"], found["square-linf-8"]
    assert walked.ratio is not None
    assert walked.ratio.low >= 1
    assert walked.questions is not None
    assert walked.questions > 100
    assert squares.ratio is None
    assert squares.questions is not None
    assert squares.questions <= 30


def test_a_report_says_it_in_sentences(target: Target, tmp_path: Path) -> None:
    """Half of the images, how far, how many times as far, and how many are never noticed."""
    pair = smallest(target, tries_of(target, tmp_path), "linf", **SETTINGS)
    asked = replace(pair, ratio=None, questions=1000.0, bare_questions=900.0)
    report: Any = type("Report", (), {"smallest": {"linf": pair}, "asking_only": {"square": asked}})
    first, second = pair_sentences(report)
    assert "8-bit steps in Linf for half of the 12 images" in first
    assert "times as far, image by image" in first
    assert "evade after 1,000 questions" in second


def test_an_attacker_without_this_guards_weights_needs_another_guard(
    fitted: GuardArtifact, fit_settings: Order
) -> None:
    """The very guard is no guard of the attacker's own."""
    with pytest.raises(GuardError, match="a guard that the attacker fitted"):
        open_target(
            fit_settings.model,
            fitted.path,
            fit_settings.data,
            seed=0,
            limit=4,
            threads=1,
            attacker_guard=fitted.path,
        )


def test_wrong_settings_are_refused(target: Target) -> None:
    """No norm of its own and no step are errors that say so."""
    with pytest.raises(AttackError, match="norm of linf or l2, got 'l1'"):
        Smallest(guard=target.relaxed, threshold=0.0, norm="l1")
    with pytest.raises(AttackError, match="2 or more steps"):
        Smallest(guard=target.relaxed, threshold=0.0, steps=1)
