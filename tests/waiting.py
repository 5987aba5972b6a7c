"""Waiting for what must come, however slow the processor is."""

import time
from collections.abc import Callable


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Look every 5 ms whether ``true()``; after ``seconds`` the test has failed.

    Raises:
        AssertionError: It did not come.
    """
    patience = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < patience, f"not true after {seconds:g} s"
        time.sleep(0.005)
