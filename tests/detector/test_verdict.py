"""Verdicts: a batch as arrays, one image as values."""

import numpy as np
import pytest

from reluguard.detector.verdict import Verdict, Verdicts


@pytest.fixture
def verdicts() -> Verdicts:
    return Verdicts(
        prediction=np.array([3, 1]),
        score=np.array([-1.5, 2.5], np.float32),
        likelihood=np.array([0.25, 0.75], np.float32),
        p_value=np.array([0.9, 0.01]),
        is_adversarial=np.array([False, True]),
        evidence=np.array([[1, 2], [3, 4]], np.float32),
        outputs={"logits": np.zeros((2, 4), np.float32)},
    )


def test_iterating_gives_every_row_in_order(verdicts: Verdicts) -> None:
    """A batch is the sequence of its verdicts."""
    assert len(verdicts) == 2
    assert list(verdicts) == [verdicts[0], verdicts[1]]


def test_one_verdict_holds_plain_values(verdicts: Verdicts) -> None:
    """What comes out of a row is Python's own, ready for JSON."""
    second = verdicts[1]
    assert second == Verdict(
        prediction=1,
        score=2.5,
        likelihood=0.75,
        p_value=0.01,
        is_adversarial=True,
        evidence=(3.0, 4.0),
    )
    assert [type(value) for value in (second.prediction, second.score, second.is_adversarial)] == [
        int,
        float,
        bool,
    ]


def test_a_row_past_the_end_is_an_index_error(verdicts: Verdicts) -> None:
    """As of any sequence."""
    with pytest.raises(IndexError):
        verdicts[2]
