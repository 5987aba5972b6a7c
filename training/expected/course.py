"""How far long work is, and how long it will still take: of one step, and of a whole command."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Course", "Estimate", "Planned"]

# how much of some work must be done before its own pace counts for as much as the forecast
FORECAST_SHARE = 0.05
LEAST_SHARE = 0.01  # of a step that nobody forecast: by less its pace can't be told


@dataclass(frozen=True, slots=True)
class Planned:
    """A step that is to come.

    Attributes:
        title: as `Progress.stage` will be told it, or the name of a command whose own plan will
            take its place.
        seconds: that it takes where the cores are free for it; None where nothing tells yet.
    """

    title: str
    seconds: float | None


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

    @property
    def took(self) -> float:
        """The seconds from its beginning to the latest unit that was done."""
        return self._latest - self._began

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
        share = self.share
        if share >= 1:
            return 0.0
        if self._expected is not None:
            whole = (self._expected * FORECAST_SHARE + self.took) / (FORECAST_SHARE + share)
        elif share >= LEAST_SHARE:
            whole = self.took / share
        else:
            return None
        then = whole * (1 - share)
        return max(then / 2, then - (now - self._latest))


@dataclass(frozen=True, slots=True)
class _ToCome:
    """A step of a plan, and the command whose plan it is.

    Its seconds are a guess where only those of several steps together are known.
    """

    owner: str
    title: str
    seconds: float | None
    is_guess: bool = False


class Course:
    """How far a whole command is by its plan, and how long it will still take.

    A plan says in which order the steps come and how long each takes on free cores. What comes is
    taken to go as much slower or faster than planned as what is done did, so the time left holds
    where a busy machine slows all steps alike. Steps that nobody planned take their time and say
    nothing about those that were.

    Args:
        now: when it begins, in seconds.
    """

    def __init__(self, now: float) -> None:
        self.name = ""
        self.step: Estimate | None = None
        self._began = now
        self._to_come: list[_ToCome] = []
        self._expected: float | None = None  # of the step that is done now
        self._planned_s = self._took_s = 0.0  # of planned steps that are over
        self._share = 0.0

    @property
    def is_planned(self) -> bool:
        """Whether anybody said what comes."""
        return bool(self.name)

    @property
    def is_over(self) -> bool:
        """Whether all that was planned is done."""
        return not self._to_come and (self.step is None or self.step.share >= 1)

    def plan(self, name: str, steps: Sequence[Planned]) -> None:
        """Say what comes, or say it anew from here on.

        The plan of a command within another takes the place of the step of that name, if it is in
        the other's plan, and comes before all else if not. Where that plan says how long all of it
        takes, steps of which nothing is known share what the others leave of it.

        Args:
            name: of the command whose plan it is.
            steps: all of its own that are to come, in their order.
        """
        self.name = self.name or name
        own = [i for i, one in enumerate(self._to_come) if one.owner == name]
        own = own or [i for i, one in enumerate(self._to_come) if one.title == name][:1]
        place = own[0] if own else 0
        rest = [one for i, one in enumerate(self._to_come) if i not in own]
        told = _shared(name, steps, [self._to_come[i].seconds for i in own])
        self._to_come = [*rest[:place], *told, *rest[place:]]

    def begin(self, title: str, total: int, expected_s: float | None, now: float) -> None:
        """Begin a step; those planned before it are not needed then.

        Args:
            title: of the step.
            total: its units.
            expected_s: how long it takes on free cores, where that is known better than planned.
            now: in seconds.
        """
        self._end(now)
        titles = [one.title for one in self._to_come]
        is_guess = False
        if title in titles:
            place = titles.index(title)
            planned = self._to_come[place]
            self._to_come = self._to_come[place + 1 :]
            if expected_s is None:
                expected_s, is_guess = planned.seconds, planned.is_guess
        self._expected = None if is_guess else expected_s
        pace = self._pace()
        self.step = Estimate(title, total, None if expected_s is None else expected_s * pace, now)

    def advance(self, units: int, now: float) -> None:
        """Units of the step are done."""
        if self.step is not None:
            self.step.advance(units, now)

    def elapsed(self, now: float) -> float:
        """Return the seconds since it began."""
        return now - self._began

    def left(self, now: float) -> float | None:
        """Return the seconds that the whole command will still take, None where nothing tells."""
        own = 0.0 if self.step is None else self.step.left(now)
        coming = [one.seconds for one in self._to_come]
        if not self.is_planned or own is None or None in coming:
            return None
        return own + self._pace() * sum(seconds for seconds in coming if seconds is not None)

    def share(self, now: float) -> float | None:
        """Return how much of the command's time is over, in [0, 1], None where nothing tells.

        It never goes down, whatever is learned of what is left: where more is left than was
        thought it stays, until it is true again.
        """
        left = self.left(now)
        if left is None:
            return self._share or None
        elapsed = self.elapsed(now)
        if self.is_over:
            self._share = 1.0
        elif left:
            self._share = max(self._share, elapsed / (elapsed + left))
        return self._share

    def _end(self, now: float) -> None:
        if self.step is not None and self._expected is not None:
            self._planned_s += self._expected
            self._took_s += self.step.elapsed(now)
        self.step = self._expected = None

    def _pace(self) -> float:
        """Return how many seconds one planned second takes, by what is done."""
        planned, took, coming = self._planned_s, self._took_s, self._expected or 0.0
        if self.step is not None and self._expected is not None:
            planned += self._expected * self.step.share
            took += self.step.took
        whole = self._planned_s + coming + sum(one.seconds or 0.0 for one in self._to_come)
        known = FORECAST_SHARE * whole
        return (known + took) / (known + planned) if known else 1.0


def _shared(name: str, steps: Sequence[Planned], before: Sequence[float | None]) -> list[_ToCome]:
    """Return a command's steps, those of unknown length of what is left of what all take."""
    unknown = sum(step.seconds is None for step in steps)
    known = sum(step.seconds for step in steps if step.seconds is not None)
    whole = [seconds for seconds in before if seconds is not None]
    guess = None
    if unknown and whole and len(whole) == len(before):
        guess = max(0.0, sum(whole) - known) / unknown
    return [
        _ToCome(name, step.title, guess, is_guess=guess is not None)
        if step.seconds is None
        else _ToCome(name, step.title, step.seconds)
        for step in steps
    ]
