"""The command line in this process: how tests run it, and what a failure looks like."""

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What a run of the command line left."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]


def assert_one_line(ended: Ended, message: str) -> None:
    """A failure is exit code 1 and one line on standard error that says what is wrong."""
    assert ended.code == 1
    assert not ended.out
    last = ended.err.strip().splitlines()[-1]
    assert last.startswith("reluguard: ")
    assert re.search(message, last), last
    assert "Traceback" not in ended.err
