"""Older files are served where a newer form of them gives the same bits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from reluguard.detector.errors import ModelError
from reluguard.detector.model import infer_spec, load_production
from reluguard.detector.onnx_file.opset import modern, opset_of
from reluguard.detector.session import open_session

Network = Callable[..., onnx.ModelProto]


@pytest.mark.parametrize("opset", [8, 9, 10])
def test_an_older_file_answers_as_it_did(make_network: Network, tmp_path: Path, opset: int) -> None:
    """Converted by onnx itself, the model gives the bits of the original."""
    model = make_network()
    model.opset_import[0].version = opset
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    production = load_production(path)
    assert production.opset >= 11
    images = np.random.default_rng(0).random((5, 1, 8, 8), np.float32)
    before = ort.InferenceSession(str(path)).run(None, {"image": images})[0]
    after = open_session(production.proto).run(None, {"image": images})[0]
    assert np.array_equal(before, after)
    assert infer_spec(production, (8, 8, 1)).batch is None


def test_a_newer_file_stays_what_it_is(make_network: Network) -> None:
    """Nothing is converted that need not be."""
    model = make_network()
    assert modern(model, "m") is model


def test_what_does_not_run_is_not_converted(make_network: Network) -> None:
    """An older file that ONNX Runtime can't run can't be compared, and is refused by its opset."""
    model = make_network()
    model.opset_import[0].version = 9
    del model.graph.initializer[-1]
    with pytest.raises(ModelError):
        modern(model, "m.onnx")


def test_a_file_without_an_opset_is_refused(make_network: Network) -> None:
    """The message says which is needed and which came."""
    model = make_network()
    del model.opset_import[:]
    assert opset_of(model) == 0
    with pytest.raises(ModelError, match=r"expected an ONNX opset of 11 or newer, m\.onnx has 0"):
        modern(model, "m.onnx")
