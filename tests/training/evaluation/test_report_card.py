"""The report card: its figures, its page and its tables."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reluguard.detector.artifact import GuardArtifact, read_guard
from reluguard.detector.errors import GuardError
from reluguard.detector.head import images_needed, threshold_at
from reluguard.detector.runtime import Guard
from reluguard.training.evaluation.figures import precision, prevalence_table, promises
from reluguard.training.evaluation.report_card import ReportCard, promised_rates
from reluguard.training.pages.report_card import report_page
from reluguard.training.pages.report_card_text import print_card
from reluguard.training.pages.words import promise_note
from reluguard.training.provenance import provenance_of
from reluguard.training.statistics.metrics import auroc
from tests.training.fitting import Order

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "v0.1"


def card_of(fitted: GuardArtifact) -> dict[str, Any]:
    return deepcopy(dict(fitted.manifest.metrics))


def test_the_card_on_disk_is_the_card(fitted: GuardArtifact) -> None:
    """Read and written again it is the same, key by key; so is one that v0.1 wrote."""
    stored = fitted.manifest.metrics
    assert ReportCard.from_json(stored).to_json() == stored
    old = read_guard(GOLDEN / "guard").manifest
    assert ReportCard.from_json(old.metrics).to_json() == old.metrics
    assert provenance_of(old).to_json() == old.provenance
    assert "AUROC over" in report_page(ReportCard.from_json(old.metrics), old)


def test_a_card_without_newer_keys_still_reports(fitted: GuardArtifact) -> None:
    """What an older version did not write is not shown, and nothing else is missing."""
    stored = card_of(fitted)
    older = {key: stored[key] for key in ("clean", "attacks", "benign")}
    for entry in older["benign"].values():
        del entry["answered_right"]
    page = report_page(ReportCard.from_json(older), fitted.manifest)
    assert "fgsm-linf-48" in page
    with pytest.raises(GuardError, match="expected clean in the stored ReportCard, it is missing"):
        ReportCard.from_json({"attacks": {}, "benign": {}})


def test_zero_alarms_are_no_proof_of_precision(fitted: GuardArtifact) -> None:
    """A few clean images without an alarm are reckoned with the promised rate, more with theirs."""
    card = ReportCard.from_json(fitted.manifest.metrics)
    clean = card.clean.false_positive_rate["0.05"]
    for value, used in ((0.0, 0.05), (0.2, 0.2)):
        measured = replace(card.clean, false_positive_rate={"0.05": replace(clean, value=value)})
        entry = precision(measured, card.attacks)["0.05"]
        assert entry.false_positive_rate == used
        assert max(entry.precision.values()) < 1


def test_few_successes_are_told(fitted: GuardArtifact, capsys: pytest.CaptureFixture[str]) -> None:
    """Page and table name the attacks whose figures stand on less than 30 images."""
    card = replace(ReportCard.from_json(fitted.manifest.metrics), composed={})
    many = {slug: replace(entry, succeeded=30) for slug, entry in card.attacks.items()}
    few = many | {"fgsm-linf-48": replace(many["fgsm-linf-48"], succeeded=29)}
    for attacks, told in ((many, False), (few, True)):
        print_card(replace(card, attacks=attacks))
        page = report_page(replace(card, attacks=attacks), fitted.manifest)
        words = "Fewer than 30 successes"
        assert (words in capsys.readouterr().out) == (words in page) == told


def shard(settings: Order, slug: str) -> Mapping[str, np.ndarray]:
    """Return the only shard of the test split."""
    (file,) = settings.shards.glob(f"{slug}/test-*.npz")
    with np.load(file) as arrays:
        return {name: arrays[name] for name in arrays.files}


def test_figures_are_those_of_the_served_scores(fitted: GuardArtifact, fit_settings: Order) -> None:
    """AUROC, detection and false positives, counted anew from the guard's own verdicts."""
    card = card_of(fitted)
    guard = Guard.open(fit_settings.model, fit_settings.out, threads=1)
    clean = shard(fit_settings, "clean")
    clean_scores = guard.inspect(clean["images"]).score
    limit = fitted.manifest.thresholds["0.05"]
    flagged = card["clean"]["false_positive_rate"]["0.05"]
    assert flagged["value"] == pytest.approx((clean_scores > limit).mean(), abs=0.02)
    right = clean["logits"].argmax(axis=1) == clean["labels"]
    assert card["clean"]["accuracy"]["value"] == pytest.approx(right.mean())
    assert card["clean"]["misclassified_flagged"]["0.05"]["n"] == (~right).sum()
    for slug, entry in card["attacks"].items():
        arrays = shard(fit_settings, slug)
        kept = arrays["success"]
        assert entry["tried"] == len(kept)
        assert entry["succeeded"] == kept.sum() == entry["auroc"]["n"]
        scores = guard.inspect(arrays["images"][kept]).score
        assert entry["auroc"]["value"] == pytest.approx(auroc(clean_scores, scores), abs=0.01)
        assert entry["detected"]["0.05"]["value"] == pytest.approx(
            (scores > limit).mean(), abs=0.05
        )
        assert entry["auroc"]["low"] <= entry["auroc"]["value"] <= entry["auroc"]["high"]
    noise = shard(fit_settings, "noise")
    assert card["benign"]["noise"]["images"] == len(noise["sources"])
    right = noise["logits"].argmax(axis=1) == noise["labels"]
    share = (guard.inspect(noise["images"][right]).score > limit).mean()
    told = card["benign"]["noise"]["answered_right"]["0.05"]
    assert told["n"] == right.sum()
    assert told["value"] == pytest.approx(share, abs=0.05)


def test_the_summary_is_of_the_attacks(fitted: GuardArtifact) -> None:
    """Mean and worst AUROC over the attacks that succeeded."""
    card = card_of(fitted)
    found = [entry["auroc"]["value"] for entry in card["attacks"].values()]
    assert card["summary"] == {
        "mean_auroc": pytest.approx(np.mean(found)),
        "worst_auroc": min(found),
        "attacks": 3,
    }


@pytest.mark.parametrize(
    ("images", "rates"), [(18, []), (19, ["0.05"]), (99, ["0.01", "0.05"]), (999, None)]
)
def test_only_what_can_be_kept_is_promised(images: int, rates: list[str] | None) -> None:
    """A rate needs calibration images enough; at the thresholds no more than it lie above."""
    scores = np.sort(np.random.default_rng(0).normal(size=images)).astype(np.float32)
    promised = promised_rates(scores, 0.05)
    assert list(promised) == (["0.001", "0.01", "0.05"] if rates is None else rates)
    for rate, limit in promised.items():
        assert limit == threshold_at(float(rate), scores)
        assert (scores > np.float32(limit)).mean() <= float(rate)


def test_the_guards_own_rate_is_among_the_promised() -> None:
    """A rate that is asked for is reported beside the usual ones."""
    scores = np.sort(np.random.default_rng(0).normal(size=200)).astype(np.float32)
    assert list(promised_rates(scores, 0.2)) == ["0.01", "0.05", "0.2"]


def test_prevalence_is_bayes() -> None:
    """Half the attacks found at 1 % false alarms: of 100 requests with one attack, 1 flag in 3."""
    table = prevalence_table(0.5, 0.01)
    assert table["0.01"] == pytest.approx(0.005 / (0.005 + 0.0099))
    assert table["1e-05"] < table["0.001"] < table["0.01"]
    assert set(prevalence_table(0.0, 0.0).values()) == {0.0}


def test_the_page_tells_it_all(fitted: GuardArtifact) -> None:
    """One self-contained page with every attack and change, a plot and no foreign content."""
    page = report_page(ReportCard.from_json(fitted.manifest.metrics), fitted.manifest)
    for slug in ("fgsm-linf-48", "pgd-linf-24-4", "square-linf-56", "noise", "misclassified"):
        assert slug in page
    assert "<svg" in page
    assert "<script" not in page
    assert "src=" not in page
    assert page.isascii() or "charset=utf-8" in page


def test_the_page_escapes_names(fitted: GuardArtifact) -> None:
    """What a recipe is called can't become markup."""
    provenance = deepcopy(dict(fitted.manifest.provenance))
    provenance["recipe"]["name"] = "<script>alert(1)</script>"
    card = card_of(fitted)
    card["attacks"]["<b>"] = card["attacks"].pop("fgsm-linf-48")
    page = report_page(ReportCard.from_json(card), replace(fitted.manifest, provenance=provenance))
    assert "<script" not in page
    assert "<td><b>" not in page
    assert "&lt;script&gt;" in page


def test_attacks_without_success_have_no_figures(
    fitted: GuardArtifact, capsys: pytest.CaptureFixture[str]
) -> None:
    """Page and table show a dash where nothing succeeded, even if nothing did at all."""
    card = card_of(fitted)
    card["attacks"] = {slug: {"tried": 9, "succeeded": 0} for slug in card["attacks"]}
    assert "0 / 9" in report_page(ReportCard.from_json(card), fitted.manifest)
    print_card(ReportCard.from_json(card))
    assert "0 / 9" in capsys.readouterr().out


def test_the_card_prints(
    fitted: GuardArtifact, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every attack and change has its line, at the largest rate."""
    monkeypatch.setenv("COLUMNS", "140")
    print_card(ReportCard.from_json(fitted.manifest.metrics))
    told = capsys.readouterr().out
    for word in (
        "read 2 of 2 gates",
        "clean accuracy",
        "fgsm-linf-48",
        "noise",
        "detected at 0.05",
        "flagged at 0.05",
    ):
        assert word in told


@given(
    images=st.integers(1, 5000), rate=st.sampled_from([0.001, 0.01, 0.05, 0.2]), seed=st.integers(0)
)
@settings(max_examples=30, deadline=None)
def test_a_promise_holds_in_95_of_100_draws(images: int, rate: float, seed: int) -> None:
    """Realised rates of thresholds on draws of calibration images lie in the range that is told."""
    (found,) = promises(images, [rate]).values()
    assert found.needed == images_needed(rate)
    if images < found.needed:
        assert found.low is found.high is None
        return
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low < found.high < 1
    rng = np.random.default_rng(seed)
    rank = int(np.floor(rate * (images + 1) + 1e-9))
    # of uniform scores the share above the threshold is one minus it
    realised = [1 - np.sort(rng.random(images))[images - rank] for _ in range(300)]
    inside = np.mean([(found.low <= r) & (r <= found.high) for r in realised])
    assert 0.9 < inside < 0.99


def test_the_range_of_a_promise_is_told(
    fitted: GuardArtifact, capsys: pytest.CaptureFixture[str]
) -> None:
    """With how many images, between which rates, and how many a lower rate needs."""
    assert promise_note(promises(140, [0.05, 0.001]), 140) == (
        "With 140 calibration images a promised 5 % comes out between 2 % and 9.1 %; "
        "a promise of 0.1 % needs 999."
    )
    card = ReportCard.from_json(fitted.manifest.metrics)
    assert promise_note(card.promises, fitted.manifest.calibration_images) in report_page(
        card, fitted.manifest
    )
    print_card(card)
    assert "a threshold at 0.001 needs 999 calibration images" in capsys.readouterr().out
