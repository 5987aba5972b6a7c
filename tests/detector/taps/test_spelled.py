"""Activations as exporters spell them: one gate each, whatever nodes and constants they are of."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from reluguard.detector.session import open_session, run_session
from reluguard.detector.taps.gates import Gate, find_gates, hidden_gates

OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]


class Graph:
    """A small graph being written: each method gives the name of what it made."""

    def __init__(self, kind: int = TensorProto.FLOAT) -> None:
        self.kind = kind
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def __call__(self, op: str, *inputs: Any, **attributes: Any) -> str:
        """Add a node."""
        name = f"v{len(self.nodes)}"
        names = [i if isinstance(i, str) else self.number(i) for i in inputs]
        self.nodes.append(helper.make_node(op, names, [name], **attributes))
        return name

    def number(self, value: Any) -> str:
        """Add an initializer."""
        name = f"c{len(self.weights)}"
        kind = helper.tensor_dtype_to_np_dtype(self.kind)
        array = np.asarray(value) if isinstance(value, np.generic) else np.asarray(value, kind)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def constant(self, value: float) -> str:
        """Add a Constant node."""
        tensor = numpy_helper.from_array(
            np.asarray(value, helper.tensor_dtype_to_np_dtype(self.kind))
        )
        return self("Constant", value=tensor)

    def model(self, output: str) -> onnx.ModelProto:
        """Return what was written, as a model."""
        shape: list[str | int] = ["N", 3]
        read = {name for node in self.nodes for name in node.input}
        inputs = sorted(read & {"x", "y"})
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info(name, self.kind, shape) for name in inputs],
            [helper.make_tensor_value_info(output, self.kind, shape)],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=OPSETS, ir_version=9)


Spelling = Callable[[Graph], str]


def erf_part(g: Graph, root: str) -> str:
    return g("Add", g("Erf", g("Div", "x", root)), 1.0)


def gelu_inside(g: Graph) -> str:
    return g("Mul", "x", g("Mul", 0.5, erf_part(g, g.number(2**0.5))))


def gelu_half_last(g: Graph) -> str:
    return g("Mul", g("Mul", "x", erf_part(g, g.constant(2**0.5))), g.constant(0.5))


def gelu_half_first(g: Graph) -> str:
    root = g("Sqrt", g("Identity", g.constant(2.0)))
    return g("Mul", g("Mul", "x", 0.5), erf_part(g, root))


def gelu_times_root(g: Graph) -> str:
    e = g("Erf", g("Identity", g("Mul", g.constant(0.70710678), "x")))
    return g("Mul", g("Div", g("Mul", g("Add", 1.0, e), "x"), 2.0), g.constant(1.0))


def gelu_in_single_precision(g: Graph) -> str:
    x = g("Cast", "x", to=TensorProto.FLOAT)
    e = g("Erf", g("Mul", x, np.float32(0.70710678)))
    y = g("Mul", g("Mul", x, g("Add", e, np.float32(1))), np.float32(0.5))
    return g("Cast", y, to=g.kind)


def gelu_tanh(g: Graph) -> str:
    inner = g("Add", "x", g("Mul", g("Pow", "x", 3.0), 0.044715))
    t = g("Tanh", g("Mul", inner, 0.7978846))
    return g("Mul", g("Mul", "x", 0.5), g("Add", t, 1.0))


def gelu_tanh_in_products(g: Graph) -> str:
    cube = g("Mul", "x", g("Mul", "x", "x"))
    t = g("Tanh", g("Mul", 0.7978846, g("Add", g("Mul", 0.044715, cube), "x")))
    return g("Mul", 0.5, g("Mul", "x", g("Add", 1.0, t)))


def mish_of_logarithms(g: Graph) -> str:
    return g("Mul", g("Tanh", g("Log", g("Add", g("Exp", "x"), 1.0))), "x")


def relu6_of_max(g: Graph) -> str:
    return g("Min", g("Max", "x", 0.0), 6.0)


def zeros_like(g: Graph) -> str:
    value = helper.make_tensor("zero", g.kind, [1], [0])
    return g("ConstantOfShape", g("Shape", "x"), value=value)


def elu(g: Graph) -> str:
    below = g("Mul", g("Sub", g("Exp", g("Min", "x", 0.0)), 1.0), 1.0)
    return g("Where", g("Greater", "x", 0.0), "x", below)


def dequantised(g: Graph, value: int) -> str:
    return g("DequantizeLinear", np.uint8(value), np.float32(0.5), np.uint8(0))


def rounded(g: Graph, x: str, scale: float, zero: int) -> str:
    numbers = np.float32(scale), np.uint8(zero)
    return g("DequantizeLinear", g("QuantizeLinear", x, *numbers), *numbers)


def rounded_silu(g: Graph) -> str:
    x = rounded(g, "x", 0.05, 90)
    y = g("Mul", x, rounded(g, g("Sigmoid", x), 1 / 255, 0))
    return rounded(g, y, 0.04, 10)


GATES: dict[str, tuple[Spelling, str]] = {
    "silu": (lambda g: g("Mul", "x", g("Sigmoid", "x")), "Silu"),
    "silu the other way round": (lambda g: g("Mul", g("Sigmoid", "x"), "x"), "Silu"),
    "quick gelu": (lambda g: g("Mul", "x", g("Sigmoid", g("Mul", "x", 1.702))), "QuickGelu"),
    "gelu, half inside": (gelu_inside, "Gelu"),
    "gelu, half last": (gelu_half_last, "Gelu"),
    "gelu, half first": (gelu_half_first, "Gelu"),
    "gelu, times the root": (gelu_times_root, "Gelu"),
    "gelu in single precision": (gelu_in_single_precision, "Gelu"),
    "gelu by tanh": (gelu_tanh, "Gelu"),
    "gelu by tanh in products": (gelu_tanh_in_products, "Gelu"),
    "hard swish": (
        lambda g: g("Mul", g("HardSigmoid", "x", alpha=1 / 6, beta=0.5), "x"),
        "HardSwish",
    ),
    "hard swish by clip": (
        lambda g: g("Div", g("Mul", "x", g("Clip", g("Add", "x", 3.0), 0.0, 6.0)), 6.0),
        "HardSwish",
    ),
    "hard swish, divided first": (
        lambda g: g("Mul", "x", g("Div", g("Clip", g("Add", 3.0, "x"), 0.0, 6.0), 6.0)),
        "HardSwish",
    ),
    "hard swish by min and max": (
        lambda g: g("Mul", g("Mul", g("Min", g("Max", g("Add", "x", 3.0), 0.0), 6.0), "x"), 1 / 6),
        "HardSwish",
    ),
    "mish": (lambda g: g("Mul", "x", g("Tanh", g("Softplus", "x"))), "Mish"),
    "mish of logarithms": (mish_of_logarithms, "Mish"),
    "where": (lambda g: g("Where", g("Greater", "x", 0.0), "x", 0.0), "Relu"),
    "where not": (lambda g: g("Where", g("LessOrEqual", "x", 0.0), 0.0, "x"), "Relu"),
    "where with zeros": (lambda g: g("Where", g("Less", "x", 0.0), zeros_like(g), "x"), "Relu"),
    "a mask": (
        lambda g: g("Mul", "x", g("Cast", g("Greater", "x", 0.0), to=g.kind)),
        "Relu",
    ),
    "threshold": (lambda g: g("Where", g("Greater", "x", 0.5), "x", 0.0), "gate"),
    "leaky by max": (lambda g: g("Max", "x", g("Mul", "x", 0.1)), "gate"),
    "leaky by difference": (
        lambda g: g("Sub", g("Relu", "x"), g("Mul", g("Relu", g("Neg", "x")), 0.25)),
        "gate",
    ),
    "elu": (elu, "Elu"),
    "max": (lambda g: g("Max", 0.0, "x"), "Max"),
    "relu6 by min and max": (relu6_of_max, "Max"),
    "relu6 by max and min": (lambda g: g("Max", g("Min", "x", 6.0), 0.0), "Max"),
    "clip at constants": (lambda g: g("Clip", "x", g.constant(0.0), g.constant(6.0)), "Clip"),
    "scaled": (lambda g: g("Mul", g("Mul", g("Sigmoid", "x"), "x"), 0.25), "Silu"),
}
NO_GATES: dict[str, Spelling] = {
    "sigmoid": lambda g: g("Sigmoid", "x"),
    "sigmoid of quotients": lambda g: g("Div", 1.0, g("Add", 1.0, g("Exp", g("Neg", "x")))),
    "hard sigmoid": lambda g: g("Div", g("Clip", g("Add", "x", 3.0), 0.0, 6.0), 6.0),
    "another tensor's sigmoid": lambda g: g("Mul", "y", g("Sigmoid", "x")),
    "another tensor's hard sigmoid": lambda g: g(
        "Mul", "y", g("Div", g("Clip", g("Add", "x", 3.0), 0.0, 6.0), 6.0)
    ),
    "square": lambda g: g("Mul", "x", "x"),
    "line": lambda g: g("Add", g("Mul", "x", 0.5), 1.0),
    "exponential": lambda g: g("Mul", g("Exp", "x"), 2.0),
    "absolute": lambda g: g("Max", "x", g("Neg", "x")),
    "tanh": lambda g: g("Sub", g("Mul", 2.0, g("Sigmoid", g("Mul", "x", 2.0))), 1.0),
    "step": lambda g: g("Cast", g("Greater", "x", 0.0), to=g.kind),
    "sum": lambda g: g("Add", "x", "y"),
    "between bounds": lambda g: g("Max", g("Min", "x", 1.0), -1.0),
}
X = np.array([[-30, -4, -2], [-0.5, 0, 0.25], [0.75, 2, 10]])


@pytest.mark.parametrize("half", [False, True], ids=["single", "half"])
@pytest.mark.parametrize("name", GATES)
def test_a_spelled_activation_is_one_gate(name: str, half: bool) -> None:
    """The tensor that it is read at is above zero just where its output is."""
    spell, word = GATES[name]
    g = Graph(TensorProto.FLOAT16 if half else TensorProto.FLOAT)
    output = spell(g)
    model = g.model(output)
    (gate,) = find_gates(model)
    assert (gate.op, gate.trouble) == (word, "")
    if gate.name != output:
        model.graph.output.append(onnx.ValueInfoProto(name=gate.name))
    x = X.astype(helper.tensor_dtype_to_np_dtype(g.kind))
    session = open_session(model, threads=1)
    read, answer = run_session(session, {"x": x}, [gate.name, output])
    np.testing.assert_array_equal(read > 0, answer > 0)
    assert 0 < (read > 0).mean() < 1


@pytest.mark.parametrize("spell", NO_GATES.values(), ids=NO_GATES)
def test_what_has_no_closed_side_is_no_gate(spell: Spelling) -> None:
    """Sigmoids, lines, even functions and steps, and products of two tensors."""
    g = Graph()
    assert find_gates(g.model(spell(g))) == ()


@pytest.mark.parametrize("op", ["Softplus", "spelled"])
def test_a_softplus_is_read_where_it_begins(op: str) -> None:
    """Its output is always above zero: what tells is the sign of what enters it."""
    g = Graph()
    output = g(op, "x") if op == "Softplus" else g("Log", g("Add", 1.0, g("Exp", "x")))
    assert find_gates(g.model(output)) == (Gate(name="x", op="Softplus"),)


def test_a_silu_in_eight_bits_is_read_behind_its_rounding() -> None:
    """Roundings between do not hide it."""
    g = Graph()
    output = rounded_silu(g)
    (gate,) = find_gates(g.model(output))
    assert (gate.name, gate.op) == (output, "Silu")


@pytest.mark.parametrize("turned", [False, True])
def test_a_swish_learned_by_channel_is_a_gate(turned: bool) -> None:
    """Of x * sigmoid(b * x), with a b for each channel, the sign is that of x."""
    g = Graph()
    factor = g.number([0.5, 1.0, 2.5])
    step = g("Sigmoid", g("Mul", factor, "x") if turned else g("Mul", "x", factor))
    output = g("Mul", step, "x") if turned else g("Mul", "x", step)
    model = g.model(output)
    assert find_gates(model) == (Gate(name=output, op="Swish", before="x"),)
    (answer,) = run_session(open_session(model, threads=1), {"x": X.astype(np.float32)}, [output])
    np.testing.assert_array_equal(answer > 0, X > 0)


def test_a_swish_learned_to_be_closed_is_none() -> None:
    """Where most channels let more through on the other side, or another tensor decides."""
    for other, factor in (("x", [-0.5, -1.0, 2.5]), ("y", [0.5, 1.0, 2.5])):
        g = Graph()
        output = g("Mul", other, g("Sigmoid", g("Mul", "x", g.number(factor))))
        assert find_gates(g.model(output)) == ()


def test_a_gate_follows_a_gate() -> None:
    """Of two activations with a scale between, each is one."""
    g = Graph()
    first = g("Relu", "x")
    second = g("Mul", g("Sub", first, 2.0), g("Sigmoid", g("Sub", first, 2.0)))
    assert [gate.op for gate in find_gates(g.model(second))] == ["Relu", "gate"]


def test_both_halves_of_a_doubled_relu_are_gates() -> None:
    """Relu(x) beside Relu(-x) are two."""
    g = Graph()
    both = g("Concat", g("Relu", "x"), g("Relu", g("Neg", "x")), axis=1)
    assert [gate.op for gate in find_gates(g.model(both))] == ["Relu", "Relu"]


def test_bounds_that_are_dequantised_are_bounds() -> None:
    """Whatever the fixed numbers are worked out from."""
    g = Graph()
    output = g("Clip", "x", dequantised(g, 0), dequantised(g, 12))
    assert [gate.op for gate in find_gates(g.model(output))] == ["Clip"]


def test_what_no_input_reaches_is_no_gate() -> None:
    """A Relu of weights says nothing of an image."""
    g = Graph()
    output = g("Mul", "x", g("Relu", g("Mul", -3.0, g.constant(2.0))))
    assert find_gates(g.model(output)) == ()


NAMED: dict[str, tuple[dict[str, Any], bool]] = {
    "Gelu": ({"domain": "com.microsoft"}, True),
    "FastGelu": ({"domain": "com.microsoft"}, True),
    "QuickGelu": ({"domain": "com.microsoft", "alpha": 1.0}, True),
    "HardSwish": ({}, True),
    "Mish": ({}, True),
    "Elu": ({"alpha": 0.5}, True),
    "Selu": ({}, True),
    "Celu": ({"alpha": 2.0}, True),
    "ThresholdedRelu": ({"alpha": 0.0}, True),
    "Softplus": ({}, False),
}


@pytest.mark.parametrize("op", NAMED)
def test_a_node_with_a_name_is_a_gate(op: str) -> None:
    """Open where its output is above zero; a softplus where its input is."""
    attributes, at_output = NAMED[op]
    g = Graph()
    output = g(op, "x", **attributes)
    model = g.model(output)
    (gate,) = find_gates(model)
    assert gate.name == (output if at_output else "x")
    (answer,) = run_session(open_session(model, threads=1), {"x": X.astype(np.float32)}, [output])
    if at_output:
        np.testing.assert_array_equal(answer > 0, X > 0)


def test_a_bias_fused_into_a_gelu_is_no_hindrance() -> None:
    """BiasGelu is open where its output is above zero."""
    g = Graph()
    output = g("BiasGelu", "x", g.number([0.5, 0, -0.5]), domain="com.microsoft")
    assert find_gates(g.model(output)) == (Gate(name=output, op="BiasGelu"),)


def test_an_operator_of_the_users_own_is_not_taken_for_one_of_its_name() -> None:
    """Another domain's Relu may do anything."""
    g = Graph()
    assert find_gates(g.model(g("Relu", "x", domain="their.ops"))) == ()


def test_gates_in_the_body_of_an_if_are_counted() -> None:
    """They can't be read from outside, and it is said where they are."""
    body = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["inner"])],
        "then",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["N", 3])],
    )
    g = Graph()
    output = g("If", "flag", then_branch=body, else_branch=body)
    model = g.model(output)
    assert find_gates(model) == ()
    gates = list(hidden_gates(model))
    assert [gate.op for gate in gates] == ["Relu", "Relu"]
    assert gates[0].trouble == "it lies in the body of the If 'v0'"
