"""Gates: what in a network opens above zero, and the tensor whose sign tells it.

An activation is one node, or a few that an exporter made of it. Named nodes are known by name. Of
the rest, all that is an element-wise function of one tensor is run on numbers (see `function`): a
function that is above zero on one side only, and lets more through there, is a gate. Whatever in
between looked like a gate by itself, like the Clip in x * Clip(x + 3, 0, 6) / 6, is part of it.

The sign is read where the activation ends, because ONNX Runtime fuses what lies within.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from reluguard.detector.taps.function import Functions, Shape
from reluguard.detector.taps.values import Values

__all__ = ["Gate", "find_gates", "hidden_gates"]

OURS = {"", "ai.onnx", "com.microsoft"}  # whose operators mean what their names say

_AFFINE = {"Add", "BatchNormalization", "Conv", "Gemm", "MatMul"}
# open where their output is above zero, whatever their attributes
_OPEN_BY_OUTPUT = {
    "BiasGelu", "BiasSplitGelu", "Relu", "Gelu", "FastGelu", "HardSwish", "Mish", "Selu", "Celu",
}  # fmt: skip
# which are open elsewhere than their input is above zero
_OTHER_INPUT = {"BiasGelu", "BiasSplitGelu", "ThresholdedRelu", "FusedConv", "FusedGemm"}
_FUSED = {"FusedConv", "FusedGemm", "NhwcFusedConv"}
_FUSED_OPEN = {"Relu", "LeakyRelu", "Gelu", "HardSwish", "Elu", "Mish", "Silu", "QuickGelu"}
# where operators on integers keep the zero point of their output
_INTEGER_ZERO = {
    "QLinearConv": 7, "QLinearMatMul": 7, "QLinearAdd": 7, "QGemm": 8, "QLinearLeakyRelu": 4,
    "QLinearMul": 7,
}  # fmt: skip
_COMPARISONS = {"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Not", "And", "Or"}
# one number of each input makes one number of the output
_ELEMENTWISE = _COMPARISONS | {
    "Abs", "Add", "Cast", "Celu", "Clip", "DequantizeLinear", "Div", "Dropout", "Elu", "Erf", "Exp",
    "FastGelu", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Max", "Min",
    "Mish", "Mul", "Neg", "PRelu", "Pow", "QLinearMul", "QLinearSigmoid", "QuantizeLinear",
    "QuickGelu", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sign", "Softplus", "Softsign", "Sqrt",
    "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Where",
}  # fmt: skip
_LAST = {"Mul", "Div", "Where", "Max", "Min", "Add", "Sub", "Sum", "Log", "QLinearMul"}
_LINEAR = {"Add", "Sub", "Mul", "Div", "Neg", "Identity", "Cast", "Dropout"}
_MOST_OPEN = 0.5
_MIDDLE = "the zero of its integers is not known"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One gate of a network: open where the tensor `name` is above zero.

    Attributes:
        name: the tensor.
        op: what the gate is called: an operator, or the activation that a few nodes spell.
        before: the tensor that the activation is a function of, of the same sign; "" if none is.
        trouble: why it can't be read, "" if it can.
        zero: above which number it is open, of a tensor of integers with zero inside their range.
    """

    name: str
    op: str
    before: str = ""
    trouble: str = ""
    zero: int | None = None


@dataclass(frozen=True, slots=True)
class _Origin:
    """What a tensor is a function of: the source, by way of nodes, given by their places."""

    source: str
    nodes: frozenset[int] = frozenset()


@dataclass(slots=True)
class _Found:
    """A gate on the way of being found. `origin` is what it is a function of."""

    gate: Gate
    origin: _Origin
    spelled: bool


def find_gates(model: onnx.ModelProto, values: Values | None = None) -> tuple[Gate, ...]:
    """Return the gates of a model's own graph, in its order, each tensor once.

    What does not depend on the model's input is no gate, whatever its operator.

    Args:
        model: with its functions written out.
        values: its fixed tensors, if they are known already.
    """
    return _Search(model, values or Values(model)).run()


def hidden_gates(model: onnx.ModelProto) -> Iterator[Gate]:
    """Yield the gates in the bodies of If, Loop and Scan."""
    for node in model.graph.node:
        for body in _bodies(node):
            inner = onnx.ModelProto(graph=body, opset_import=model.opset_import)
            where = f"it lies in the body of the {node.op_type} {node.name or node.output[0]!r}"
            found = [*find_gates(inner), *hidden_gates(inner)]
            yield from (replace(gate, trouble=where) for gate in found)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


@dataclass(slots=True)
class _Search:
    model: onnx.ModelProto
    values: Values
    functions: Functions = field(init=False)
    readers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)
    nodes: dict[str, onnx.NodeProto] = field(default_factory=dict)
    outputs: set[str] = field(default_factory=set)
    origins: dict[str, _Origin] = field(default_factory=dict)
    found: dict[str, _Found] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.functions = Functions(self.model.opset_import)
        self.outputs = {value.name for value in graph.output}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
            self.nodes.update(dict.fromkeys(node.output, node))

    def run(self) -> tuple[Gate, ...]:
        for place, node in enumerate(self.model.graph.node):
            if node.output and node.output[0] not in self.values and node.domain in OURS:
                self._visit(place, node)
        gates: dict[str, Gate] = {}
        for found in self.found.values():
            name = _after_quantisation(found.gate.name, self.readers) or found.gate.name
            gates.setdefault(name, replace(found.gate, name=name))
        return tuple(gates.values())

    def _visit(self, place: int, node: onnx.NodeProto) -> None:
        gate = self._named(node) or self._learned(node)
        origin = self._origin(place, node)
        target = node.output[0]
        if gate is not None and node.op_type == "Clip" and self._is_hard_sigmoid(origin, target):
            gate = None
        if gate is None and origin is not None and node.op_type in _LAST:
            shape, word = self._look(origin, target)
            if shape is not Shape.OTHER:
                for within in origin.nodes:
                    self.found.pop(self.model.graph.node[within].output[0], None)
                gate = self._spelled(node, origin, shape, word)
                self._add(target, gate, origin, spelled=True)
                return
        if gate is not None:
            self._add(target, gate, origin or _Origin(target), spelled=False)
        elif origin is not None:
            self.origins[target] = origin
            self._move_on(node, origin)

    def _add(self, target: str, gate: Gate, origin: _Origin, *, spelled: bool) -> None:
        self.found[target] = _Found(gate, origin, spelled)
        self.origins[target] = _Origin(target)

    def _origin(self, place: int, node: onnx.NodeProto) -> _Origin | None:
        """Return what a node's output is a function of, None if of several tensors.

        A gate ends what came before; but if one input is a gate of what the other is, it is a part.
        """
        if node.op_type not in _ELEMENTWISE:
            return None
        inputs = [name for name in _operands(node) if name]
        fixed = [name for name in inputs if name in self.values]
        if any(self.values.uniform(name) is None for name in fixed):
            return None
        origins = [self.origins.get(n, _Origin(n)) for n in inputs if n not in self.values]
        order = {name: i for i, name in enumerate(self.found)}
        while len({origin.source for origin in origins}) > 1:
            last = max((o.source for o in origins), key=lambda name: order.get(name, -1))
            if last not in order or self.found[last].origin.source == last:
                return None
            inner = self.found[last].origin
            origins = [
                _Origin(inner.source, inner.nodes | origin.nodes)
                if origin.source == last
                else origin
                for origin in origins
            ]
        nodes = frozenset({place}).union(*(origin.nodes for origin in origins))
        return _Origin(origins[0].source, nodes)

    def _look(self, origin: _Origin, target: str) -> tuple[Shape, str]:
        nodes = [self.model.graph.node[place] for place in sorted(origin.nodes)]
        names = {name for node in nodes for name in _operands(node) if name in self.values}
        fixed = {name: self.values.uniform(name) for name in names}
        values = {name: value for name, value in fixed.items() if value is not None}
        return self.functions.look(
            [_in_numbers(node) for node in nodes], values, origin.source, target
        )

    def _is_hard_sigmoid(self, origin: _Origin | None, target: str) -> bool:
        """Whether a Clip from 0 is one of a shifted line, which is no gate but a smooth step."""
        if origin is None or len(origin.nodes) == 1:
            return False
        ops = {self.model.graph.node[place].op_type for place in origin.nodes}
        return ops <= _LINEAR | {"Clip"} and self._look(origin, target)[0] is Shape.OTHER

    def _spelled(self, node: onnx.NodeProto, origin: _Origin, shape: Shape, word: str) -> Gate:
        if shape is Shape.SOFT:
            return Gate(name=origin.source, op=word)
        if node.op_type == "QLinearMul":
            return self._from_zero(Gate(name=node.output[0], op=word), node)
        before = origin.source if word != "gate" else ""
        return Gate(name=node.output[0], op=word, before=before)

    def _move_on(self, node: onnx.NodeProto, origin: _Origin) -> None:
        """Read a spelled gate behind a scale or cast that belongs to it: 0.5 * (x * ...)."""
        found = self.found.get(origin.source)
        if found is None or not found.spelled or found.gate.name in self.outputs:
            return
        name = found.gate.name
        others = [other for other in node.input if other != name]
        if name not in node.input or len(self.readers[name]) != 1:
            return
        match node.op_type:
            case "Mul" | "Min":
                fits = self._is_above_zero(others)
            case "Div":
                fits = node.input[0] == name and self._is_above_zero(others)
            case "Cast":
                fits = True
            case _:
                fits = False
        if fits:
            found.gate = replace(found.gate, name=node.output[0])

    def _is_above_zero(self, names: Sequence[str]) -> bool:
        values = [self.values.uniform(name) for name in names]
        return all(value is not None and float(value.ravel()[0]) > 0 for value in values)

    def _named(self, node: onnx.NodeProto) -> Gate | None:
        """Return the gate that a node is by its name, None if it is none."""
        op = node.op_type
        if op in _INTEGER_ZERO and op not in _ELEMENTWISE:
            return self._in_integers(node)
        if op == "QuantizeLinear":
            # a quantised image or pooled map has its least value as zero point and is no gate
            maker = self.nodes.get(node.input[0])
            if maker is None or maker.op_type not in _AFFINE or not self._cuts_negatives(node):
                return None
            restored = _dequantised(node.output[0], self.readers)
            return None if restored is None else Gate(name=restored, op=op)
        place = self._place(node)
        if place is None:
            return None
        moving = [name for name in node.input if name and name not in self.values]
        same = len(moving) == 1 and place != moving[0] and op not in _OTHER_INPUT
        trouble = "it is multiplied by other values at once" if op == "BiasSplitGelu" else ""
        return Gate(name=place, op=op, before=moving[0] if same else "", trouble=trouble)

    def _learned(self, node: onnx.NodeProto) -> Gate | None:
        """Return the gate that x * sigmoid(b * x) is, with a b of its own for each channel.

        A sigmoid is above zero, so the product has the sign of x; most b must be above zero too, so
        that the open side lets more through.
        """
        if node.op_type != "Mul":
            return None
        for x, smooth in (node.input, reversed(node.input)):
            step = self.nodes.get(smooth)
            inner = self.nodes.get(step.input[0]) if step and step.op_type == "Sigmoid" else None
            if inner is None or inner.op_type != "Mul" or x not in inner.input:
                continue
            factor = next((name for name in inner.input if name != x), "")
            values = self.values.get(factor) if factor in self.values else None
            if values is not None and values.size > 1 and (values > 0).mean() > _MOST_OPEN:
                return Gate(name=node.output[0], op="Swish", before=x)
        return None

    def _in_integers(self, node: onnx.NodeProto) -> Gate | None:
        gate = Gate(name=node.output[0], op=node.op_type)
        if self._cuts_negatives(node):
            return gate
        return self._from_zero(gate, node) if node.op_type == "QLinearLeakyRelu" else None

    def _from_zero(self, gate: Gate, node: onnx.NodeProto) -> Gate:
        """Return a gate of integers, open above the zero of its output."""
        if self._cuts_negatives(node):
            return gate
        position = _INTEGER_ZERO[node.op_type]
        zero = self.values.get(node.input[position]) if len(node.input) > position else None
        if zero is None or zero.size != 1 or zero.dtype not in {np.dtype("u1"), np.dtype("i1")}:
            return replace(gate, trouble=_MIDDLE)
        return replace(gate, zero=int(zero.ravel()[0]))

    def _place(self, node: onnx.NodeProto) -> str | None:
        """Return the tensor that is above zero where a node of the name of a gate is open."""
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        at_output, op = True, node.op_type
        match op:
            case "Clip":
                fits = self._clip_minimum(node, attributes) == 0
            case "ThresholdedRelu":
                fits = attributes.get("alpha", 1.0) >= 0
            case "Max":
                known = [self.values.uniform(name) for name in node.input]
                fits = any(value is not None and not value.any() for value in known)
            case "LeakyRelu" | "Elu" | "Swish" | "QuickGelu":
                fits, at_output = True, attributes.get("alpha", 1.0) >= 0
            case "PRelu":
                slope = self.values.get(node.input[1])
                fits, at_output = True, slope is not None and not (slope < 0).any()
            case "Softplus":
                fits, at_output = True, False
            case _:
                fits = op in _OPEN_BY_OUTPUT or (op in _FUSED and _fused_gate(attributes))
        if not fits:
            return None
        return str(node.output[0] if at_output else node.input[0])

    def _clip_minimum(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> float | None:
        if "min" in attributes:
            return float(attributes["min"])
        value = self.values.uniform(node.input[1]) if len(node.input) > 1 else None
        return None if value is None else float(value.ravel()[0])

    def _cuts_negatives(self, node: onnx.NodeProto) -> bool:
        """A zero point at the least value cuts everything negative: a Relu in the rounding."""
        position = _INTEGER_ZERO.get(node.op_type, 2)
        if len(node.input) <= position or not node.input[position]:
            return node.op_type == "QuantizeLinear"  # its default is uint8 zero
        zero = self.values.get(node.input[position])
        return (
            zero is not None
            and zero.dtype.kind in "iu"
            and not (zero != np.iinfo(zero.dtype).min).any()
        )


def _fused_gate(attributes: Mapping[str, Any]) -> bool:
    activation = attributes.get("activation", b"").decode()
    parameters = attributes.get("activation_params", [attributes.get("activation_alpha", 0.0)])
    if activation == "Clip":
        return not parameters or parameters[0] == 0
    return activation in _FUSED_OPEN and not (
        activation == "LeakyRelu" and parameters and parameters[0] < 0
    )


def _operands(node: onnx.NodeProto) -> list[str]:
    """Return the inputs that a node computes with, without what only says how to round."""
    match node.op_type:
        case "QuantizeLinear" | "DequantizeLinear" | "QLinearSigmoid" | "Dropout":
            return [node.input[0]]
        case "QLinearMul":
            return [node.input[0], node.input[3]]
        case _:
            return list(node.input)


def _in_numbers(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a node that computes the same without rounding to integers."""
    plain = {
        "QuantizeLinear": "Identity", "DequantizeLinear": "Identity", "Dropout": "Identity",
        "QLinearSigmoid": "Sigmoid", "QLinearMul": "Mul",
    }.get(node.op_type)  # fmt: skip
    if plain is None:
        return node
    return onnx.helper.make_node(plain, _operands(node), node.output[:1])


def _after_quantisation(tensor: str, readers: Mapping[str, list[onnx.NodeProto]]) -> str | None:
    # ORT folds Conv+Relu+QuantizeLinear only while the Relu has that one reader: read the sign
    # after DequantizeLinear instead, or the production outputs would change.
    after = readers.get(tensor, [])
    if len(after) == 1 and after[0].op_type == "QuantizeLinear":
        return _dequantised(after[0].output[0], readers)
    return None


def _dequantised(tensor: str, readers: Mapping[str, list[onnx.NodeProto]]) -> str | None:
    for reader in readers.get(tensor, []):
        if reader.op_type == "DequantizeLinear":
            return str(reader.output[0])
    return None
