"""Which gates of a model can be read: all that are found, and why some are not.

A gate is read by one more reader of its tensor, which can stop ONNX Runtime from fusing what it
would have fused, and so change the last bits of the production outputs. So the model is run with
the readers and without, and a gate that changes a bit is read elsewhere or not at all.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from reluguard.detector.errors import ModelError, NoTapsError
from reluguard.detector.images import InputSpec
from reluguard.detector.model import Production
from reluguard.detector.plain import Plain
from reluguard.detector.session import open_session, run_session
from reluguard.detector.taps.channels import Channels
from reluguard.detector.taps.gates import Gate, find_gates, hidden_gates
from reluguard.detector.taps.inlining import inlined
from reluguard.detector.taps.quantised import with_unsigned_pairs
from reluguard.detector.taps.tap import Tap
from reluguard.detector.taps.values import Values

__all__ = ["GateCounts", "Left", "NotRead", "Survey", "find_taps", "survey"]

_BLOCKED = "com.microsoft.nchwc"
_ACTIVATIONS = {
    "Sigmoid", "HardSigmoid", "Tanh", "Softsign", "Erf", "Sin", "Cos", "Sign", "Exp", "Softmax",
    "Abs", "Pow",
}  # fmt: skip

Arrays = list[NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRead:
    """A gate that can't be read: its operator, its tensor, and why in a few words."""

    op: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Left(Plain):
    """Gates of one operator that are not read for one reason."""

    op: str
    count: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateCounts(Plain):
    """How many gates a model has, how many of them are read, and why the others are left."""

    found: int
    read: int
    left: tuple[Left, ...]

    @property
    def lines(self) -> list[str]:
        """The same in words."""
        return [
            f"read {self.read} of {self.found} gates",
            *(f"{one.count} x {one.op} not read: {one.reason}" for one in self.left),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The gates of a model: the taps that read them, and those that can't be read."""

    taps: tuple[Tap, ...]
    unread: tuple[NotRead, ...]

    @property
    def counts(self) -> GateCounts:
        """How many gates were found and read, and why not the others."""
        reasons = Counter((gate.op, gate.reason) for gate in self.unread)
        return GateCounts(
            found=len(self.taps) + len(self.unread),
            read=len(self.taps),
            left=tuple(
                Left(op=op, count=count, reason=reason) for (op, reason), count in reasons.items()
            ),
        )


def find_taps(production: Production, spec: InputSpec) -> tuple[Tap, ...]:
    """Return every tap of the model, in the order of its graph: see `survey`."""
    return survey(production, spec).taps


def survey(production: Production, spec: InputSpec) -> Survey:
    """Return every gate of the model, in the order of its graph.

    The model runs on a drawn input to learn the shapes, so nothing depends on what shape inference
    can prove, and to see that reading changes nothing.

    Raises:
        NoTapsError: no gate, or none that can be read.
        ModelError: the model doesn't run, or is a file optimised for one kind of processor.
    """
    if any(node.domain == _BLOCKED for node in production.proto.graph.node):
        raise ModelError(
            "this file was optimised by ONNX Runtime for one kind of processor (its operators are "
            f"of the domain {_BLOCKED}) and runs on no other: guard the file it was made from"
        )
    model = inlined(production.proto)
    behind = _behind(model.graph, production.logits)
    values = Values(model)
    gates = [gate for gate in find_gates(model, values) if gate.name not in behind]
    unread = [
        _not_read(gate, gate.trouble) for gate in [*gates, *hidden_gates(model)] if gate.trouble
    ]
    gates = [gate for gate in gates if not gate.trouble]
    if not gates:
        raise NoTapsError(_nothing_found(model, unread))
    trial = _Trial(production, model, spec)
    read = {gate.name: gate for gate in gates}
    tensors = trial.read(list(read))
    shapes = ", ".join(f"{name} {value.shape}" for name, value in zip(read, tensors, strict=True))
    found = {}
    for gate, value in zip(read.values(), tensors, strict=True):
        if value.ndim >= 2 and value.shape[0] == trial.rows:
            found[gate.name] = value
        else:
            unread.append(_not_read(gate, "its tensor has not one row per image"))
    if not found:
        raise NoTapsError(f"expected gates with the batch of {trial.rows} first, found {shapes}")
    places = trial.placed([read[name] for name in found])
    moved = [place for place in places if place is not None and place not in found]
    found.update(zip(moved, trial.read(moved), strict=True) if moved else ())
    channels = Channels(model, values)
    taps = []
    for gate, place in zip([read[name] for name in found if name in read], places, strict=False):
        if place is None:
            reason = "reading it would change the last bits of the model's own answers"
            unread.append(_not_read(gate, reason))
            continue
        value = found[place]
        shape = value.shape[1:]
        axis = channels.axis(gate.name, shape)
        whole = value.dtype.name in {"int8", "uint8"}
        taps.append(
            Tap(
                name=place,
                op=gate.op,
                shape=shape,
                channel_axis=axis,
                dtype=value.dtype.name,
                zero=gate.zero if whole and place == gate.name else None,
            )
        )
    if not taps:
        raise NoTapsError(f"expected gates that can be read, {unread[0].reason}")
    return Survey(taps=tuple(taps), unread=tuple(unread))


def _not_read(gate: Gate, reason: str) -> NotRead:
    return NotRead(op=gate.op, name=gate.name, reason=reason)


def _nothing_found(model: onnx.ModelProto, unread: Sequence[NotRead]) -> str:
    expected = "expected a network with ReLU, GELU, SiLU, HardSwish or their like"
    if unread:
        return f"{expected} that can be read, found {unread[0].op} but {unread[0].reason}"
    counts = Counter(node.op_type for node in model.graph.node)
    known = Counter({op: n for op, n in counts.items() if op in _ACTIVATIONS})
    listed = ", ".join(f"{n} {op}" for op, n in (known or counts).most_common(8))
    return f"{expected}, found none of them but {listed}"


def _behind(graph: onnx.GraphProto, logits: str) -> set[str]:
    """Return the tensors that are made of the class scores: what is done with an answer."""
    made = {logits}
    for node in graph.node:
        if made & set(node.input):
            made.update(node.output)
    return made - {logits}


class _Trial:
    """A model run with readers of some tensors and without, on a drawn input of `rows` images."""

    def __init__(self, production: Production, readable: onnx.ModelProto, spec: InputSpec) -> None:
        self.rows = spec.batch or 2
        rng = np.random.default_rng(0)
        shape = (self.rows, *spec.tensor_shape)
        drawn = rng.integers(0, 256, shape) if spec.dtype == "uint8" else rng.normal(0.3, 1, shape)
        self._feeds = {spec.name: drawn.astype(spec.dtype)}
        self._names = [value.name for value in production.proto.graph.output]
        session = open_session(production.proto)
        self._wanted = run_session(session, self._feeds, self._names)
        self._model = onnx.ModelProto()
        self._model.CopyFrom(readable)
        with_unsigned_pairs(self._model)
        self._known: dict[tuple[str, ...], bool] = {}

    def read(self, names: Sequence[str]) -> Arrays:
        """Return these tensors."""
        graph = self._model.graph
        there = len(graph.output)
        graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in self._names)
        try:
            session = open_session(self._model)
        finally:
            del graph.output[there:]
        # all are asked for: ONNX Runtime leaves out what is not
        got = run_session(session, self._feeds, [*self._names, *names])
        own = got[: len(self._names)]
        self._known[tuple(names)] = all(map(_same_bits, self._wanted, own))
        return got[len(self._names) :]

    def _same(self, names: Sequence[str]) -> bool:
        """Whether the model's own outputs stay what they are while these are read."""
        if tuple(names) not in self._known:
            self.read(names)
        return self._known[tuple(names)]

    def placed(self, gates: Sequence[Gate]) -> list[str | None]:
        """Return where each gate can be read without changing a bit, None where it can't."""

        def accepted(before: list[str], some: Sequence[Gate]) -> list[str | None]:
            """Return places for some gates, of which these before them are read already."""
            places = [gate.name for gate in some]
            if self._same([*before, *places]):
                return list(places)
            if len(some) == 1:
                other = some[0].before
                return [other if other and self._same([*before, other]) else None]
            half = len(some) // 2
            first = accepted(before, some[:half])
            read = [place for place in first if place is not None]
            return [*first, *accepted([*before, *read], some[half:])]

        return accepted([], gates)


def _same_bits(a: NDArray[np.generic], b: NDArray[np.generic]) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return np.array_equal(a, b) if a.dtype.kind in "OUS" else a.tobytes() == b.tobytes()
