"""Taps: every piecewise-linear gate is found, at the tensor whose sign is its state."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from reluguard.detector.errors import ModelError, NoTapsError, SettingsError
from reluguard.detector.images import InputSpec
from reluguard.detector.model import Production, load_production
from reluguard.detector.session import open_session, run_session
from reluguard.detector.taps import Tap, check_taps, find_taps
from reluguard.detector.taps.gates import find_gates

OPSETS = [
    helper.make_opsetid("", 17),
    helper.make_opsetid("com.microsoft", 1),
]
SPEC = InputSpec(name="x", height=4, width=4, channels=1)


def graph(*nodes: onnx.NodeProto, **weights: Any) -> onnx.GraphProto:
    return helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )


def node(op: str, *inputs: str, to: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), [to], **attributes)


def gates(case: onnx.GraphProto) -> dict[str, str]:
    """Return the gates of a graph: {tensor whose sign is the state: what the gate is called}."""
    model = helper.make_model(case, opset_imports=OPSETS, ir_version=9)
    return {gate.name: gate.op for gate in find_gates(model)}


def f32(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values if len(values) > 1 else values[0], np.float32)


FOUND: dict[str, tuple[onnx.GraphProto, dict[str, str]]] = {
    "relu": (graph(node("Relu", "x")), {"y": "Relu"}),
    "relu6": (graph(node("Clip", "x", "a", "b"), a=f32(0), b=f32(6)), {"y": "Clip"}),
    "old relu6": (graph(node("Clip", "x", min=0.0, max=6.0)), {"y": "Clip"}),
    "clip without maximum": (graph(node("Clip", "x", "a"), a=f32(0)), {"y": "Clip"}),
    "max with 0": (graph(node("Max", "x", "a"), a=f32(0)), {"y": "Max"}),
    "threshold": (graph(node("ThresholdedRelu", "x", alpha=0.5)), {"y": "ThresholdedRelu"}),
    "leaky": (graph(node("LeakyRelu", "x", alpha=0.1)), {"y": "LeakyRelu"}),
    "leaky of negative slope": (graph(node("LeakyRelu", "x", alpha=-0.1)), {"x": "LeakyRelu"}),
    "prelu": (graph(node("PRelu", "x", "a"), a=f32(0.1)), {"y": "PRelu"}),
    "prelu of a negative slope": (graph(node("PRelu", "x", "a"), a=f32(-0.1)), {"x": "PRelu"}),
    "prelu of unknown slope": (graph(node("PRelu", "x", "x")), {"x": "PRelu"}),
    "fused": (
        graph(node("FusedConv", "x", "w", activation="Relu"), w=f32(1)),
        {"y": "FusedConv"},
    ),
    "called twice": (
        graph(node("Relu", "x", to="a"), node("Neg", "a", to="b"), node("Relu", "b")),
        {"a": "Relu", "y": "Relu"},
    ),
}
NOT_FOUND = {
    "hard tanh": graph(node("Clip", "x", "a", "b"), a=f32(-1), b=f32(1)),
    "clip at 1": graph(node("Clip", "x", "a"), a=f32(1)),
    "clip of unknown minimum": graph(node("Clip", "x", "x")),
    "clip without bounds": graph(node("Clip", "x")),
    "max with 1": graph(node("Max", "x", "a"), a=f32(1)),
    "threshold below 0": graph(node("ThresholdedRelu", "x", alpha=-0.5)),
    "fused with a sigmoid": graph(node("FusedConv", "x", "w", activation="Sigmoid"), w=f32(1)),
    "quantised image": graph(
        node("QuantizeLinear", "x", "s", "z", to="q"),
        node("DequantizeLinear", "q", "s", "z"),
        s=f32(1),
        z=np.uint8(0),
    ),
}


@pytest.mark.parametrize(("case", "expected"), FOUND.values(), ids=FOUND)
def test_every_gate_is_found(case: onnx.GraphProto, expected: dict[str, str]) -> None:
    """Its output where that tells the state, its input where the sign is lost behind it."""
    assert gates(case) == expected


@pytest.mark.parametrize("case", NOT_FOUND.values(), ids=NOT_FOUND)
def test_what_is_no_gate_at_zero_is_not_taken_for_one(case: onnx.GraphProto) -> None:
    """Smooth functions, other kinks and mere rounding have no bit."""
    assert gates(case) == {}


def quantised(zero: Any) -> onnx.GraphProto:
    return graph(
        node("Neg", "x", to="n"),
        node("Add", "n", "b", to="a"),
        node("QuantizeLinear", "a", "s", "z", to="q"),
        node("DequantizeLinear", "q", "s", "z"),
        b=f32(0.5),
        s=f32(0.1),
        z=zero,
    )


@pytest.mark.parametrize("zero", [np.uint8(0), np.int8(-128)], ids=["uint8", "int8"])
def test_a_relu_folded_into_the_rounding_is_found(zero: Any) -> None:
    """A zero point at the least value cuts everything negative: read after dequantising."""
    assert gates(quantised(zero)) == {"y": "QuantizeLinear"}
    assert gates(quantised(type(zero)(7))) == {}


def test_a_relu_before_rounding_is_read_behind_it() -> None:
    """So that ONNX Runtime can still fuse convolution, Relu and rounding."""
    case = graph(
        node("Relu", "x", to="r"),
        node("QuantizeLinear", "r", "s", "z", to="q"),
        node("DequantizeLinear", "q", "s", "z"),
        s=f32(0.1),
        z=np.uint8(3),
    )
    assert gates(case) == {"y": "Relu"}


def production(case: onnx.GraphProto, folder: Path) -> Production:
    case.output[0].type.tensor_type.shape.ClearField("dim")
    model = helper.make_model(case, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = folder / "model.onnx"
    onnx.save(model, path)
    return load_production(path)


def test_the_sign_of_a_tap_is_the_state_of_its_gate(tmp_path: Path) -> None:
    """For each kind of gate, the tap is positive exactly where the gate's input is."""
    x = np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 1, 4, 4)
    for name in ("relu", "relu6", "clip without maximum", "max with 0", "leaky", "prelu"):
        made = production(FOUND[name][0], tmp_path)
        values = run_session(open_session(made.proto, threads=1), {"x": x}, ["y"])[0]
        np.testing.assert_array_equal(values > 0, x > 0, err_msg=name)


def test_taps_come_in_the_order_of_the_graph_with_their_shapes(tiny_model: Path) -> None:
    """The tiny network has two maps of 8 and 12 channels."""
    spec = InputSpec(name="image", height=8, width=8, channels=1)
    taps = find_taps(load_production(tiny_model), spec)
    assert taps == (
        Tap(name="r1", op="Relu", shape=(8, 8, 8)),
        Tap(name="r2", op="Relu", shape=(12, 3, 3)),
    )
    assert [(tap.channels, tap.bits) for tap in taps] == [(8, 512), (12, 108)]


def test_each_level_has_rates_of_its_own() -> None:
    """A tap read at three levels gives three rates per channel."""
    plain = Tap(name="r", op="Relu", shape=(3, 2, 2))
    levelled = replace(plain, levels=(0.0, 0.5, 2.0))
    assert (plain.channels, plain.rates) == (3, 3)
    assert (levelled.channels, levelled.rates) == (3, 9)


@pytest.mark.parametrize("levels", [(0.0,), (0.5, 1.5, 3.0)])
def test_a_tap_comes_back_from_plain_values(levels: tuple[float, ...]) -> None:
    """Through JSON it is what it was."""
    tap = Tap(name="r", op="Relu", shape=(3, 9, 2), levels=levels, stride=2, pooled=True)
    assert Tap.from_json(json.loads(json.dumps(tap.to_json()))) == tap


@pytest.mark.parametrize(("level", "levels"), [(0.0, (0.0,)), (0.5, (0.0, 0.5))])
def test_a_tap_of_an_older_guard_is_read_as_it_was(level: float, levels: tuple[float, ...]) -> None:
    """Its manifest has one level beside 0, or none."""
    tap = Tap(name="r", op="Relu", shape=(3, 2, 2), levels=levels)
    old = {k: v for k, v in tap.to_json().items() if k != "levels"} | {"level": level}
    assert Tap.from_json(old) == tap


def test_channels_last_is_read_from_the_layer_before(tmp_path: Path) -> None:
    """After a MatMul the last axis holds the units, after a Conv the first the channels."""
    last = graph(
        node("Transpose", "x", to="t", perm=[0, 2, 3, 1]),
        node("MatMul", "t", "w", to="m"),
        node("Relu", "m"),
        w=np.ones((1, 5), np.float32),
    )
    (tap,) = find_taps(production(last, tmp_path), SPEC)
    assert (tap.shape, tap.channel_axis, tap.channels) == ((4, 4, 5), 2, 5)
    first = graph(
        node("Conv", "x", "w", to="c"), node("Relu", "c"), w=np.ones((5, 1, 1, 1), np.float32)
    )
    (tap,) = find_taps(production(first, tmp_path), SPEC)
    assert (tap.shape, tap.channel_axis, tap.channels) == ((5, 4, 4), 0, 5)


def test_a_network_without_gates_is_refused_with_what_it_has(tmp_path: Path) -> None:
    """The user learns what was looked for and what was found."""
    smooth = graph(node("Tanh", "x", to="t"), node("Tanh", "t", to="u"), node("Sigmoid", "u"))
    with pytest.raises(
        NoTapsError,
        match=r"with ReLU, GELU, SiLU, HardSwish or their like, found .* but 2 Tanh, 1 Sigmoid",
    ):
        find_taps(production(smooth, tmp_path), SPEC)


def test_gates_without_the_batch_first_are_refused(tmp_path: Path) -> None:
    """A Relu over something that has no row per image tells nothing of an image."""
    swapped = graph(node("Transpose", "x", to="t", perm=[1, 0, 2, 3]), node("Relu", "t"))
    with pytest.raises(NoTapsError, match=r"with the batch of 2 first, found y \(1, 2, 4, 4\)"):
        find_taps(production(swapped, tmp_path), SPEC)


def test_taps_are_chosen_by_name() -> None:
    """The order stays the graph's; an unknown name is answered with those there are."""
    taps = tuple(Tap(name=name, op="Relu", shape=(3,)) for name in "abc")
    assert check_taps(taps, ["c", "a"]) == (taps[0], taps[2])
    with pytest.raises(ModelError, match="the model has no tap z; it has a, b, c"):
        check_taps(taps, ["a", "z"])


TAPS: dict[str, tuple[dict[str, Any], str]] = {
    "no shape": ({"shape": ()}, "expected positive sizes of tap 'r'"),
    "zero": ({"shape": (0,)}, "expected positive sizes of tap 'r'"),
    "stride": ({"shape": (3, 4, 4), "stride": 0}, "expected positive sizes of tap 'r'"),
    "axis": ({"shape": (3,), "channel_axis": 1}, "expected a channel axis of tap 'r'"),
    "level": (
        {"shape": (3,), "levels": (-1.0, 2.0)},
        r"expected ascending levels of tap 'r' in \[0, 1e\+06\), got \(-1.0, 2.0\)",
    ),
    "endless level": ({"shape": (3,), "levels": (float("inf"),)}, "expected ascending levels"),
    "level of no number": ({"shape": (3,), "levels": (float("nan"),)}, "expected ascending levels"),
    "dense stride": ({"shape": (3,), "stride": 2}, "can't be read in strides"),
}


@pytest.mark.parametrize(("values", "message"), TAPS.values(), ids=TAPS)
def test_a_tap_without_meaning_is_refused(values: dict[str, Any], message: str) -> None:
    """Sizes are positive and the channel axis is one of them."""
    with pytest.raises(SettingsError, match=message):
        Tap(name="r", op="Relu", **values)
