"""Which classes have a threshold of their own."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reluguard.training.head.by_class import ClassGroups, images_by_class


@given(st.lists(st.integers(0, 250), min_size=2, max_size=8), st.sampled_from([0.05, 0.1]))
def test_every_group_has_images_enough(counts: list[int], fpr: float) -> None:
    """Those of a class alone, or of several together; else all are one group."""
    answers = np.repeat(np.arange(len(counts)), counts)
    found = ClassGroups.of(answers, len(counts), fpr)
    needed = images_by_class(fpr)
    sizes = np.bincount(found.groups, weights=counts)
    assert (found.groups < len(counts)).all()
    assert set(found.groups.tolist()) == set(range(len(sizes)))
    if found.own:
        assert (sizes >= needed).all()
    else:
        assert len(sizes) == 1
    shared = [c for c, group in enumerate(found.groups) if (found.groups == group).sum() > 1]
    assert found.own >= len(counts) - len(shared)


def test_the_words_say_how_many_and_how_many_are_needed() -> None:
    """Of ten classes, three are rare: the others have a threshold each."""
    answers = np.repeat(np.arange(10), [120] * 7 + [50] * 3)
    found = ClassGroups.of(answers, 10, 0.05)
    assert found.own == 7
    assert len(set(found.groups[7:].tolist())) == 1
    assert found.words == (
        "thresholds by class: 7 of 10 classes have the 99 clean calibration images that 0.05 needs "
        "by class, the others share one"
    )
    none = ClassGroups.of(answers[:90], 10, 0.05)
    assert none.own == 0
    assert not none.groups.any()
    assert "no class has the 99" in none.words
    assert "all 2 classes have" in ClassGroups.of(np.arange(400) % 2, 2, 0.05).words
