"""How long a run will take, by what others took."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reluguard.service.models.speed import Speed

times = st.floats(1e-5, 10.0)


@given(times, times, st.integers(1, 64))
def test_a_run_costs_something_beside_its_rows(fixed: float, each: float, rows: int) -> None:
    """Where a run takes a + b * rows, two sizes tell all between them."""
    speed = Speed()
    for size in (1, 64):
        speed.learn(size, fixed + each * size)
    assert speed.run_s(rows) == pytest.approx(fixed + each * rows)


@given(st.dictionaries(st.integers(1, 300), times, min_size=1), st.integers(1, 300))
def test_no_guess_is_over_what_the_largest_known_run_takes_by_rows(
    known: dict[int, float], rows: int
) -> None:
    """However little is known, a guess is above zero and within what the runs took for each row."""
    speed = Speed()
    for size, took in known.items():
        speed.learn(size, took)
    most = max(2 * took / size for size, took in known.items())
    assert 0 < speed.run_s(rows) <= max(most * rows, *(2 * took for took in known.values()))


def test_nothing_known_is_no_time() -> None:
    """A server that has run nothing refuses nobody for being slow."""
    assert Speed().rows_s(1000, 32) == 0


def test_small_runs_say_little_of_full_ones() -> None:
    """One row of 5 ms by itself, 32 together in 8 ms: 256 rows take 64 ms, not 1,280."""
    speed = Speed()
    speed.learn(1, 0.005)
    speed.learn(32, 0.008)
    for _ in range(100):
        speed.learn(1, 0.005)
    assert speed.rows_s(256, 32) == pytest.approx(8 * 0.008)
    assert speed.rows_s(33, 32) == pytest.approx(0.008 + 0.005)


def test_the_newest_runs_count_most() -> None:
    """A model that became slower is known as slower after some runs."""
    speed = Speed()
    speed.learn(8, 0.01)
    for _ in range(20):
        speed.learn(8, 0.1)
    assert speed.run_s(8) == pytest.approx(0.1, rel=0.02)
