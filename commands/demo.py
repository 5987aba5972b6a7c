"""The whole job on handwritten digits, as one command."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reluguard.commands.console import show_progress
from reluguard.commands.options import Json, Seed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from reluguard.detector.runtime import Guard
    from reluguard.detector.verdict import Verdicts

__all__ = ["demo"]


def demo(
    *,
    as_json: Json = False,
    out: Annotated[
        Path, typer.Option("--out", help="The folder that pictures and files go to.")
    ] = Path("out/demo"),
    seed: Seed = 0,
) -> None:
    """Run the whole main job on handwritten digits: train, attack, fit, serve, ask."""
    from reluguard.training.demo import print_demo, run_demo

    with show_progress() as progress:
        result = run_demo(out, _ask_server, seed=seed, progress=progress)
    if as_json:
        typer.echo(json.dumps(result.summary))
    else:
        print_demo(result)


def _ask_server(
    guard: "Guard", batches: "Sequence[NDArray[np.uint8]]"
) -> "tuple[list[Verdicts], str]":
    """Serve a guard on free ports, ask it by gRPC, and return verdicts and the metrics page."""
    import urllib.request

    from reluguard.service.background import running
    from reluguard.service.client.client import Client

    with running(guard) as server, Client(server.address) as client:
        verdicts = [client.inspect(images) for images in batches]
        url = f"http://{server.metrics_address}/metrics"
        with urllib.request.urlopen(url, timeout=10) as reply:
            return verdicts, reply.read().decode()
