"""The second look in a graph: the network on the view, both readings side by side, a head.

N images, D and E rates of the two looks, K classes. Mirrors Joint.read.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from reluguard.detector.compile.graph import Graph
from reluguard.detector.compile.reading import Rates, add_rates
from reluguard.detector.compile.scoring import Features, add_features, add_judgement
from reluguard.detector.looks.joint import FAR, LOG_FLOOR, Joint
from reluguard.detector.looks.second import SecondLook
from reluguard.detector.model import OUTPUT_PREFIX, Production
from reluguard.detector.taps import Tap

__all__ = [
    "FIRST_LOGITS",
    "FIRST_RATES",
    "SECOND_FEATURES",
    "SECOND_SCORE",
    "compile_second",
]

FIRST_RATES = f"{OUTPUT_PREFIX}first_rates"
FIRST_LOGITS = f"{OUTPUT_PREFIX}first_logits"
SECOND_FEATURES = f"{OUTPUT_PREFIX}second_features"
SECOND_SCORE = f"{OUTPUT_PREFIX}second_score"


def compile_second(
    network: Production, second: SecondLook, first: tuple[Tap, ...], *, features: bool = False
) -> onnx.ModelProto:
    """Return the network of a second look with one more output, the second score, float32 (N,).

    Beside its own input it takes what the first look read: `reluguard_first_rates` float32 (N, D)
    and `reluguard_first_logits` float32 (N, K).

    Args:
        network: who looks, at the view: as `viewed` makes it.
        second: what is read and how it is judged.
        first: the first look's taps.
        features: whether what its head makes of them is an output too, `reluguard_second_features`
            float32 (N, X).
    """
    graph = Graph.over(network)
    del graph.proto.graph.output[:]
    width = sum(tap.rates for tap in first)
    for name, columns in ((FIRST_RATES, width), (FIRST_LOGITS, "K")):
        graph.proto.graph.input.append(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", columns])
        )
    x, score = add_second(graph, network, second, first, Given(FIRST_RATES, FIRST_LOGITS))
    graph.output(SECOND_SCORE, score, TensorProto.FLOAT, ["N"])
    if features:
        in_order = graph.add("Gather", x.tensor, graph.constant(x.places), axis=1)
        columns = second.head.features.width
        graph.output(SECOND_FEATURES, in_order, TensorProto.FLOAT, ["N", columns])
    return graph.finish()


@dataclass(frozen=True, slots=True)
class Given:
    """What the first look read: tensors of rates, (N, D) in their order, and logits, (N, K)."""

    rates: str
    logits: str


def add_second(
    graph: Graph,
    network: Production,
    second: SecondLook,
    first: tuple[Tap, ...],
    given: Given,
) -> tuple[Features, str]:
    """Add what the head reads and the second score, float32 (N,), to the network that looks."""
    joint = second.joint(first)
    logits = graph.logits(network)
    rates = add_rates(graph, second.taps)
    own = rates.in_order(graph) if joint.shared.size else rates.tensor
    places = np.arange(len(rates.places)) if joint.shared.size else rates.places
    parts = [given.rates, own, *_answers(graph, given.logits, logits)]
    if joint.shared.size:
        parts.append(_moved(graph, joint, given.rates, own))
    before = sum(tap.rates for tap in first)
    width = before + (len(rates.places) if joint.shared.size else rates.width)
    read = Rates(
        graph.concat(*parts),
        width + joint.changes,
        np.concatenate([np.arange(before), before + places, width + np.arange(joint.changes)]),
    )
    x = add_features(graph, second.head.features, read, given.logits)
    return x, add_judgement(graph, second.head, x).score


def _answers(graph: Graph, first: str, second: str) -> list[str]:
    """Add the numbers of CHANGES, each (N, 1)."""
    floor = graph.constant(LOG_FLOOR)

    def summed(x: str) -> str:
        return graph.reduce("ReduceSum", x, [1], keepdims=1)

    def largest(x: str) -> str:
        return graph.reduce("ReduceMax", x, [1], keepdims=1)

    def less(a: str, b: str) -> str:
        return graph.add("Sub", a, b)

    def times(a: str, b: str) -> str:
        return graph.add("Mul", a, b)

    p, q = (graph.add("Max", graph.add("LogSoftmax", x, axis=1), floor) for x in (first, second))
    two = graph.add("TopK", first, graph.constant(np.array([2])), outputs=2, axis=1)
    answer, runner_up = (
        graph.add(
            "Cast",
            graph.add("Equal", first, graph.slice(two, i, i + 1, axis=1)),
            to=TensorProto.FLOAT,
        )
        for i in range(2)
    )
    own = graph.add("Cast", graph.add("Equal", second, largest(second)), to=TensorProto.FLOAT)
    pp, qq = graph.add("Exp", p), graph.add("Exp", q)
    given, second_given = summed(times(q, answer)), summed(times(q, runner_up))
    far = times(answer, graph.constant(FAR))
    peak = largest(q)
    return [
        given,
        second_given,
        less(given, largest(less(q, far))),
        less(summed(times(p, answer)), given),
        less(second_given, summed(times(p, runner_up))),
        summed(graph.add("Abs", less(pp, qq))),
        summed(times(pp, less(p, q))),
        summed(times(qq, less(q, p))),
        less(graph.constant(np.float32(1)), summed(times(answer, own))),
        graph.add("Neg", summed(times(qq, q))),
        peak,
        less(largest(second), peak),
    ]


def _moved(graph: Graph, joint: Joint, first: str, second: str) -> str:
    """Add the mean absolute change of rates of each tap and level."""
    shared = joint.shared
    mean = np.zeros((len(shared), int(shared.max()) + 1), np.float32)
    mean[np.arange(len(shared)), shared] = (1 / np.bincount(shared))[shared]
    moved = graph.add("Abs", graph.add("Sub", second, first))
    return graph.add("MatMul", moved, graph.constant(mean))
