"""A head in the graph: features, score and evidence. Mirrors FeatureMap.transform and Head.score.

N images, D rates there, F rates read, X features, L taps, K classes, G probes, M = 2 G + 4, a code
of R numbers.

On tensors as small as these an operator costs more than what it computes, so there are few. The
log-probabilities P of the probes and of the network itself are G + 1 rows of K classes; with Q,
their exponentials, and A, the one-hot answer and runner-up, they make one matrix B, (M, K), whose
product with itself holds every sum over classes that features are made of: P A is what a probe
gives to the answer, -P Q the entropies, Q Q the agreement with the network. One more product picks,
subtracts and standardises them. So features stand in another order than in FeatureMap, and some
numbers beside them are read by nobody.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from reluguard.detector.compile.graph import Graph
from reluguard.detector.compile.reading import Rates
from reluguard.detector.features import (
    CONFIDENCE,
    EVIDENCE,
    FAR,
    IDENTITY,
    LOG_FLOOR,
    FeatureMap,
    Floats,
)
from reluguard.detector.head import NO_SCORE, Head

__all__ = ["Features", "Judgement", "add_confidence", "add_features", "add_judgement"]

MOST = 0.75  # from this share of the rates on, all are read: cheaper than picking


@dataclass(frozen=True, slots=True)
class Features:
    """Standardised features in a graph.

    Attributes:
        tensor: float32, (N, W).
        width: W, X or more.
        places: int64, (X,). Where each feature of the FeatureMap lies.
    """

    tensor: str
    width: int
    places: NDArray[np.int64]

    def spread(self, weights: Floats) -> Floats:
        """Return weights of the X features as weights of the tensor: (W, ...) of (X, ...)."""
        return _spread(weights, self.places, self.width)


@dataclass(frozen=True, slots=True)
class Judgement:
    """Names of a head's score (N,), its likelihood's log-odds (N,) and the evidence (N, L)."""

    score: str
    logit: str
    evidence: str


def add_features(graph: Graph, f: FeatureMap, rates: Rates, logits: str) -> Features:
    """Add the features of all rates, (N, D), and logits, (N, K), cut to the map's limits."""
    if len(f.columns) >= MOST * rates.width:
        read, width, at = rates.tensor, rates.width, rates.places[f.columns]
    else:
        read, width, at = rates.take(graph, f.columns), len(f.columns), np.arange(len(f.columns))
    first = len(f.columns) + np.arange(len(CONFIDENCE))
    if not f.classes:
        small = add_confidence(graph, f, logits)
        parts, places = [read, small], [at, width + np.arange(len(CONFIDENCE))]
        width += len(CONFIDENCE)
    else:
        found = graph.gemm(read, _spread(f.probe_weights, at, width), f.probe_bias)
        evidence = np.arange(len(EVIDENCE) * f.probes)
        outputs = np.arange(f.probes * f.outputs)
        identity = f.code.shape[1] or len(IDENTITY) * f.classes
        summed = np.concatenate([first, first[-1] + 1 + identity + evidence])
        if f.code.size:
            code = graph.constant(f.code)
            own = graph.add("MatMul", logits, code)
            each = graph.reshape(found, -1, f.outputs)
            s = graph.reshape(graph.add("Gemm", each, code, transB=1), -1, f.probes * f.classes)
            b, raw, mix = _compared(graph, f, s, logits)
            parts, last = [read, own, found], width + identity + len(outputs)
            known = width + np.arange(identity)
            outputs += width + identity
        else:
            b, raw, mix = _compared(graph, f, found, logits)
            parts = [read, graph.reshape(b, -1, (2 * f.probes + 4) * f.classes)]
            last = width + (2 * f.probes + 4) * f.classes
            rows = np.array([0, 1, 2 + f.probes])
            known = width + (rows[:, None] * f.classes + np.arange(f.classes)).reshape(-1)
            outputs += width + (3 + f.probes) * f.classes
        parts.append(_standardised(graph, f, summed, raw, mix))
        places = [
            at,
            last + np.arange(len(CONFIDENCE)),
            known,
            last + len(CONFIDENCE) + evidence,
            outputs,
        ]
        width = last + len(summed)
        first = summed
    where = np.concatenate(places)
    center, scale = f.center.copy(), (1 / f.spread).astype(np.float32)
    center[first], scale[first] = 0, 1  # standardised already
    x = graph.add("Sub", graph.concat(*parts), graph.constant(_spread(center, where, width)))
    x = graph.add("Mul", x, graph.constant(_spread(scale, where, width)))
    low, high = graph.constant(np.float32(-f.limit)), graph.constant(np.float32(f.limit))
    return Features(graph.add("Clip", x, low, high), width, where)


def add_confidence(graph: Graph, f: FeatureMap, logits: str) -> str:
    """Add the confidence features of a map without classes, standardised: float32, (N, 5).

    To be called before the taps are read: of what a join waits for, ONNX Runtime begins with what
    was added last, and should this come first, every tap would be kept until the logits are there.
    """
    own = len(f.columns) + np.arange(len(CONFIDENCE))
    return _standardised(graph, f, own, *_unsure(graph, logits))


def add_judgement(graph: Graph, head: Head, x: Features) -> Judgement:
    """Add what the head says, all of it float32.

    Where that is not a number, the score is NO_SCORE and the evidence 0.
    """
    taps = head.features.taps
    by_tap = head.features.feature_taps[:, None] == np.arange(taps)
    shares = (head.evidence_weights[:, None] * by_tap).astype(np.float32)
    slope, intercept = np.float32(head.slope), np.float32(head.intercept)
    w, b = head.weights[-1], head.biases[-1]
    last = np.concatenate([w, slope * w], axis=1)
    bias = np.concatenate([b, slope * b + intercept])
    y = x.tensor
    if len(head.weights) == 1:
        last, bias = np.concatenate([last, shares], axis=1), np.append(bias, head.evidence_bias)
        last = x.spread(last)
    else:
        # evidence goes through the layers in two halves: a number is relu(it) - relu(-it)
        first = np.concatenate([head.weights[0], shares, -shares], axis=1)
        b = np.concatenate([head.biases[0], head.evidence_bias, -head.evidence_bias])
        y = graph.add("Relu", graph.gemm(y, x.spread(first), b))
        for w, b in zip(head.weights[1:-1], head.biases[1:-1], strict=True):
            y = graph.add("Relu", graph.gemm(y, _beside(w, np.eye(2 * taps)), _padded(b, 2 * taps)))
        halves = np.concatenate([np.eye(taps), -np.eye(taps)])
        last, bias = _beside(last, halves), _padded(bias, taps)
    y = graph.gemm(y, last.astype(np.float32), bias.astype(np.float32))
    none = np.zeros(2 + taps, np.float32)
    none[:2] = NO_SCORE, slope * NO_SCORE + intercept
    y = graph.instead_of_nan(y, none)
    score, logit = (graph.add("Gather", y, graph.constant(np.array(i)), axis=1) for i in range(2))
    return Judgement(score, logit, graph.slice(y, 2, 2 + taps, axis=1))


def _beside(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Return the block diagonal of two matrices."""
    blocks = np.zeros((a.shape[0] + b.shape[0], a.shape[1] + b.shape[1]), np.float32)
    blocks[: a.shape[0], : a.shape[1]] = a
    blocks[a.shape[0] :, a.shape[1] :] = b
    return blocks


def _padded(bias: NDArray[Any], zeros: int) -> NDArray[Any]:
    return np.append(bias, np.zeros(zeros, np.float32))


def _spread(values: NDArray[Any], places: NDArray[np.int64], width: int) -> Floats:
    wide = np.zeros((width, *values.shape[1:]), np.float32)
    wide[places] = values
    return wide


def _standardised(
    graph: Graph, f: FeatureMap, own: NDArray[np.int64], raw: str, mix: NDArray[np.float64]
) -> str:
    """Add features that are sums of raw numbers, (N, S), S each of `mix`, (S, len(own))."""
    scale = 1 / f.spread[own].astype(np.float64)
    bias = -f.center[own].astype(np.float64) * scale
    return graph.gemm(raw, (mix * scale).astype(np.float32), bias.astype(np.float32))


def _two_largest(graph: Graph, logits: str) -> str:
    """Add the largest and second largest logit: (N, 2)."""
    return graph.add("TopK", logits, graph.constant(np.array([2])), outputs=2, axis=1)


def _unsure(graph: Graph, logits: str) -> tuple[str, NDArray[np.float64]]:
    """Add what the confidence features are sums of; return it and how: (N, S) and (S, 5)."""
    p = graph.add("LogSoftmax", logits, axis=1)
    peak = graph.reduce("ReduceMax", p, [1], keepdims=1)
    surprise = graph.reduce("ReduceSum", graph.add("Mul", p, graph.add("Exp", p)), [1], keepdims=1)
    raw = graph.concat(_two_largest(graph, logits), peak, surprise)
    return raw, _confidence_mix(4, top=0, second=1, peak=2, surprise=3)


def _confidence_mix(
    rows: int, *, top: int, second: int, peak: int, surprise: int
) -> NDArray[np.float64]:
    mix = np.zeros((rows, len(CONFIDENCE)))
    log_top, margin, largest, energy, entropy = range(len(CONFIDENCE))
    mix[peak, log_top] = 1
    mix[[top, second], margin] = 1, -1
    mix[top, largest] = 1
    mix[[top, peak], energy] = 1, -1
    mix[surprise, entropy] = -1
    return mix


def _compared(
    graph: Graph, f: FeatureMap, s: str, logits: str
) -> tuple[str, str, NDArray[np.float64]]:
    """Add B, and what confidence and evidence are sums of; return both and the sums.

    Args:
        graph: to add to.
        f: with classes and G probes.
        s: the probes' scores, (N, G K).
        logits: (N, K).

    Returns:
        (N, M, K); (N, S); (S, 5 + 5 G).
    """
    k, g = f.classes, f.probes
    m = 2 * g + 4
    p = graph.add("LogSoftmax", graph.reshape(graph.concat(s, logits), -1, g + 1, k), axis=2)
    p = graph.add("Max", p, graph.constant(np.float32(LOG_FLOOR)))
    q = graph.add("Exp", p)
    two = _two_largest(graph, logits)
    same = graph.add("Equal", graph.reshape(logits, -1, 1, k), graph.reshape(two, -1, 2, 1))
    a = graph.add("Cast", same, to=TensorProto.FLOAT)
    b = graph.concat(a, q, p)
    product = graph.add("MatMul", b, graph.add("Transpose", b, perm=[0, 2, 1]))
    answer = graph.slice(same, 0, 1, axis=1)
    others = graph.add("Where", answer, graph.constant(np.float32(-FAR)), p)
    raw = graph.concat(
        graph.reshape(product, -1, m * m),
        graph.reduce("ReduceMax", others, [2], keepdims=0),
        graph.reduce("ReduceMax", p, [2], keepdims=0),
        two,
    )
    q_of, p_of, other = 2 + np.arange(g + 1), 3 + g + np.arange(g + 1), m * m + np.arange(g + 1)
    rows = m * m + 2 * (g + 1) + 2
    mix = np.zeros((rows, len(CONFIDENCE) + len(EVIDENCE) * g))
    mix[:, : len(CONFIDENCE)] = _confidence_mix(
        rows, top=rows - 2, second=rows - 1, peak=rows - 3, surprise=p_of[g] * m + q_of[g]
    )
    each = np.arange(g)
    given, runner_up, lead, entropy, agreement = (
        len(CONFIDENCE) + i * g + each for i in range(len(EVIDENCE))
    )
    mix[p_of[:g] * m, given] = 1
    mix[p_of[:g] * m + 1, runner_up] = 1
    mix[p_of[:g] * m, lead] = 1
    mix[other[:g], lead] = -1
    mix[p_of[:g] * m + q_of[:g], entropy] = -1
    mix[q_of[:g] * m + q_of[g], agreement] = 1
    return b, raw, mix
