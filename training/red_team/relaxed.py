"""A guard that can be differentiated: what its attacker would build first.

The guard compiled into the model, run in torch operator by operator, so whatever the guard is made
of is mirrored by construction. Only what has no useful gradient is relaxed: bits, and the cuts at
the ends of the features' range. N images, K classes, X features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

from reluguard.detector.artifact import GuardArtifact
from reluguard.detector.compile.guarded import FEATURES, SCORE, compile_guard
from reluguard.detector.images import Images, InputSpec
from reluguard.detector.looks.judging import Looks
from reluguard.detector.model import OUTPUT_PREFIX, Production, constants
from reluguard.training.red_team.joined import TWICE_FEATURES, TWICE_SCORE, both_looks
from reluguard.training.red_team.procedure import Procedure
from reluguard.training.twin.onnx_torch import OnnxModule
from reluguard.training.twin.onnx_torch.layers import LAYERS
from reluguard.training.twin.onnx_torch.node import Node, Operator
from reluguard.training.twin.onnx_torch.pointwise import POINTWISE
from reluguard.training.twin.twin import Twin, to_pixels

__all__ = ["Reading", "RelaxedGuard"]

_OURS = OUTPUT_PREFIX.rstrip("_") + "/"
_ALL = f"{_OURS}everything"
_SAMPLE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the relaxed guard gave: logits (N, K), score (N,) and standardised features (N, X).

    Of a guard that looks twice the score is the `height` of its `Procedure`, and the features are
    those of both heads.
    """

    logits: Tensor
    score: Tensor
    features: Tensor


class RelaxedGuard:
    """A guarded model in torch with gradients through its bits.

    A bit is `z > level` with z the tensor before the ReLU. Backwards it is sigmoid((z - level) /
    tau), tau being `temperature` times the deviation of z on clean images; forwards it is the hard
    bit (straight-through), or with `soft` the sigmoid too.

    Args:
        production: the model.
        artifact: its guard.
        images: uint8, (M, H, W, C), clean, to measure the deviations on; the first 64 are used.
        looks: which procedure its score is of: "first", "suspicious" or "always". Gradients of two
            looks go through both networks, and through the view.
        other: the network that looks again, of a guard fitted with one.
        device: where it runs; by default CUDA if there is a device.

    Raises:
        TwinError: an operator of the model has no torch counterpart.
        GuardError: a second look is asked for, and the guard has none, or no network for it.
        ModelError: two networks of different opsets.

    Source: straight-through estimation, Bengio et al. 2013, arXiv 1308.3432; as an attack, Athalye
    et al. 2018, arXiv 1802.00420 (BPDA).
    """

    def __init__(
        self,
        production: Production,
        artifact: GuardArtifact,
        images: Images,
        *,
        looks: Looks = "first",
        other: Production | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        manifest = artifact.manifest
        self.procedure = Procedure.of(artifact, looks)
        features = artifact.head.features.width
        scores, read = [SCORE], [FEATURES]
        if artifact.second is None or looks == "first":
            proto = compile_guard(
                production, manifest.taps, artifact.head, fpr=manifest.fpr, features=True
            )
        else:
            proto = both_looks(production, artifact, other)
            features += artifact.second.head.features.width
            scores, read = [SCORE, TWICE_SCORE], [FEATURES, TWICE_FEATURES]
        self._open(proto, production, manifest.input, scores, read, features, images, device)

    def _open(
        self,
        proto: onnx.ModelProto,
        production: Production,
        spec: InputSpec,
        scores: Sequence[str],
        read: Sequence[str],
        features: int,
        images: Images,
        device: torch.device | str | None,
    ) -> None:
        """Run a guarded graph, which is changed in place: scores (N,) each, features (N, ·) each.

        Whoever joins guards in another graph opens that one, once `procedure` is set.
        """
        _read_before_gates(proto)
        _join_outputs(proto, production.logits, scores, read)
        operators: dict[str, Operator] = {
            "HardSigmoid": self._bit,
            "GlobalAveragePool": _average,
            "Clip": _clip,
            "Max": _max,
            "TopK": _largest,
        }
        self._temperature, self._soft = 1.0, False
        self._deviations: dict[str, float] = {}
        module = OnnxModule(proto, _ALL, operators=operators)
        self.twin = Twin(module, spec, device=device)
        self._scores, self._features = len(scores), features
        with torch.no_grad():
            self.read(to_pixels(images[:_SAMPLE], self.twin.device))

    def read(self, pixels: Tensor, *, temperature: float = 1.0, soft: bool = False) -> Reading:
        """Return what the guard reads, differentiable in the pixels.

        Args:
            pixels: float32, (N, C, H, W), in [0, 1], on the twin's device.
            temperature: how smooth a bit is, in deviations of what it is the sign of.
            soft: whether bits are relaxed in the forward pass as well.
        """
        self._temperature, self._soft = temperature, soft
        joined = self.twin.logits(pixels)
        classes = joined.shape[1] - self._scores - self._features
        logits, scores = joined[:, :classes], joined[:, classes : classes + self._scores]
        score = self.procedure.height(scores[:, 0], scores[:, -1], logits)
        return Reading(logits=logits, score=score, features=joined[:, classes + self._scores :])

    def _bit(self, node: Node, x: Tensor) -> Tensor:
        if not node.name.startswith(_OURS):
            plain = POINTWISE["HardSigmoid"](node, x)
            assert isinstance(plain, Tensor)
            return plain
        level = -node.get("beta") / node.get("alpha")
        if node.name not in self._deviations:
            self._deviations[node.name] = max(float(x.std()), 1e-6)
        spread = self._temperature * self._deviations[node.name]
        if self._soft:
            return torch.sigmoid((x - level) / spread)
        bit: Tensor = _HardBit.apply(x, level, spread)
        return bit


class _HardBit(torch.autograd.Function):
    """`x > level`, and backwards sigmoid((x - level) / spread).

    One node with the sigmoid left to the way back: twice as fast as the same of torch's own
    operators, and bits are most of what a guard costs its attacker.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, level: float, spread: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.level, ctx.spread = level, spread
        return torch.gt(x, level, out=torch.empty_like(x))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        slope = torch.sub(x, ctx.level).mul_(1 / ctx.spread).sigmoid_()
        slope.addcmul_(slope, slope, value=-1)  # in place: memory is what this costs
        return slope.mul_(gradients[0]).mul_(1 / ctx.spread), None, None


class _Average(torch.autograd.Function):
    """Mean over rows and columns, whose gradient is never written out for each of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return x.mean(dim=(2, 3), keepdim=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        each: Tensor = gradients[0] / (ctx.shape[2] * ctx.shape[3])
        return each.expand(ctx.shape)


def _average(node: Node, x: Tensor) -> Tensor:
    if not node.name.startswith(_OURS) or x.ndim != 4:
        plain = LAYERS["GlobalAveragePool"](node, x)
        assert isinstance(plain, Tensor)
        return plain
    pooled: Tensor = _Average.apply(x)
    return pooled


def _straight(value: Tensor, through: Tensor) -> Tensor:
    """Return a value whose gradient is that of another tensor."""
    return through + (value - through).detach()


def _clip(node: Node, x: Tensor, *bounds: Tensor | None) -> Tensor:
    cut = POINTWISE["Clip"](node, x, *bounds)
    assert isinstance(cut, Tensor)
    return _straight(cut, x) if node.name.startswith(_OURS) else cut


def _max(node: Node, x: Tensor, *others: Tensor) -> Tensor:
    largest = POINTWISE["Max"](node, x, *others)
    assert isinstance(largest, Tensor)
    return _straight(largest, x) if node.name.startswith(_OURS) else largest


def _largest(node: Node, x: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """ONNX's TopK, largest first, and of equal ones the first."""
    axis = node.get("axis", -1)
    values, places = x.sort(dim=axis, descending=True, stable=True)
    return values.narrow(axis, 0, int(count)), places.narrow(axis, 0, int(count))


def _read_before_gates(proto: onnx.ModelProto) -> None:
    """Let the guard's bits read what goes into a gate: behind it, a closed one has no gradient.

    Nor has a Clip from 0 that is cut at its top. At levels below that the bits are the same before
    and after; one at a higher level is never on, and is read behind it. What lies between a gate
    and its bits, strides, scales and joins, works on either side of it.
    """
    makers: dict[str, Any] = {name: node for node in proto.graph.node for name in node.output}
    tops = _Tops(constants(proto.graph))
    bits = [
        node
        for node in proto.graph.node
        if node.op_type == "HardSigmoid" and node.name.startswith(_OURS)
    ]
    seen = set()
    for bit in sorted(bits, key=_level, reverse=True):  # what several read, the highest reads first
        reading = [bit]
        while reading:
            node = reading.pop()
            if node.name in seen:
                continue
            seen.add(node.name)
            for place, name in enumerate(node.input):
                source = makers.get(name)
                if source is None:
                    continue
                if source.name.startswith(_OURS):
                    reading.append(source)
                elif _level(bit) < tops.of(source):
                    node.input[place] = source.input[0]


def _level(bit: onnx.NodeProto) -> float:
    """Return what a bit's tensor must lie above."""
    known = {attribute.name: attribute.f for attribute in bit.attribute}
    return -known.get("beta", 0.5) / known.get("alpha", 0.2)


@dataclass(frozen=True, slots=True)
class _Tops:
    """How far up operators give out what goes into them, where that is above 0."""

    known: Mapping[str, NDArray[Any]]

    def of(self, node: onnx.NodeProto) -> float:
        """Return infinity for a Relu, the upper bound of a Clip from 0, -inf for all others."""
        if node.op_type == "Relu":
            return np.inf
        if node.op_type != "Clip" or len(node.input) < 2 or node.input[1] not in self.known:
            return -np.inf
        if self.known[node.input[1]].any():
            return -np.inf
        high = node.input[2] if len(node.input) > 2 else ""
        if not high:
            return np.inf
        return float(self.known[high].min()) if high in self.known else -np.inf


def _join_outputs(
    proto: onnx.ModelProto, logits: str, scores: Sequence[str], features: Sequence[str]
) -> None:
    """Add one tensor of logits, S scores and features side by side: (N, K + S + X)."""
    column = f"{_OURS}column"
    proto.graph.initializer.append(numpy_helper.from_array(np.array([-1, 1]), column))
    columns = [f"{score}_column" for score in scores]
    proto.graph.node.extend(
        helper.make_node("Reshape", [score, column], [made])
        for score, made in zip(scores, columns, strict=True)
    )
    joined = [logits, *columns, *features]
    proto.graph.node.append(helper.make_node("Concat", joined, [_ALL], axis=1))
