"""A guard attacked by someone who knows all of it."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.console import fail, show_progress
from commands.options import Data, GuardFolder, Json, Model, Seed, Threads

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from detector.verdict import Verdicts

__all__ = ["redteam"]


def redteam(
    *,
    model: Model,
    guard: GuardFolder,
    data: Data,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for red_team.json, red_team.html, evasions.npz.")
    ],
    budget: Annotated[
        list[float] | None,
        typer.Option("--budget", help="Linf, in 8-bit steps; may be repeated. [2.55, 4, 8]"),
    ] = None,
    standard: Annotated[
        bool,
        typer.Option(
            "--standard",
            help="1,000 steps and 5 restarts, later attacks on those that are left. Takes hours, "
            "and goes on where it was stopped.",
        ),
    ] = False,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Of each run of an attack. [100]")
    ] = None,
    restarts: Annotated[
        int | None, typer.Option("--restarts", help="Runs of each attack. [2]")
    ] = None,
    queries: Annotated[
        int, typer.Option("--queries", help="Questions of the black box per image.")
    ] = 1000,
    limit: Annotated[int, typer.Option("--limit", help="Images to attack at most.")] = 100,
    ladders: Annotated[
        bool,
        typer.Option("--ladders/--no-ladders", help="Climb to the smallest budget of each image."),
    ] = True,
    server: Annotated[
        str, typer.Option("--server", help="A running server that the black box asks, host:port.")
    ] = "",
    token: Annotated[
        str, typer.Option("--token", envvar="RELUGUARD_TOKEN", help="For that server.")
    ] = "",
    publish: Annotated[
        bool,
        typer.Option("--publish", help="Write the figures into the guard's manifest and report."),
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option("--key", help="PEM, an Ed25519 private key: signs what was published."),
    ] = None,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Attack your own guard with full knowledge of it, and say how often that gets past."""
    from dataclasses import replace

    from training import redteam as red
    from training.publication import publish as publish_figures
    from training.red_text import print_red_team

    effort = red.STANDARD if standard else red.Effort()
    with show_progress(quiet=as_json) as progress, _asking(server, token, guard) as ask:
        card = red.redteam(
            model,
            guard,
            data,
            out,
            budgets=budget or red.BUDGETS,
            effort=replace(
                effort,
                steps=effort.steps if steps is None else steps,
                restarts=effort.restarts if restarts is None else restarts,
                queries=queries,
            ),
            ladders=red.LADDERS if ladders else {},
            seed=seed,
            limit=limit,
            threads=threads,
            ask=ask,
            told=f"the server at {server}" if server else red.IN_PROCESS,
            progress=progress,
        )
    if publish:
        publish_figures(guard, card, key=key)
    if as_json:
        typer.echo(json.dumps(card))
    else:
        print_red_team(card)
        typer.echo(f"\nreport: {out / 'red_team.html'}, images: {out / 'evasions.npz'}")


@contextlib.contextmanager
def _asking(
    server: str, token: str, guard: Path
) -> Iterator["Callable[[NDArray[np.uint8]], Verdicts] | None"]:
    """Give what asks a server that serves this very guard, or None without a server."""
    if not server:
        yield None
        return
    from functools import partial

    from detector.artifact import read_guard
    from service.client import Client

    with Client(server, token=token or None) as client:
        served, own = client.describe().guard, read_guard(guard).digest
        if served != own:
            fail(f"expected a server of the guard {own[:16]}, {server} serves {served[:16]}")
        yield partial(client.inspect, outputs=True)
