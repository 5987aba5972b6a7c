"""The command line: every command in the order of `--help`, and how it ends."""

from typing import Annotated

import typer

from commands.console import fail
from commands.demo import demo
from commands.evaluation import evaluate
from commands.fit import fit
from commands.guard import bench, export, score
from commands.label import label
from commands.network import analyze, explain, harden
from commands.red_team import redteam
from commands.retraining import retrain
from commands.server import health, serve
from commands.shelf import promote, rollback, shadow
from commands.status import status

__all__ = ["app", "run"]

INTERRUPTED = 130  # what typer makes of Ctrl-C

app = typer.Typer(
    name="reluguard",
    help="Tells, per request and in the same forward pass, how likely an image is adversarial.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(*, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("reluguard"))
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=lambda wanted: _print_version(wanted=wanted),
            is_eager=True,
            help="Print the version.",
        ),
    ] = False,
) -> None:
    """Tells, per request and in the same forward pass, how likely an image is adversarial."""
    del version


_COMMANDS = (  # in the order of --help
    demo,
    fit,
    score,
    evaluate,
    redteam,
    export,
    serve,
    health,
    bench,
    analyze,
    explain,
    harden,
    retrain,
    promote,
    shadow,
    rollback,
    status,
)
for _command in _COMMANDS:
    app.command()(_command)
app.add_typer(label, name="label")


def run() -> None:
    """Run the command line: exit code 0 good, 1 failed with one clear line, 2 wrong usage."""
    from detector.errors import DetectorError

    try:
        app()
    except DetectorError as error:
        fail(str(error))
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        fail(f"{error.strerror or error}{place}")
    except ModuleNotFoundError as error:
        fail(f"no module {error.name} here: install reluguard with the extra [training]")
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            typer.echo("reluguard: interrupted; finished work is kept", err=True)
        raise
