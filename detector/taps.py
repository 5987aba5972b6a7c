"""Taps: the tensors whose sign says which gates of a network are open. N images.

Every piecewise-linear gate counts: Relu, Clip from 0, ThresholdedRelu, LeakyRelu, PRelu, their
fused forms, Max with 0, and quantised tensors whose zero point is the least value, which is a Relu
folded into the rounding. A site is a node of the graph, so a module called twice gives two taps.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from reluguard.detector.errors import ModelError, NoTapsError, SettingsError
from reluguard.detector.images import InputSpec
from reluguard.detector.model import Production, constants
from reluguard.detector.session import open_session, run_session

__all__ = ["Tap", "check_taps", "find_taps", "gates", "in_blocks"]

_CHANNELS_FIRST = {"Conv", "BatchNormalization", "FusedConv", "ConvTranspose", "QLinearConv"}
_CHANNELS_LAST = {"Gemm", "MatMul", "FusedGemm", "LayerNormalization"}
_ACTIVATIONS = {"Relu", "LeakyRelu", "Clip"}
_AFFINE = {"Add", "BatchNormalization", "Conv", "Gemm", "MatMul"}
# where operators on integers keep the zero point of their output
_INTEGER_ZERO = {"QLinearConv": 7, "QLinearMatMul": 7, "QLinearAdd": 7, "QGemm": 8}


MAX_LEVEL = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """One gate to read: ONNX tensor `name`, of `shape` per image; its bit is `value > 0`.

    An int8 or uint8 tensor is off at the least value of its type.

    `channel_axis` is the axis of `shape` that a firing rate is kept for; the others are averaged,
    over every `stride`-th column and every `row_stride`-th row, 0 being the same as `stride`. Each
    channel has a rate per level: the share of values above it, at 0 who fired at all and further up
    who fired how hard. A `pooled` tap leaves nothing out: it counts blocks of so many rows and
    columns in which the gate was above the level anywhere.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    channel_axis: int = 0
    dtype: str = "float32"
    stride: int = 1
    levels: tuple[float, ...] = (0.0,)
    row_stride: int = 0
    pooled: bool = False

    def __post_init__(self) -> None:
        sizes = (*self.shape, self.stride)
        if not self.shape or not all(type(size) is int and size > 0 for size in sizes):
            raise SettingsError(
                f"expected positive sizes of tap {self.name!r}, "
                f"got shape {self.shape} and stride {self.stride}"
            )
        if type(self.row_stride) is not int or self.row_stride < 0:
            raise SettingsError(
                f"expected a row stride of tap {self.name!r} of 0 or more, got {self.row_stride}"
            )
        if type(self.channel_axis) is not int or not 0 <= self.channel_axis < len(self.shape):
            raise SettingsError(
                f"expected a channel axis of tap {self.name!r} in its shape {self.shape}, "
                f"got {self.channel_axis}"
            )
        if not self.levels or not all(
            0 <= low < high for low, high in pairwise((*self.levels, MAX_LEVEL))
        ):
            raise SettingsError(
                f"expected ascending levels of tap {self.name!r} in [0, {MAX_LEVEL:g}), "
                f"got {self.levels}"
            )
        if type(self.pooled) is not bool or (self.pooled and not self.is_strided):
            raise SettingsError(
                f"expected strides of the pooled tap {self.name!r}, got {self.strides}"
            )
        if self.is_strided and (len(self.shape) != 3 or self.channel_axis != 0):
            raise SettingsError(f"tap {self.name!r} of shape {self.shape} can't be read in strides")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Tap":
        """Return what `to_json` was given; a tap of before levels has one `level` beside 0.

        Raises:
            SettingsError, TypeError, KeyError: it is damaged.
        """
        known = {**values, "shape": tuple(values["shape"])}
        if "level" in known:
            level = known.pop("level")
            known["levels"] = (0.0, level) if level else (0.0,)
        return cls(**{**known, "levels": tuple(known["levels"])})

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @property
    def channels(self) -> int:
        """How many channels the tap has."""
        return self.shape[self.channel_axis]

    @property
    def rates(self) -> int:
        """How many firing rates it gives: one per channel and level."""
        return self.channels * len(self.levels)

    @property
    def bits(self) -> int:
        """How many bits it has per image."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def strides(self) -> tuple[int, int]:
        """How far apart the rows and the columns lie that are read."""
        return self.row_stride or self.stride, self.stride

    @property
    def is_strided(self) -> bool:
        """Whether some rows or columns are left out."""
        return self.strides != (1, 1)

    @property
    def sampled(self) -> tuple[int, int]:
        """How many rows and columns are read, of a tap of three axes."""
        (_, rows, columns), (down, right) = self.shape, self.strides
        return -(-rows // down), -(-columns // right)


def gates(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the tensors whose sign is a gate's state, in order: {tensor name: operator}."""
    values = constants(graph)
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    makers = {name: node.op_type for node in graph.node for name in node.output}
    found: dict[str, str] = {}
    for node in graph.node:
        # a quantised image or pooled map has its least value as zero point without being a gate
        if node.op_type == "QuantizeLinear" and makers.get(node.input[0]) not in _AFFINE:
            continue
        tensor = _gate_tensor(node, values, users)
        if tensor is not None:
            found.setdefault(tensor, node.op_type)
    return found


def _gate_tensor(  # noqa: C901 - one case per kind of gate
    node: onnx.NodeProto,
    values: Mapping[str, NDArray[Any]],
    users: Mapping[str, list[onnx.NodeProto]],
) -> str | None:
    """Return the tensor whose sign is this node's gate, None if the node is no gate."""
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    open_by_output = False
    match node.op_type:
        case "Relu":
            open_by_output = True
        case "Clip":
            open_by_output = _clip_minimum(node, attributes, values) == 0
        case "ThresholdedRelu":
            open_by_output = attributes.get("alpha", 1.0) >= 0
        case "LeakyRelu":
            if attributes.get("alpha", 0.01) < 0:
                return node.input[0]
            open_by_output = True
        case "PRelu":
            slope = values.get(node.input[1])
            if slope is None or (slope < 0).any():
                return node.input[0]
            open_by_output = True
        case "FusedConv" | "FusedGemm" | "NhwcFusedConv":
            open_by_output = attributes.get("activation", b"").decode() in _ACTIVATIONS
        case "Max":
            open_by_output = any(name in values and not values[name].any() for name in node.input)
        case "QuantizeLinear" if _cuts_negatives(node, 2, values):
            return _dequantised(node.output[0], users)
        case "QLinearConv" | "QLinearMatMul" | "QLinearAdd" | "QGemm":
            return (
                node.output[0]
                if _cuts_negatives(node, _INTEGER_ZERO[node.op_type], values)
                else None
            )
    if not open_by_output:
        return None
    return _after_quantisation(node.output[0], users) or node.output[0]


def _clip_minimum(
    node: onnx.NodeProto, attributes: Mapping[str, Any], values: Mapping[str, NDArray[Any]]
) -> float | None:
    if "min" in attributes:
        return float(attributes["min"])
    if len(node.input) > 1 and node.input[1] in values:
        return float(values[node.input[1]])
    return None


def _cuts_negatives(
    node: onnx.NodeProto, position: int, values: Mapping[str, NDArray[Any]]
) -> bool:
    """A zero point at the least value cuts everything negative: a Relu folded into the rounding."""
    if len(node.input) <= position or not node.input[position]:
        return node.op_type == "QuantizeLinear"  # its default is uint8 zero
    zero = values.get(node.input[position])
    return (
        zero is not None
        and zero.dtype.kind in "iu"
        and not (zero != np.iinfo(zero.dtype).min).any()
    )


def _after_quantisation(tensor: str, users: Mapping[str, list[onnx.NodeProto]]) -> str | None:
    # ORT folds Conv+Relu+QuantizeLinear only while the Relu has that one reader: read the sign
    # after DequantizeLinear instead, or the production outputs would change.
    readers = users.get(tensor, [])
    if len(readers) == 1 and readers[0].op_type == "QuantizeLinear":
        return _dequantised(readers[0].output[0], users)
    return None


def _dequantised(tensor: str, users: Mapping[str, list[onnx.NodeProto]]) -> str | None:
    for reader in users.get(tensor, []):
        if reader.op_type == "DequantizeLinear":
            return str(reader.output[0])
    return None


def find_taps(production: Production, spec: InputSpec) -> tuple[Tap, ...]:
    """Return every tap of the model, in the order of its graph.

    The model runs once on a blank input to learn the shapes, so nothing depends on what shape
    inference can prove.

    Raises:
        NoTapsError: no gate, or none whose tensor has the batch first.
        ModelError: the model doesn't run.
    """
    found = gates(production.proto.graph)
    if not found:
        counts = Counter(node.op_type for node in production.proto.graph.node)
        listed = ", ".join(f"{op} x {n}" for op, n in counts.most_common(8))
        raise NoTapsError(
            "expected a network with Relu, Clip from 0, LeakyRelu or PRelu, "
            f"found none of them but {listed}"
        )
    probe = onnx.ModelProto()
    probe.CopyFrom(production.proto)
    existing = {value.name for value in probe.graph.output}
    probe.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in found if name not in existing
    )
    rows = spec.batch or 2
    blank = np.zeros((rows, *spec.tensor_shape), spec.dtype)
    values = run_session(open_session(probe, optimise=False), {spec.name: blank}, list(found))
    layouts = _channel_layouts(production.proto.graph)
    taps = tuple(
        Tap(
            name=name,
            op=op,
            shape=value.shape[1:],
            channel_axis=_channel_axis(value.ndim - 1, layouts.get(name)),
            dtype=value.dtype.name,
        )
        for (name, op), value in zip(found.items(), values, strict=True)
        if value.ndim >= 2 and value.shape[0] == rows
    )
    if not taps:
        shapes = ", ".join(
            f"{name} {value.shape}" for name, value in zip(found, values, strict=True)
        )
        raise NoTapsError(f"expected gates with the batch of {rows} first, found {shapes}")
    return taps


def _channel_axis(rank: int, layout: str | None) -> int:
    """Return the axis of (channels) among a tap's `rank` axes after the batch."""
    if rank == 1 or layout == "first":
        return 0
    return rank - 1 if layout == "last" or rank == 2 else 0


def _channel_layouts(graph: onnx.GraphProto) -> dict[str, str]:
    """Return "first" or "last" per tensor, by the nearest producer that settles it."""
    layouts: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in _CHANNELS_FIRST:
            layout: str | None = "first"
        elif node.op_type in _CHANNELS_LAST:
            layout = "last"
        elif node.op_type in {"Transpose", "Reshape", "Flatten"}:
            layout = None
        else:
            layout = next((layouts[name] for name in node.input if name in layouts), None)
        if layout is not None:
            layouts.update(dict.fromkeys(node.output, layout))
    return layouts


def in_blocks(taps: Sequence[Tap], rows: int = 8, columns: int = 8) -> tuple[Tap, ...]:
    """Return the taps read in at most so many rows and columns of blocks, where they have more.

    Measured on ResNet-20 and 21 attacks (fits on a quarter of the rows, mean AUROC): every place
    .940, 8 x 8 blocks .942; of single places in their stead every second row and column .937,
    8 x 8 .926, 4 x 8 .911.

    Args:
        taps: of any shape; only those with rows and columns change.
        rows: at most.
        columns: at most.
    """
    return tuple(_in_blocks(tap, rows, columns) for tap in taps)


def _in_blocks(tap: Tap, rows: int, columns: int) -> Tap:
    if len(tap.shape) != 3 or tap.channel_axis != 0:
        return tap
    down, right = -(-tap.shape[1] // rows), -(-tap.shape[2] // columns)
    if (down, right) == (1, 1):
        return tap
    return replace(tap, row_stride=down, stride=right, pooled=True)


def check_taps(taps: tuple[Tap, ...], names: list[str]) -> tuple[Tap, ...]:
    """Return the taps of these names, in the graph's order.

    Raises:
        ModelError: the model has no such tap.
    """
    missing = sorted(set(names) - {tap.name for tap in taps})
    if missing:
        known = ", ".join(tap.name for tap in taps)
        raise ModelError(f"the model has no tap {', '.join(missing)}; it has {known}")
    return tuple(tap for tap in taps if tap.name in set(names))
