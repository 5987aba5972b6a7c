"""Who makes the shards: this process, processes on this machine, or actors of a Ray cluster.

All make a shard with the same function, so the files are the same bit for bit.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np

from reluguard.detector.errors import SettingsError, did_you_mean
from reluguard.training.data.mapped import is_temporary
from reluguard.training.errors import WorkerError
from reluguard.training.harvest.maker import Maker
from reluguard.training.harvest.orders import Job, Orders, of_a_worker

__all__ = ["Engine", "check_engine", "run_local", "run_ray"]

Engine = Literal["local", "ray"]

RAY_BLOCKS = 1000  # of jobs at most: what Ray keeps a book on
RAY_RETRIES = 3


def check_engine(name: str) -> Engine:
    """Return the engine of this name.

    Raises:
        SettingsError: there is none, or Ray is not installed.
    """
    if name not in get_args(Engine):
        raise SettingsError(
            f"expected an engine of {', '.join(get_args(Engine))}, got {name!r}"
            f"{did_you_mean(name, get_args(Engine))}"
        )
    if name == "ray":
        try:
            import ray.data  # noqa: F401  (found or not is all that is asked)
        except ImportError as error:
            raise SettingsError(
                "the engine ray needs Ray, which is not installed: "
                "pip install 'reluguard[ray]', or use the engine local"
            ) from error
        return "ray"
    return "local"


def run_local(
    jobs: Sequence[Job], orders: Orders, workers: int, progress: Callable[[Job], None]
) -> None:
    """Make shards in processes of this machine.

    Args:
        jobs: the shards.
        orders: what goes into them; one thread in each process by default.
        workers: processes.
        progress: called for each job that is done, in no order.

    Raises:
        WorkerError: a process died.
    """
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start_process, (orders,)
    ) as pool:
        with _interrupts_held():
            futures = {pool.submit(_make, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                future.result()
                progress(futures.pop(future))
        except BrokenProcessPool as error:
            raise WorkerError(
                "a worker process died, most likely for want of memory: what is done is kept, "
                "go on with fewer --workers"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_ray(
    jobs: Sequence[Job], orders: Orders, workers: int, progress: Callable[[Job], None]
) -> None:
    """Make shards in actors of the Ray cluster that `RAY_ADDRESS` names, or of one started here.

    Every node must see model, images and work folder under the same paths. An actor that dies is
    replaced, and the shard it was at is made anew.

    Args:
        jobs: the shards.
        orders: what goes into them; one thread in each actor by default.
        workers: actors.
        progress: called for each job that is done, in no order.

    Raises:
        WorkerError: a shard failed again and again, or the cluster is gone.
    """
    import ray
    import ray.data

    own = not ray.is_initialized()
    if own:
        ray.init(
            num_cpus=None if "RAY_ADDRESS" in os.environ else workers * (orders.threads or 1),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars
    context.enable_progress_bars = False
    try:
        told = ray.put((_carried(of_a_worker(orders)), list(jobs)))
        # made here: reading them in tasks would wait for a core that the actors hold
        places = ray.data.from_items(
            [{"id": i} for i in range(len(jobs))], override_num_blocks=min(len(jobs), RAY_BLOCKS)
        )
        done = places.map_batches(
            RayActor,
            fn_constructor_args=(told,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=orders.threads or 1,
            max_restarts=RAY_RETRIES * len(jobs),
            max_task_retries=RAY_RETRIES,
        )
        for row in done.iter_rows():
            progress(jobs[int(row["id"])])
    except ray.exceptions.RayError as error:
        raise WorkerError(
            f"Ray could not go on: {_first_line(error)}; what is done is kept, "
            "the same command goes on where it was"
        ) from error
    finally:
        context.enable_progress_bars = before
        if own:
            ray.shutdown()


class RayActor:
    """A worker in a Ray actor; called with batches of places in the list of jobs."""

    def __init__(self, told: Any) -> None:
        import ray
        import torch

        orders, self._jobs = ray.get(told)
        torch.set_num_threads(orders.threads)
        self._workspace = orders.workspace
        self._maker = Maker(orders)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make these shards, unless the actor before this one did, and return their places."""
        for i in batch["id"]:
            job = self._jobs[int(i)]
            if not job.is_made(self._workspace):
                self._maker.make(job)
        return batch


def _carried(orders: Orders) -> Orders:
    """Return the orders for other machines, which don't have this one's temporary files."""
    if not is_temporary(orders.dataset.images):
        return orders
    images = np.array(orders.dataset.images)
    return replace(orders, dataset=replace(orders.dataset, images=images))


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Put Ctrl-C off, here and in the processes that are started meanwhile."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


class _Process:
    """The maker of a worker process."""

    maker: Maker | None = None


def _start_process(orders: Orders) -> None:
    import torch

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as for jobs in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a trace
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(orders.threads or 1)
    _Process.maker = Maker(of_a_worker(orders))


def _end_with_parent() -> None:
    """Leave when the parent was killed: a pool's workers would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _make(job: Job) -> None:
    assert _Process.maker is not None
    _Process.maker.make(job)
