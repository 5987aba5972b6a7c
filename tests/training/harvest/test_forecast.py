"""How long a harvest takes is told beforehand, by what attacks say of themselves."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reluguard.detector.allowance import available_cores
from reluguard.detector.images import InputSpec
from reluguard.detector.model import infer_spec, load_production
from reluguard.detector.taps import find_taps
from reluguard.training.attacks import ATTACKS, PGD, Attack, Passes, Square, Victim
from reluguard.training.changes import GaussianNoise
from reluguard.training.data.dataset import Dataset
from reluguard.training.harvest.forecast import Pace, expected_seconds, in_turn, pace_of, passes_of
from reluguard.training.harvest.harvest import harvest_told
from reluguard.training.harvest.orders import Job, Orders, plan_jobs, shard_images
from reluguard.training.progress import Progress


class Told(Progress):
    """Keeps the stages, and what is done of the last one."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int, float | None]] = []
        self.parts: list[int] = []

    def stage(self, title: str, total: int, *, expected_s: float | None = None) -> None:
        """Keep it."""
        self.stages.append((title, total, expected_s))
        self.parts = []

    def advance(self, units: int) -> None:
        """Keep it."""
        self.parts.append(units)


@pytest.fixture
def orders(digits: Dataset, digits_model: Path, tmp_path: Path) -> Orders:
    """Orders for sixty digits."""
    production = load_production(digits_model)
    spec: InputSpec = infer_spec(production, (8, 8, 1))
    changes = (PGD(size=40.0), Square(size=40.0, most_queries=10), GaussianNoise(sigma=9.0))
    return Orders(
        model=digits_model,
        output=production.answer,
        spec=spec,
        taps=find_taps(production, spec),
        twin="auto",
        dataset=digits.take(np.arange(60)),
        changes={change.name: change for change in changes},
        workspace=tmp_path / "work",
        seed=3,
        threads=1,
    )


def jobs_of(orders: Orders) -> list[Job]:
    splits = {"fit": np.arange(0, 40), "test": np.arange(40, 60)}
    jobs = plan_jobs("clean", "clean", splits, size=8)
    for slug, change in orders.changes.items():
        jobs += plan_jobs(
            slug, "attack" if isinstance(change, Attack) else "benign", splits, size=8
        )
    return jobs


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_says_what_it_costs(name: str) -> None:
    """At least one pass, and attacks without gradients none of the twin."""
    attack = ATTACKS[name]()
    passes = attack.passes
    assert passes.asked + passes.climbed + passes.exact >= 1
    if attack.needs_gradients:
        assert passes.climbed + passes.exact >= 1
    elif not attack.needs_surrogates:
        assert passes.climbed == passes.exact == 0


def test_more_steps_cost_more() -> None:
    """Ten times the steps are ten times the passes."""
    assert PGD(steps=40).passes.climbed == 10 * PGD(steps=4).passes.climbed


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60))
def test_shards_come_in_turn(slugs: list[str]) -> None:
    """Each once, a slug's own in their order, and at any time all slugs are done alike."""
    numbers: Counter[str] = Counter()
    jobs = []
    for slug in slugs:
        jobs.append(
            Job(slug=slug, kind="benign", split="fit", number=numbers[slug], sources=np.arange(1))
        )
        numbers[slug] += 1
    turns = in_turn(jobs)
    assert sorted(map(id, turns)) == sorted(map(id, jobs))
    done: Counter[str] = Counter()
    for count, job in enumerate(turns, 1):
        assert job.number == done[job.slug]
        done[job.slug] += 1
        for slug, total in numbers.items():
            assert abs(done[slug] - total * count / len(jobs)) <= len(numbers)


@pytest.mark.parametrize(
    ("shape", "images"),
    [((32, 32, 3), 256), ((8, 8, 1), 256), ((64, 64, 3), 64), ((224, 224, 3), 32)],
)
def test_shards_of_large_images_are_small(shape: tuple[int, ...], images: int) -> None:
    """So that people hear of them every minute or so."""
    assert shard_images(shape) == images


def test_the_pace_is_measured(digits: Dataset, digits_victim: Victim) -> None:
    """A pass takes some time, one of the twin too; without a twin there is none of it."""
    pace = pace_of(digits_victim, digits)
    assert pace.asked_s > 0
    alone = pace_of(Victim(predict=digits_victim.predict), digits)
    assert alone.climbed_s == alone.exact_s == 0


def test_work_is_passes_times_their_pace(orders: Orders) -> None:
    """Ten steps of 2 ms and two questions of 1 ms, for 8 images; at least one millisecond."""
    pace = Pace(asked_s=0.001, climbed_s=0.002)
    job = plan_jobs("pgd-linf-40", "attack", {"fit": np.arange(8)})[0]
    assert passes_of(job, orders) == Passes(asked=2, climbed=10)
    assert pace.milliseconds(job, passes_of(job, orders)) == 8 * 22
    clean = plan_jobs("clean", "clean", {"fit": np.arange(8)})[0]
    assert pace.milliseconds(clean, passes_of(clean, orders)) == 8
    assert Pace(asked_s=0.0).milliseconds(clean, Passes(asked=1)) == 1


def test_workers_share_the_work(orders: Orders) -> None:
    """As many single threads as there are cores go that much faster, and more no faster."""
    cores = available_cores()
    alone = expected_seconds(6000, orders, 1, "local")
    assert alone == 6.0
    assert expected_seconds(6000, orders, cores, "local") == pytest.approx(alone / cores)
    assert expected_seconds(6000, orders, 4 * cores, "local") == pytest.approx(alone / cores)
    assert expected_seconds(6000, orders, 4 * cores, "ray") == pytest.approx(alone / cores / 4)


def test_a_harvest_tells_what_is_left(orders: Orders) -> None:
    """Its stage holds the work of shards that are not there, and all of it is done in the end."""
    told = Told()
    harvest_told(jobs_of(orders), orders, workers=1, progress=told)
    ((title, total, expected),) = told.stages
    assert title == "attack and read"
    assert sum(told.parts) == total
    assert expected is not None
    gone = next((orders.workspace / "clean").glob("fit-*.npz"))
    gone.unlink()
    harvest_told(jobs_of(orders), orders, workers=1, progress=told)
    assert told.stages[1][1] < total
    harvest_told(jobs_of(orders), orders, workers=1, progress=told)
    assert told.stages[2] == ("attack and read", 1, None)
    assert told.parts == [1]
