"""Firing rates in the graph: which share of each channel's gates is open. N images, C channels.

ONNX Runtime keeps convolutions in a blocked layout of 16 channels (8 on older processors), and an
operator it can't run there costs a reorder of the whole tensor. What stays in it: convolutions,
pools, concatenations and element-wise activations. `HardSigmoid` with a huge slope is a bit, its
mean a firing rate.

What a tap costs is less its bits than its operators, about half a microsecond each, and in
convolutions and pools each row that comes out. So taps that are read in strides are brought to one
small size, put side by side and compared and counted together. Cheapest is one level for all; where
taps have their own, one convolution of one pixel takes each of them off.

Tried and slower, ResNet-20, ratio to the plain model at batch 1, 8 and 32 for 19 taps of two
levels read at 8 x 8 places: the operators of each tap for itself 1.14, 1.09, 1.12; a depthwise
convolution with the bits fused in 1.13, 1.07, 1.06; side by side 1.10, 1.12, 1.12; at 4 x 8 places
1.05, 1.04, 1.02.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from reluguard.detector.compile.graph import Graph
from reluguard.detector.taps import Tap

__all__ = ["Rates", "add_rates"]

BLOCK = 16  # channels of a block; where they don't fill whole ones, a tensor is reordered
GROUP = 32_768  # values per image that are put side by side: more would leave the nearest cache

SMALL = 8_192  # values of a tap that is read whole and yet put beside others

_STEP_SLOPE = 1e38
_LEVEL_SLOPE = 1e30  # times a level it must stay in the range of float32


@dataclass(frozen=True, slots=True)
class Rates:
    """Firing rates in a graph.

    Attributes:
        tensor: float32, (N, D), in the order they were easiest to read in.
        width: D.
        places: int64, (R,). Where each of the rates asked for lies: tap by tap, of each level by
            level.
    """

    tensor: str
    width: int
    places: NDArray[np.int64]

    def in_order(self, graph: Graph) -> str:
        """Add the rates in the order they were asked for: float32, (N, R)."""
        return self.take(graph, np.arange(len(self.places)))

    def take(self, graph: Graph, chosen: NDArray[np.int64]) -> str:
        """Add these of the rates asked for, in their order: float32, (N, len(chosen))."""
        places = self.places[chosen]
        if np.array_equal(places, np.arange(self.width)):
            return self.tensor
        return graph.add("Gather", self.tensor, graph.constant(places), axis=1)


@dataclass(frozen=True, slots=True)
class _Part:
    """A tensor of rates, (N, C, ...), and whose they are in its order: tap, and which level."""

    tensor: str
    rank: int
    blocked: bool
    owners: tuple[tuple[Tap, float], ...]


def add_rates(graph: Graph, taps: Sequence[Tap]) -> Rates:
    """Add every tap's firing rates. A tap that comes twice is read once."""
    parts = [part for group in _groups(taps) for part in _read(graph, group)]
    # what is blocked is joined in that layout, so that it is reordered once
    parts.sort(key=lambda part: (part.rank != 4, not part.blocked))
    flat = []
    for (rank, _), same in groupby(parts, key=lambda part: (part.rank, part.blocked)):
        tensors = [part.tensor for part in same]
        if rank == 4:
            tensors = [graph.concat(*tensors)]
        flat += [graph.add("Flatten", x, axis=1) if rank > 2 else x for x in tensors]
    owners = [owner for part in parts for owner in part.owners]
    starts = np.cumsum([0, *(tap.channels for tap, _ in owners)])
    places = {
        owner: start + np.arange(owner[0].channels)
        for owner, start in zip(owners, starts[:-1], strict=True)
    }
    wanted = [places[tap, level] for tap in taps for level in tap.levels]
    return Rates(graph.concat(*flat), int(starts[-1]), np.concatenate(wanted))


def _is_joined(tap: Tap) -> bool:
    """Whether a tap can stand beside others in the blocked layout and is small enough for it."""
    if len(tap.shape) != 3 or tap.channel_axis or tap.dtype != "float32" or tap.channels % BLOCK:
        return False
    return tap.is_strided or tap.bits <= SMALL


def _groups(taps: Sequence[Tap]) -> list[list[Tap]]:
    """Return the taps, each once, in runs that are read together.

    ONNX Runtime goes to work in the order in which the rates are joined. In the order of the
    network each tap is read while it is still in the cache; were a late one joined first, the early
    ones would be kept and read when they are cold: MobileNetV2 1.19 against 1.06. So only
    neighbours go together.
    """
    groups: list[list[Tap]] = []
    for tap in dict.fromkeys(taps):
        last = groups[-1][0] if groups else tap
        if groups and _is_joined(tap) and _is_joined(last) and _kind(tap) == _kind(last):
            rows, columns = tap.sampled
            channels = tap.channels + sum(other.channels for other in groups[-1])
            if channels * rows * columns <= GROUP:
                groups[-1].append(tap)
                continue
        groups.append([tap])
    return groups


def _kind(tap: Tap) -> tuple[int, int, int]:
    return (*tap.sampled, len(tap.levels))


def _read(graph: Graph, group: Sequence[Tap]) -> list[_Part]:
    """Add the rates of a run of taps."""
    return _together(graph, group) if _is_joined(group[0]) else _alone(graph, group[0])


def _together(graph: Graph, group: Sequence[Tap]) -> list[_Part]:
    """Add the rates of sampled taps of one size: for each level one operator that counts."""
    x = graph.concat(*(_sample(graph, tap, tap.name) for tap in group))
    channels = [tap.channels for tap in group]
    parts = []
    for own in zip(*(tap.levels for tap in group), strict=True):
        y, level = x, own[0]
        if len(set(own)) > 1:
            less = graph.constant(-np.repeat(np.array(own, np.float32), channels))
            ones = graph.constant(np.ones((sum(channels), 1, 1, 1), np.float32))
            y, level = graph.add("Conv", x, ones, less, kernel_shape=[1, 1], group=sum(channels)), 0
        mean = graph.add("GlobalAveragePool", _bits(graph, y, level))
        parts.append(_Part(mean, 4, blocked=True, owners=tuple(zip(group, own, strict=True))))
    return parts


def _bits(graph: Graph, x: str, level: float) -> str:
    """Add what is above the level."""
    if level == 0:
        return graph.add("HardSigmoid", x, alpha=_STEP_SLOPE, beta=0.0)
    return graph.add("HardSigmoid", x, alpha=_LEVEL_SLOPE, beta=-level * _LEVEL_SLOPE)


def _sample(graph: Graph, tap: Tap, x: str) -> str:
    """Add every so many rows and columns of a tap, or the largest values of such blocks."""
    kernel, strides = [1, 1], list(tap.strides)
    ends = [0, 0]
    if tap.pooled:
        # what is missing of the last blocks is padded, and a pad is never the largest
        kernel = strides
        pairs = zip(tap.sampled, strides, tap.shape[1:], strict=True)
        ends = [count * stride - size for count, stride, size in pairs]
    # a pool stays in the blocked layout, or brings there what is not, for the next convolution too;
    # that of one pixel leaves out rows and columns
    return graph.add("MaxPool", x, kernel_shape=kernel, strides=strides, pads=[0, 0, *ends])


def _alone(graph: Graph, tap: Tap) -> list[_Part]:
    """Add the rates of one tap."""
    x = tap.name
    if tap.dtype != "float32":
        x = graph.add("Cast", x, to=TensorProto.FLOAT)
    if tap.off:
        x = graph.add("Add", x, graph.constant(np.float32(-tap.off)))
    if tap.is_strided:
        x = _sample(graph, tap, x)
    rank = len(tap.shape) + 1
    blocked = rank == 4 and tap.dtype == "float32" and tap.channels % BLOCK == 0
    parts = []
    for level in tap.levels:
        y = _bits(graph, x, level)
        mean, left = y, rank
        if tap.channel_axis == rank - 2 > 0:
            mean, left = _over_tokens(graph, tap, y), 2
        elif tap.channel_axis != 0:
            axes = [axis for axis in range(1, rank) if axis != tap.channel_axis + 1]
            mean, left = graph.reduce("ReduceMean", y, axes, keepdims=0), 2
        elif tap.bits > tap.channels:
            mean = graph.add("GlobalAveragePool", y)
        parts.append(_Part(mean, left, blocked and left == 4, ((tap, level),)))
    return parts


def _over_tokens(graph: Graph, tap: Tap, bits: str) -> str:
    """Add the mean over all axes but the last: (N, C).

    A row of ones times them: a seventeenth of what ReduceMean takes for a ViT's 197 x 3,072 bits,
    one image. It is divided at the end, so that sums are of whole numbers and exact.
    """
    tokens = tap.bits // tap.channels
    if tokens == 1:
        return graph.reshape(bits, -1, tap.channels)
    x = bits if len(tap.shape) == 2 else graph.reshape(bits, -1, tokens, tap.channels)
    total = graph.add("MatMul", graph.constant(np.ones((1, tokens), np.float32)), x)
    share = graph.constant(np.float32(1 / tokens))
    return graph.add("Mul", graph.reshape(total, -1, tap.channels), share)
