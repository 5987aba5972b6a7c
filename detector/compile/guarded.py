"""Compiling a guard into a production model: one ONNX graph, one pass.

Nothing of the original graph is touched. Added are operators that read the taps and outputs of
their own, so the production outputs stay what they were, bit for bit. N images, D rates, F rates
read, L taps, K classes.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from reluguard.detector.compile.graph import Graph
from reluguard.detector.compile.reading import Rates, add_rates
from reluguard.detector.compile.scoring import (
    Features,
    Judgement,
    add_confidence,
    add_features,
    add_judgement,
)
from reluguard.detector.errors import ModelError
from reluguard.detector.head import Head
from reluguard.detector.model import OUTPUT_PREFIX, Production
from reluguard.detector.taps import Tap

__all__ = [
    "CHALLENGER_SCORE",
    "EVIDENCE",
    "FEATURES",
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
FEATURES = f"{OUTPUT_PREFIX}features"
CHALLENGER_SCORE = f"{OUTPUT_PREFIX}challenger_score"


def compile_reader(production: Production, taps: Sequence[Tap]) -> onnx.ModelProto:
    """Return the model with two more outputs: every firing rate (N, D) and the logits (N, K).

    This is what harvesting reads, so that fitting and serving see the same numbers. Without taps
    there are no rates, and one more output.
    """
    graph = Graph.over(production)
    if taps:
        rates = add_rates(graph, taps)
        graph.output(RATES, rates.in_order(graph), TensorProto.FLOAT, ["N", len(rates.places)])
    graph.output(LOGITS, graph.logits(production), TensorProto.FLOAT, ["N", None])
    return graph.finish()


def compile_guard(
    production: Production,
    taps: Sequence[Tap],
    head: Head,
    *,
    fpr: float,
    readings: bool = False,
    features: bool = False,
    challenger: tuple[Sequence[Tap], Head] | None = None,
) -> onnx.ModelProto:
    """Return the guarded model: the production outputs plus what the guard says.

    Further outputs: `reluguard_score` and `reluguard_likelihood` float32 (N,),
    `reluguard_is_adversarial` bool (N,) at the given false-positive rate, `reluguard_evidence`
    float32 (N, L). With `readings` also what the head read, as `compile_reader` gives it, and with
    `features` what it makes of that, as FeatureMap.transform does. With a `challenger`, the taps
    and head of a second guard, also its `reluguard_challenger_score` float32 (N,): what both read
    in the same way, beside the same neighbours, is read once.

    Raises:
        ModelError: a head was made for other taps.
        SettingsError: the head can't promise so low a false-positive rate.
    """
    graph = Graph.over(production)
    logits = graph.logits(production)
    for f in [head.features, *([challenger[1].features] if challenger else [])]:
        if not f.classes:
            add_confidence(graph, f, logits)
    rates = add_rates(graph, taps)
    x, judged = _add_head(graph, taps, head, rates, logits)
    limit = _add_limit(graph, head.limits(fpr), logits)
    graph.output(SCORE, judged.score, TensorProto.FLOAT, ["N"])
    graph.output(LIKELIHOOD, graph.add("Sigmoid", judged.logit), TensorProto.FLOAT, ["N"])
    adversarial = graph.add("Greater", judged.score, limit)
    graph.output(IS_ADVERSARIAL, adversarial, TensorProto.BOOL, ["N"])
    graph.output(EVIDENCE, judged.evidence, TensorProto.FLOAT, ["N", len(taps)])
    if readings:
        graph.output(RATES, rates.in_order(graph), TensorProto.FLOAT, ["N", len(rates.places)])
        graph.output(LOGITS, logits, TensorProto.FLOAT, ["N", None])
    if features:
        in_order = graph.add("Gather", x.tensor, graph.constant(x.places), axis=1)
        graph.output(FEATURES, in_order, TensorProto.FLOAT, ["N", head.features.width])
    if challenger is not None:
        theirs, other = challenger
        _, second = _add_head(graph, theirs, other, add_rates(graph, theirs), logits)
        graph.output(CHALLENGER_SCORE, second.score, TensorProto.FLOAT, ["N"])
    return graph.finish()


def _add_limit(graph: Graph, limits: NDArray[np.float32], logits: str) -> str:
    """Add the score that each row is flagged above: one number, or that of the class it answers."""
    if len(limits) == 1:
        return graph.constant(limits[0])
    answer = graph.add("ArgMax", logits, axis=1, keepdims=0)
    return graph.add("Gather", graph.constant(limits), answer, axis=0)


def _add_head(
    graph: Graph, taps: Sequence[Tap], head: Head, rates: Rates, logits: str
) -> tuple[Features, Judgement]:
    count = len(rates.places)
    if head.features.taps != len(taps) or head.features.columns.max(initial=-1) >= count:
        raise ModelError(
            f"expected a head for {len(taps)} taps of {count} rates, "
            f"got one for {head.features.taps} taps up to rate {head.features.columns.max()}"
        )
    x = add_features(graph, head.features, rates, logits)
    return x, add_judgement(graph, head, x)
