from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from reluguard.detector.head import NO_SCORE
from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.detector.verdict import Verdicts
from reluguard.service.protocols.policy import Detail, Rules
from reluguard.service.settings import FailMode, Policy


@pytest.fixture(scope="session")
def verdicts(guard: Guard, mixed: Images) -> Verdicts:
    verdicts = guard.inspect(mixed)
    assert 0 < np.count_nonzero(verdicts.is_adversarial) < len(mixed)
    return verdicts


def with_failed_row(verdicts: Verdicts, row: int, value: float = np.nan) -> Verdicts:
    score = verdicts.score.copy()
    score[row] = value
    flagged = verdicts.is_adversarial.copy()
    flagged[row] = False
    unscored = np.arange(len(score)) == row
    return replace(verdicts, score=score, is_adversarial=flagged, unscored=unscored)


def test_the_privileged_see_everything_unchanged(verdicts: Verdicts) -> None:
    """Annotating adds and changes nothing."""
    view = Rules().view(verdicts, privileged=True)
    assert view.detail is Detail.FULL
    for name in ("prediction", "score", "likelihood", "p_value", "is_adversarial", "evidence"):
        assert_array_equal(getattr(view.verdicts, name), getattr(verdicts, name))
    assert view.verdicts.outputs is verdicts.outputs


def test_others_see_the_verdict_and_a_coarse_likelihood(verdicts: Verdicts) -> None:
    """Score, p-value and evidence are hidden, since they would guide a query attack."""
    view = Rules(likelihood_step=0.25).view(verdicts, privileged=False)
    assert view.detail is Detail.COARSE
    assert_array_equal(view.verdicts.is_adversarial, verdicts.is_adversarial)
    assert set(view.verdicts.likelihood.tolist()) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert np.abs(view.verdicts.likelihood - verdicts.likelihood).max() <= 0.125 + 1e-6
    assert np.isnan(view.verdicts.score).all()
    assert np.isnan(view.verdicts.p_value).all()
    assert view.verdicts.evidence.shape == (len(verdicts), 0)


@given(st.floats(0.01, 1), st.floats(0, 1))
def test_a_coarse_likelihood_stays_a_likelihood(step: float, likelihood: float) -> None:
    """Rounding never leaves [0, 1]."""
    column = np.array([likelihood], np.float32)
    verdicts = Verdicts(
        prediction=np.zeros(1, np.int64), score=column, likelihood=column,
        p_value=np.ones(1), is_adversarial=np.zeros(1, np.bool_),
        evidence=np.zeros((1, 1), np.float32), outputs={},
    )  # fmt: skip
    view = Rules(likelihood_step=step).view(verdicts, privileged=False)
    assert 0 <= view.verdicts.likelihood[0] <= 1


def test_reject_keeps_back_adversarial_rows_and_only_those(verdicts: Verdicts) -> None:
    """Their prediction is -1 and their outputs say nothing; the others are untouched."""
    view = Rules(policy="reject").view(verdicts, privileged=True)
    kept = ~verdicts.is_adversarial
    assert_array_equal(view.withheld, verdicts.is_adversarial)
    assert (view.verdicts.prediction[view.withheld] == -1).all()
    assert_array_equal(view.verdicts.prediction[kept], verdicts.prediction[kept])
    logits, label = view.verdicts.outputs["logits"], view.verdicts.outputs["label"]
    assert np.isnan(logits[view.withheld]).all()
    assert (label[view.withheld] == -1).all()
    assert_array_equal(logits[kept], verdicts.outputs["logits"][kept])


@pytest.mark.parametrize("privileged", [True, False])
def test_shadow_shows_nobody_anything(verdicts: Verdicts, privileged: bool) -> None:
    """The model's answer is there, and no trace of the guard."""
    view = Rules(policy="shadow").view(verdicts, privileged=privileged)
    assert view.detail is Detail.NONE
    assert not view.verdicts.is_adversarial.any()
    assert np.isnan(view.verdicts.likelihood).all()
    assert np.isnan(view.verdicts.score).all()
    assert_array_equal(view.verdicts.prediction, verdicts.prediction)


@pytest.mark.parametrize(
    ("fail", "policy", "flagged", "withheld"),
    [
        ("open", "annotate", False, False),
        ("closed", "annotate", True, False),
        ("open", "reject", False, False),
        ("closed", "reject", True, True),
    ],
)
@pytest.mark.parametrize("value", [np.nan, NO_SCORE])
def test_a_row_that_could_not_be_scored(
    verdicts: Verdicts, fail: FailMode, policy: Policy, flagged: bool, withheld: bool, value: float
) -> None:
    """Open lets it pass without a verdict, closed treats it as adversarial."""
    row = int(np.flatnonzero(~verdicts.is_adversarial)[0])
    failed = with_failed_row(verdicts, row, value)
    view = Rules(policy=policy, fail=fail).view(failed, privileged=True)
    assert view.verdicts.unscored[row]
    assert np.count_nonzero(view.verdicts.unscored) == 1
    assert view.verdicts[row].is_unscored
    assert view.verdicts.is_adversarial[row] == flagged
    assert view.withheld[row] == withheld
