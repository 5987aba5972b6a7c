"""Compiling a guard into a production model: one ONNX graph, one pass.

Nothing of the original graph is touched. Added are operators that read the taps and outputs of
their own, so the production outputs stay what they were, bit for bit. N images, D rates, F rates
read, L taps, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from detector.errors import ModelError
from detector.features import FAR, LOG_FLOOR, FeatureMap
from detector.head import NO_SCORE, Head, threshold_at
from detector.model import OUTPUT_PREFIX, Production
from detector.quantised import with_unsigned_pairs
from detector.taps import Tap

__all__ = [
    "CHALLENGER_SCORE",
    "EVIDENCE",
    "IS_ADVERSARIAL",
    "LIKELIHOOD",
    "LOGITS",
    "RATES",
    "SCORE",
    "compile_guard",
    "compile_reader",
]

SCORE = f"{OUTPUT_PREFIX}score"
LIKELIHOOD = f"{OUTPUT_PREFIX}likelihood"
IS_ADVERSARIAL = f"{OUTPUT_PREFIX}is_adversarial"
EVIDENCE = f"{OUTPUT_PREFIX}evidence"
RATES = f"{OUTPUT_PREFIX}rates"
LOGITS = f"{OUTPUT_PREFIX}logits"
CHALLENGER_SCORE = f"{OUTPUT_PREFIX}challenger_score"

# HardSigmoid(x) = clip(slope * x) is the bit of x, and stays in ORT's blocked convolution layout,
# where Sign or Greater would reorder the whole tensor.
_STEP_SLOPE = 1e38
_LEVEL_SLOPE = 1e30  # times a level it must stay in the range of float32


def compile_reader(production: Production, taps: Sequence[Tap]) -> onnx.ModelProto:
    """Return the model with two more outputs: every firing rate (N, D) and the logits (N, K).

    This is what harvesting reads, so that fitting and serving see the same numbers.
    """
    graph = _Graph.over(production)
    graph.output(RATES, graph.rates(taps), TensorProto.FLOAT, ["N", sum(t.rates for t in taps)])
    graph.output(LOGITS, graph.logits(production), TensorProto.FLOAT, ["N", None])
    return graph.proto


def compile_guard(
    production: Production,
    taps: Sequence[Tap],
    head: Head,
    *,
    fpr: float,
    readings: bool = False,
    challenger: tuple[Sequence[Tap], Head] | None = None,
) -> onnx.ModelProto:
    """Return the guarded model: the production outputs plus what the guard says.

    Further outputs: `reluguard_score` and `reluguard_likelihood` float32 (N,),
    `reluguard_is_adversarial` bool (N,) at the given false-positive rate, `reluguard_evidence`
    float32 (N, L). With `readings` also what the head read, as `compile_reader` gives it. With a
    `challenger`, the taps and head of a second guard, also its `reluguard_challenger_score`
    float32 (N,): each tap, level and stride that both read is read once.

    Raises:
        ModelError: a head was made for other taps.
        SettingsError: the head can't promise so low a false-positive rate.
    """
    graph = _Graph.over(production)
    logits = graph.logits(production)
    every = graph.rates(taps)
    x, score = graph.head(taps, head, every, logits)
    graph.output(SCORE, score, TensorProto.FLOAT, ["N"])
    logit = graph.add("Mul", score, graph.constant(np.float32(head.slope)))
    logit = graph.add("Add", logit, graph.constant(np.float32(head.intercept)))
    graph.output(LIKELIHOOD, graph.add("Sigmoid", logit), TensorProto.FLOAT, ["N"])
    limit = graph.constant(np.float32(threshold_at(fpr, head.clean_scores)))
    graph.output(IS_ADVERSARIAL, graph.add("Greater", score, limit), TensorProto.BOOL, ["N"])
    by_tap = head.features.feature_taps[:, None] == np.arange(len(taps))
    shares = (head.evidence_weights[:, None] * by_tap).astype(np.float32)
    evidence = graph.instead_of_nan(graph.gemm(x, shares, head.evidence_bias), 0)
    graph.output(EVIDENCE, evidence, TensorProto.FLOAT, ["N", len(taps)])
    if readings:
        graph.output(RATES, every, TensorProto.FLOAT, ["N", sum(tap.rates for tap in taps)])
        graph.output(LOGITS, logits, TensorProto.FLOAT, ["N", None])
    if challenger is not None:
        theirs, other = challenger
        _, second = graph.head(theirs, other, graph.rates(theirs), logits)
        graph.output(CHALLENGER_SCORE, second, TensorProto.FLOAT, ["N"])
    return graph.proto


@dataclass(slots=True)
class _Graph:
    """A model being added to. Methods return the name of the tensor they made.

    What was added before, the same operator on the same tensors, is not added again.
    """

    proto: onnx.ModelProto
    opset: int
    _made: int = field(default=0)
    _known: dict[tuple[Any, ...], str] = field(default_factory=dict)

    @classmethod
    def over(cls, production: Production) -> "_Graph":
        proto = onnx.ModelProto()
        proto.CopyFrom(production.proto)
        with_unsigned_pairs(proto)
        return cls(proto, production.opset)

    def _name(self, kind: str) -> str:
        self._made += 1
        return f"reluguard/{kind}_{self._made}"

    def constant(self, value: NDArray[Any] | np.float32) -> str:
        array = np.asarray(value)
        key = ("constant", array.dtype.str, array.shape, array.tobytes())
        if key in self._known:
            return self._known[key]
        name = self._known[key] = self._name("constant")
        self.proto.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        key = (op, inputs, repr(sorted(attributes.items())))
        if key in self._known:
            return self._known[key]
        name = self._known[key] = self._name(op)
        self.proto.graph.node.append(
            helper.make_node(op, list(inputs), [name], name=name, **attributes)
        )
        return name

    def gemm(self, x: str, weights: NDArray[np.float32], bias: NDArray[np.float32]) -> str:
        return self.add("Gemm", x, self.constant(weights), self.constant(bias))

    def instead_of_nan(self, x: str, value: float) -> str:
        return self.add("Where", self.add("IsNaN", x), self.constant(np.float32(value)), x)

    def reduce(self, op: str, x: str, axes: list[int], *, keepdims: int) -> str:
        # ONNX moved the axes from attribute to input, ReduceSum five versions before the others.
        if self.opset >= (13 if op == "ReduceSum" else 18):
            return self.add(op, x, self.constant(np.array(axes)), keepdims=keepdims)
        return self.add(op, x, axes=axes, keepdims=keepdims)

    def output(self, name: str, tensor: str, kind: int, shape: list[Any]) -> None:
        self.proto.graph.node.append(helper.make_node("Identity", [tensor], [name], name=name))
        self.proto.graph.output.append(helper.make_tensor_value_info(name, kind, shape))

    def logits(self, production: Production) -> str:
        return self.add("Cast", production.logits, to=TensorProto.FLOAT)

    def rates(self, taps: Sequence[Tap]) -> str:
        """Every tap's firing rates side by side: float32, (N, D)."""
        parts = [rates for tap in taps for rates in self._tap_rates(tap)]
        return self.add("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]

    def _tap_rates(self, tap: Tap) -> list[str]:
        value = tap.name
        if tap.dtype != "float32":
            value = self.add("Cast", value, to=TensorProto.FLOAT)
        if tap.dtype == "int8":
            value = self.add("Add", value, self.constant(np.float32(128)))
        if tap.stride > 1:
            # a pool of one pixel skips rows and columns without leaving the blocked layout
            value = self.add("MaxPool", value, kernel_shape=[1, 1], strides=[tap.stride] * 2)
        parts = [self._firing(value, tap, alpha=_STEP_SLOPE, beta=0.0)]
        if tap.level > 0:
            beta = -tap.level * _LEVEL_SLOPE
            parts.append(self._firing(value, tap, alpha=_LEVEL_SLOPE, beta=beta))
        return parts

    def _firing(self, value: str, tap: Tap, *, alpha: float, beta: float) -> str:
        """The share of values above a threshold, per channel: float32, (N, C)."""
        bits = self.add("HardSigmoid", value, alpha=alpha, beta=beta)
        rank = len(tap.shape)
        if rank == 1:
            return bits
        if tap.channel_axis == 0:
            if tap.bits == tap.channels:
                return self.add("Flatten", bits, axis=1)
            return self.add("Flatten", self.add("GlobalAveragePool", bits), axis=1)
        return self.reduce("ReduceMean", bits, list(range(1, rank)), keepdims=0)

    def head(self, taps: Sequence[Tap], head: Head, every: str, logits: str) -> tuple[str, str]:
        """The features a head reads, (N, X), and its score, (N,). Mirrors Head.score."""
        rates = sum(tap.rates for tap in taps)
        if head.features.taps != len(taps) or head.features.columns.max(initial=-1) >= rates:
            raise ModelError(
                f"expected a head for {len(taps)} taps of {rates} rates, "
                f"got one for {head.features.taps} taps up to rate {head.features.columns.max()}"
            )
        read = every
        if not np.array_equal(head.features.columns, np.arange(rates)):
            read = self.add("Gather", every, self.constant(head.features.columns), axis=1)
        x = score = self.features(head.features, read, logits)
        for i, (w, b) in enumerate(zip(head.weights, head.biases, strict=True)):
            score = self.add("Relu", score) if i else score
            score = self.gemm(score, w, b)
        score = self.add("Reshape", score, self.constant(np.array([-1])))
        return x, self.instead_of_nan(score, NO_SCORE)

    def features(self, f: FeatureMap, rates: str, logits: str) -> str:
        """Standardised features: float32, (N, X). Mirrors FeatureMap.transform."""
        top, second = self._two_largest(logits)
        probability = self.add("Softmax", logits, axis=1)
        parts = [rates, *self._confidence(logits, probability, top, second)]
        if f.classes:
            answer, runner_up = (
                self.add("Cast", self.add("Equal", logits, value), to=TensorProto.FLOAT)
                for value in (top, second)
            )
            parts += [answer, runner_up, probability]
            parts += self._evidence(f, rates, (answer, runner_up, probability))
        x = self.add("Concat", *parts, axis=1)
        x = self.add("Sub", x, self.constant(f.center))
        x = self.add("Div", x, self.constant(f.spread))
        low, high = self.constant(np.float32(-f.limit)), self.constant(np.float32(f.limit))
        return self.add("Clip", x, low, high)

    def _two_largest(self, logits: str) -> tuple[str, str]:
        """The largest and second largest logit, each (N, 1)."""
        key = ("TopK", logits)
        if key not in self._known:
            largest = self._known[key] = self._name("TopK")
            two = self.constant(np.array([2]))
            node = helper.make_node("TopK", [logits, two], [largest, f"{largest}_at"], name=largest)
            self.proto.graph.node.append(node)
        largest = self._known[key]
        first, second = (
            self.add("Gather", largest, self.constant(np.array([i])), axis=1) for i in range(2)
        )
        return first, second

    def _confidence(self, logits: str, probability: str, top: str, second: str) -> list[str]:
        energy = self.reduce("ReduceLogSumExp", logits, [1], keepdims=1)
        weighted = self.add("Mul", probability, logits)
        expected = self.reduce("ReduceSum", weighted, [1], keepdims=1)
        return [
            self.add("Sub", top, energy),
            self.add("Sub", top, second),
            top,
            energy,
            self.add("Sub", energy, expected),
        ]

    def _evidence(self, f: FeatureMap, rates: str, classes: tuple[str, str, str]) -> list[str]:
        shape = self.constant(np.array([-1, f.probes, f.classes]))
        s = self.add("Reshape", self.gemm(rates, f.probe_weights, f.probe_bias), shape)
        total = self.reduce("ReduceLogSumExp", s, [2], keepdims=1)
        floor = self.constant(np.float32(LOG_FLOOR))
        log_q = self.add("Max", self.add("Sub", s, total), floor)
        q = self.add("Exp", log_q)
        # (N, G, K) x (N, K, 1): what each probe gives to one class of each image
        column = self.constant(np.array([-1, f.classes, 1]))
        row = self.constant(np.array([-1, 1, f.classes]))
        flat = self.constant(np.array([-1, f.probes]))
        given = [
            self.add("Reshape", self.add("MatMul", x, self.add("Reshape", y, column)), flat)
            for x, y in zip((log_q, log_q, q), classes, strict=True)
        ]
        far = self.add("Mul", self.add("Reshape", classes[0], row), self.constant(np.float32(FAR)))
        other = self.reduce("ReduceMax", self.add("Sub", log_q, far), [2], keepdims=0)
        surprise = self.reduce("ReduceSum", self.add("Mul", q, log_q), [2], keepdims=0)
        every = self.constant(np.array([-1, f.probes * f.classes]))
        return [
            given[0],
            given[1],
            self.add("Sub", given[0], other),
            self.add("Neg", surprise),
            given[2],
            self.add("Reshape", log_q, every),
        ]
