"""Shards: made once, whole, true to their plan, and the same from any number of processes."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from reluguard.detector.model import infer_spec, load_production
from reluguard.detector.taps import find_taps
from reluguard.training.attacks import FGSM, Attack, Square
from reluguard.training.changes import GaussianNoise
from reluguard.training.data.dataset import Dataset
from reluguard.training.errors import DataError, TwinError, WorkerError
from reluguard.training.harvest.harvest import harvest
from reluguard.training.harvest.orders import SHARD_IMAGES, Job, Orders, plan_jobs
from reluguard.training.harvest.workspace import Workspace

PLAN = {"model": "m", "seed": 0, "recipe": {"levels": [1.0]}}
SPLITS = {"fit": np.arange(0, 40), "test": np.arange(40, 60)}


@pytest.fixture
def order(digits: Dataset, digits_model: Path, tmp_path: Path) -> Callable[..., Orders]:
    """Orders for sixty digits: FGSM, Square and noise."""
    production = load_production(digits_model)
    spec = infer_spec(production, (8, 8, 1))

    def orders(folder: str = "work", **changed: object) -> Orders:
        changes = (FGSM(size=40.0), Square(size=40.0, most_queries=10), GaussianNoise(sigma=9.0))
        made = Orders(
            model=digits_model,
            output=production.answer,
            spec=spec,
            taps=find_taps(production, spec),
            twin="auto",
            dataset=digits.take(np.arange(60)),
            changes={change.name: change for change in changes},
            workspace=tmp_path / folder,
            seed=3,
            threads=1,
        )
        return replace(made, **changed)  # type: ignore[arg-type]  # any of its fields, by name

    return orders


def jobs_of(orders: Orders) -> list[Job]:
    jobs = plan_jobs("clean", "clean", SPLITS)
    for slug, change in orders.changes.items():
        jobs += plan_jobs(slug, "attack" if isinstance(change, Attack) else "benign", SPLITS)
    return jobs


def contents(orders: Orders) -> dict[str, dict[str, np.ndarray]]:
    """Return every array of every shard."""
    found = {}
    for job in jobs_of(orders):
        with np.load(orders.workspace / job.file) as shard:
            found[job.file] = {name: shard[name] for name in shard.files}
    return found


def assert_same(
    one: dict[str, dict[str, np.ndarray]], two: dict[str, dict[str, np.ndarray]]
) -> None:
    assert one.keys() == two.keys()
    for file, arrays in one.items():
        assert arrays.keys() == two[file].keys()
        for name, value in arrays.items():
            assert_array_equal(value, two[file][name], err_msg=f"{file} {name}")


def test_jobs_deal_out_every_source_once() -> None:
    """Runs of a bounded size, in order, each with a file of its own."""
    splits = {"fit": np.arange(2 * SHARD_IMAGES + 5), "test": np.arange(7) + 1000}
    jobs = plan_jobs("pgd", "attack", splits)
    assert [job.file for job in jobs] == [
        "pgd/fit-00000.npz",
        "pgd/fit-00001.npz",
        "pgd/fit-00002.npz",
        "pgd/test-00000.npz",
    ]
    assert max(len(job.sources) for job in jobs) == SHARD_IMAGES
    for split, sources in splits.items():
        parts = [job.sources for job in jobs if job.split == split]
        assert_array_equal(np.concatenate(parts), sources)


def test_shards_hold_what_the_model_says(order: Callable[..., Orders]) -> None:
    """Images within the budget of their source, its label, and honest success."""
    orders = order()
    harvest(jobs_of(orders), orders, workers=1)
    workspace = Workspace(orders.workspace, PLAN)
    clean = {job.split: workspace.read(job) for job in plan_jobs("clean", "clean", SPLITS)}
    for job in jobs_of(orders):
        shard = workspace.read(job)
        assert_array_equal(shard.sources, job.sources)
        assert_array_equal(shard.labels, orders.dataset.labels[job.sources])
        assert shard.images is not None
        assert shard.images.dtype == np.uint8
        moved = np.abs(shard.images.astype(int) - orders.dataset.images[job.sources])
        if job.kind == "clean":
            assert moved.max() == 0
        if job.kind == "attack":
            assert 0 < moved.max() <= 40
            left = shard.logits.argmax(axis=1) != clean[job.split].logits.argmax(axis=1)
            assert_array_equal(shard.success, left)
        else:
            assert shard.success.all()


def test_failed_attacks_are_no_positives(order: Callable[..., Orders]) -> None:
    """Readings of an attack hold its successes alone; those of harmless changes hold all."""
    orders = order()
    harvest(jobs_of(orders), orders, workers=1)
    workspace = Workspace(orders.workspace, PLAN)
    jobs = [job for job in jobs_of(orders) if job.slug == "square-linf-40" and job.split == "fit"]
    shards = [workspace.read(job) for job in jobs]
    success = np.concatenate([shard.success for shard in shards])
    assert 0 < success.sum() < len(success)
    readings = workspace.readings(jobs)
    assert len(readings) == success.sum()
    assert_array_equal(readings.rates, np.concatenate([s.rates for s in shards])[success])
    noise = [job for job in jobs_of(orders) if job.kind == "benign" and job.split == "fit"]
    assert len(workspace.readings(noise)) == 40


def test_mirror_sources_are_attacked_as_mirror_images(
    order: Callable[..., Orders], digits: Dataset
) -> None:
    """Source N + i is the mirror image of row i, kept under row i."""
    orders = order()
    jobs = plan_jobs("fgsm-linf-40", "attack", {"fit": np.array([2, 62])})
    harvest(jobs, orders, workers=1)
    shard = Workspace(orders.workspace, PLAN).read(jobs[0])
    assert_array_equal(shard.sources, [2, 2])
    assert shard.images is not None
    for image, source in zip(
        shard.images, (digits.images[2], digits.images[2][:, ::-1]), strict=True
    ):
        assert np.abs(image.astype(int) - source).max() <= 40


def test_what_is_there_is_not_made_again(order: Callable[..., Orders]) -> None:
    """A second run touches no shard, and a missing one comes back bit for bit."""
    orders = order()
    jobs = jobs_of(orders)
    harvest(jobs, orders, workers=1)
    before = contents(orders)
    stamps = {job.file: (orders.workspace / job.file).stat().st_mtime_ns for job in jobs}
    (orders.workspace / jobs[3].file).unlink()
    told: list[str] = []
    harvest(jobs, orders, workers=1, progress=lambda job: told.append(job.file))
    assert sorted(told) == sorted(stamps)
    after = {job.file: (orders.workspace / job.file).stat().st_mtime_ns for job in jobs}
    assert [file for file in stamps if stamps[file] != after[file]] == [jobs[3].file]
    assert_same(before, contents(orders))


def test_a_finished_harvest_needs_no_model(order: Callable[..., Orders], tmp_path: Path) -> None:
    """With every shard there, the model is not even opened."""
    orders = order()
    harvest(jobs_of(orders), orders, workers=1)
    harvest(jobs_of(orders), replace(orders, model=tmp_path / "gone.onnx"), workers=2)


def test_another_seed_changes_what_is_drawn(order: Callable[..., Orders]) -> None:
    """The seed decides noise and random starts; without chance nothing changes."""
    one, other = order("one"), order("other", seed=4)
    for orders in (one, other):
        harvest(jobs_of(orders), orders, workers=1)
    changed = {
        file.split("/")[0]
        for file, arrays in contents(one).items()
        if not np.array_equal(arrays["images"], contents(other)[file]["images"])
    }
    assert "clean" not in changed
    assert {"gaussian-9", "square-linf-40"} <= changed


def test_a_killed_write_leaves_no_shard(order: Callable[..., Orders]) -> None:
    """What a killed write leaves aside is not taken for a shard."""
    orders = order()
    job = jobs_of(orders)[0]
    folder = (orders.workspace / job.file).parent
    folder.mkdir(parents=True)
    (folder / ".fit-00000.npz.123.456").write_bytes(b"PK half")
    harvest([job], orders, workers=1)
    assert len(Workspace(orders.workspace, PLAN).read(job).sources) == 40


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:10],
        lambda _: b"",
        lambda _: b"not an archive",
        lambda data: data[:200] + bytes([data[200] ^ 0xFF]) + data[201:],
        lambda data: data[:-40] + b"\0" * 40,
    ],
    ids=["half", "head", "empty", "text", "flipped", "no end"],
)
def test_a_damaged_shard_is_named(
    order: Callable[..., Orders], damage: Callable[[bytes], bytes]
) -> None:
    """Whatever the damage, the message names the file and says what to do."""
    orders = order()
    job = jobs_of(orders)[0]
    harvest([job], orders, workers=1)
    file = orders.workspace / job.file
    file.write_bytes(damage(file.read_bytes()))
    workspace = Workspace(orders.workspace, PLAN)
    with pytest.raises(
        DataError, match=r"expected a shard, .*fit-00000\.npz .*: remove it to make it anew"
    ):
        workspace.read(job)


def test_a_shard_with_an_array_missing_is_damaged(order: Callable[..., Orders]) -> None:
    """An archive of other arrays is no shard."""
    orders = order()
    job = jobs_of(orders)[0]
    (orders.workspace / "clean").mkdir(parents=True)
    np.savez(orders.workspace / job.file, sources=np.arange(3))
    with pytest.raises(DataError, match="labels, logits, rates and success missing: it has sour"):
        Workspace(orders.workspace, PLAN).read(job)


def test_a_workspace_of_another_plan_is_refused(
    order: Callable[..., Orders],
) -> None:
    """Shards of another plan stay untouched, and the message says what differs."""
    orders = order()
    Workspace(orders.workspace, PLAN)
    harvest(jobs_of(orders)[:1], orders, workers=1)
    Workspace(orders.workspace, dict(reversed(PLAN.items())))
    with pytest.raises(DataError, match="holds work of another seed: give another --work folder"):
        Workspace(orders.workspace, {**PLAN, "seed": 1})
    with pytest.raises(DataError, match="another recipe and seed"):
        Workspace(orders.workspace, {**PLAN, "seed": 1, "recipe": {"levels": []}})
    (orders.workspace / "plan.json").write_text("{")
    with pytest.raises(DataError, match="another plan"):
        Workspace(orders.workspace, PLAN)


def test_a_plan_without_shards_gives_way(tmp_path: Path) -> None:
    """A fit that failed before its first shard does not block the next one."""
    Workspace(tmp_path / "work", PLAN)
    Workspace(tmp_path / "work", {**PLAN, "seed": 1})
    Workspace(tmp_path / "work", {**PLAN, "seed": 1})


def test_a_twin_that_disagrees_makes_no_shard(
    order: Callable[..., Orders], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients of another model are worse than none."""
    (tmp_path / "other_twin.py").write_text(
        "import torch\n\ndef make():\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    orders = order(twin="other_twin:make")
    with pytest.raises(TwinError, match="expected the twin other_twin:make to answer as the model"):
        harvest(jobs_of(orders), orders, workers=1)
    assert not list(orders.workspace.rglob("*.npz"))


def test_torch_gets_its_threads_back(order: Callable[..., Orders]) -> None:
    """The number of threads asked for is lent, not kept."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen: list[int] = []
    try:
        orders = order()
        jobs = jobs_of(orders)[:1]
        harvest(jobs, orders, workers=1, progress=lambda _: seen.append(torch.get_num_threads()))
        assert seen == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_change_no_bit(order: Callable[..., Orders]) -> None:
    """Two processes make the same shards as one."""
    one, two = order("one"), order("two")
    harvest(jobs_of(one), one, workers=1)
    told: list[str] = []
    harvest(jobs_of(two), two, workers=2, progress=lambda job: told.append(job.file))
    assert sorted(told) == sorted(job.file for job in jobs_of(two))
    assert_same(contents(one), contents(two))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_lost_worker_is_told(order: Callable[..., Orders]) -> None:
    """A worker that the system kills is one clear error, and finished shards stay."""
    orders = order()

    def kill(_: Job) -> None:
        for process in multiprocessing.active_children():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(WorkerError, match="a worker process died"):
        harvest(jobs_of(orders), orders, workers=2, progress=kill)
    workspace = Workspace(orders.workspace, PLAN)
    made = [job for job in jobs_of(orders) if (orders.workspace / job.file).is_file()]
    assert made
    for job in made:
        workspace.read(job)


def test_of_large_images_a_few_are_kept(
    order: Callable[..., Orders], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first shard of each kind, and of attacks those that succeeded."""
    orders = order()
    kept = Workspace(orders.workspace, PLAN)
    jobs = [*plan_jobs("fgsm-linf-40", "attack", SPLITS, size=30)]
    harvest(jobs, orders, workers=1)
    first = kept.read(jobs[0])
    assert first.images is not None
    assert first.sample is None
    monkeypatch.setattr("reluguard.training.harvest.maker.KEPT_IMAGE_BYTES", 1)
    few = order("few")
    harvest(jobs, few, workers=1)
    shards = [Workspace(few.workspace, PLAN).read(job) for job in jobs]
    assert [shard.images for shard in shards] == [None] * len(jobs)
    assert [job.number for job in jobs] == [0, 1, 0]
    assert shards[1].sample is None
    assert shards[0].sample is not None
    assert_array_equal(shards[0].sample, first.images[first.success][:4])
    assert_array_equal(shards[0].rates, first.rates)
