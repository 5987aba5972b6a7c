"""A guard attacked by someone who knows all of it."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reluguard.commands.console import fail, show_progress
from reluguard.commands.options import Data, GuardFolder, Json, Model, Seed, Threads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from reluguard.detector.verdict import Verdicts
    from reluguard.training.progress import Progress
    from reluguard.training.rounds import Hardened

    Card = Mapping[str, Any]

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
    harden: Annotated[
        int,
        typer.Option(
            "--harden",
            min=0,
            help="Rounds of refitting the guard on what got past it; then the new guard is "
            "attacked too, told beside the old one, and the gate says what it costs: exit code 1 "
            "if refused.",
        ),
    ] = 0,
    hardened: Annotated[
        Path | None, typer.Option("--hardened", help="The new guard's folder, with --harden.")
    ] = None,
    fit_data: Annotated[
        str | None,
        typer.Option("--fit-data", help="With --harden: the images of the fit, if they moved."),
    ] = None,
    fit_work: Annotated[
        Path | None,
        typer.Option("--fit-work", help="With --harden: the harvest. [what the guard names]"),
    ] = None,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Attack your own guard with full knowledge of it, and say how often that gets past."""
    from dataclasses import replace

    from reluguard.training import redteam as red
    from reluguard.training.pages.publication import publish as publish_figures
    from reluguard.training.pages.red_team_text import print_red_team

    if (harden > 0) != (hardened is not None):
        raise typer.BadParameter("expected --harden ROUNDS and --hardened FOLDER together")
    if harden and server:
        raise typer.BadParameter("expected no --server with --harden: it serves the old guard only")
    effort = red.STANDARD if standard else red.Effort()
    effort = replace(
        effort,
        steps=effort.steps if steps is None else steps,
        restarts=effort.restarts if restarts is None else restarts,
        queries=queries,
    )

    def attack(guard: Path, out: Path, progress: "Progress") -> dict[str, Any]:
        with _asking(server, token, guard) as ask:
            card = red.redteam(
                model,
                guard,
                data,
                out,
                budgets=budget or red.BUDGETS,
                effort=effort,
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
        return card

    if hardened is not None:
        from reluguard.detector.artifact import check_place
        from reluguard.training.rounds import SIZES, harden_guard

        check_place(hardened)  # before hours of attacks, not after
        with show_progress(quiet=as_json) as progress:
            before = attack(guard, out, progress)
            found = harden_guard(
                model,
                guard,
                fit_data,
                hardened,
                rounds=harden,
                sizes=budget or SIZES,
                fit_work=fit_work,
                seed=seed,
                threads=threads,
                progress=progress,
            )
            after = attack(hardened, out / "hardened", progress)
        _tell_hardening(found, before, after, out, as_json=as_json)
        sys.exit(0 if found.gate.passed else 1)
    with show_progress(quiet=as_json) as progress:
        card = attack(guard, out, progress)
    if as_json:
        typer.echo(json.dumps(card))
    else:
        print_red_team(card)
        typer.echo(f"\nreport: {out / 'red_team.html'}, images: {out / 'evasions.npz'}")


def _tell_hardening(
    found: "Hardened", before: "Card", after: "Card", out: Path, *, as_json: bool
) -> None:
    from reluguard.detector.artifact import read_guard, write_file
    from reluguard.training.pages.red_team_text import print_hardening
    from reluguard.training.retraining.gate import print_gate

    digest = read_guard(found.guard.path).digest  # what was published since is in it
    about = {"guard": str(found.guard.path), "digest": digest, "gate": found.gate.to_json()}
    document = {**about, "before": before, "after": after}
    write_file(out / "hardening.json", json.dumps(document, indent=2).encode())
    if as_json:
        typer.echo(json.dumps(document))
        return
    print_hardening(before, after)
    print_gate(found.gate)
    typer.echo(f"guard: {found.guard.path}, figures: {out / 'hardening.json'}")


@contextlib.contextmanager
def _asking(
    server: str, token: str, guard: Path
) -> Iterator["Callable[[NDArray[np.uint8]], Verdicts] | None"]:
    """Give what asks a server that serves this very guard, or None without a server."""
    if not server:
        yield None
        return
    from functools import partial

    from reluguard.detector.artifact import read_guard
    from reluguard.service.client.client import Client

    with Client(server, token=token or None) as client:
        served, own = client.describe().guard, read_guard(guard).digest
        if served != own:
            fail(f"expected a server of the guard {own[:16]}, {server} serves {served[:16]}")
        yield partial(client.inspect, outputs=True)
