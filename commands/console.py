"""What a terminal is told while a command works, and when it fails."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from reluguard.training.progress import Progress

__all__ = ["fail", "show_progress"]


@contextlib.contextmanager
def show_progress() -> Iterator["Progress"]:
    """Give progress on standard error: bars on a terminal, otherwise a line a minute.

    Standard output is left to results.
    """
    from reluguard.training.progress import Bars, Lines

    with Bars() if sys.stderr.isatty() else Lines() as progress:
        yield progress


def fail(message: str) -> NoReturn:
    """Say in one line what went wrong, and end with exit code 1."""
    typer.echo(f"reluguard: {' '.join(message.split())}", err=True)
    sys.exit(1)
