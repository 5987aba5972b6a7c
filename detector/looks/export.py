"""A guard that looks twice as one ONNX file. N images, M of them to be looked at again.

The second look is the branch of an `If`: it runs only where some row is suspicious, on those rows
alone. Its network is a second copy of the operators; where the model itself looks again, weights
are those of the first look, so the file is hardly larger.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from reluguard.detector.compile.graph import bodies
from reluguard.detector.compile.guarded import IS_ADVERSARIAL, LIKELIHOOD, LOGITS, RATES, SCORE
from reluguard.detector.errors import ModelError
from reluguard.detector.head import NO_SCORE
from reluguard.detector.looks.again import LookAgain
from reluguard.detector.looks.graph import FIRST_LOGITS, FIRST_RATES, SECOND_SCORE
from reluguard.detector.model import OUTPUT_PREFIX

__all__ = ["FIRST_SCORE", "LOOK", "defined_names", "export_twice", "join_opsets", "rename"]

LOOK = f"{OUTPUT_PREFIX}look"
FIRST_SCORE = f"{OUTPUT_PREFIX}first_score"
AGAIN = f"{OUTPUT_PREFIX.rstrip('_')}/again/"  # what names of the second look begin with


@dataclass(slots=True)
class _Nodes:
    """Operators being added; methods return the name of the tensor they made."""

    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{self.prefix}{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        name = f"{self.prefix}constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def by_class(self, values: NDArray[np.float32]) -> str:
        """Add a value of (K,) for the class that each row answers; of one alone, a constant."""
        if len(values) == 1:
            return self.constant(values[0])
        answer = self.add("ArgMax", LOGITS, axis=1, keepdims=0)
        return self.add("Gather", self.constant(values), answer, axis=0)

    def named(self, name: str, tensor: str) -> None:
        self.nodes.append(helper.make_node("Identity", [tensor], [name], name=name))


def export_twice(
    guarded: onnx.ModelProto, again: LookAgain, image: str, batch: int | None, fpr: float
) -> onnx.ModelProto:
    """Return one model of both looks.

    Outputs are those of the guarded model, but score, likelihood and is_adversarial are those of
    the look that decided; and `reluguard_look` uint8 (N,), 2 where a second look was taken, and
    `reluguard_first_score` float32 (N,).

    Args:
        guarded: the first look, with what its head read among its outputs.
        again: the second look.
        image: the production model's input.
        batch: the batch it fixes, None where it is free.
        fpr: false-positive rate of is_adversarial.

    Raises:
        ModelError: the model takes batches of a fixed size above 1, or the other network is of
            another opset than the model.
    """
    if batch not in {None, 1}:
        raise ModelError(
            f"expected a model of any batch to look again inside one file, this takes {batch} "
            "images at a time: export the first look alone, with looks first"
        )
    model = onnx.ModelProto()
    model.CopyFrom(guarded)
    join_opsets(model, again.compiled)
    graph = model.graph
    own = {name: f"{AGAIN}first/{name}" for name in (SCORE, LIKELIHOOD, IS_ADVERSARIAL)}
    rename(graph, own)
    made = _Nodes(f"{AGAIN}joint/")
    first = own[SCORE]
    scored = made.add("Less", first, made.constant(np.float32(NO_SCORE)))
    bound = np.float32(again.order.bound)
    looked = made.add("And", made.add("Greater", first, made.constant(bound)), scored)
    most = made.add("ReduceMax", made.add("Cast", looked, to=TensorProto.INT32), keepdims=0)
    some = made.add("Greater", most, made.constant(np.int32(0)))
    rows = made.add("Reshape", made.add("NonZero", looked), made.constant(np.array([-1])))
    score = f"{AGAIN}score"
    made.nodes.append(
        helper.make_node(
            "If",
            [some],
            [score],
            name=f"{AGAIN}If",
            then_branch=_looks(graph, again.compiled, image, first, rows),
            else_branch=_looks_not(first),
        )
    )
    slope, intercept = (np.float32(value) for value in again.second.logistic(again.looks))
    odds = made.add("Add", made.add("Mul", score, made.constant(slope)), made.constant(intercept))
    likelihood = made.add("Where", looked, made.add("Sigmoid", odds), own[LIKELIHOOD])
    calm, high = (made.by_class(cut) for cut in again.second.cuts(again.looks, fpr))
    above = made.add("Greater", score, high)
    below = made.add("Greater", first, calm)
    calmly = made.add("Or", below, made.add("Not", scored))
    once = made.add("And", made.add("Not", looked), calmly)
    flagged = made.add("Or", made.add("And", looked, above), once)
    look = made.add("Where", looked, made.constant(np.uint8(2)), made.constant(np.uint8(1)))
    outputs = {
        SCORE: (score, TensorProto.FLOAT),
        LIKELIHOOD: (likelihood, TensorProto.FLOAT),
        IS_ADVERSARIAL: (flagged, TensorProto.BOOL),
        LOOK: (look, TensorProto.UINT8),
        FIRST_SCORE: (first, TensorProto.FLOAT),
    }
    kept = [v for v in graph.output if v.name not in {*own.values(), RATES, LOGITS}]
    del graph.output[:]
    graph.output.extend(kept)
    for name, (tensor, kind) in outputs.items():
        made.named(name, tensor)
        graph.output.append(helper.make_tensor_value_info(name, kind, ["N"]))
    graph.node.extend(made.nodes)
    graph.initializer.extend(made.weights)
    return model


def join_opsets(model: onnx.ModelProto, other: onnx.ModelProto) -> None:
    """Let a model hold operators of another's as well.

    Raises:
        ModelError: a domain is of two versions.
    """
    known = {item.domain: item.version for item in model.opset_import}
    for item in other.opset_import:
        if known.setdefault(item.domain, item.version) != item.version:
            raise ModelError(
                f"expected the other network in opset {known[item.domain]} as the model, to be "
                f"written into one file, it is in {item.version}: convert one of them, or export "
                "the first look alone, with looks first"
            )
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*item) for item in known.items())
    model.ir_version = max(model.ir_version, other.ir_version)


def _looks(
    outer: onnx.GraphProto, second: onnx.ModelProto, image: str, first: str, rows: str
) -> onnx.GraphProto:
    """Return the branch that looks: the scores of all rows, those looked at by the second."""
    graph = onnx.GraphProto()
    graph.CopyFrom(second.graph)
    there = {item.name: item for item in outer.initializer}
    shared = {
        item.name
        for item in graph.initializer
        if item.name in there and item.SerializeToString() == there[item.name].SerializeToString()
    }
    names = defined_names(graph) - shared
    made = _Nodes(f"{AGAIN}taken/")
    fed = {name: name for name in shared}
    given = {FIRST_RATES: RATES, FIRST_LOGITS: LOGITS}
    for value in graph.input:
        if value.name not in {item.name for item in graph.initializer}:
            fed[value.name] = made.add("Gather", given.get(value.name, image), rows, axis=0)
    rename(graph, {name: f"{AGAIN}{name}" for name in names} | fed)
    result = made.add("ScatterElements", first, rows, f"{AGAIN}{SECOND_SCORE}", axis=0)
    own = [item for item in graph.initializer if item.name not in shared]
    taken = made.nodes[:-1]
    return helper.make_graph(
        [*taken, *graph.node, made.nodes[-1]],
        "second_look",
        [],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, ["N"])],
        own,
    )


def _looks_not(first: str) -> onnx.GraphProto:
    """Return the branch where nothing is suspicious: the first scores."""
    name = f"{AGAIN}unchanged"
    return helper.make_graph(
        [helper.make_node("Identity", [first], [name], name=name)],
        "no_second_look",
        [],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"])],
    )


def defined_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of all tensors that a graph and the bodies of its nodes make."""
    names = {item.name for item in graph.initializer} | {value.name for value in graph.input}
    for node in graph.node:
        names.update(name for name in node.output if name)
        for body in bodies(node):
            names |= defined_names(body)
    return names


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give tensors other names, in place; operators are named by their first output."""
    for item in graph.initializer:
        item.name = names.get(item.name, item.name)
    for value in (*graph.value_info, *graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for tensors in (node.input, node.output):
            for i, tensor in enumerate(tensors):
                tensors[i] = names.get(tensor, tensor)
        if node.output and node.output[0] in names.values():
            node.name = node.output[0]
        for body in bodies(node):
            rename(body, names)
