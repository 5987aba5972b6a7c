"""The golden replay: a guard goes live only if it says what it said when it was fitted."""

import numpy as np

from reluguard.detector.artifact import Golden
from reluguard.detector.errors import GuardError
from reluguard.detector.verdict import Verdicts

__all__ = ["SCORE_TOLERANCE", "check_golden"]

# Log-odds. Processors and ONNX Runtime versions add up in other orders, which flips a few bits
# whose pre-activation is next to zero; a wrong model or head is off by whole units.
SCORE_TOLERANCE = 0.25


def check_golden(golden: Golden, verdicts: Verdicts) -> float:
    """Return the largest difference in score between now and then.

    Raises:
        GuardError: a prediction differs, or a score by more than SCORE_TOLERANCE.
    """
    wrong = np.flatnonzero(golden.prediction != verdicts.prediction)
    if len(wrong):
        raise GuardError(
            f"golden replay failed: expected prediction {golden.prediction[wrong[0]]} on golden "
            f"input {wrong[0]}, got {verdicts.prediction[wrong[0]]}"
        )
    off = np.abs(golden.score - verdicts.score)
    if not (off <= SCORE_TOLERANCE).all():
        raise GuardError(
            f"golden replay failed: expected scores within {SCORE_TOLERANCE} of those at fitting, "
            f"got one that is off by {off.max():.3g}"
        )
    return float(off.max())
