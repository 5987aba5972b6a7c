"""Telling people what happens meanwhile: silence, bars on a terminal, or a line a minute.

What takes several steps says which first (`Progress.plan`): then people hear how long all of it
takes, and not the step alone.
"""

import logging
import math
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from reluguard.detector.errors import SettingsError
from reluguard.training.expected.course import Course, Estimate, Planned

__all__ = ["Bars", "HowTold", "Lines", "Planned", "Progress", "Step", "progress_of", "words_of"]

Clock = Callable[[], float]

SAID_FROM_S = 60.0  # nobody is told beforehand of less
SHORT_S = 30.0  # below it people hear no number
LINE_S = 60.0


class Progress:
    """Stays silent; a context manager."""

    def plan(self, command: str, steps: Sequence[Planned]) -> None:
        """Say which steps of a command come from here on, so that its end can be told.

        It may be said again as more is known. The plan of a command within another takes the place
        of the step of that name.
        """

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


def words_of(seconds: float) -> str:
    """Return a duration as people say it: "9 min", "1 h 20 min"."""
    minutes = math.ceil(seconds / 60)
    if seconds < SHORT_S:
        return "under a minute"
    if minutes < 100:
        return f"{max(1, round(seconds / 60))} min"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest} min"


def _about(seconds: float) -> str:
    words = words_of(seconds)
    return words if seconds < SHORT_S else f"about {words}"


class _Followed(Progress):
    """Follows the work, and tells what changed in a way of its own.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._course = Course(clock())
        self._foretold = False

    def plan(self, command: str, steps: Sequence[Planned]) -> None:
        """Keep the plan."""
        with self._lock:
            self._go_on()
            self._course.plan(command, steps)

    def _go_on(self) -> None:
        """Leave a command that is over: what comes then is another one's."""
        if self._course.is_planned and self._course.is_over:
            self._course, self._foretold = Course(self._clock()), False

    def stage(self, title: str, total: int, *, expected_s: float | None = None) -> None:
        """Start counting."""
        with self._lock:
            self._go_on()
            self._course.begin(title, total, expected_s, self._clock())

    def advance(self, units: int) -> None:
        """Count."""
        with self._lock:
            self._course.advance(units, self._clock())

    def _forecast(self, title: str, expected_s: float | None) -> str | None:
        """Return what people are told before long work: of all of it where that is known."""
        with self._lock:
            if not self._course.is_planned:
                return _told_before(title, expected_s)
            left = self._course.left(self._clock())
            if self._foretold or left is None:
                return None
            self._foretold = True
            forecast = _told_before(self._course.name, left)
            return forecast and f"{forecast} where the cores are free for it"


def _told_before(title: str, seconds: float | None) -> str | None:
    if seconds is None or seconds < SAID_FROM_S:
        return None
    return f"{title}: {_about(seconds)}"


class Lines(_Followed):
    """A plain line a minute, for logs and whatever else is no terminal.

    Args:
        stream: where to; standard error by default.
        clock: seconds that only grow.
    """

    def __init__(self, stream: TextIO | None = None, clock: Clock = monotonic) -> None:
        super().__init__(clock)
        self._stream = stream
        self._began = clock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def stage(self, title: str, total: int, *, expected_s: float | None = None) -> None:
        """Start counting, and say how long it takes where that was forecast."""
        super().stage(title, total, expected_s=expected_s)
        forecast = self._forecast(title, expected_s)
        if forecast:
            self._print(forecast)

    def say(self, text: str) -> None:
        """Print it at once."""
        self._print(f"note: {text}")

    def beat(self) -> None:
        """Print how far it is: a timer does it every minute."""
        with self._lock:
            self._print(self._line(self._course, self._clock()))

    def _line(self, course: Course, now: float) -> str:
        step = course.step
        if step is None:
            return f"still at it, {words_of(now - self._began)} so far"
        left = course.left(now) if course.is_planned else step.left(now)
        share = course.share(now)
        took = course.elapsed(now) if course.is_planned else step.elapsed(now)
        parts = [f"{step.title}: {step.share:.0%}"]
        if step.share >= 1:
            parts = [f"{step.title}: done, and what follows it"]
        if share is not None:
            parts[0] += f" ({course.name} {share:.0%} done)"
        parts.append(f"{words_of(took)} so far")
        if left is None:
            parts.append("time left not known yet")
        elif left or step.share < 1:
            parts.append(f"{_about(left)} left")
        return ", ".join(parts)

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
        command_share: how much of the time of the whole command is over, in [0, 1]; it never goes
            down. None where the command has a single step or nothing tells yet.
        command_left_s: seconds that the whole command will still take; None likewise.
    """

    title: str
    share: float
    left_s: float | None = None
    note: str = ""
    command_share: float | None = None
    command_left_s: float | None = None


class Told(_Followed):
    """Calls a function of the user's with each change.

    Args:
        tell: takes a `Step`.
        clock: seconds that only grow.
    """

    def __init__(self, tell: Callable[[Step], object], clock: Clock = monotonic) -> None:
        super().__init__(clock)
        self._tell = tell

    def stage(self, title: str, total: int, *, expected_s: float | None = None) -> None:
        """Tell that a step begins."""
        super().stage(title, total, expected_s=expected_s)
        self._told("")

    def advance(self, units: int) -> None:
        """Count, and tell."""
        super().advance(units)
        self._told("")

    def say(self, text: str) -> None:
        """Tell it as a note."""
        self._told(text)

    def _told(self, note: str) -> None:
        course, now = self._course, self._clock()
        step = course.step
        self._tell(
            Step(
                title=step.title if step else "",
                share=step.share if step else 1.0,
                left_s=step.left(now) if step else None,
                note=note,
                command_share=course.share(now),
                command_left_s=course.left(now),
            )
        )


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
        """Return it in words, or nothing where it is not known or the work is done."""
        followed = task.fields.get("followed")
        left = None
        if isinstance(followed, Course | Estimate):
            left = followed.left(self._clock())
        return Text("" if left is None or task.finished else f"{words_of(left)} left")


class Bars(_Followed):
    """One bar per step, and above them one of the whole command where it has a plan.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Clock = monotonic) -> None:
        super().__init__(clock)
        self._bars = RichProgress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            _Left(clock),
            console=Console(stderr=True),
        )
        self._current = self._bars.add_task("start", visible=False)
        self._whole: TaskID | None = None

    def plan(self, command: str, steps: Sequence[Planned]) -> None:
        """Keep the plan, and start the bar of the whole command."""
        before = self._course
        super().plan(command, steps)
        if self._whole is None or self._course is not before:
            self._whole = self._bars.add_task(self._course.name, total=1.0, followed=self._course)

    def stage(self, title: str, total: int, *, expected_s: float | None = None) -> None:
        """Start a bar, and say above it how long it takes where that was forecast."""
        super().stage(title, total, expected_s=expected_s)
        forecast = self._forecast(title, expected_s)
        if forecast:
            self._write(forecast)
        alone = None if self._course.is_planned else self._course.step
        self._current = self._bars.add_task(title, total=total, followed=alone)
        self._moved()

    def advance(self, units: int) -> None:
        """Move the bars."""
        super().advance(units)
        self._bars.advance(self._current, units)
        self._moved()

    def say(self, text: str) -> None:
        """Print it above the bars."""
        self._write(f"note: {text}")

    def _moved(self) -> None:
        share = self._course.share(self._clock())
        if self._whole is not None and share is not None:
            self._bars.update(self._whole, completed=share)

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
