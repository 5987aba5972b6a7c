"""Harvest: attack or change images, read them through the compiled graph, keep it in shards.

A shard is one attack on one run of source images; it is written aside and renamed, so that
whatever is there is whole and a fit that was killed goes on where it was.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from reluguard.training.harvest.engine import check_engine, run_local, run_ray
from reluguard.training.harvest.maker import Maker
from reluguard.training.harvest.orders import Job, Orders

__all__ = ["harvest"]


def harvest(
    jobs: Sequence[Job],
    orders: Orders,
    *,
    workers: int,
    engine: str = "local",
    progress: Callable[[Job], None] = lambda _: None,
) -> None:
    """Make every shard that isn't there yet.

    Args:
        jobs: the shards.
        orders: what goes into them.
        workers: processes or actors; with one local, this process does it.
        engine: "local", or "ray" for actors of a Ray cluster; the files are the same.
        progress: called for each job once it is done or found, in no order.

    Raises:
        SettingsError: no such engine, or Ray is not installed.
        TwinError: the twin can't be made, or does not match the model.
        WorkerError: a worker process died.
        OSError: the disk is full.
    """
    check_engine(engine)
    left = [job for job in jobs if not (orders.workspace / job.file).is_file()]
    there = {job.file for job in jobs} - {job.file for job in left}
    for job in jobs:
        if job.file in there:
            progress(job)
    if not left:
        return
    with _torch_threads(orders.threads):
        maker = Maker(orders)  # here first: what is wrong with the model or twin is told plainly
        for job in left if workers == 1 and engine == "local" else ():
            maker.make(job)
            progress(job)
    if engine == "ray":
        run_ray(left, orders, min(workers, len(left)), progress)
    elif workers > 1:
        run_local(left, orders, min(workers, len(left)), progress)


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
