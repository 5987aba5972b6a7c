"""The report card: its figures are those of its images, and leaks would show."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.runtime import Guard
from reluguard.training.data.dataset import Dataset, save_dataset
from reluguard.training.errors import AttackError, DataError
from reluguard.training.evaluate import evaluate
from reluguard.training.evaluation.baselines import (
    BASELINES,
    ActivationDetector,
    Auxiliary,
    LayerShifts,
    LocalDimension,
    RandomScore,
)
from reluguard.training.evaluation.leave_out import family, leave_one_out, open_fit
from reluguard.training.evaluation.result import Evaluation
from reluguard.training.pages.evaluation import matrix_sections
from reluguard.training.pages.evaluation_text import print_evaluation
from reluguard.training.progress import Step
from tests.training.fitting import Order
from tests.training.following import assert_told_to_the_end

ATTACKS = ("fgsm-linf-8", "pgd-l2-0.5", "pgd-linf-32-5")
BENIGN = ("gaussian-8", "brightness-c1", "brightness-c3")


@pytest.fixture(scope="module")
def strong_attack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's own attack, for `module:name`."""
    folder = tmp_path_factory.mktemp("attacks")
    code = (
        "from reluguard.training.attacks import PGD\n"
        "def strong():\n    return PGD(size=32.0, steps=5)\n"
    )
    (folder / "test_evaluate_attacks.py").write_text(code)
    return folder


@pytest.fixture(scope="module")
def told() -> list[Step]:
    """What a callback is told of the evaluation."""
    return []


@pytest.fixture(scope="module")
def evaluated(
    fitted: GuardArtifact,
    fit_settings: Order,
    strong_attack: Path,
    told: list[Step],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(strong_attack))
        card = evaluate(
            fit_settings.model,
            fitted.path,
            fit_settings.data,
            out=out,
            attacks=[*ATTACKS[:2], "test_evaluate_attacks:strong"],
            benign=BENIGN,
            baseline_rows=80,
            matrix_rows=80,
            surrogates=[fit_settings.model],
            threads=1,
            workers=1,
            progress=told.append,
        )
    return card.to_json(), out


def test_the_whole_evaluation_is_told(
    evaluated: tuple[dict[str, Any], Path], told: list[Step]
) -> None:
    """Each step by its plan, to the end of all of it."""
    del evaluated
    assert_told_to_the_end(told, "attack and read", "baselines", "leave one family out")


def test_figures_are_those_of_the_saved_shards(
    evaluated: tuple[dict[str, Any], Path], fitted: GuardArtifact, fit_settings: Order
) -> None:
    """The compiled guard on the kept images gives the realised rates and detections."""
    card, out = evaluated
    guard = Guard.open(fit_settings.model, fitted.path, threads=1)
    rate = f"{guard.fpr:g}"
    clean = np.load(next((out / "work/clean").glob("*.npz")))
    flagged = guard.inspect(clean["images"]).is_adversarial.mean()
    assert card["clean"]["false_positive_rate"][rate]["value"] == pytest.approx(flagged, abs=0.02)
    shard = np.load(next((out / "work" / ATTACKS[2]).glob("*.npz")))
    verdicts = guard.inspect(shard["images"])
    hits = shard["success"] & (verdicts.prediction != shard["labels"])
    entry = card["attacks"][ATTACKS[2]]
    assert entry["succeeded"] == hits.sum() > 10
    found = verdicts.is_adversarial[hits].mean()
    assert entry["detected"][rate]["value"] == pytest.approx(found, abs=0.02)
    assert entry["unnoticed"][rate]["value"] <= entry["succeeded"] / entry["tried"]


def test_only_unseen_sources_are_judged(
    evaluated: tuple[dict[str, Any], Path], fit_settings: Order
) -> None:
    """No source of fit or calibration is among the judged, twins of one source included."""
    card, out = evaluated
    judged = np.concatenate([np.load(f)["sources"] for f in (out / "work").glob("*/*.npz")])
    work = fit_settings.shards
    fitted = np.concatenate([np.load(f)["sources"] for f in work.glob("*/fit-*.npz")])
    assert not np.isin(judged, fitted).any()
    assert card["about"]["from"].startswith("test split")


def test_attacks_have_right_sources_and_failures_don_t_count(
    evaluated: tuple[dict[str, Any], Path],
) -> None:
    """Tried is what the model answers right; the headline is of successes alone."""
    card, _ = evaluated
    right = round(card["clean"]["accuracy"]["value"] * card["clean"]["images"])
    for entry in card["attacks"].values():
        assert entry["tried"] == right
        if "auroc" in entry:
            assert entry["auroc"]["n"] == entry["succeeded"]


def test_every_baseline_ran_on_the_same_attacks(
    evaluated: tuple[dict[str, Any], Path],
) -> None:
    """Each has its figures for each attack that succeeded, chance is chance."""
    card, _ = evaluated
    expected = {slug for slug, entry in card["attacks"].items() if "auroc" in entry}
    names = {kind.name for kind in BASELINES} | {"reluguard"}
    assert set(card["baselines"]) == names
    for name, entry in card["baselines"].items():
        assert set(entry["auroc"]) == expected, f"{name}: {entry.get('note')}"
    assert card["baselines"][LayerShifts.name]["auroc"][ATTACKS[2]] > 0.55
    # the model itself is the other network here: it is sure of what it answers
    sure = card["baselines"][Auxiliary.name]["auroc"]
    alone = card["baselines"]["confidence only"]["auroc"]
    assert sure.keys() == alone.keys()
    assert abs(card["baselines"][RandomScore.name]["auroc"][ATTACKS[2]] - 0.5) < 0.2
    assert card["baselines"]["bits, same rows"]["auroc"][ATTACKS[2]] > 0.6
    assert card["baselines"][ActivationDetector.name]["auroc"][ATTACKS[2]] > 0.55


def test_attacks_are_judged_after_a_change_too(
    evaluated: tuple[dict[str, Any], Path],
) -> None:
    """One group for each change, of every attack; an image counts that is still answered wrong."""
    card, out = evaluated
    assert card["composed"].keys() == {"mild", "strong"}
    for name, entry in card["composed"].items():
        assert entry["attacks"].keys() == card["attacks"].keys()
        areas = [one["auroc"]["value"] for one in entry["attacks"].values() if "auroc" in one]
        assert entry["mean_auroc"] == pytest.approx(np.mean(areas))
        assert (
            entry["worst_auroc"] == min(areas) == entry["attacks"][entry["worst"]]["auroc"]["value"]
        )
        for slug, one in entry["attacks"].items():
            assert one["succeeded"] <= card["attacks"][slug]["succeeded"]
            with np.load(next((out / "work" / f"{slug}+{name}").glob("*.npz"))) as shard:
                wrong = shard["logits"].argmax(axis=1) != shard["labels"]
                assert one["succeeded"] == (shard["success"] & wrong).sum()
    for name, entry in card["baselines"].items():
        assert entry["composed"].keys() == {"mild", "strong"}, name
    matrix = card["matrix"]
    assert matrix["composed_worst"]["value"] == min(v["value"] for v in matrix["composed"].values())
    assert {family(slug) for slug in matrix["composed"]} <= set(matrix["families"].values())


def test_page_and_json_hold_the_card(evaluated: tuple[dict[str, Any], Path]) -> None:
    """The page is self-contained; the JSON is what was returned."""
    card, out = evaluated
    assert json.loads((out / "evaluation.json").read_text()) == card
    page = (out / "evaluation.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    for slug in ATTACKS:
        assert slug in page
    assert page.count("<svg") >= 4
    assert "data:image/png" in page
    assert card["severity"]["brightness"].keys() == {"1", "3"}
    assert card["answered_right"].keys() >= card["benign"].keys()
    print_evaluation(Evaluation.from_json(card))
    assert Evaluation.from_json(card).to_json() == card


def test_seen_and_unseen_by_both_looks_stand_beside_the_first(
    evaluated: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a guard that looks again, on the page and on a terminal."""
    card = Evaluation.from_json(evaluated[0])
    both = replace(card, matrix_both=card.matrix)
    assert Evaluation.from_json(both.to_json()) == both
    titles = [section.title for section in matrix_sections(both)]
    assert titles == ["Seen and unseen", "Seen and unseen, both looks"]
    print_evaluation(both)
    told = capsys.readouterr().out.replace("\n", " ")
    assert "one family left out of the fit, both looks, AUROC on what was left out" in told


def test_nothing_is_attacked_twice(
    evaluated: tuple[dict[str, Any], Path],
    fitted: GuardArtifact,
    fit_settings: Order,
    tmp_path: Path,
) -> None:
    """A second evaluation reads the shards; without the fit's work folder it says what it lacks."""
    _, out = evaluated
    before = {f: f.stat().st_mtime_ns for f in (out / "work").glob("*/*.npz")}
    again = evaluate(
        fit_settings.model,
        fitted.path,
        fit_settings.data,
        out=tmp_path,
        attacks=ATTACKS[:2],
        benign=(),
        work=out / "work",
        fit_work=tmp_path / "nothing",
        surrogates=[fit_settings.model],
        threads=1,
        workers=1,
    )
    assert before == {f: f.stat().st_mtime_ns for f in (out / "work").glob("*/*.npz")}
    assert "plan.json" in str(again.left_out)
    assert set(again.baselines) == {
        "reluguard",
        "feature squeezing",
        "random score",
        Auxiliary.name,
    }


def test_a_work_folder_of_other_images_is_refused(
    evaluated: tuple[dict[str, Any], Path],
    digits: Dataset,
    fitted: GuardArtifact,
    fit_settings: Order,
    tmp_path: Path,
) -> None:
    """Shards of one data set never stand for another's."""
    save_dataset(digits.take(np.arange(300, 400)), tmp_path / "other.npz")
    with pytest.raises(DataError, match="give another --work folder"):
        evaluate(
            fit_settings.model,
            fitted.path,
            tmp_path / "other.npz",
            out=tmp_path,
            work=evaluated[1] / "work",
            threads=1,
        )


def test_unknown_attacks_are_refused(
    fitted: GuardArtifact, fit_settings: Order, tmp_path: Path
) -> None:
    """A name nobody knows is an error that lists those it could be."""
    with pytest.raises(AttackError, match="expected an attack of fgsm-linf-1"):
        evaluate(
            fit_settings.model, fitted.path, fit_settings.data, out=tmp_path, attacks=["nothing"]
        )


def test_the_matrix_leaves_whole_families_out(
    evaluated: tuple[dict[str, Any], Path],
) -> None:
    """Each attack is judged by a head that saw none of its family."""
    matrix = evaluated[0]["matrix"]
    assert set(matrix["families"].values()) == {"one step", "PGD Linf", "square"}
    assert set(matrix["auroc"]) == {"nothing", *matrix["families"].values()}
    assert matrix["worst_unseen"] == min(matrix["unseen"].values())
    for slug, value in matrix["unseen"].items():
        assert value == matrix["auroc"][family(slug)][slug]


def test_families_hold_like_attacks_together() -> None:
    """Attacks of one way of working share a family, odd ones are alone."""
    assert family("apgd-dlr-linf-4") == family("pgd-linf-4-early") == "PGD Linf"
    assert family("cw-l2-k10") == family("deepfool-l2") == "minimal"
    assert family("pgd-l2-0.5") != family("pgd-linf-2")
    assert family("square-linf-8") == "square"


def test_another_guards_fit_is_refused(fitted: GuardArtifact, fit_settings: Order) -> None:
    """Heads are never compared on another model's readings."""
    manifest = fitted.manifest
    work = fit_settings.shards
    workspace = open_fit(work, manifest)
    assert leave_one_out(workspace, manifest, rows=40).rows_per_group == 40
    with pytest.raises(DataError, match="work of another model"):
        open_fit(work, replace(manifest, model_sha256="0" * 64))


def test_lid_never_meets_its_own_reference() -> None:
    """The reference images' sources are in no row that is fitted on."""
    from reluguard.training.evaluation.baselines import Context, Material
    from reluguard.training.harvest.readings import Readings
    from reluguard.training.head.fit import HeadSettings

    rng = np.random.default_rng(0)

    def group(name: str, shift: float) -> Material:
        means = rng.normal(shift, 1, (60, 4)).astype(np.float32)
        readings = Readings(
            name=name,
            kind="attack" if shift else "clean",
            rates=means.astype(np.float16),
            logits=means,
            sources=np.arange(60),
            labels=np.arange(60) % 3,
        )
        return Material(readings=readings, images=np.zeros((60, 2, 2, 1), np.uint8), means=means)

    from reluguard.detector.taps import Tap

    context = Context(
        taps=[Tap(name="a", op="Relu", shape=(4, 2, 2))],
        settings=HeadSettings(),
        predict=None,
        activations=None,
        seed=0,
    )
    clean, attack = group("clean", 0.0), group("far", 4.0)
    lid = LocalDimension()
    lid.fit([clean, attack], context)
    kept = (clean.means[:, None] == lid.reference[None]).all(axis=2).any(axis=1)
    assert kept.sum() == len(lid.reference) == 30
    fresh = group("far", 4.0)
    assert lid.score(fresh).mean() > lid.score(group("clean", 0.0)).mean()
