"""A page on this machine where one's own guard can be played with."""

from pathlib import Path
from typing import Annotated

import typer

from reluguard.commands.console import fail, show_progress
from reluguard.commands.options import Classes, GuardModel, Threads, Twin, Weights, onnx_file

__all__ = ["try_"]


def try_(
    *,
    model: GuardModel = None,
    guard: Annotated[
        Path | None, typer.Option("--guard", help="The guard's folder. [default: that of the demo]")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="Labelled images to begin with. [default: the guard's golden inputs]"
        ),
    ] = None,
    classes: Classes = None,
    twin: Twin = "auto",
    weights: Weights = None,
    host: Annotated[
        str,
        typer.Option(
            "--host", help="Where it listens; another than 127.0.0.1 can be reached by others."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option("--port", min=0, max=65535, help="The port of the page; 0 takes a free one."),
    ] = 8400,
    out: Annotated[
        Path, typer.Option("--out", help="Without a guard: where the demo's guard is, or is made.")
    ] = Path("out/demo"),
    threads: Threads = None,
) -> None:
    """Open a page where a picture is dropped, attacked and changed while the verdict is watched."""
    from reluguard.training.demo import made_guard
    from reluguard.training.trial.server import TrialPage
    from reluguard.training.trial.trial import open_trial

    if guard is None:
        if model is not None:
            fail("expected --guard beside --model, or neither for the guard of the demo")
        title = "the guard of the demo"
        with show_progress() as progress:
            made = made_guard(out, progress=progress)
        file, guard, data = made.model, made.guard, data or str(made.held_out)
    else:
        title = f"guard {guard}"
        file = onnx_file(model, guard, weights)
    trial = open_trial(file, guard, data=data, classes=classes, twin=twin, threads=threads)
    if trial.without_gradients is not None:
        typer.echo(f"without gradients: {trial.without_gradients}", err=True)
    with TrialPage(trial, title=title, host=host, port=port) as page:
        typer.echo(f"open {page.url}\nCtrl-C ends it")
        page.wait()
