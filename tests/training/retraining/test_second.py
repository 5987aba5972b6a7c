"""A guard that looks twice is retrained: it looks twice still, and nothing it knew is lost."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from reluguard.commands.app import app
from reluguard.detector.artifact import read_guard
from reluguard.detector.errors import ModelMismatchError, SettingsError
from reluguard.detector.images import Images
from reluguard.detector.looks.judging import Looks, looks_named
from reluguard.detector.metrics import GateLimits
from reluguard.detector.runtime import Guard
from reluguard.training.attacks import FGSM, PGD, Patch, Victim
from reluguard.training.changes import GaussianNoise
from reluguard.training.data.dataset import Dataset, save_dataset
from reluguard.training.errors import DataError
from reluguard.training.harvest.orders import Job
from reluguard.training.harvest.readings import Readings
from reluguard.training.harvest.workspace import Again, Workspace
from reluguard.training.head.fit import HeadSettings
from reluguard.training.progress import Progress
from reluguard.training.recipes import Portion, Recipe
from reluguard.training.retrain import retrain
from reluguard.training.retraining.fresh import Fresh
from reluguard.training.retraining.second import carried_over, is_unseen, lacking
from reluguard.training.statistics.metrics import auroc
from tests.training.capturing import write_captures
from tests.training.conftest import save_network, trained
from tests.training.fitting import Order

FAST = GateLimits(rounds=3, cost=10.0)
RECIPE = Recipe(
    name="small",
    attacks=(Portion(FGSM(size=48.0)), Portion(PGD(size=40.0, steps=5))),
    benign=(Portion(GaussianNoise(sigma=16.0)),),
    head=HeadSettings(units=16, epochs=6, batch=128),
    fit=0.5,
    calibrate=0.3,
    test=0.2,
)
floats = st.lists(st.floats(-50, 50, width=16), min_size=2, max_size=30)


@settings(max_examples=60)
@given(floats, st.data(), st.floats(-60, 60, width=16))
def test_a_bound_keeps_its_place_among_the_scores(
    before: list[float], data: st.DataObject, bound: float
) -> None:
    """As many images lie above it as before, up to those that it falls between; beyond, none."""
    after = data.draw(st.lists(st.floats(-50, 50, width=16), min_size=2, max_size=30))
    old, new = np.array(before, np.float32), np.array((after * 30)[: len(before)], np.float32)
    found = carried_over(bound, old, new)
    assert (new > found).sum() <= (old >= bound).sum()
    assert (new >= found).sum() >= (old > bound).sum()
    assert carried_over(bound, old, old) == pytest.approx(bound, abs=1e-4)


def fresh(seen: Sequence[bool] | None, name: str = "patch") -> Fresh:
    """Return readings of three new images, so many of them read twice."""
    mask = np.array(seen if seen is not None else [], np.bool_)
    return Fresh(
        name=name,
        kind="attack",
        rates=np.zeros((3, 4), np.float16),
        logits=np.zeros((3, 2), np.float32),
        labels=np.zeros(3, np.int64),
        ids=np.arange(3),
        source="here",
        again=None
        if seen is None
        else Again(
            rates=np.ones((3, 5), np.float16), logits=np.ones((3, 2), np.float32), seen=mask
        ),
    )


def test_what_the_second_look_can_not_read_is_said() -> None:
    """In a sentence with both counts, and nothing where all was read."""
    assert lacking([fresh([True] * 3)]) == []
    none, some = lacking([fresh(None), fresh([True, False, True])])
    assert none == (
        "patch: the second look reads images, and 3 of 3 came as readings of the first look alone: "
        "only the first look can learn from them. Serve with --capture-images to have them"
    )
    assert "1 of 3 came as readings of the first look alone: it learns from the other 2" in some


def test_whether_a_second_look_can_learn() -> None:
    """It can where it read a quarter of the attacked rows; with nothing attacked it may stay."""
    assert is_unseen([fresh(None)])
    assert is_unseen([fresh([True, False, False]), fresh(None)])
    assert not is_unseen([fresh([True, False, False])])
    assert not is_unseen([fresh([True] * 3), fresh(None)])
    assert not is_unseen([])
    assert not is_unseen([replace(fresh(None), kind="benign")])


def test_rows_read_once_and_twice_lie_in_one_shard(tmp_path: Path) -> None:
    """What was read twice comes back in its order; a fit's shard without it is an error."""
    workspace = Workspace(tmp_path, {"of": "a test"})
    one = fresh([True, False, True])
    readings: Readings = one.readings()
    workspace.add("added/patch", "fit", readings, one.again)
    workspace.add("added/other", "fit", readings)
    workspace.add("fgsm", "fit", readings)

    def job(slug: str) -> Job:
        return Job(slug=slug, kind="attack", split="fit", number=0, sources=one.ids)

    np.testing.assert_array_equal(workspace.seen_twice(job("added/patch")), [True, False, True])
    rates, logits = workspace.second(job("added/patch"))
    assert (rates.shape, logits.shape) == ((2, 5), (2, 2))
    assert not workspace.seen_twice(job("added/other")).any()
    assert len(workspace.readings([job("added/patch")])) == 3
    with pytest.raises(DataError, match="second_logits missing"):
        workspace.seen_twice(job("fgsm"))


class Listening(Progress):
    """Remembers what people are told."""

    def __init__(self, said: list[str]) -> None:
        self._said = said

    def say(self, text: str) -> None:
        """Remember it."""
        self._said.append(text)


@dataclass(frozen=True)
class Champion:
    """A guard that looks twice and has never seen a patch, and images it does not know."""

    model: Path
    guard: Path
    other: Path
    clean: Dataset
    patched: Dataset


@pytest.fixture(scope="module")
def fitted_twice(
    digits: Dataset,
    digits_model: Path,
    digits_victim: Victim,
    tmp_path_factory: pytest.TempPathFactory,
) -> Champion:
    folder = tmp_path_factory.mktemp("twice")
    train = digits.take(np.arange(300, len(digits)))
    other = save_network(trained(train, units=10, seed=3), folder / "sibling.onnx")
    data = folder / "digits.npz"
    save_dataset(digits.take(np.arange(900)), data)
    order = Order(
        model=digits_model,
        data=str(data),
        out=folder / "guard",
        recipe=RECIPE,
        second=str(other),
        max_overhead=0.0,
    )
    order.run()
    clean = digits.take(np.arange(900, 1200))
    result = Patch(steps=10)(clean.images, clean.labels, digits_victim, seed=0)
    fooled = result.prediction != clean.labels
    patched = Dataset(images=result.images, labels=clean.labels, source="patch").take(fooled)
    return Champion(digits_model, order.out, other, clean, patched)


@pytest.fixture
def champion(fitted_twice: Champion, tmp_path: Path) -> Champion:
    """The same with a harvest of this test's own."""
    shutil.copytree(fitted_twice.guard.with_name("guard.work"), tmp_path / "work")
    return fitted_twice


def detection(case: Champion, guard: Path, attacked: Images, *, looks: Looks = "always") -> float:
    """Return AUROC of such looks on these images against clean ones nobody fitted on."""
    opened = Guard.open(case.model, guard, threads=1, looks=looks, second_model=case.other)
    return auroc(opened.inspect(case.clean.images).score, opened.inspect(attacked).score)


@pytest.mark.slow
def test_both_looks_learn_a_new_attack_and_keep_the_old_ones(
    champion: Champion, tmp_path: Path
) -> None:
    """The gate judges both; the calibration is one again, and its promise holds on fresh images."""
    new = tmp_path / "patch.npz"
    save_dataset(champion.patched.take(np.arange(100)), new)
    before = read_guard(champion.guard)
    found = retrain(
        champion.guard,
        champion.model,
        [new],
        tmp_path / "g2",
        work=tmp_path / "work",
        second_model=champion.other,
        limits=FAST,
        threads=1,
    )
    after = read_guard(tmp_path / "g2")
    assert before.second is not None
    assert after.second is not None
    assert after.second.look == before.second.look
    fresh_patches = champion.patched.images[100:]
    assert detection(champion, tmp_path / "g2", fresh_patches) > 0.9
    assert detection(champion, tmp_path / "g2", fresh_patches) > detection(
        champion, champion.guard, fresh_patches
    )
    assert found.gate.passed, found.gate.reasons
    both = [row for row in found.gate.rows if row.name.endswith(", both looks")]
    assert [row.what for row in both].count("old attack") == 4  # two, and two on both looks
    assert {"clean", "harmless", "new attack"} <= {row.what for row in both}
    assert "looks" in after.manifest.metrics
    for looks in ("suspicious", "always"):
        opened = Guard.open(
            champion.model, after.path, threads=1, looks=looks, second_model=champion.other
        )
        flagged = opened.inspect(champion.clean.images).is_adversarial.sum()
        # 270 calibration images, 300 fresh ones: 99.9 % of draws lie below
        assert flagged <= 34
        # the first scores are those of the new head, in the order of the second ones
        assert opened.artifact.second is not None
        np.testing.assert_allclose(
            np.sort(opened.artifact.second.first_scores), after.head.clean_scores, atol=1e-5
        )
    again = retrain(
        tmp_path / "g2",
        champion.model,
        [],
        tmp_path / "g3",
        attacks=["deepfool-l2"],
        work=tmp_path / "work",
        second_model=champion.other,
        refit=True,
        limits=FAST,
        threads=1,
    )
    assert again.guard.second is not None
    assert detection(champion, tmp_path / "g3", fresh_patches) > 0.9


@pytest.mark.slow
def test_captures_teach_the_second_look_by_their_images(champion: Champion, tmp_path: Path) -> None:
    """With images both looks learn; without, the new guard looks once, and sentences say so."""
    rows = [(image, "attack:patch") for image in champion.patched.images[:100]]
    before = read_guard(champion.guard)
    assert before.second is not None
    fresh_ones = champion.patched.images[100:]
    for images, looks in ((True, "always"), (False, "first")):
        folder = write_captures(
            tmp_path / f"captured-{images}", champion, rows, in_request=1, images=images
        )
        work = tmp_path / f"work-{images}"
        shutil.copytree(tmp_path / "work", work)
        said: list[str] = []
        progress = Listening(said)
        found = retrain(
            champion.guard,
            champion.model,
            [folder],
            tmp_path / f"g-{images}",
            work=work,
            second_model=champion.other,
            limits=FAST,
            threads=1,
            progress=progress,
        )
        assert (found.guard.second is not None) is images
        assert any("100 of 100 came as readings" in word for word in said) is not images
        assert any("the new guard looks once" in word for word in said) is not images
        names = [row.name for row in found.gate.rows]
        assert ("patch, both looks" in names) is images
        assert "patch" in names
        known, learned = (
            detection(champion, guard, fresh_ones, looks=looks_named(looks))
            for guard in (champion.guard, found.guard.path)
        )
        assert learned > known


@pytest.mark.slow
def test_who_looks_again_is_checked(champion: Champion, tmp_path: Path) -> None:
    """Another network is refused, a missing one named; whoever wants to may look once."""
    new = tmp_path / "patch.npz"
    save_dataset(champion.patched.take(np.arange(60)), new)
    guard = tmp_path / "moved"
    shutil.copytree(champion.guard, guard)
    asked: dict[str, Any] = {"work": tmp_path / "work", "limits": FAST, "threads": 1}
    with pytest.raises(SettingsError, match=r"expected the second network sibling\.onnx"):
        retrain(guard, champion.model, [new], tmp_path / "g2", **asked)
    third = onnx.load(champion.other)
    third.doc_string = "another"
    onnx.save(third, tmp_path / "third.onnx")
    with pytest.raises(ModelMismatchError, match="the second look was fitted with a network of"):
        retrain(
            guard,
            champion.model,
            [new],
            tmp_path / "g2",
            second_model=tmp_path / "third.onnx",
            **asked,
        )
    assert not (tmp_path / "g2").exists()
    told = ["retrain", "--model", champion.model, "--guard", guard, "--new", new, "--threads", "1"]
    told += ["--out", tmp_path / "g2", "--work", tmp_path / "work", "--looks", "first"]
    result = CliRunner().invoke(app, [str(word) for word in told])
    assert "the new guard looks once" in result.output
    assert replace(read_guard(tmp_path / "g2")).second is None
