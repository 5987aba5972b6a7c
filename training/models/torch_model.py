"""A torch classifier, opened: what runs, and what its library or file says of it."""

import hashlib
import json
from dataclasses import dataclass

import torch

from reluguard.detector.errors import ModelError
from reluguard.training.data.preprocessing import Preprocessing
from reluguard.training.models.export import Program, weights_of

__all__ = ["TorchModel", "check_evaluation", "model_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchModel:
    """A classifier in torch, ready to run.

    Attributes:
        program: what runs.
        source: what it is called: its file, its name in a library or its class.
        shape: of one image in its input, where that is fixed.
        preprocessing: that its library has for it.
        names: of its classes, where its library knows them.
        words: what people should know of how it was opened.
    """

    program: Program
    source: str
    shape: tuple[int, ...] | None = None
    preprocessing: Preprocessing | None = None
    names: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of its weights and buffers by name."""
        content = hashlib.sha256()
        for name, value in sorted(weights_of(self.program).items()):
            whole = value.detach().cpu().contiguous()
            content.update(json.dumps([name, str(whole.dtype), list(whole.shape)]).encode())
            content.update(whole.reshape(-1).view(torch.uint8).numpy().data)
        return content.hexdigest()


def model_of(module: torch.nn.Module, source: str = "") -> TorchModel:
    """Return a module as it is.

    Args:
        module: the network.
        source: what it is called; by default its class.

    Raises:
        ModelError: it, or a part of it, is in training mode.
    """
    source = source or f"module {type(module).__name__}"
    check_evaluation(module, source)
    return TorchModel(program=module, source=source)


def check_evaluation(module: torch.nn.Module, source: str) -> None:
    """Raise ModelError where a module, or a part of it, is in training mode."""
    training = [name for name, part in module.named_modules() if part.training]
    if training:
        part = f", its part {training[0]} is not" if training[0] else ""
        raise ModelError(
            f"expected {source} in evaluation mode{part}: in training mode Dropout and BatchNorm "
            "answer otherwise; call model.eval() first"
        )
