"""A guard attacked by someone who knows all of it."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from reluguard.commands.console import fail, show_progress
from reluguard.commands.options import (
    Classes,
    Data,
    GuardFolder,
    GuardModel,
    Json,
    LooksWanted,
    SecondModel,
    Seed,
    Threads,
    Weights,
    looks_given,
    onnx_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from reluguard.detector.verdict import Verdicts
    from reluguard.training.progress import Progress
    from reluguard.training.red_team.report import RedTeamReport
    from reluguard.training.rounds import Refitted

__all__ = ["redteam"]


def redteam(
    *,
    model: GuardModel = None,
    guard: GuardFolder,
    data: Data,
    out: Annotated[
        Path,
        typer.Option("--out", help="The folder for red_team.json, red_team.html and evasions.npz."),
    ],
    budget: Annotated[
        list[float] | None,
        typer.Option(
            "--budget",
            help="How far a pixel may move, in 8-bit steps; may be given again. [default: "
            "2.55, 4, 8]",
        ),
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
        int | None,
        typer.Option("--steps", help="How many steps a run of an attack takes. [default: 100]"),
    ] = None,
    restarts: Annotated[
        int | None,
        typer.Option(
            "--restarts", help="How many runs each attack has, from other starts. [default: 2]"
        ),
    ] = None,
    queries: Annotated[
        int, typer.Option("--queries", help="How often the black box may ask about an image.")
    ] = 1000,
    limit: Annotated[int, typer.Option("--limit", help="Attack so many images at most.")] = 100,
    ladders: Annotated[
        bool,
        typer.Option(
            "--ladders/--no-ladders", help="Look for the smallest change of each image that evades."
        ),
    ] = True,
    asking: Annotated[
        int,
        typer.Option(
            "--asking",
            min=0,
            help="Images at most for attackers who see only answers and flags and ask more than a "
            "thousand questions each; 0 leaves them out.",
        ),
    ] = 20,
    attacker_guard: Annotated[
        Path | None,
        typer.Option(
            "--attacker-guard",
            help="A guard that the attacker fitted on other images, for one who does not have "
            "yours: attacks are made on that one and tried on yours.",
        ),
    ] = None,
    looks: LooksWanted = None,
    second_model: SecondModel = None,
    server: Annotated[
        str,
        typer.Option("--server", help="A running server that the black box asks, as host:port."),
    ] = "",
    token: Annotated[
        str, typer.Option("--token", envvar="RELUGUARD_TOKEN", help="The token for that server.")
    ] = "",
    publish: Annotated[
        bool,
        typer.Option("--publish", help="Write the figures into the guard's manifest and report."),
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", help="A PEM file with an Ed25519 private key, which signs what was published."
        ),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            "--rounds",
            min=0,
            help="Rounds of refitting the guard on what got past it; then the new guard is "
            "attacked too, told beside the old one, and the gate says what it costs: exit code 1 "
            "if refused.",
        ),
    ] = 0,
    refitted: Annotated[
        Path | None,
        typer.Option("--refitted", help="With --rounds: the folder to write the new guard to."),
    ] = None,
    harden: Annotated[int, typer.Option("--harden", min=0, hidden=True)] = 0,
    hardened: Annotated[Path | None, typer.Option("--hardened", hidden=True)] = None,
    fit_data: Annotated[
        str | None,
        typer.Option("--fit-data", help="With --rounds: the images of the fit, if they moved."),
    ] = None,
    fit_work: Annotated[
        Path | None,
        typer.Option(
            "--fit-work",
            help="With --rounds: the work folder of the fit. [default: what the guard names]",
        ),
    ] = None,
    classes: Classes = None,
    weights: Weights = None,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Attack your own guard with full knowledge of it, and say how often that gets past."""
    from reluguard.training import redteam as red
    from reluguard.training.pages.red_team_text import print_red_team

    places = _ROUNDS
    if harden or hardened:
        typer.echo("reluguard: --harden and --hardened are now --rounds and --refitted", err=True)
        rounds, refitted, places = rounds or harden, refitted or hardened, _HARDENING
    if (rounds > 0) != (refitted is not None):
        raise typer.BadParameter("expected --rounds ROUNDS and --refitted FOLDER together")
    wanted = looks_given(looks)
    if rounds and wanted not in {None, "first"}:
        raise typer.BadParameter("expected --looks first with --rounds: what they refit looks once")
    if rounds:
        wanted = "first"  # both guards are attacked by what both have
    if rounds and server:
        raise typer.BadParameter("expected no --server with --rounds: it serves the old guard only")

    file = onnx_file(model, guard, weights)

    def attack(guard: Path, out: Path, progress: "Progress") -> "RedTeamReport":
        with _asking(server, token, guard) as ask:
            return red.redteam(
                file,
                guard,
                data,
                out=out,
                budgets=budget or red.BUDGETS,
                standard=standard,
                steps=steps,
                restarts=restarts,
                queries=queries,
                limit=limit,
                ladders=ladders,
                asking=asking,
                attacker_guard=attacker_guard,
                looks=wanted,
                second_model=second_model,
                ask=ask,
                told=f"the server at {server}" if server else red.IN_PROCESS,
                publish=publish,
                key=key,
                classes=classes,
                seed=seed,
                threads=threads,
                progress=progress,
            )

    if refitted is not None:
        from reluguard.detector.artifact import check_place
        from reluguard.training.rounds import SIZES, refit_in_rounds

        check_place(refitted)  # before hours of attacks, not after
        with show_progress() as progress:
            before = attack(guard, out, progress)
            found = refit_in_rounds(
                file,
                guard,
                fit_data,
                out=refitted,
                rounds=rounds,
                sizes=budget or SIZES,
                fit_work=fit_work,
                seed=seed,
                threads=threads,
                progress=progress,
            )
            after = attack(refitted, out / places.folder, progress)
        _tell_rounds(found, before, after, out / places.figures, as_json=as_json)
        sys.exit(0 if found.gate.passed else 1)
    with show_progress() as progress:
        report = attack(guard, out, progress)
    if as_json:
        typer.echo(json.dumps(report.to_json()))
    else:
        print_red_team(report)
        typer.echo(f"\nreport: {out / 'red_team.html'}, images: {out / 'evasions.npz'}")


class _Places(NamedTuple):
    """Where the second red team and both sides' figures go, in the first one's folder."""

    folder: str
    figures: str


_ROUNDS = _Places("refitted", "rounds.json")
_HARDENING = _Places("hardened", "hardening.json")  # who asks by the old name looks for these


def _tell_rounds(
    found: "Refitted",
    before: "RedTeamReport",
    after: "RedTeamReport",
    figures: Path,
    *,
    as_json: bool,
) -> None:
    from reluguard.detector.artifact import read_guard, write_file
    from reluguard.training.pages.gate_text import print_gate
    from reluguard.training.pages.red_team_text import print_rounds

    digest = read_guard(found.guard.path).digest  # what was published since is in it
    about = {"guard": str(found.guard.path), "digest": digest, "gate": found.gate.to_json()}
    document = {**about, "before": before.to_json(), "after": after.to_json()}
    write_file(figures, json.dumps(document, indent=2).encode())
    if as_json:
        typer.echo(json.dumps(document))
        return
    print_rounds(before, after)
    print_gate(found.gate)
    typer.echo(f"guard: {found.guard.path}, figures: {figures}")


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
