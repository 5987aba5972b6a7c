"""What many ask for at once is made once for all of them."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from reluguard.service.web.http import Shared
from tests.waiting import until


def waiting() -> int:
    """Return how many threads have asked and stand in line."""
    frames = sys._current_frames().values()  # noqa: SLF001 - the way there is to look at threads
    return sum(f.f_code is Shared.get.__code__ and "asked" in f.f_locals for f in frames)


def test_a_crowd_shares_what_is_made_and_nobody_gets_an_old_one() -> None:
    """All who asked while one was made get the next one, which is begun after they asked."""
    shared, go_on = Shared(), threading.Event()
    made: list[bytes] = []

    def make() -> bytes:
        made.append(b"picture %d" % len(made))
        assert go_on.wait(60)
        return made[-1]

    with ThreadPoolExecutor(13) as threads:
        first = threads.submit(shared.get, "one", make)
        until(lambda: bool(made))
        crowd = [threads.submit(shared.get, "one", make) for _ in range(12)]
        until(lambda: waiting() == 12)
        go_on.set()
        assert first.result(60) == b"picture 0"
        assert {one.result(60) for one in crowd} == {b"picture 1"}
    assert shared.get("one", make) == b"picture 2"


def test_what_fails_is_tried_again() -> None:
    """An error is for who asked, and nothing of it stays."""
    shared = Shared()
    answers = iter([b"", b"made"])

    def make() -> bytes:
        found = next(answers)
        if not found:
            raise OSError("nothing yet")
        return found

    with pytest.raises(OSError, match="nothing yet"):
        shared.get("one", make)
    assert shared.get("one", make) == b"made"
