"""Labels that contradict the rest, on made-up readings of which the truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from reluguard.detector.head import Head
from reluguard.training.harvest.readings import Kind, Readings
from reluguard.training.head.fit import fit_head
from reluguard.training.retraining.contradictions import Contradicted, contradicted
from tests.training.head.test_fit import SETTINGS, TAPS, group, groups


@pytest.fixture(scope="module")
def head() -> Head:
    return fit_head(groups(shift=0.3), taps=TAPS, settings=SETTINGS, seed=0)


def images(kind: Kind, count: int, *, attacked: bool, seed: int) -> Readings:
    """Return captures under a label: an attack moves the last rates, the label moves nothing."""
    made = group("clean", np.arange(1000, 1000 + count), seed=seed)
    rates = made.rates.copy()
    rates[:, -4:] += np.float16(0.3 if attacked else 0.0)
    return replace(made, kind=kind, name=kind, rates=rates)


def labelled(attacked: int, clean: int, *, wrong: float = 0.0, seed: int = 0) -> list[Readings]:
    """Return groups of both labels, a share of either wrong."""
    a, c = round(attacked * wrong), round(clean * wrong)
    parts = [
        images("attack", attacked - a, attacked=True, seed=seed + 10),
        images("attack", c, attacked=False, seed=seed + 11),
        images("benign", clean - c, attacked=False, seed=seed + 12),
        images("benign", a, attacked=True, seed=seed + 13),
    ]
    return [part for part in parts if len(part)]


def judged(head: Head, given: list[Readings], seed: int = 0) -> Contradicted:
    """Return the estimate, which there must be."""
    known = [
        group("clean", np.arange(3000, 3500), seed=50),
        group("clean", np.arange(3000, 3300), seed=51),
    ]
    found = contradicted(head, given, known, seed=seed)
    assert found is not None
    return found


@pytest.mark.parametrize(("attacked", "clean"), [(100, 100), (200, 0), (40, 160), (160, 40)])
@pytest.mark.parametrize("seed", range(3))
def test_the_share_of_wrong_labels_is_estimated(
    head: Head, attacked: int, clean: int, seed: int
) -> None:
    """Honest ones hardly contradict the rest; a third of wrong ones is hardly underestimated."""
    honest = judged(head, labelled(attacked, clean, seed=100 * seed), seed)
    wrong = judged(head, labelled(attacked, clean, wrong=1 / 3, seed=100 * seed), seed)
    assert honest.share < 0.12
    assert wrong.share > 0.25
    assert wrong.low < 0.4
    for one in (honest, wrong):
        assert one.low <= one.share <= one.high
        assert one.labels == attacked + clean


def test_which_side_is_wrong_is_told(head: Head) -> None:
    """Attacked images under the label clean, or clean ones under the label attacked."""
    right = labelled(100, 100)
    hidden = [*right, images("benign", 50, attacked=True, seed=90)]
    blamed = [*right, images("attack", 50, attacked=False, seed=91)]
    first, second = judged(head, hidden), judged(head, blamed)
    assert first.of_clean > 0.25
    assert first.of_attacks < 0.1
    assert second.of_attacks > 0.25
    assert second.of_attacks > second.of_clean


def test_too_few_labels_say_nothing(head: Head) -> None:
    """Fewer than ten attacked ones, or nothing harmless to compare with."""
    known = [group("clean", np.arange(300), seed=50)]
    assert contradicted(head, labelled(9, 100), known, seed=0) is None
    assert contradicted(head, labelled(50, 50), [], seed=0) is None
