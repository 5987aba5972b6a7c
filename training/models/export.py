"""A torch network as an ONNX file, as its owner would have written it. N images, K classes."""

import contextlib
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from reluguard.detector.errors import ModelError

__all__ = [
    "INPUT",
    "OUTPUT",
    "Program",
    "cause_of",
    "exported",
    "quiet",
    "run_program",
    "scores_in",
    "weights_of",
]

Program = Any
"""A torch module, a program that `torch.export` made, or a TorchScript module."""

INPUT, OUTPUT = "image", "scores"
EXAMPLES = 2  # more than one image, so that no exporter takes their number for a constant
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def exported(
    program: Program,
    shape: Sequence[int],
    *,
    source: str,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Return an ONNX file of a network of one input; the number of images is free if it can be.

    Args:
        program: in evaluation mode.
        shape: of one image in the network's own input, like (3, 224, 224).
        source: what it is called in messages.
        metadata: to keep in the file.

    Raises:
        ModelError: it can't be exported, and why; or it would be over 2 GiB.
    """
    example = torch.zeros((EXAMPLES, *shape), dtype=_dtype(program), device=_device(program))
    try:
        with quiet():
            proto = _proto(program, example)
    except Exception as error:  # whatever a network's own code and two exporters raise
        raise ModelError(
            f"{source} can't be exported to ONNX: {cause_of(error)}. Change the module so that "
            "torch.export.export can follow it for images of shape "
            f"{(EXAMPLES, *shape)}, or export it yourself and give the ONNX file"
        ) from error
    for key, value in (metadata or {}).items():
        proto.metadata_props.append(onnx.StringStringEntryProto(key=key, value=value))
    try:
        return proto.SerializeToString()
    except ValueError as error:
        raise ModelError(f"expected a model of at most 2 GiB, {source} is larger") from error


def run_program(program: Program, tensor: NDArray[Any]) -> NDArray[np.float32]:
    """Return what a network gives for a batch of its own input: class scores, float32 (N, K).

    Raises:
        ModelError: it fails, or returns no tensor.
    """
    called = program.module() if isinstance(program, torch.export.ExportedProgram) else program
    # in the order that its owner gives it, or a view of it may fail
    given = torch.from_numpy(np.array(tensor)).clone(memory_format=torch.contiguous_format)
    given = given.to(_device(program))
    try:
        with torch.no_grad(), quiet():
            found = called(given)
    except Exception as error:  # it is somebody else's code
        raise ModelError(
            f"the model fails on an input of {tuple(given.shape)}: {cause_of(error)}"
        ) from error
    return np.asarray(scores_in(found).detach().float().cpu().numpy(), np.float32)


def scores_in(found: Any) -> torch.Tensor:
    """Return class scores in what a network returned: of several values the first.

    Raises:
        ModelError: it is no tensor.
    """
    while isinstance(found, (tuple, list, Mapping)) and found:
        found = next(iter(found.values())) if isinstance(found, Mapping) else found[0]
    if not isinstance(found, torch.Tensor):
        raise ModelError(f"expected a model that returns class scores, got {type(found).__name__}")
    return found


def weights_of(program: Program) -> Mapping[str, torch.Tensor]:
    """Return weights and buffers by name."""
    found: Mapping[str, torch.Tensor] = (
        program.state_dict
        if isinstance(program, torch.export.ExportedProgram)
        else program.state_dict()
    )
    return found


def _proto(program: Program, example: torch.Tensor) -> onnx.ModelProto:
    if isinstance(program, torch.jit.ScriptModule):  # which only the older exporter takes
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "model.onnx")
            torch.onnx.export(
                program,
                (example,),
                file,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: {0: "images"}, OUTPUT: {0: "images"}},
                dynamo=False,
            )
            return onnx.load(str(file))
    asked: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT]}
    if not isinstance(program, torch.export.ExportedProgram):
        asked["dynamic_shapes"] = ({0: torch.export.Dim("images")},)
    given = () if isinstance(program, torch.export.ExportedProgram) else (example,)
    made = torch.onnx.export(program, given, dynamo=True, verbose=False, **asked)
    assert made is not None
    found: onnx.ModelProto = made.model_proto
    return found


def _dtype(program: Program) -> torch.dtype:
    """Return what the network computes in."""
    kinds = (value.dtype for value in weights_of(program).values())
    return next((kind for kind in kinds if kind.is_floating_point), torch.float32)


def _device(program: Program) -> torch.device:
    """Return where the network runs."""
    first = next(iter(weights_of(program).values()), None)
    return torch.device("cpu") if first is None else first.device


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what exporters print off standard output, which is ours, and their warnings away."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def cause_of(error: BaseException) -> str:
    """Return the first sentence of what went wrong at the very beginning."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines()]
    said = next((line for line in lines if line), "")
    sentence = re.split(r"(?<=[a-z)\]'\"])\. ", said)[0].rstrip(".:")
    return f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__
