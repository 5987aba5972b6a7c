"""What work takes on free cores: by what the processor does, not by what the clock shows.

Whatever else runs on the machine just then says nothing about the hours to come.
"""

from collections.abc import Callable
from functools import cache
from time import process_time, thread_time

import numpy as np

from reluguard.detector.allowance import available_cores

__all__ = ["busy_seconds", "here"]

_REFERENCE = 1.4e11  # floating-point operations a second there, of one core, in products as below
_SIDE = 768
_TRIES = 3


def busy_seconds(work: Callable[[], object], threads: int | None = None) -> float:
    """Return how long work takes where the cores are free for it; it is done once.

    That is the processor's time of the thread that does it or, where that waits for others, the
    time of all of them shared evenly.

    Args:
        work: to do.
        threads: that it is done in; by default as many as there are usable cores.
    """
    cores = available_cores()
    alone, together = thread_time(), process_time()
    work()
    shared = (process_time() - together) / min(threads or cores, cores)
    return max(thread_time() - alone, shared)


def here(seconds: float) -> float:
    """Return what takes so many seconds of a core of the reference machine takes on one here.

    By a product of two matrices.

    Args:
        seconds: of matrix work for the most part.
    """
    return seconds * _seconds_of_one() * _REFERENCE


@cache
def _seconds_of_one() -> float:
    """Return the seconds that a floating-point operation of a large product takes."""
    x = np.random.default_rng(0).random((_SIDE, _SIDE), np.float32)
    fastest = min(busy_seconds(lambda: x.T @ x) for _ in range(_TRIES))
    return fastest / (2 * _SIDE**3)
