from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reluguard.detector.images import Images
from reluguard.training.analysis.networks.seeds import study_seeds
from reluguard.training.analysis.networks.trained import ARCHITECTURES, Architecture, trained
from reluguard.training.errors import AnalysisError, LabelError, ShapeError


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_twins_are_matched_reproducibly(
    make_images: Callable[..., Images], architecture: Architecture
) -> None:
    """Shares lie in [0, 1], one per unordered pair, and a seed repeats them."""
    images, labels = make_images(80), np.arange(80) % 2
    told: list[int] = []
    runs = [
        study_seeds(
            (images, labels),
            (images[:30], labels[:30]),
            architecture=architecture,
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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_kept_network_is_not_trained_again(
    make_images: Callable[..., Images], architecture: Architecture, tmp_path: Path
) -> None:
    """What is on disk says the same as what was trained; other images have another network.

    A damaged file says what to do, and no half of one is left.
    """
    images, labels = make_images(40), np.arange(40) % 2
    settings: dict[str, Any] = {"classes": 2, "steps": 3, "batch": 8, "folder": tmp_path}
    first = trained(images, labels, architecture, **settings)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    again = trained(images, labels, architecture, **settings)
    assert file.stat().st_mtime_ns == written
    for a, b in zip(first.features(images)[0], again.features(images)[0], strict=True):
        assert np.array_equal(a, b)
    trained(images, 1 - labels, architecture, **settings)
    assert len(list(tmp_path.iterdir())) == 2
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(AnalysisError, match="delete it to have it trained again"):
        trained(images, labels, architecture, **settings)


def test_errors_say_what_came(make_images: Callable[..., Images]) -> None:
    """One network and one class are refused."""
    images = make_images(10)
    data = (images, np.arange(10) % 2)
    with pytest.raises(ShapeError, match="two or more networks to compare, got 1"):
        study_seeds(data, data, networks=1)
    with pytest.raises(LabelError, match="2 or more classes, got 1"):
        study_seeds((images, np.zeros(10, np.int64)), data)
