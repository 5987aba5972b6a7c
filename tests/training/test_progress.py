"""Progress: silence, bars on a terminal, or a line a minute on standard error."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reluguard.training.expected.course import Estimate
from reluguard.training.progress import Bars, Lines, Planned, Progress, words_of

SHARES = st.floats(0.01, 0.99)
SECONDS = st.floats(1, 1e5)


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the seconds it shows."""
        return self.now


def walk(progress: Progress) -> None:
    with progress:
        progress.stage("first", 2)
        progress.advance(2)
        progress.stage("second", 3)
        progress.advance(1)


def test_silence_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is written anywhere."""
    walk(Progress())
    assert capfd.readouterr() == ("", "")


def test_bars_stay_off_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    """Each stage has a line with its share on standard error; results own standard output."""
    walk(Bars())
    told = capfd.readouterr()
    assert not told.out
    first, second = told.err.strip().splitlines()
    assert "first" in first
    assert "100 %" in first
    assert "second" in second
    assert "33 %" in second


def test_bars_end_on_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    """An error passes through and the bars are closed."""

    def fail() -> None:
        with Bars() as bars:
            bars.stage("first", 2)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert "  0 %" in capfd.readouterr().err


@given(st.lists(st.floats(0, 1), min_size=1).map(sorted), st.integers(1, 1000))
def test_parts_told_in_all_add_up_to_what_is_done(parts: list[float], units: int) -> None:
    """However often it is told how far a step is, the bar has moved just so far."""
    done = []

    class Counting(Progress):
        def advance(self, units: int) -> None:
            done.append(units)

    tell = Counting().so_far(units)
    for part in parts:
        tell(part)
    assert sum(done) == round(units * parts[-1])
    assert min(done) >= 0


@given(SHARES, SECONDS)
def test_an_even_pace_is_foretold(share: float, whole: float) -> None:
    """Where the work goes as fast as was forecast, the time left is what is left of it."""
    for expected in (None, whole):
        estimate = Estimate("step", 10_000, expected, now=0.0)
        done = round(10_000 * share)
        now = whole * done / 10_000
        estimate.advance(done, now)
        assert estimate.left(now) == pytest.approx(whole - now)


@given(SECONDS, SECONDS)
def test_a_wrong_forecast_is_forgotten(expected: float, whole: float) -> None:
    """Half way, the time left is within a tenth of what the forecast was wrong by."""
    estimate = Estimate("step", 100, expected, now=0.0)
    assert estimate.left(0.0) == pytest.approx(expected)
    estimate.advance(50, whole / 2)
    left = estimate.left(whole / 2)
    assert left is not None
    assert abs(left - whole / 2) <= abs(expected - whole) / 10 + 1e-6


@given(SECONDS, st.floats(0, 1e6))
def test_an_overdue_unit_never_promises_the_end(expected: float, waited: float) -> None:
    """Before a unit is done the time left falls, never under half of what was forecast."""
    estimate = Estimate("step", 100, expected, now=0.0)
    left = estimate.left(waited)
    assert left is not None
    assert 0.499 * expected <= left <= 1.001 * expected


def test_nothing_is_known_without_a_forecast() -> None:
    """Before the first unit there is no time left to tell; after the last one there is none."""
    estimate = Estimate("step", 2, None, now=0.0)
    assert estimate.left(30.0) is None
    estimate.advance(2, 60.0)
    assert estimate.left(60.0) == 0
    assert Estimate("nothing to do", 0, None, now=0.0).share == 1
    slow = Estimate("step", 1000, None, now=0.0)
    slow.advance(1, 60.0)
    assert slow.left(60.0) is None  # a first unit of a thousand took a minute: hours, or not


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(5, "under a minute"), (40, "1 min"), (540, "9 min"), (5940, "99 min"), (7260, "2 h 1 min")],
)
def test_durations_are_told_as_people_do(seconds: float, words: str) -> None:
    """In minutes, and from a hundred of them in hours."""
    assert words_of(seconds) == words


def test_a_line_tells_how_far_it_is() -> None:
    """What, which share, for how long so far and how long yet; notes and forecasts at once."""
    stream, clock = io.StringIO(), Clock()
    lines = Lines(stream, clock)
    lines.beat()
    lines.stage("attack and read", 1000, expected_s=540)
    clock.now += 60
    lines.beat()
    lines.advance(370)
    lines.say("7 images are copies")
    clock.now += 180
    lines.advance(30)
    lines.beat()
    lines.stage("head", 100)
    clock.now += 60
    lines.beat()
    assert stream.getvalue().splitlines() == [
        "reluguard: still at it, under a minute so far",
        "reluguard: attack and read: about 9 min",
        "reluguard: attack and read: 0%, 1 min so far, about 8 min left",
        "reluguard: note: 7 images are copies",
        "reluguard: attack and read: 40%, 4 min so far, about 6 min left",
        "reluguard: head: 0%, 1 min so far, time left not known yet",
    ]


def test_short_work_has_no_lines(capfd: pytest.CaptureFixture[str]) -> None:
    """What takes less than a minute writes nothing, and the timer ends with it."""
    walk(Lines())
    assert capfd.readouterr() == ("", "")


def test_bars_tell_the_forecast_and_the_time_left(capfd: pytest.CaptureFixture[str]) -> None:
    """From the first moment, by the forecast."""
    with Bars() as bars:
        bars.stage("attack and read", 100, expected_s=540)
    told = capfd.readouterr().err
    assert "attack and read: about 9 min\n" in told
    assert "9 min left" in told


def test_a_line_comes_even_where_no_step_has_a_name() -> None:
    """Before the first step and after the last unit of one, somebody who waits is told so."""
    clock, stream = Clock(), io.StringIO()
    lines = Lines(stream, clock)
    clock.now += 61
    lines.beat()
    lines.stage("score", 2)
    lines.advance(2)
    clock.now += 120
    lines.beat()
    assert stream.getvalue().splitlines() == [
        "reluguard: still at it, 1 min so far",
        "reluguard: score: done, and what follows it, 2 min so far",
    ]


PLAN = [Planned("model and data", None), Planned("attack and read", None)]
COMING = [Planned("attack and read", None), Planned("head", 120.0), Planned("report card", 60.0)]


def test_a_line_tells_of_the_whole_command() -> None:
    """By its plan: the share of its time, and what is left of it, from the first forecast on."""
    stream, clock = io.StringIO(), Clock()
    lines = Lines(stream, clock)
    lines.plan("fit", PLAN)
    lines.stage("model and data", 1)
    clock.now += 60
    lines.beat()
    lines.plan("fit", COMING)
    lines.advance(1)
    lines.stage("attack and read", 100, expected_s=1200)
    clock.now += 600
    lines.advance(50)
    lines.beat()
    clock.now += 600
    lines.advance(50)
    lines.beat()
    lines.stage("head", 2)
    clock.now += 120
    lines.advance(2)
    lines.stage("report card", 1)
    clock.now += 60
    lines.advance(1)
    lines.beat()
    assert stream.getvalue().splitlines() == [
        "reluguard: model and data: 0%, 1 min so far, time left not known yet",
        "reluguard: fit: about 23 min where the cores are free for it",
        "reluguard: attack and read: 50% (fit 46% done), 11 min so far, about 13 min left",
        (
            "reluguard: attack and read: done, and what follows it (fit 88% done), 21 min so far, "
            "about 3 min left"
        ),
        "reluguard: report card: done, and what follows it (fit 100% done), 24 min so far",
    ]


def test_a_slow_machine_is_told_of_in_time() -> None:
    """A quarter through the attacks, three times as slow as forecast, so is all that follows."""
    stream, clock = io.StringIO(), Clock()
    lines = Lines(stream, clock)
    lines.plan("fit", COMING)
    lines.stage("attack and read", 100, expected_s=1200)
    clock.now += 900
    lines.advance(25)
    lines.beat()
    *_, last = stream.getvalue().splitlines()
    true = 3 * (900 + 180) / 60
    told = int(last.split("about ")[1].split()[0])
    assert abs(told - true) < 0.25 * true


def test_another_command_with_the_same_progress_begins_anew() -> None:
    """Its time is its own, and the first one's plan is over."""
    stream, clock = io.StringIO(), Clock()
    lines = Lines(stream, clock)
    for name, title in (("fit", "head"), ("evaluate", "baselines")):
        lines.plan(name, [Planned(title, 60.0)])
        lines.stage(title, 2)
        clock.now += 60
        lines.advance(1)
        lines.beat()
        lines.advance(1)
    lines.stage("alone", 2)
    clock.now += 60
    lines.advance(1)
    lines.beat()
    assert [line for line in stream.getvalue().splitlines() if "so far" in line] == [
        "reluguard: head: 50% (fit 51% done), 1 min so far, about 1 min left",
        "reluguard: baselines: 50% (evaluate 51% done), 1 min so far, about 1 min left",
        "reluguard: alone: 50%, 1 min so far, about 1 min left",
    ]


def test_bars_show_the_whole_command_above_its_steps(capfd: pytest.CaptureFixture[str]) -> None:
    """With the time left beside it, which is not told again beside each step."""
    clock = Clock()
    with Bars(clock) as bars:
        bars.plan("fit", COMING)
        bars.stage("attack and read", 100, expected_s=180)
        clock.now += 90
        bars.advance(50)
    told = capfd.readouterr().err.splitlines()
    assert told[0] == "fit: about 6 min where the cores are free for it"
    whole, step = told[-2:]
    assert whole.startswith("fit ")
    assert " 25 %" in whole
    assert whole.endswith("4 min left")
    assert step.startswith("attack and read ")
    assert " 50 %" in step
    assert "left" not in step
