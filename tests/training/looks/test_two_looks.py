"""Both looks side by side: the order of each way, and tables that people read."""

import numpy as np

from reluguard.detector.looks.judging import Order
from reluguard.detector.metrics import Interval
from reluguard.training.evaluation.two_looks import (
    LookFigures,
    LookSummary,
    TwoLooks,
    _height,
    _Seen,
)
from reluguard.training.pages.two_looks import look_lines, looks_section

HALF = Interval(0.5, 0.4, 0.6, 40)


def card() -> TwoLooks:
    """Figures of one attack and one change."""
    one = {
        looks: LookFigures(auroc=HALF, flagged={"0.01": HALF, "0.05": HALF})
        for looks in ("first", "suspicious", "always")
    }
    summary = {
        looks: LookSummary(
            attacks=1, mean_auroc=0.9, worst_auroc=0.8, mean_detected={"0.01": 0.7, "0.05": 0.75}
        )
        for looks in one
    }
    return TwoLooks(
        second="mirror",
        looked_again=HALF,
        clean=one,
        attacks={"pgd-linf-2": one},
        benign={"jpeg": one},
        summary=summary,
    )


def test_heights_stand_as_p_values_do() -> None:
    """The higher an image stands, the smaller is its p-value, whatever the bound."""
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(2, 300)).astype(np.float32)
    for bound in (-np.inf, 0.3, np.inf):
        order = Order(one[:200], two[:200], bound)
        looked = order.is_suspicious(one[200:])
        p = order.p_values(one[200:], two[200:], looked)
        height = _height(order, _Seen(one[200:], two[200:], np.arange(100)))
        assert (np.diff(p[np.argsort(height)]) <= 0).all()


def test_the_figures_come_back_and_are_shown() -> None:
    """As JSON and back, as a page's section and as lines, each way to look beside the others."""
    found = card()
    assert TwoLooks.from_json(found.to_json()) == found
    page = looks_section(found, "0.05")
    for text in ("pgd-linf-2", "jpeg", "first look", "both looks, always", "detected at 0.01"):
        assert text in page
    lines = look_lines(found)
    assert lines[0].startswith("second look: mirror, at 0.500")
    assert "both looks, always: AUROC mean 0.900, worst 0.800; detected 0.70 at 0.01" in lines[3]
    assert look_lines(None) == []
