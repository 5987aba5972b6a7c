"""Sessions: opened one way, and every failure of ONNX Runtime is one of ours."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper

from reluguard.detector.errors import ModelError, SettingsError
from reluguard.detector.session import check_started, open_session, run_session

Network = Callable[..., onnx.ModelProto]


def test_bytes_and_models_give_the_same_session(make_network: Network) -> None:
    """A model and its bytes run alike."""
    x = {"image": np.ones((2, 1, 8, 8), np.float32)}
    model = make_network()
    a, b = (
        run_session(open_session(form, threads=1), x, ["logits"])[0]
        for form in (model, model.SerializeToString())
    )
    np.testing.assert_array_equal(a, b)


def test_a_provider_that_is_not_there_is_named(make_network: Network) -> None:
    """The message says what is missing and what there is."""
    with pytest.raises(
        SettingsError, match=r"no provider NoSuchProvider in this .* it has .*CPUExecutionProvider"
    ):
        open_session(make_network(), providers=["NoSuchProvider", "CPUExecutionProvider"])


def test_a_provider_that_did_not_start_is_named() -> None:
    """ONNX Runtime goes on with the processor where a driver is missing; we don't."""
    check_started(["CPUExecutionProvider"], ["CPUExecutionProvider"])
    with pytest.raises(
        SettingsError,
        match="the provider CUDAExecutionProvider could not start here; its driver or libraries "
        "are missing, ONNX Runtime went on with CPUExecutionProvider",
    ):
        check_started(["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"])


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_must_be_positive(make_network: Network, threads: int) -> None:
    """None would mean all cores by accident."""
    with pytest.raises(SettingsError, match=f"expected 1 or more threads, got {threads}"):
        open_session(make_network(), threads=threads)


def test_a_model_that_can_not_be_loaded_is_a_model_error(make_network: Network) -> None:
    """Broken bytes and unknown operators get ONNX Runtime's own first line."""
    with pytest.raises(ModelError, match="ONNX Runtime can't load the model: "):
        open_session(b"not a model")
    model = make_network()
    model.graph.node[1].CopyFrom(helper.make_node("NoSuchOperator", ["c1"], ["r1"]))
    with pytest.raises(ModelError, match="NoSuchOperator"):
        open_session(model)


def test_a_run_that_fails_is_a_model_error(make_network: Network) -> None:
    """A wrong shape, dtype or name of an input does not leave as ONNX Runtime's error."""
    session = open_session(make_network(), threads=1)
    for name, value in (
        ("image", np.ones((1, 3, 8, 8), np.float32)),
        ("image", np.ones((1, 1, 8, 8), np.float64)),
        ("picture", np.ones((1, 1, 8, 8), np.float32)),
    ):
        with pytest.raises(ModelError, match="the model failed to run: "):
            run_session(session, {name: value}, ["logits"])
    with pytest.raises(ModelError, match="the model failed to run: "):
        run_session(session, {"image": np.ones((1, 1, 8, 8), np.float32)}, ["nonsense"])
