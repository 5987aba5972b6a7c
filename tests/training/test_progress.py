"""Progress: silence, or bars on standard error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reluguard.training.progress import Bars, Progress


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
    """Each stage has a line with its count on standard error; results own standard output."""
    walk(Bars())
    told = capfd.readouterr()
    assert not told.out
    first, second = told.err.strip().splitlines()
    assert "first" in first
    assert "2/2" in first
    assert "second" in second
    assert "1/3" in second


def test_bars_end_on_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    """An error passes through and the bars are closed."""

    def fail() -> None:
        with Bars() as bars:
            bars.stage("first", 2)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert "0/2" in capfd.readouterr().err


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
