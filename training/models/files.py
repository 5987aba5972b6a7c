"""Files that torch writes, opened without running a pickle of a module."""

from pathlib import Path
from typing import Any

import torch

from reluguard.detector.errors import ModelError
from reluguard.detector.onnx_file.kinds import Kind
from reluguard.training.models.export import cause_of, quiet
from reluguard.training.models.torch_model import TorchModel, check_evaluation

__all__ = ["open_file", "opened_program"]


def open_file(path: Path, kind: Kind) -> TorchModel:
    """Return the classifier in a file that torch wrote.

    Args:
        path: of the file.
        kind: as `kind_of` gives it.

    Raises:
        ModelError: it holds weights alone or a pickled module, it can't be read, or it takes
            something else than images.
    """
    if kind in {"pickle", "safetensors"}:
        what = (
            "is a pickle: weights alone, or a whole module, whose opening would run whatever code "
            "is in it"
            if kind == "pickle"
            else "holds weights alone"
        )
        raise ModelError(
            f"expected a network, {path} {what}. Name the architecture and give the file as its "
            f"weights, like --model torchvision:resnet18 --weights {path.name}; or save the module "
            "with torch.export.save(torch.export.export(model, (images,)), 'model.pt2')"
        )
    try:
        with quiet():
            if kind == "script":
                return _script(path, torch.jit.load(path, map_location="cpu"))
            return opened_program(torch.export.load(path), path.name)
    except ModelError:
        raise
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise ModelError(f"{path} can't be opened by torch: {cause_of(error)}") from error


def _script(path: Path, module: Any) -> TorchModel:
    check_evaluation(module, str(path))
    return TorchModel(program=module, source=path.name)


def opened_program(program: torch.export.ExportedProgram, source: str) -> TorchModel:
    """Return a program that `torch.export` made, with the shape it was made for.

    Raises:
        ModelError: it takes something else than images.
    """
    inputs = program.graph_signature.user_inputs
    taken = [node.meta["val"] for node in program.graph.nodes if node.name in inputs]
    if len(taken) != 1 or not isinstance(taken[0], torch.Tensor) or taken[0].ndim < 2:
        named = ", ".join(map(str, inputs)) or "none"
        raise ModelError(f"expected a model with exactly one input of images, {source} has {named}")
    sides = tuple(taken[0].shape[1:])
    fixed = all(isinstance(side, int) for side in sides)
    return TorchModel(program=program, source=source, shape=sides if fixed else None)
