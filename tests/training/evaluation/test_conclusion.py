"""What a report card comes to, in words."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from reluguard.detector.metrics import Interval, Rates, RedTeamSummary
from reluguard.training.attacks import ATTACKS
from reluguard.training.evaluation.conclusion import (
    Beside,
    Conclusion,
    by_fit,
    conclude,
    kind_of,
)
from reluguard.training.evaluation.report_card import AttackFigures
from reluguard.training.recipes import recipe_named
from reluguard.training.statistics.bootstrap import Word


def share(value: float, n: int = 100) -> Rates:
    """Return a share at two thresholds, half as large at the strict one."""
    spread = 0.02 if 0 < value < 1 else 0.0
    return {
        "0.01": Interval(value / 2, value / 2, value / 2, n),
        "0.05": Interval(value, value - spread, value + spread, n),
    }


def attack(detected: float, succeeded: int = 100) -> AttackFigures:
    """Return one attack's figures."""
    return AttackFigures(tried=100, succeeded=succeeded, detected=share(detected, succeeded))


def come_to(
    attacks: Mapping[str, AttackFigures], clean: float = 0.03, benign: float = 0.04
) -> Conclusion:
    """Return what a card of these comes to at 5 %."""
    return conclude(attacks, share(clean), {"blur": share(benign), "none": {}}, "0.05")


def test_each_share_is_said_once_and_at_its_level() -> None:
    """Every kind with enough successes is named once, by the mean over its attacks."""
    found = come_to(
        {
            "pgd-linf-8": attack(1.0),
            "fgsm-linf-4": attack(0.9),
            "pgd-linf-1": attack(0.6),
            "deepfool-l2": attack(0.2),
            "square-linf-8": attack(0.02),
            "spatial": attack(0.9, succeeded=29),
        }
    )
    named = [kind for level in found.levels for kind in level.kinds]
    assert len(named) == len(set(named)) == 4
    assert [level.verb for level in found.levels] == [
        "catches",
        "catches most",
        "misses most",
        "misses nearly all",
    ]
    assert found.levels[0].kinds["strong attacks"] == pytest.approx(0.95)
    assert list(found.thin) == ["spatial"]


def test_a_card_in_two_sentences() -> None:
    """The worked example of a card with everything in it."""
    found = come_to(
        {
            "pgd-linf-8": attack(0.98),
            "deepfool-l2": attack(0.2),
            "spatial": attack(0.5, succeeded=3),
        },
        benign=0.17,
    )
    assert found.sentences == [
        "Catches strong attacks (98 %); misses most attacks that barely cross the boundary (20 %).",
        (
            "3 of 100 clean pictures raise an alarm (at most 5 of 100 promised), and 17 of 100 "
            "after the harmless change “blur”; too few attacked pictures (under 30) to say more "
            "about one attack."
        ),
    ]


def test_nothing_is_made_of_nothing() -> None:
    """Without a success nothing is caught, and no alarm out of so many is no zero per cent."""
    found = come_to({"pgd-linf-8": AttackFigures(tried=10, succeeded=0)}, clean=0.0)
    assert found.sentences == [
        "No attack fooled the model, so none could be caught.",
        "None of 100 clean pictures raises an alarm (at most 5 of 100 promised).",
    ]
    thin = come_to({"pgd-linf-8": attack(1.0, succeeded=5)})
    assert thin.levels == []
    assert thin.sentences[0].endswith(
        "too few attacked pictures (under 30) to say more about one attack."
    )


def test_no_figure_is_rounded_to_all_or_nothing() -> None:
    """What is not all is not 100 %, what is not nothing not 0 %."""
    text = " ".join(come_to({"pgd-linf-8": attack(0.998), "spatial": attack(0.002)}).sentences)
    assert "strong attacks (over 99 %)" in text
    assert "fool it (under 1 %)" in text


def test_who_knows_the_guard_is_named_where_it_was_tried() -> None:
    """Published figures of the red team follow, by budget."""
    red_team = RedTeamSummary(
        images=50,
        settings={},
        evaded={"2.55": share(0.5), "8": share(1.0)},
        median_budget={},
    )
    found = conclude({"pgd-linf-8": attack(1.0)}, share(0.03), {}, "0.05", red_team)
    assert found.sentences[-1] == (
        "Someone who knows the guard gets past it with 50 % of the pictures within 2.55/255 and "
        "100 % of the pictures within 8/255."
    )


@pytest.mark.parametrize("slug", ATTACKS)
def test_every_attack_of_ours_has_a_kind_in_words(slug: str) -> None:
    """A layman reads no slug of an attack that ships here."""
    assert kind_of(slug) != slug


@pytest.mark.parametrize("recipe", ["default", "quick", "digits"])
def test_every_attack_of_a_recipe_has_a_kind_in_words(recipe: str) -> None:
    """A mixture of sizes has one too, and what both looks lead is told from what one leads."""
    for slug in (portion.change.name for portion in recipe_named(recipe).attacks):
        assert kind_of(slug) not in {slug, ""}
        assert kind_of(f"both-{slug}") == f"{kind_of(slug)} on both looks"


def test_an_attack_of_someones_own_is_called_as_it_is() -> None:
    """There is nothing else to call it; the size decides for those of steps."""
    assert kind_of("mine-3") == "mine-3"
    assert kind_of("pgd-linf-2.55") == "faint attacks"
    assert kind_of("pgd-linf-48") == "strong attacks"
    assert kind_of("pgd-linf-4-40-early") == "attacks that barely cross the boundary"


@pytest.mark.parametrize(
    ("word", "end"),
    [
        (None, "alone 70 of 100"),
        ("ahead", "alone 70 of 100, so it beats confidence alone"),
        ("level", "it is not shown to beat confidence alone"),
        ("behind", "so it does not beat confidence alone"),
    ],
)
def test_it_is_said_whether_confidence_alone_would_do(word: Word | None, end: str) -> None:
    """In pairs of pictures, and who is ahead where an interval says so."""
    beside = Beside(guard=0.96, alone=0.7, word=word)
    found = conclude({"pgd-linf-8": attack(1.0)}, share(0.03), {}, "0.05", beside=beside)
    told = found.sentences[1]
    assert told.startswith("Shown an attacked and a clean picture it picks the attacked one 96 of")
    assert told.endswith(f"{end}.")


def test_a_fit_compares_attacks_of_enough_successes() -> None:
    """Means over the same attacks; few successes and no figure for confidence leave one out."""
    area = Interval(0.9, 0.8, 1.0, 50)
    known = replace(attack(1.0), auroc=area, confidence_only_auroc=0.5)
    thin = replace(known, succeeded=29, confidence_only_auroc=1.0)
    mute = replace(known, confidence_only_auroc=None)
    found = by_fit(
        {"a": known, "b": replace(known, confidence_only_auroc=0.7), "c": thin, "d": mute}
    )
    assert found is not None
    assert found.guard == pytest.approx(0.9)
    assert found.alone == pytest.approx(0.6)
    assert found.word is None
    assert by_fit({"c": thin}) is None


def test_too_few_successes_say_nothing_of_confidence_either() -> None:
    """A guard is not said to beat confidence by a handful of pictures."""
    beside = Beside(guard=1.0, alone=0.7, word="ahead")
    for succeeded, kept in ((29, None), (30, beside)):
        attacks = {"pgd-linf-8": attack(1.0, succeeded=succeeded)}
        found = conclude(attacks, share(0.03), {}, "0.05", None, beside)
        assert found.beside == kept
