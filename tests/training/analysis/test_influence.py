from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose
from onnx import numpy_helper

from reluguard.detector.images import Images
from reluguard.detector.model import infer_spec, load_production
from reluguard.detector.taps import find_taps
from reluguard.training.analysis.influence import prediction_difference
from reluguard.training.analysis.recording import Recorder
from reluguard.training.errors import ShapeError


def test_at_the_last_tap_it_is_weight_times_mean(
    tiny_model: Path, make_images: Callable[..., Images]
) -> None:
    """Behind the last tap there is one linear layer, so silencing takes weight times mean away."""
    production = load_production(tiny_model)
    spec = infer_spec(production, (8, 8, 1))
    taps = find_taps(production, spec)
    images = make_images(3)
    found = Recorder(production, spec, taps).record(images)
    weights = next(
        numpy_helper.to_array(item)
        for item in production.proto.graph.initializer
        if item.name == "w3"
    )
    difference = prediction_difference(production, spec, taps[-1], images, found.answers, batch=5)
    assert_allclose(difference, found.means[-1] * weights[found.answers], atol=1e-4)


def test_a_silent_channel_has_no_influence(
    tiny_model: Path, make_images: Callable[..., Images]
) -> None:
    """At an inner tap a channel that is off everywhere changes nothing."""
    production = load_production(tiny_model)
    spec = infer_spec(production, (8, 8, 1))
    taps = find_taps(production, spec)
    images = make_images(6)
    found = Recorder(production, spec, taps).record(images)
    difference = prediction_difference(production, spec, taps[0], images, found.answers)
    off = found.rates[0] == 0
    assert off.any()
    assert_allclose(difference[off], 0, atol=1e-5)
    assert np.abs(difference[~off]).max() > 0.01


def test_a_fixed_batch_is_refused(
    make_network: Callable[..., onnx.ModelProto], make_images: Callable[..., Images], tmp_path: Path
) -> None:
    """A model fixed to one batch can't silence channels side by side."""
    onnx.save(make_network(batch=2), tmp_path / "fixed.onnx")
    production = load_production(tmp_path / "fixed.onnx")
    spec = infer_spec(production, (8, 8, 1))
    tap = find_taps(production, spec)[0]
    with pytest.raises(ShapeError, match="a free batch, got one fixed to 2"):
        prediction_difference(production, spec, tap, make_images(2), np.zeros(2, np.int64))
