"""A production model of torch's, opened, from whatever it is given as."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from reluguard.detector.errors import ModelError, SettingsError
from reluguard.detector.onnx_file.kinds import is_lent, is_named, kind_of
from reluguard.training.lent import Lent, lent_module

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from reluguard.training.models.torch_model import TorchModel

__all__ = ["Model", "ModelOrNone", "check_alone", "opened_model"]

Model: TypeAlias = "Path | str | nn.Module | ExportedProgram"
"""An ONNX file; a torch module in evaluation mode, or what `torch.export.export` made of one; a
`.pt2` or TorchScript file; the name of a network, "torchvision:NAME" or "timm:NAME"; or where your
own code makes the module, "package.module:name" or "file.py:name"."""

ModelOrNone: TypeAlias = "Model | None"
"""The same, or None for the export that `fit` put beside the guard."""


def opened_model(model: Model, weights: Path | str | None = None) -> "TorchModel":
    """Return a model of torch's, opened.

    Args:
        model: anything but an ONNX file.
        weights: of a network by name.

    Raises:
        ModelError: it is no such model, or can't be opened.
        SettingsError: weights are said of one that holds its own.
    """
    from torch import nn
    from torch.export import ExportedProgram

    from reluguard.training.models.files import open_file, opened_program
    from reluguard.training.models.libraries import open_named
    from reluguard.training.models.torch_model import model_of

    text = str(model) if isinstance(model, (str, Path)) else ""
    if weights is not None and not is_named(text):
        raise SettingsError(
            "expected weights beside a network's name alone, like torchvision:resnet18, got the "
            f"weights {weights} and {text or f'a {type(model).__name__}'}"
        )
    if is_named(text):
        return open_named(text, None if weights is None else Path(weights))
    if is_lent(text):
        return model_of(lent_module(Lent(text, "model", ModelError)), source=text)
    if text:
        kind = kind_of(Path(text))
        assert kind is not None
        return open_file(Path(text), kind)
    if isinstance(model, ExportedProgram):
        return opened_program(model, "exported program")
    if isinstance(model, nn.Module):
        return model_of(model)
    raise ModelError(
        "expected an ONNX file, a torch module, a .pt2 or TorchScript file, or a name like "
        f"torchvision:resnet18, got {type(model).__name__}"
    )


def check_alone(
    model: ModelOrNone,
    weights: Path | str | None = None,
    input_shape: Sequence[int] | None = None,
) -> None:
    """Raise SettingsError where something is said of an ONNX file that it holds itself."""
    for what, given in (("weights", weights), ("input shape", input_shape)):
        if given is not None:
            beside = "the file beside the guard" if model is None else model
            raise SettingsError(
                f"expected no {what} beside an ONNX file, which holds its own, got {given} beside "
                f"{beside}"
            )
