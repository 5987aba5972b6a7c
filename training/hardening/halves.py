"""A network in two halves, so that a loss sees what the last gate says; weights, written back."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper
from torch import Tensor

from reluguard.detector.images import Images, InputSpec
from reluguard.detector.model import Production
from reluguard.detector.taps import find_taps
from reluguard.training.errors import TwinError
from reluguard.training.hardening.student import Student
from reluguard.training.twin.onnx_torch import OnnxModule

__all__ = ["Halves", "Joined", "with_weights"]

_TRAINED = {"Conv": (1, 2), "Gemm": (1, 2), "MatMul": (0, 1), "BatchNormalization": (1, 2)}


class Halves:
    """The graph cut at its last gate, so that the loss can see what the gate says.

    Where the graph does not come apart there, the logits stand in for the gate.
    """

    def __init__(self, production: Production, spec: InputSpec) -> None:
        self.proto = production.proto
        last = find_taps(production, spec)[-1].name
        try:
            self.body = OnnxModule(self.proto, last)
            self.head: OnnxModule | None = OnnxModule(_below(self.proto, last), production.logits)
        except TwinError:
            self.body, self.head = OnnxModule(self.proto, production.logits), None
        self.weights = self._trainable()

    def __call__(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """Return (phi, logits) of the model's own input tensor."""
        phi = self.body(tensor)
        return phi, (phi if self.head is None else self.head(phi))

    def _trainable(self) -> dict[str, Tensor]:
        kept = {item.name for item in self.proto.graph.initializer}
        names = {
            node.input[i]
            for node in self.proto.graph.node
            for i in _TRAINED.get(node.op_type, ())
            if i < len(node.input) and node.input[i] in kept
        }
        found: dict[str, Tensor] = {}
        for module in (self.body, self.head):
            for name, buffer in ({} if module is None else _weights(module)).items():
                if name in names:
                    found[name] = buffer.requires_grad_()
        if not found:
            raise TwinError("expected weights of Conv, Gemm or MatMul to train, found none")
        return found


def _weights(module: OnnxModule) -> dict[str, Tensor]:
    """Return the module's weights under their names in the ONNX file."""
    names = module._weights  # noqa: SLF001 - the twin is frozen for everybody but this file
    return {name: module.get_buffer(buffer) for name, buffer in names.items()}


def _below(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return the part of a graph that follows a tensor, with it as the input."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    kept = [node for node in model.graph.node if name not in node.output]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.input.append(onnx.ValueInfoProto(name=name))
    return model


class Joined(Student):
    """Both halves as one module; keeps what the last gate says, which the loss needs beside."""

    def __init__(self, production: Production, spec: InputSpec) -> None:
        super().__init__()
        self._production = production
        self._halves = Halves(production, spec)
        self.weights = self._halves.weights  # by the names in the ONNX file

    def forward(self, tensor: Tensor) -> Tensor:
        """Return the logits."""
        phi, logits = self._halves(tensor)
        self.hear(phi)
        return logits

    def finished(
        self, weights: Mapping[str, Tensor], sample: Images
    ) -> tuple[onnx.ModelProto, Production]:
        """Return the model with these weights in the same graph.

        Args:
            weights: by name.
            sample: not needed: nothing is exported here.
        """
        del sample
        proto = with_weights(self._production.proto, weights)
        return proto, replace(self._production, proto=proto)


def with_weights(proto: onnx.ModelProto, weights: Mapping[str, Tensor]) -> onnx.ModelProto:
    """Return the graph with these weights under their names, in the types they had."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    for item in model.graph.initializer:
        if item.name in weights:
            old = numpy_helper.to_array(item)
            new = weights[item.name].detach().contiguous().numpy().astype(old.dtype)
            item.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(new), item.name))
    return model
