"""Telling people what happens meanwhile: silence, bars on a terminal, or a line a minute."""

import logging
import math
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from reluguard.detector.errors import SettingsError

__all__ = ["Bars", "Estimate", "HowTold", "Lines", "Progress", "Step", "progress_of", "words_of"]

Clock = Callable[[], float]

# how much of a step must be done before its own pace counts for as much as the forecast
FORECAST_SHARE = 0.05
SAID_FROM_S = 60.0  # nobody is told beforehand of less
LINE_S = 60.0


class Progress:
    """Stays silent; a context manager."""

    def stage(self, title: str, total: int, *, expected_s: float | None = None) -> None:
        """A step of so many units begins, which was forecast to take so long."""

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


class Estimate:
    """How far a step is, and how long it will still take.

    Args:
        title: of the step.
        total: units of work, all of about the same cost.
        expected_s: how long a forecast says that it takes.
        now: when it begins, in seconds.
    """

    def __init__(self, title: str, total: int, expected_s: float | None, now: float) -> None:
        self.title = title
        self._total = total
        self._expected = expected_s
        self._began = self._latest = now
        self._done = 0

    @property
    def share(self) -> float:
        """How much is done, in [0, 1]."""
        return min(1.0, self._done / self._total) if self._total else 1.0

    def advance(self, units: int, now: float) -> None:
        """Units are done."""
        if units:
            self._done += units
            self._latest = now

    def elapsed(self, now: float) -> float:
        """Return the seconds since it began."""
        return now - self._began

    def left(self, now: float) -> float | None:
        """Return the seconds that are left, None where nothing tells yet.

        What comes is taken to go as fast as what is done, and until enough is done as fast as was
        forecast. A unit that is overdue never makes it less than half of what it was.
        """
        share, took = self.share, self.elapsed(self._latest)
        if self._expected is not None:
            whole = (self._expected * FORECAST_SHARE + took) / (FORECAST_SHARE + share)
        elif share:
            whole = took / share
        else:
            return None
        then = whole * (1 - share)
        return max(then / 2, then - (now - self._latest))


def words_of(seconds: float) -> str:
    """Return a duration as people say it: "9 min", "1 h 20 min"."""
    minutes = math.ceil(seconds / 60)
    if seconds < 30:
        return "under a minute"
    if minutes < 100:
        return f"{max(1, round(seconds / 60))} min"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest} min"


def _forecast(title: str, expected_s: float | None) -> str | None:
    """Return what people are told before a step that takes long."""
    if expected_s is None or expected_s < SAID_FROM_S:
        return None
    return f"{title}: about {words_of(expected_s)}"


class Lines(Progress):
    """A plain line a minute, for logs and whatever else is no terminal.

    Args:
        stream: where to; standard error by default.
        clock: seconds that only grow.
    """

    def __init__(self, stream: TextIO | None = None, clock: Clock = monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._current: Estimate | None = None
        self._began = clock()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def stage(self, title: str, total: int, *, expected_s: float | None = None) -> None:
        """Start counting, and say how long it takes where that was forecast."""
        with self._lock:
            self._current = Estimate(title, total, expected_s, self._clock())
        forecast = _forecast(title, expected_s)
        if forecast:
            self._print(forecast)

    def advance(self, units: int) -> None:
        """Count."""
        with self._lock:
            if self._current:
                self._current.advance(units, self._clock())

    def say(self, text: str) -> None:
        """Print it at once."""
        self._print(f"note: {text}")

    def beat(self) -> None:
        """Print how far the current step is: a timer does it every minute."""
        with self._lock:
            current, now = self._current, self._clock()
        if current is None:
            self._print(f"still at it, {words_of(now - self._began)} so far")
            return
        took = words_of(current.elapsed(now))
        if current.share >= 1:
            self._print(f"{current.title}: done, and what follows it, {took} so far")
            return
        left = current.left(now)
        coming = "time left not known yet" if left is None else f"about {words_of(left)} left"
        self._print(f"{current.title}: {current.share:.0%}, {took} so far, {coming}")

    def __enter__(self) -> Self:
        self._ended.clear()
        self._thread = threading.Thread(target=self._beats, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the timer."""
        self._ended.set()
        if self._thread:
            self._thread.join()

    def _beats(self) -> None:
        while not self._ended.wait(LINE_S):
            self.beat()

    def _print(self, text: str) -> None:
        stream = self._stream or sys.stderr
        stream.write(f"reluguard: {text}\n")
        stream.flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How far long work is, as a callback is told.

    Attributes:
        title: of the step that is done now.
        share: of it that is done, in [0, 1].
        left_s: seconds that it will still take, None where nothing tells yet.
        note: something that people should know, empty in a report of progress alone.
    """

    title: str
    share: float
    left_s: float | None = None
    note: str = ""


class Told(Progress):
    """Calls a function of the user's with each change.

    Args:
        tell: takes a `Step`.
        clock: seconds that only grow.
    """

    def __init__(self, tell: Callable[[Step], object], clock: Clock = monotonic) -> None:
        self._tell, self._clock = tell, clock
        self._current = Estimate("", 0, None, clock())

    def stage(self, title: str, total: int, *, expected_s: float | None = None) -> None:
        """Tell that a step begins."""
        self._current = Estimate(title, total, expected_s, self._clock())
        self._told("", 0.0 if total else 1.0)

    def advance(self, units: int) -> None:
        """Count, and tell."""
        self._current.advance(units, self._clock())
        self._told("", self._current.share)

    def say(self, text: str) -> None:
        """Tell it as a note."""
        self._told(text, self._current.share)

    def _told(self, note: str, share: float) -> None:
        left = self._current.left(self._clock())
        self._tell(Step(title=self._current.title, share=share, left_s=left, note=note))


HowTold = Progress | Callable[[Step], object] | None
"""What is told of progress: nobody, a `Progress`, or a function that takes each `Step`."""


def progress_of(how: HowTold) -> Progress:
    """Return what to tell of progress, however it was given.

    Raises:
        SettingsError: it can't be called.
    """
    if how is None:
        return Progress()
    if isinstance(how, Progress):
        return how
    if not callable(how):
        raise SettingsError(f"expected a function that takes a Step, got {type(how).__name__}")
    return Told(how)


class _Left(ProgressColumn):
    """The time that is left."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def render(self, task: Task) -> Text:
        """Return it in words, or nothing where it is not known or the step is done."""
        estimate = task.fields.get("estimate")
        left = estimate.left(self._clock()) if isinstance(estimate, Estimate) else None
        return Text("" if left is None or task.finished else f"{words_of(left)} left")


class Bars(Progress):
    """One bar per stage.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._bars = RichProgress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            _Left(clock),
            console=Console(stderr=True),
        )
        self._current = self._bars.add_task("start", visible=False)
        self._estimate: Estimate | None = None

    def stage(self, title: str, total: int, *, expected_s: float | None = None) -> None:
        """Start a bar, and say above it how long it takes where that was forecast."""
        forecast = _forecast(title, expected_s)
        if forecast:
            self._write(forecast)
        self._estimate = Estimate(title, total, expected_s, self._clock())
        self._current = self._bars.add_task(title, total=total, estimate=self._estimate)

    def advance(self, units: int) -> None:
        """Move the current bar."""
        if self._estimate:
            self._estimate.advance(units, self._clock())
        self._bars.advance(self._current, units)

    def say(self, text: str) -> None:
        """Print it above the bars."""
        self._write(f"note: {text}")

    def _write(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

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
