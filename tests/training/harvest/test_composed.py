"""Attacked images that go through a harmless change: made with the attack, never attacked anew."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from reluguard.detector.model import infer_spec, load_production
from reluguard.detector.taps import find_taps
from reluguard.training.attacks import FGSM, Attack, Victim
from reluguard.training.changes import Change, GaussianNoise
from reluguard.training.data.dataset import Dataset
from reluguard.training.harvest.forecast import passes_of
from reluguard.training.harvest.harvest import harvest
from reluguard.training.harvest.orders import Job, Orders, composed_jobs, plan_jobs, with_changes
from reluguard.training.harvest.workspace import Shard, Workspace

PLAN = {"seed": 0}
SPLITS = {"fit": np.arange(0, 40), "test": np.arange(40, 60)}
ATTACK, CHANGE = FGSM(size=40.0), GaussianNoise(sigma=9.0)
BOTH = f"{ATTACK.name}+{CHANGE.name}"


@pytest.fixture
def orders(digits: Dataset, digits_model: Path, tmp_path: Path) -> Orders:
    """Orders for sixty digits: FGSM, and noise after it."""
    production = load_production(digits_model)
    spec = infer_spec(production, (8, 8, 1))
    return Orders(
        model=digits_model,
        output=production.answer,
        spec=spec,
        taps=find_taps(production, spec),
        twin="auto",
        dataset=digits.take(np.arange(60)),
        changes={ATTACK.name: ATTACK, BOTH: CHANGE},
        workspace=tmp_path / "work",
        seed=3,
        threads=1,
    )


def jobs_of(share: float = 1.0) -> list[Job]:
    return with_changes(plan_jobs(ATTACK.name, "attack", SPLITS), {CHANGE.name: share}, seed=0)


def read(orders: Orders, jobs: list[Job]) -> list[Shard]:
    workspace = Workspace(orders.workspace, PLAN)
    return [workspace.read(job) for job in jobs]


def test_a_change_is_planned_on_its_share_of_every_shard() -> None:
    """Some of the shard's own sources, in order, at least one, the same for the same seed."""
    for share, count in ((1.0, 40), (0.5, 20), (0.001, 1)):
        job = jobs_of(share)[0]
        (later,) = job.then
        assert later.slug == BOTH
        assert later.kind == "attack"
        assert len(later.sources) == count
        assert np.isin(later.sources, job.sources).all()
        assert (np.diff(later.sources) > 0).all()
        assert_array_equal(later.sources, jobs_of(share)[0].then[0].sources)


def test_a_success_is_still_answered_wrong(orders: Orders, digits_victim: Victim) -> None:
    """It fooled the model before the change and fools it after; its image is the changed one."""
    jobs = jobs_of(0.6)
    harvest(jobs, orders, workers=1)
    workspace = Workspace(orders.workspace, PLAN)
    for job, (later,) in ((job, job.then) for job in jobs):
        attacked, changed = workspace.read(job), workspace.read(later)
        assert_array_equal(changed.sources, later.sources)
        assert attacked.images is not None
        assert changed.images is not None
        rows = np.flatnonzero(np.isin(job.sources, later.sources))
        moved = np.abs(changed.images.astype(int) - attacked.images[rows])
        assert 0 < moved.max() <= 6 * CHANGE.sigma
        clean = digits_victim.predict(orders.dataset.images[later.sources]).argmax(axis=1)
        wrong = digits_victim.predict(changed.images).argmax(axis=1) != clean
        assert_array_equal(changed.success, attacked.success[rows] & wrong)
        assert_array_equal(changed.logits.argmax(axis=1) != clean, wrong)
    both = composed_jobs(jobs)[BOTH]
    assert 0 < len(workspace.readings(both)) < sum(len(job.sources) for job in both)


def test_what_the_change_does_alone_is_no_success(orders: Orders, digits_victim: Victim) -> None:
    """Where the attack has to have caused it, a flip by the same noise alone does not count."""
    strong = GaussianNoise(sigma=60.0)
    changes: dict[str, Attack | Change] = {
        ATTACK.name: ATTACK,
        f"{ATTACK.name}+{strong.name}": strong,
    }
    plain = plan_jobs(ATTACK.name, "attack", {"fit": np.arange(60)})
    shards = []
    for folder, caused in (("all", False), ("caused", True)):
        made = replace(orders, changes=changes, workspace=orders.workspace.with_name(folder))
        jobs = with_changes(plain, {strong.name: 1.0}, seed=0, caused=caused)
        harvest(jobs, made, workers=1)
        shards.append(read(made, [later for job in jobs for later in job.then])[0])
    every, caused_only = shards
    assert_array_equal(every.images, caused_only.images)
    assert not (caused_only.success & ~every.success).any()
    assert 0 < caused_only.success.sum() < every.success.sum()
    assert every.images is not None
    clean = orders.dataset.images
    before = digits_victim.predict(clean).argmax(axis=1)
    answers = digits_victim.predict(every.images).argmax(axis=1)
    assert (answers != before)[caused_only.success].all()


def test_what_was_attacked_is_not_attacked_again(
    orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change asked for later is made of the images that lie there, the same bit for bit."""
    harvest(jobs_of(), orders, workers=1)
    expected = read(orders, composed_jobs(jobs_of())[BOTH])
    later = replace(orders, workspace=orders.workspace.with_name("later"))
    harvest(plan_jobs(ATTACK.name, "attack", SPLITS), later, workers=1)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("attacked again")

    monkeypatch.setattr(FGSM, "run", refuse)
    harvest(jobs_of(), later, workers=1)
    for one, two in zip(read(later, composed_jobs(jobs_of())[BOTH]), expected, strict=True):
        assert_array_equal(one.images, two.images)
        assert_array_equal(one.success, two.success)
        assert_array_equal(one.rates, two.rates)


def test_a_missing_change_is_made_again(orders: Orders) -> None:
    """A harvest that was killed between the two goes on; a whole one is left alone."""
    jobs = jobs_of()
    harvest(jobs, orders, workers=1)
    files = {job.file: orders.workspace / job.file for made in jobs for job in (made, *made.then)}
    stamps = {name: file.stat().st_mtime_ns for name, file in files.items()}
    files[jobs[0].then[0].file].unlink()
    assert not jobs[0].is_made(orders.workspace)
    harvest(jobs, orders, workers=1)
    after = {name: file.stat().st_mtime_ns for name, file in files.items()}
    assert [name for name in files if stamps[name] != after[name]] == [jobs[0].then[0].file]


def test_a_change_afterwards_is_a_question_an_image(orders: Orders) -> None:
    """The forecast counts it."""
    alone = passes_of(plan_jobs(ATTACK.name, "attack", SPLITS)[0], orders)
    both = passes_of(jobs_of(0.5)[0], orders)
    assert both.asked == alone.asked + 0.5
    assert (both.climbed, both.exact) == (alone.climbed, alone.exact)
