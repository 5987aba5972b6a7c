from collections.abc import Callable

import numpy as np
import pytest

from reluguard.detector.images import Images
from reluguard.training.analysis.networks.seeds import study_seeds
from reluguard.training.errors import LabelError, ShapeError


def test_twins_are_matched_reproducibly(make_images: Callable[..., Images]) -> None:
    """Shares lie in [0, 1], one per unordered pair, and a seed repeats them."""
    images, labels = make_images(80), np.arange(80) % 2
    told: list[int] = []
    runs = [
        study_seeds(
            (images, labels),
            (images[:30], labels[:30]),
            networks=2,
            steps=3,
            batch=8,
            progress=told.append,
        )
        for _ in range(2)
    ]
    first = runs[0]
    assert len(told) == 2 * 2 * 3
    for name in ("gbs", "cka", "cka_averaged", "gbs_bits", "gbs_near"):
        values = getattr(first, name)
        assert values.shape == (1,)
        assert ((values >= 0) & (values <= 1)).all()
        assert np.allclose(values, getattr(runs[1], name))
    assert first.pairs.tolist() == [[0, 1]]
    assert first.gbs_table.shape == (first.layers, first.layers)


def test_errors_say_what_came(make_images: Callable[..., Images]) -> None:
    """One network and one class are refused."""
    images = make_images(10)
    data = (images, np.arange(10) % 2)
    with pytest.raises(ShapeError, match="two or more networks to compare, got 1"):
        study_seeds(data, data, networks=1)
    with pytest.raises(LabelError, match="2 or more classes, got 1"):
        study_seeds((images, np.zeros(10, np.int64)), data)
