"""What captured images were, said by people: the commands below `reluguard label`."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from reluguard.commands.console import fail
from reluguard.commands.helping import Command, Group
from reluguard.commands.options import Json

__all__ = ["label"]


label = typer.Typer(
    help="Say what captured images were: list, show, export, import, set.",
    no_args_is_help=True,
    cls=Group,
)

Captures = Annotated[Path, typer.Option("--captures", help="The server's capture folder.")]
Labeller = Annotated[
    str, typer.Option("--labeller", help="Who says so; it is kept with the label.")
]
Replace = Annotated[bool, typer.Option("--replace", help="Replace a label that was given before.")]


@label.command("list", cls=Command)
def label_list(
    *,
    captures: Captures,
    limit: Annotated[int, typer.Option("--limit", help="List so many images at most.")] = 50,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="List only what has no label yet.")
    ] = False,
    source: Annotated[
        str | None, typer.Option("--source", help="List only what this caller sent.")
    ] = None,
    request: Annotated[
        str | None, typer.Option("--request", help="List only what came with this x-request-id.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List captured images, the most adversarial first."""
    from reluguard.service.captures.label import list_captures

    with _labels():
        found = list_captures(
            captures, limit=limit, unlabelled=unlabelled, source=source, request=request
        )
    rows = [row.to_json() for row in found]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        typer.echo(
            f"{row['id']}  {row['stratum']:<7}  score {row['score']:8.3f}  p {row['p_value']:.4f}"
            f"  class {row['prediction']}  {row['label'] or '-'}"
        )


@label.command("show", cls=Command)
def label_show(
    name: Annotated[str, typer.Argument(metavar="ID", help="The id of the captured image.")],
    *,
    captures: Captures,
    guard: Annotated[
        Path | None,
        typer.Option("--guard", help="A guard's folder or a shelf, to show each layer's evidence."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="A .png file to draw the pixels to, if they were kept."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show one captured image: what was said of it, each layer's evidence, and its pixels."""
    from reluguard.detector.artifact import read_guard
    from reluguard.detector.shelf.shelf import current
    from reluguard.service.captures.show import show_capture, write_image

    artifact = None if guard is None else current(guard) or read_guard(guard)
    with _labels():
        shown = show_capture(captures, name, artifact)
        if out is not None and shown.raw is None:
            fail(f"no raw input of {name!r} was kept: serve with --set capture_images=true")
        if out is not None and shown.raw is not None:
            write_image(shown.raw, out)
    if as_json:
        typer.echo(json.dumps(shown.to_json()))
        return
    for key, value in shown.row.to_json().items():
        typer.echo(f"{key:<11} {value}")
    for layer, value in shown.evidence.items():
        typer.echo(f"{layer:<40} {value:+8.3f}  {shown.layer_rates[layer]:.3f} fired")


@label.command("export", cls=Command)
def label_export(
    out: Annotated[Path, typer.Argument(help="The CSV file to write.")], *, captures: Captures
) -> None:
    """Write the captures as CSV, for its column `label` to be filled in."""
    from reluguard.service.captures.label import export_csv

    with _labels():
        count = export_csv(captures, out)
    typer.echo(f"{count} captures written to {out}")


@label.command("import", cls=Command)
def label_import(
    file: Annotated[Path, typer.Argument(help="A CSV file with the columns id and label.")],
    *,
    captures: Captures,
    labeller: Labeller = "cli",
    replace: Replace = False,
) -> None:
    """Take the labels of a CSV, all of them or none."""
    from reluguard.service.captures.label import import_csv

    with _labels():
        count = import_csv(captures, file, labeller=labeller, replace=replace)
    typer.echo(f"{count} new labels")


@label.command("set", cls=Command)
def label_set(
    name: Annotated[str, typer.Argument(metavar="ID", help="The id of the captured image.")],
    value: Annotated[
        str, typer.Argument(metavar="LABEL", help="The label: clean, or attack:NAME.")
    ],
    *,
    captures: Captures,
    labeller: Labeller = "cli",
    replace: Replace = False,
) -> None:
    """Label one captured image."""
    from reluguard.service.captures.label import set_label

    with _labels():
        count = set_label(captures, [(name, value)], labeller=labeller, replace=replace)
    typer.echo(f"{count} new labels")


@contextlib.contextmanager
def _labels() -> Iterator[None]:
    """Turn what is wrong with a label into one clear line."""
    from reluguard.service.errors import LabelError

    try:
        yield
    except LabelError as error:
        fail(str(error))
