"""How far a whole command is, and how long it will still take, by a clock that is moved by hand."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter, thread_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reluguard.training.expected.course import FORECAST_SHARE, Course, Planned
from reluguard.training.expected.speed import busy_seconds, here

SECONDS = st.floats(1, 1e5)
PACE = st.floats(0.1, 10)
PLANS = st.lists(SECONDS, min_size=1, max_size=6)
UNITS = 20


@dataclass(frozen=True)
class Moment:
    """What was told after a unit of work, and what is true."""

    now: float
    share: float | None
    left: float | None
    last: bool


def steps_of(planned: Sequence[float | None]) -> list[Planned]:
    """Return steps of so many seconds, by their place."""
    return [Planned(f"step {i}", seconds) for i, seconds in enumerate(planned)]


def walked(course: Course, took: Sequence[float], units: int = UNITS) -> Iterator[Moment]:
    """Do the steps of a plan, each in so many seconds, and yield what is told meanwhile."""
    now = 0.0
    for i, seconds in enumerate(took):
        course.begin(f"step {i}", units, None, now)
        for unit in range(units):
            yield Moment(now, course.share(now), course.left(now), last=False)
            now += seconds / units
            course.advance(1, now)
            last = i == len(took) - 1 and unit == units - 1
            yield Moment(now, course.share(now), course.left(now), last)


@given(PLANS)
def test_a_plan_that_holds_is_told_exactly(planned: list[float]) -> None:
    """From the first moment: what is left is what is left, and the share is that of the time."""
    course, whole = Course(0.0), sum(planned)
    course.plan("fit", steps_of(planned))
    assert course.left(0.0) == pytest.approx(whole)
    for told in walked(course, planned):
        assert told.left == pytest.approx(whole - told.now, abs=1e-6 * whole)
        assert told.share == pytest.approx(told.now / whole, abs=1e-6)


@given(PLANS, PACE)
def test_a_machine_that_slows_all_alike_is_learned(planned: list[float], pace: float) -> None:
    """The total told goes from the planned to the true one as the work does."""
    course, whole = Course(0.0), sum(planned)
    course.plan("fit", steps_of(planned))
    for told in walked(course, [pace * seconds for seconds in planned]):
        assert told.left is not None
        done = told.now / (pace * whole)
        wrong = abs(pace - 1) * whole
        off = told.now + told.left - pace * whole
        assert abs(off) <= wrong * FORECAST_SHARE / (FORECAST_SHARE + done) + 1e-6 * whole


@given(PLANS, st.data())
def test_the_share_only_rises_and_ends_at_one(planned: list[float], data: st.DataObject) -> None:
    """However long each step really takes; it is 1 when all is done and not before."""
    took = data.draw(st.lists(SECONDS, min_size=len(planned), max_size=len(planned)))
    course, before = Course(0.0), 0.0
    course.plan("fit", steps_of(planned))
    for told in walked(course, took, units=7):
        assert told.share is not None
        assert before <= told.share <= 1
        assert (told.share == 1) == told.last
        assert (told.left == 0) == told.last
        before = told.share
    assert course.is_over


@given(PLANS, PLANS)
def test_a_new_plan_takes_nothing_back(planned: list[float], later: list[float]) -> None:
    """Where more turns out to be left the share stays as it was, and the time left is the new."""
    course = Course(0.0)
    course.plan("fit", [Planned("first", 60.0), *steps_of(planned)])
    course.begin("first", 1, None, 0.0)
    course.advance(1, 60.0)
    before = course.share(60.0)
    assert before is not None
    course.plan("fit", steps_of(later))
    assert course.left(60.0) == pytest.approx(sum(later))
    after = course.share(60.0)
    assert after is not None
    assert after >= before


def test_the_plan_of_a_command_within_another_takes_its_place() -> None:
    """What comes before and after stays; unknown steps share what the others leave of it."""
    course = Course(0.0)
    course.plan("demo", [Planned("train", 10.0), Planned("fit", 30.0), Planned("serve", 5.0)])
    course.begin("train", 1, None, 0.0)
    course.advance(1, 10.0)
    course.plan("fit", [Planned("data", None), Planned("attack", None), Planned("head", 6.0)])
    assert course.left(10.0) == pytest.approx(35.0)
    course.begin("data", 1, None, 10.0)
    assert course.left(10.0) == pytest.approx(35.0)
    course.advance(1, 11.0)
    assert course.left(11.0) == pytest.approx(23.0)  # a guess that was wrong teaches nothing
    course.plan("fit", [Planned("attack", 40.0), Planned("head", 6.0)])
    assert course.left(11.0) == pytest.approx(51.0)
    course.begin("attack", 1, None, 11.0)
    course.advance(1, 51.0)
    course.begin("serve", 1, None, 51.0)  # so the head was not needed
    assert course.left(51.0) == pytest.approx(5.0)
    assert course.name == "demo"


def test_two_commands_of_one_name_have_a_plan_each() -> None:
    """The second of them takes the second place."""
    course = Course(0.0)
    course.plan("rounds", [Planned("attack", 10.0), Planned("refit", 5.0), Planned("attack", 10.0)])
    course.plan("attack", steps_of([4.0, 4.0]))
    assert course.left(0.0) == pytest.approx(23.0)
    course.begin("step 0", 1, None, 0.0)
    course.begin("step 1", 1, None, 4.0)
    course.begin("refit", 1, None, 8.0)
    course.plan("attack", steps_of([3.0]))
    assert course.left(8.0) == pytest.approx(8.0)


def test_a_step_that_nobody_planned_says_nothing_of_the_others() -> None:
    """It takes its time, and what was planned is still to come."""
    course = Course(0.0)
    course.plan("fit", steps_of([10.0, 10.0]))
    course.begin("surprise", 2, None, 0.0)
    assert course.left(0.0) is None
    course.advance(1, 30.0)
    assert course.left(30.0) == pytest.approx(50.0)
    course.advance(1, 60.0)
    assert course.left(60.0) == pytest.approx(20.0)


def test_what_nobody_knows_is_not_told() -> None:
    """No share and no time left while the length of a step to come is unknown."""
    course = Course(0.0)
    course.begin("alone", 2, None, 0.0)
    course.advance(1, 5.0)
    assert course.share(5.0) is course.left(5.0) is None  # a step without a plan is no command
    course.plan("fit", steps_of([None, 10.0]))
    assert course.share(5.0) is course.left(5.0) is None
    course.begin("step 0", 2, 20.0, 5.0)  # it is known when it begins
    assert course.left(5.0) == pytest.approx(30.0)


def test_this_machine_is_as_fast_as_it_is() -> None:
    """Twice the work takes twice as long, and none takes none."""
    assert here(2.0) == pytest.approx(2 * here(1.0))
    assert here(1.0) > 0
    assert here(0.0) == 0


def test_what_others_do_is_no_work_of_ours() -> None:
    """A forecast is of free cores: waiting for another process counts for next to nothing."""
    code = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    started = perf_counter()
    busy = busy_seconds(lambda: subprocess.run([sys.executable, "-c", code], check=True))
    assert busy < (perf_counter() - started) / 2


def test_work_is_counted_as_its_thread_or_all_together_do_it() -> None:
    """A thread that is busy for a while counts so long, however many threads are allowed."""

    def work() -> None:
        end = thread_time() + 0.02
        while thread_time() < end:
            pass

    assert busy_seconds(work, 1) >= 0.02
    assert busy_seconds(work, 64) >= 0.02
