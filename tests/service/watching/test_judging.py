"""What the benchmark of the watch says follows from the streams, and can come out badly."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.watching.judging import DISTANCES, EXEMPT, chosen, first_raised, rows_of


def rising(to: int, length: int = 100) -> NDArray[np.float64]:
    """Weights of a stream that reach so much, one by one."""
    weights: NDArray[np.float64] = np.minimum(np.arange(1.0, length + 1), to)
    return weights


def test_the_question_that_raised_is_counted() -> None:
    """Weight 20 after 20 questions; a weight that faded a little counts, half of it does not."""
    assert first_raised(rising(60), 20) == 20
    assert first_raised(rising(60) - 0.1, 20) == 20
    assert first_raised(rising(10), 20) is None


def test_no_honest_stream_is_raised_by_what_is_chosen() -> None:
    """The number is half as much again as honest streams reach, exempt ones aside, and no more.

    Where nothing keeps honest streams out, the strictest setting is all that is left.
    """
    attacks = {one: {"attack": [rising(90), rising(45)]} for one in DISTANCES}
    still = {next(iter(EXEMPT)): [rising(99)]}
    honest = {one: {"pan": [rising(26)], **still} for one in DISTANCES}
    assert chosen(attacks, honest) == (DISTANCES[0], 40)
    loud = {one: {"pan": [rising(99, 300)] * 2, **still} for one in DISTANCES[1:]}
    assert chosen(attacks, {**honest, **loud})[0] == DISTANCES[0]
    hopeless = {one: {"pan": [rising(200, 300)]} for one in DISTANCES}
    assert chosen(attacks, hopeless) == (DISTANCES[0], 150)


def test_rows_say_how_many_and_how_late() -> None:
    """Of three streams two are raised, at 30 questions each."""
    (row,) = rows_of({"attack": [rising(90), rising(45), rising(9)]}, 30)
    assert (row.streams, row.raised, row.before, row.most_before) == (3, 2, 30, 30)
