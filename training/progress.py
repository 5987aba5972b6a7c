"""Telling people what happens meanwhile: silence, or bars on standard error."""

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

__all__ = ["Bars", "Progress"]


class Progress:
    """Stays silent; a context manager."""

    def stage(self, title: str, total: int) -> None:
        """A step of so many units begins."""

    def advance(self, units: int) -> None:
        """Units of the current step are done."""

    def so_far(self, units: int = 1) -> Callable[[float], None]:
        """Return what is to be told how much of so many units is done in all."""
        done = 0

        def told(part: float) -> None:
            nonlocal done
            self.advance(round(units * part) - done)
            done = round(units * part)

        return told

    def say(self, text: str) -> None:
        """Tell people something that they should know of."""
        logging.getLogger(__name__).warning("%s", text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to end."""


class Bars(Progress):
    """One bar per stage."""

    def __init__(self) -> None:
        self._bars = RichProgress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._current = self._bars.add_task("start", visible=False)

    def stage(self, title: str, total: int) -> None:
        """Start a bar."""
        self._current = self._bars.add_task(title, total=total)

    def advance(self, units: int) -> None:
        """Move the current bar."""
        self._bars.advance(self._current, units)

    def say(self, text: str) -> None:
        """Print it above the bars."""
        self._bars.console.print(f"note: {text}", markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bars on the screen as they are."""
        self._bars.stop()
