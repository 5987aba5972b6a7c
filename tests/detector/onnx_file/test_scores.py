"""Class scores are what enters the last softmax, however it is spelt and whatever follows it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from reluguard.detector.model import Production, infer_spec, load_production
from reluguard.detector.session import open_session

Network = Callable[..., onnx.ModelProto]
node = helper.make_node


def ended(
    model: onnx.ModelProto, *nodes: onnx.NodeProto, shape: list[Any] | None = None, **values: Any
) -> onnx.ModelProto:
    """Return the model with nodes between `logits` and its output, which they call `out`."""
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()
    )
    del model.graph.output[:]
    info = helper.make_tensor_value_info("out", TensorProto.FLOAT, shape or ["N", 4])
    model.graph.output.append(info)
    return model


def opened(model: onnx.ModelProto, folder: Path) -> Production:
    onnx.save(model, folder / "m.onnx")
    return load_production(folder / "m.onnx")


def run(production: Production, *names: str) -> list[np.ndarray]:
    proto = onnx.ModelProto()
    proto.CopyFrom(production.proto)
    known = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    images = np.random.default_rng(0).random((6, 1, 8, 8), np.float32)
    return list(open_session(proto).run(list(names), {"image": images}))


SOFTMAX = node("Softmax", ["logits"], ["p"], axis=1)
ENDS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], str]] = {
    "softmax": ([node("Softmax", ["logits"], ["out"])], {}, "softmax"),
    "log softmax": ([node("LogSoftmax", ["logits"], ["out"])], {}, "log_softmax"),
    "identity": ([SOFTMAX, node("Identity", ["p"], ["out"])], {}, "softmax"),
    "cast": (
        [SOFTMAX, node("Cast", ["p"], ["d"], to=11), node("Cast", ["d"], ["out"], to=1)],
        {},
        "softmax",
    ),
    "clip": (
        [SOFTMAX, node("Clip", ["p", "low", "high"], ["out"])],
        {"low": np.float32(1e-7), "high": np.float32(1 - 1e-7)},
        "softmax",
    ),
    "reshape": ([SOFTMAX, node("Reshape", ["p", "to"], ["out"])], {"to": [-1, 4]}, "softmax"),
    "log": ([SOFTMAX, node("Log", ["p"], ["out"])], {}, "log_softmax"),
    "sigmoid": ([node("Sigmoid", ["logits"], ["out"])], {}, "sigmoid"),
    "quantised": (
        [
            SOFTMAX,
            node("QuantizeLinear", ["p", "scale"], ["q"]),
            node("DequantizeLinear", ["q", "scale"], ["out"]),
        ],
        {"scale": np.float32(1 / 255)},
        "softmax",
    ),
    "spelt out": (
        [
            node("ReduceMax", ["logits"], ["most"], axes=[1]),
            node("Sub", ["logits", "most"], ["less"]),
            node("Exp", ["less"], ["e"]),
            node("ReduceSum", ["e", "one"], ["all"]),
            node("Div", ["e", "all"], ["out"]),
        ],
        {"one": [1]},
        "softmax",
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_class_scores_are_found_behind_what_follows(
    make_network: Network, tmp_path: Path, end: str
) -> None:
    """Copies, casts, bounds, shapes, logarithms and rounding hide no softmax."""
    nodes, values, ending = ENDS[end]
    production = opened(ended(make_network(), *nodes, **values), tmp_path)
    assert production.ending == ending
    scores, logits, out = run(production, production.logits, "logits", "out")
    assert np.array_equal(scores, logits)
    assert np.array_equal(scores.argmax(axis=1), production.classes(out))


def test_what_changes_the_order_is_no_copy(make_network: Network, tmp_path: Path) -> None:
    """A Clip that cuts probabilities, or a product, leaves the answer as the class scores."""
    values: dict[str, Any] = {"low": np.float32(0.2), "high": np.float32(0.6)}
    for last in (node("Clip", ["p", "low", "high"], ["out"]), node("Mul", ["p", "low"], ["out"])):
        production = opened(ended(make_network(), SOFTMAX, last, **values), tmp_path)
        assert (production.logits, production.ending) == ("out", "")


@pytest.mark.parametrize("last", ["Sigmoid", "Identity"])
@pytest.mark.parametrize("shape", [["N", 1], ["N"], ["N", 1, 1, 1]])
def test_one_output_is_two_classes(
    make_network: Network, tmp_path: Path, last: str, shape: list[Any]
) -> None:
    """The second class is above one half, or above 0 without a sigmoid; outputs stay theirs."""
    values: dict[str, Any] = {"to": np.array([-1, *shape[1:]], np.int64)}
    model = ended(
        make_network(classes=1),
        node(last, ["logits"], ["p"]),
        node("Reshape", ["p", "to"], ["out"]),
        shape=shape,
        **values,
    )
    production = opened(model, tmp_path)
    assert [info.name for info in production.outputs] == ["out"]
    scores, z, out = run(production, production.logits, "logits", "out")
    assert scores.shape == (6, 2)
    np.testing.assert_allclose(scores[:, 1] - scores[:, 0], z[:, 0], rtol=1e-6)
    limit = 0.5 if last == "Sigmoid" else 0.0
    assert np.array_equal(production.classes(out), (out.reshape(-1) > limit).astype(np.int64))
    assert np.array_equal(scores.argmax(axis=1), production.classes(out))
    assert infer_spec(production, (8, 8, 1)).batch is None


def test_further_axes_are_flattened(make_network: Network, tmp_path: Path) -> None:
    """Scores of shape (N, K, 1, 1), as of fully convolutional heads, have a column per class."""
    last = node("Unsqueeze", ["logits", "axes"], ["wide"])
    end = node("Softmax", ["wide"], ["out"], axis=1)
    model = ended(make_network(), last, end, shape=["N", 4, 1, 1], axes=[2, 3])
    production = opened(model, tmp_path)
    scores, logits, out = run(production, production.logits, "logits", "out")
    assert np.array_equal(scores, logits)
    assert out.shape == (6, 4, 1, 1)
    assert np.array_equal(production.classes(out), logits.argmax(axis=1))


def test_many_classes_are_preferred_to_one_value(make_network: Network, tmp_path: Path) -> None:
    """A score beside the class scores is not taken for the answer."""
    model = make_network()
    model.graph.node.append(node("ReduceMax", ["logits"], ["most"], axes=[1]))
    info = helper.make_tensor_value_info("most", TensorProto.FLOAT, ["N", 1])
    model.graph.output.insert(0, info)
    assert opened(model, tmp_path).answer == "logits"
