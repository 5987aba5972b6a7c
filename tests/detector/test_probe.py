"""The golden replay: small differences between machines pass, wrong models don't."""

from dataclasses import replace

import numpy as np
import pytest

from reluguard.detector.artifact import Golden
from reluguard.detector.errors import GuardError
from reluguard.detector.probe import SCORE_TOLERANCE, check_golden
from reluguard.detector.verdict import Verdicts

GOLDEN = Golden(
    images=np.zeros((3, 2, 2, 1), np.uint8),
    rates=np.zeros((3, 4), np.float32),
    score=np.array([-1, 0, 1], np.float32),
    prediction=np.array([0, 1, 2]),
)
SAID = Verdicts(
    prediction=GOLDEN.prediction,
    score=GOLDEN.score,
    likelihood=np.zeros(3, np.float32),
    p_value=np.ones(3),
    is_adversarial=np.zeros(3, np.bool_),
    evidence=np.zeros((3, 1), np.float32),
    outputs={},
)


def test_the_same_answers_pass() -> None:
    """A replay that says what was said has no difference to report."""
    assert check_golden(GOLDEN, SAID) == 0


def test_differences_below_the_tolerance_pass_and_are_told() -> None:
    """The largest difference comes back."""
    score = GOLDEN.score + np.array([0.01, -0.9 * SCORE_TOLERANCE, 0], np.float32)
    largest = check_golden(GOLDEN, replace(SAID, score=score))
    assert largest == pytest.approx(0.9 * SCORE_TOLERANCE, rel=1e-4)


@pytest.mark.parametrize("off", [1.1 * SCORE_TOLERANCE, -7.0, np.inf, np.nan])
def test_a_score_further_off_fails(off: float) -> None:
    """Also a score that is no number."""
    score = GOLDEN.score + np.array([0, 0, off], np.float32)
    with pytest.raises(GuardError, match=r"golden replay failed: expected scores within 0\.25"):
        check_golden(GOLDEN, replace(SAID, score=score))


def test_another_prediction_fails() -> None:
    """The message says on which input, what was expected and what came."""
    wrong = replace(SAID, prediction=np.array([0, 2, 2]))
    with pytest.raises(GuardError, match=r"expected prediction 1 on golden input 1, got 2"):
        check_golden(GOLDEN, wrong)
