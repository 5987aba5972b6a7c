"""The command line: every command in the order of `--help`, and how it ends."""

from typing import Annotated

import typer

from reluguard.commands.console import fail
from reluguard.commands.demo import demo
from reluguard.commands.evaluation import evaluate
from reluguard.commands.fit import fit
from reluguard.commands.guard import bench, export, score
from reluguard.commands.helping import Command, Group
from reluguard.commands.label import label
from reluguard.commands.network import analyze, explain, harden
from reluguard.commands.red_team import redteam
from reluguard.commands.retraining import retrain
from reluguard.commands.server import health, serve
from reluguard.commands.shelf import promote, rollback, shadow
from reluguard.commands.status import status
from reluguard.commands.trial import try_

__all__ = ["app", "run"]

INTERRUPTED = 130  # what typer makes of Ctrl-C

app = typer.Typer(
    name="reluguard",
    cls=Group,
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
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """Tells, per request and in the same forward pass, how likely an image is adversarial."""
    del version


_EXTRAS = (  # what each extra of pyproject.toml brings
    ("otel", {"opentelemetry"}),
    ("ray", {"ray"}),
    ("tables", {"pandas", "pyarrow"}),
    ("training", {"art", "matplotlib", "onnxscript", "scipy", "sklearn", "torch", "torchvision"}),
)

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
    app.command(cls=Command)(_command)
app.command("try", cls=Command)(try_)
app.add_typer(label, name="label")


def _missing(module: str) -> str:
    """Return which part of reluguard needs a module that is not installed, and how to get it."""
    package = module.partition(".")[0]
    extra = next((name for name, packages in _EXTRAS if package in packages), None)
    if extra is None:
        return f"no module {module} here: install it, or reluguard anew with what it needs"
    return (
        f"no module {module} here: install reluguard with the extra [{extra}], "
        f"pip install 'reluguard[{extra}]'"
    )


def run() -> None:
    """Run the command line: exit code 0 good, 1 failed with one clear line, 2 wrong usage."""
    from reluguard.detector.errors import DetectorError

    try:
        app()
    except DetectorError as error:
        for note in getattr(error, "__notes__", ()):  # the traceback of what a user lent
            typer.echo(note, err=True)
        fail(str(error))
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        fail(f"{error.strerror or error}{place}")
    except ModuleNotFoundError as error:
        fail(_missing(str(error.name)))
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            typer.echo("reluguard: interrupted; finished work is kept", err=True)
        raise
