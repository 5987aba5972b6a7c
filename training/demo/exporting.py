"""A torch network as an ONNX file, as its owner would have written it."""

import contextlib
import sys
from pathlib import Path

import torch

from reluguard.detector.artifact import write_file

__all__ = ["export_network"]


def export_network(network: torch.nn.Module, example: torch.Tensor, file: Path) -> None:
    """Write a network of one input, `image`, and one output, `logits`, whose batch is free.

    Args:
        network: in evaluation mode.
        example: of its input, two images or more.
        file: the ONNX file; written aside and then renamed.
    """
    # some exporters print, and standard output is ours
    with contextlib.redirect_stdout(sys.stderr):
        program = torch.onnx.export(
            network,
            (example,),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("images")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    write_file(file, program.model_proto.SerializeToString())
