from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reluguard.detector.model import infer_spec, load_production
from reluguard.detector.taps import find_taps
from reluguard.training.analysis.stages import (
    disjoint_parts,
    homogeneity_of,
    narrowed,
    stages_of,
)
from reluguard.training.analysis.studies.maps import last_minus_first


def test_a_stage_ends_where_feature_maps_change_their_size(lively_model: Path) -> None:
    """Sizes tell stages apart, whatever the channels; taps without a place are in none."""
    production = load_production(lively_model)
    tap = find_taps(production, infer_spec(production, (8, 8, 1)))[0]
    shapes = [(16, 8, 8), (16, 8, 8), (32, 4, 4), (64, 4, 4), (64, 2, 2), (10,)]
    taps = [replace(tap, shape=shape, channel_axis=0) for shape in shapes]
    assert stages_of(taps).tolist() == [1, 3, 4]
    assert stages_of(taps[-1:]).tolist() == []


@pytest.mark.parametrize(("count", "parts"), [(30, 2), (220, 4), (2000, 10)])
def test_parts_share_no_image(count: int, parts: int) -> None:
    """Every image is in one part."""
    found = disjoint_parts(count)
    assert len(found) == parts
    assert np.array_equal(np.sort(np.concatenate(found)), np.arange(count))


def test_width_alone_makes_codes_diverse_until_it_is_held() -> None:
    """Of two stages of one noise the wider looks more diverse; with as many columns it doesn't."""
    generator = np.random.default_rng(0)
    codes = [generator.normal(size=(400, width)).astype(np.float32) for width in (8, 64)]
    own, same = homogeneity_of(codes), homogeneity_of(narrowed(codes))
    assert own.shape == same.shape == (3, 8, 2)
    wide, held = last_minus_first(own[0]), last_minus_first(same[0])
    assert wide is not None
    assert held is not None
    assert wide.low > 5
    assert abs(held.value) < 1
    assert (own[:, :, 0] == same[:, :, 0]).all()


def test_one_stage_has_no_first_and_last() -> None:
    """Nothing can be said to rise."""
    assert last_minus_first(np.ones((4, 1))) is None
    assert last_minus_first(np.array([[1, np.nan], [1, 2.0]])) is None
