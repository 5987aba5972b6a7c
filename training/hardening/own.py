"""A network of torch's own that is trained itself, whatever it is given as. N images, K classes."""

import copy
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from reluguard.detector.errors import ModelError
from reluguard.detector.images import Images, InputSpec
from reluguard.detector.model import Production, load_production
from reluguard.training.errors import TwinError
from reluguard.training.hardening.student import Student
from reluguard.training.models.compared import compared
from reluguard.training.models.export import Program, cause_of, exported, quiet, scores_in
from reluguard.training.models.given import MARK
from reluguard.training.models.torch_model import TorchModel
from reluguard.training.twin.twin import in_order

__all__ = ["Own", "scores_before"]

_GATES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.ELU, nn.Mish,
)  # fmt: skip
_TINY = 1e-7  # of a probability


class Own(Student):
    """A copy of a network that gives class scores before any softmax, float (N, K), and learns.

    What its last gate says is kept beside the scores, as `Joined` keeps it. Where that can't be
    seen, because the gate is a function or the code is compiled, the scores stand in for it.

    Args:
        opened: the network; it stays as it is.
        production: its export.
        spec: how images go into it.

    Raises:
        TwinError: it can't be copied, or has no weights of 32 bits that could be trained.
    """

    def __init__(self, opened: TorchModel, production: Production, spec: InputSpec) -> None:
        super().__init__()
        self._opened, self._production, self._spec = opened, production, spec
        held = _copied(opened)
        module = held.module() if isinstance(held, _Exported) else held
        self._held = (held, module, in_order(module, spec))  # hidden from torch, which would freeze
        self.weights = _trained(module, opened.source)
        self._gate: Tensor | None = None
        for part in () if isinstance(held, torch.jit.ScriptModule) else module.modules():
            if isinstance(part, _GATES):
                part.register_forward_hook(self._see)

    def _see(self, _part: nn.Module, _given: Any, found: Tensor) -> None:
        self._gate = found

    def forward(self, tensor: Tensor) -> Tensor:
        """Return class scores before any softmax of the model's own input tensor."""
        self._gate = None
        raw = scores_in(self._held[2](tensor)).flatten(1)
        scores = scores_before(raw, self._production.ending)
        self.hear(scores if self._gate is None else self._gate)
        return scores

    def finished(
        self, weights: Mapping[str, Tensor], sample: Images
    ) -> tuple[onnx.ModelProto, Production]:
        """Take these weights, and return the network's export with them.

        Args:
            weights: by name.
            sample: uint8, (N, H, W, C): images on which the export must answer as the network does.

        Raises:
            ModelError: it can't be exported, or answers otherwise afterwards.
        """
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(weights[name])
                weight.requires_grad_(False)
        program = self._exportable()
        kept = {p.key: p.value for p in self._production.proto.metadata_props if p.key != MARK}
        content = exported(
            program, self._spec.tensor_shape, source=self._opened.source, metadata=kept
        )
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "model.onnx")
            file.write_bytes(content)
            production = load_production(file, output=self._production.answer)
        found = compared(
            TorchModel(program=program, source=self._opened.source), production, self._spec, sample
        )
        if not found.is_same:
            raise ModelError(
                f"{self._opened.source} answers otherwise after training and export: {found.words}"
            )
        return onnx.load_model_from_string(content), production

    def _exportable(self) -> Program:
        """Return what is exported: a program of `torch.export` with the weights in it."""
        held = self._held[0]
        if isinstance(held, _Exported):
            for name, value in held.state_dict.items():
                if name in self.weights:
                    value.data.copy_(self.weights[name])
        return held

    def state(self) -> dict[str, Tensor]:
        """Return weights and buffers by name, as the network's own `state_dict` has them."""
        return {name: value.detach() for name, value in self._held[1].state_dict().items()}


_Exported = torch.export.ExportedProgram


def _copied(opened: TorchModel) -> Program:
    """Return a copy of a network on the processor, sharing nothing."""
    program, stream = opened.program, io.BytesIO()
    try:
        with quiet():
            if isinstance(program, _Exported):
                torch.export.save(program, stream)
                stream.seek(0)
                return torch.export.load(stream)
            if isinstance(program, torch.jit.ScriptModule):
                torch.jit.save(program, stream)
                stream.seek(0)
                return torch.jit.load(stream, map_location="cpu")
            return copy.deepcopy(program).cpu()
    except Exception as error:  # somebody else's code
        raise TwinError(
            f"{opened.source} can't be copied to be trained: {cause_of(error)}; export it and give "
            "the ONNX file"
        ) from error


def _trained(module: nn.Module, source: str) -> dict[str, Tensor]:
    """Return the weights that are trained."""
    found = dict(module.named_parameters())
    other = sorted({str(value.dtype) for value in found.values()} - {"torch.float32"})
    if other:
        raise TwinError(
            f"expected weights of float32 to train, {source} has some of {', '.join(other)}: call "
            "its float() first"
        )
    if not found:
        raise TwinError(
            f"expected weights to train, {source} has none that torch calls parameters: a frozen "
            "TorchScript file keeps them as constants; give the module or its ONNX file"
        )
    return {name: value.requires_grad_() for name, value in found.items()}


def scores_before(raw: Tensor, ending: str) -> Tensor:
    """Return class scores before any softmax, a column per class, of what a network returns."""
    if ending == "softmax" and raw.shape[1] > 1:
        return raw.clamp_min(_TINY).log()
    if ending in {"sigmoid", "softmax"}:
        raw = torch.logit(raw, _TINY)
    return raw if raw.shape[1] > 1 else torch.cat([-raw / 2, raw / 2], dim=1)
