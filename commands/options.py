"""Options that several commands take, each written once."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Data", "GuardFolder", "Json", "Model", "Provider", "Seed", "Threads"]

Model = Annotated[Path, typer.Option("--model", help="The production model, an ONNX file.")]
GuardFolder = Annotated[Path, typer.Option("--guard", help="The guard's folder.")]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="Labelled images: an .npz with `images` uint8 (N, H, W, C) and `labels`, a folder "
        "per class, or torchvision:NAME:ROOT.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads per run; by default the usable cores."),
]
Provider = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        help="ONNX Runtime's execution provider, like CUDAExecutionProvider; may be repeated, "
        "first choice first. [CPUExecutionProvider]",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of every random choice.")]
