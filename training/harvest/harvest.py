"""Harvest: attack or change images, read them through the compiled graph, keep it in shards.

A shard is one attack on one run of source images; it is written aside and renamed, so that
whatever is there is whole and a fit that was killed goes on where it was.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from reluguard.training.data.mapped import give_back
from reluguard.training.harvest.engine import check_engine, run_local, run_ray
from reluguard.training.harvest.forecast import expected_seconds, in_turn, pace_of, passes_of
from reluguard.training.harvest.maker import Maker
from reluguard.training.harvest.orders import Job, Orders, of_a_worker
from reluguard.training.progress import Progress

__all__ = ["harvest", "harvest_told"]


def harvest_told(
    jobs: Sequence[Job],
    orders: Orders,
    *,
    workers: int,
    progress: Progress,
    engine: str = "local",
    title: str = "attack and read",
) -> None:
    """Do what `harvest` does as one stage, and say beforehand and meanwhile how long it takes.

    Units of the stage are milliseconds of work, by a few passes that are timed first. What was
    there already is none of it.

    Args:
        jobs: the shards.
        orders: what goes into them.
        workers: processes or actors.
        progress: told of the stage.
        engine: as for `harvest`, with the same errors.
        title: of the stage.
    """
    work: dict[str, int] = {}
    orders = _of_maker(orders, workers, engine)

    def begin(maker: Maker, left: Sequence[Job]) -> None:
        pace = pace_of(maker.victim, orders.dataset, orders.threads)
        for job in left:
            work[job.file] = pace.milliseconds(job, passes_of(job, orders))
        total = sum(work.values())
        expected = expected_seconds(total, orders, min(workers, len(left)), engine)
        progress.stage(title, total, expected_s=expected)

    harvest(
        in_turn(jobs),
        orders,
        workers=workers,
        engine=engine,
        progress=lambda job: progress.advance(work.get(job.file, 0)),
        begin=begin,
    )
    if not work:
        progress.stage(title, 1)
        progress.advance(1)


def harvest(
    jobs: Sequence[Job],
    orders: Orders,
    *,
    workers: int,
    engine: str = "local",
    progress: Callable[[Job], None] = lambda _: None,
    begin: Callable[[Maker, Sequence[Job]], None] = lambda *_: None,
) -> None:
    """Make every shard that isn't there yet.

    Args:
        jobs: the shards.
        orders: what goes into them.
        workers: processes or actors; with one local, this process does it.
        engine: "local", or "ray" for actors of a Ray cluster; the files are the same.
        progress: called for each job once it is done or found, in no order.
        begin: called with a maker and the jobs that are left, before the first of them.

    Raises:
        SettingsError: no such engine, or Ray is not installed.
        TwinError: the twin can't be made, or does not match the model.
        WorkerError: a worker process died.
        OSError: the disk is full.
    """
    check_engine(engine)
    left = [job for job in jobs if not job.is_made(orders.workspace)]
    there = {job.file for job in jobs} - {job.file for job in left}
    for job in jobs:
        if job.file in there:
            progress(job)
    if not left:
        return
    orders = _of_maker(orders, workers, engine)
    with _torch_threads(orders.threads):
        maker = Maker(orders)  # here first: what is wrong with the model or twin is told plainly
        begin(maker, left)
        for job in left if workers == 1 and engine == "local" else ():
            maker.make(job)
            progress(job)
        del maker  # others have their own: its memory is theirs
        give_back()
    if engine == "ray":
        run_ray(left, orders, min(workers, len(left)), progress)
    elif workers > 1:
        run_local(left, orders, min(workers, len(left)), progress)


def _of_maker(orders: Orders, workers: int, engine: str) -> Orders:
    """Return the orders of each maker; what one of them takes tells what all of them take."""
    return orders if workers == 1 and engine == "local" else of_a_worker(orders)


@contextlib.contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    """Lend torch so many threads, and give it back its own number after."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
