"""Whether a twin is the model: its scores, its answers and its gradient. N images, K classes.

Scores in float32 must be those of the model but for the last digits. Where the model itself rounds,
to 16-bit floats or to 8-bit whole numbers, a value that lies between two steps falls to one side in
ONNX Runtime and to the other in torch, and what follows carries that on: no tolerance of the last
digits can hold, even of ONNX Runtime with and without its own rewriting of the graph. There a twin
is judged by what rounding can't do: errors of one class in the same direction on all images, errors
that are large beside how far the classes lie apart, other answers where the model is sure. A deep
network may carry one step on until the answer is another, so up to a tenth of the images don't
count where they are far off and the rest are not, and up to .3 where the scores of half of the
images are the model's own to the last digits, which no other network's are; and where ONNX Runtime
itself differs with and without its rewriting, so may the twin, a few times more.

Measured, in shares of that distance (root mean square, largest, largest mean of a class): ResNet-20
in 8 bits .001 to .005, .012 to .035, .0002 to .001; EfficientNet-Lite0 in 8 bits .001 to .008, .02
to .035, .001 to .005; ResNet-20 in float16 .0004, .003, .0001. A unit below is .004 and .0005.
MobileNetV3 of random weights in 8 bits .053, .43, .017, where ONNX Runtime's two ways are .022,
.24 and .010 apart; with integer operators the twin's every value is the model's, but for one image
of 8 to 32, where one sum in 15,360 lies just between two steps and the scores become others
altogether.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

__all__ = ["Difference", "difference", "unit_of"]

Scores = NDArray[np.float32]

_WHOLE = ("QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")
_UNITS: dict[int, float] = {TensorProto.FLOAT16: 2.0**-11, TensorProto.BFLOAT16: 2.0**-8}
_WHOLE_UNIT = 2.0**-8
# what is measured: how many units of it are allowed
_PARTS = ((4, "on average"), (24, "at most"), (3, "for one class on all images"))
_COUNTED = 0.9  # of the images, where the others are far off; as many have the model's answer
_EXACT = 1e-4  # of the distance between classes: no step fell to another side
_COUNTED_OF_EXACT = 0.7  # of the images, where half of them are exact
_FAR = 8  # times farther off than the middle one
_OWN = 4  # times the model's own difference
_TINY = np.float32(1e-30)


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a twin's scores are from the model's, and what was allowed."""

    size: float
    allowed: float
    what: str

    @property
    def is_small(self) -> bool:
        """Whether that is what arithmetic can do, and no other network."""
        return self.size <= self.allowed


def unit_of(proto: onnx.ModelProto) -> float:
    """Return how large a step of the model's own rounding is, as a share; 0 for float32.

    Weights that are kept in fewer bits and turned to float32 before anything is done with them
    don't count: there the arithmetic is of float32.
    """
    units = [0.0]
    nodes = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    kept = {item.name: item.data_type for item in proto.graph.initializer}
    for node in nodes:
        if node.op_type in _WHOLE or node.op_type.startswith(("QLinear", "QGemm", "DynamicQuant")):
            units.append(_WHOLE_UNIT)
        if node.op_type == "Cast":
            units += [_UNITS.get(a.i, 0.0) for a in node.attribute if a.name == "to"]
        elif node.op_type != "DequantizeLinear":
            units += [_UNITS.get(kept.get(name, 0), 0.0) for name in node.input]
    return max(units)


def difference(
    found: Scores,
    wanted: Scores,
    *,
    unit: float,
    tolerance: float,
    ending: str = "",
    unoptimised: Scores | None = None,
) -> Difference:
    """Return how far scores are from those wanted, by the reading that fits best.

    Args:
        found: the twin's, (N, K).
        wanted: the model's before any softmax, (N, K).
        unit: of the model's own rounding, 0 for float32.
        tolerance: largest difference, as a share of the largest score.
        ending: what the model makes of its scores last: a lent twin may do that too.
        unoptimised: the model's before any softmax without ONNX Runtime's rewriting, (N, K), where
            it rounds.
    """
    own = np.zeros(len(_PARTS))
    if unit and unoptimised is not None:
        own = np.array(_measured(unoptimised, wanted))
    pairs = [(found, wanted), *_ended(found, wanted, ending)]
    judged = [_judge(a, b, unit, tolerance, own) for a, b in pairs]
    return min(judged, key=lambda one: one.size / one.allowed)


def _judge(
    found: Scores, wanted: Scores, unit: float, tolerance: float, own: NDArray[np.float64]
) -> Difference:
    errors = found.astype(np.float64) - wanted
    if not np.isfinite(errors).all():
        return Difference(np.inf, tolerance, "a difference")
    if not unit:
        scale = max(float(np.abs(wanted).max()), 1e-6)
        return Difference(float(np.abs(errors).max()) / scale, tolerance, "of its largest score")
    same = found.argmax(axis=1) == wanted.argmax(axis=1)
    counted = _counted(np.abs(errors).max(axis=1), _spread(wanted))
    parts = [
        Difference(
            size,
            max(units * unit, tolerance, _OWN * float(known)),
            f"{where} of the distance between its classes, as rounding can do",
        )
        for size, known, (units, where) in zip(_measured(found, wanted), own, _PARTS, strict=True)
    ]
    parts.append(Difference(float(1 - same.mean()), 1 - counted, "of its answers"))
    return max(parts, key=lambda part: part.size / part.allowed)


def _measured(found: Scores, wanted: Scores) -> tuple[float, float, float]:
    """Return how large errors are on average, at most and for one class, as shares of the spread.

    A few images that are far off, where the rest are not, don't count.
    """
    errors = found.astype(np.float64) - wanted
    spread = _spread(wanted)
    farthest = np.abs(errors).max(axis=1)
    order = farthest.argsort(kind="stable")
    fine = farthest[order] <= _FAR * np.median(farthest)
    fine[: int(np.ceil(_counted(farthest, spread) * len(order)))] = True
    kept = errors[order[fine]]
    sizes = np.sqrt(np.square(kept).mean()), np.abs(kept).max(), np.abs(kept.mean(axis=0)).max()
    average, largest, mean = (float(size) / spread for size in sizes)
    return average, largest, mean


def _spread(wanted: Scores) -> float:
    """Return how far the classes lie apart on the middle image."""
    return max(float(np.median(wanted.max(axis=1) - wanted.mean(axis=1))), 1e-6)


def _counted(farthest: NDArray[np.float64], spread: float) -> float:
    """Return the share of the images that always counts: less where half of them are exact."""
    is_exact = np.median(farthest) <= _EXACT * spread
    return _COUNTED_OF_EXACT if is_exact else _COUNTED


def _ended(found: Scores, wanted: Scores, ending: str) -> Iterator[tuple[Scores, Scores]]:
    """Yield what a twin that ends as the model does, or one of shifted scores, is compared by."""
    if not ending:
        return
    if ending == "sigmoid":
        reached, aim = (_sigmoid(scores) for scores in (found, wanted))
    else:
        reached, aim = (_softmax(scores) for scores in (found, wanted))
    yield from ((reached, aim), (found, aim), (found, np.log(np.maximum(aim, _TINY))))


def _sigmoid(scores: Scores) -> Scores:
    return ((1 + np.tanh(scores / 2)) / 2).astype(np.float32)


def _softmax(scores: Scores) -> Scores:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: Scores = powers / powers.sum(axis=1, keepdims=True)
    return shares
