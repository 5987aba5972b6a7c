"""Which version of a guard serves, which one scores in shadow, and the way back."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reluguard.commands.options import Json

if TYPE_CHECKING:
    from reluguard.detector.shelf.shelf import Change

__all__ = ["promote", "rollback", "shadow"]

Shelf = Annotated[
    Path, typer.Option("--shelf", help="The folder of versions that `serve --guard` follows.")
]
Why = Annotated[str, typer.Option("--why", help="The reason; it goes into the shelf's history.")]
Who = Annotated[
    str,
    typer.Option(
        "--who", help="Who does this; it goes into the history. [default: the user's name]"
    ),
]
Key = Annotated[
    Path | None, typer.Option("--key", help="A PEM file with an Ed25519 private key to sign with.")
]


def promote(
    *,
    shelf: Shelf,
    guard: Annotated[
        Path | None,
        typer.Option("--guard", help="The guard's folder. [default: the challenger in shadow]"),
    ] = None,
    why: Why,
    who: Who = "",
    in_shadow: Annotated[
        bool,
        typer.Option(
            "--shadow",
            help="Put it in shadow: it scores beside the current one and is only counted.",
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Promote although the gate refused it; the version says so for good."
        ),
    ] = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Put a guard on the shelf and make it current, or challenger; a running server follows."""
    from reluguard.detector.shelf import shelf as shelves

    if in_shadow and (force or guard is None):
        raise typer.BadParameter("expected --shadow with --guard and without --force")
    who = who or _user()
    if in_shadow and guard is not None:
        change = shelves.shadow(shelf, guard, who=who, why=why, key=key)
    else:
        if guard is None:
            rival = shelves.challenger(shelf)
            if rival is None:
                raise shelves.ShelfError(f"expected --guard: {shelf} has no challenger to promote")
            guard = rival.path
        change = shelves.promote(shelf, guard, who=who, why=why, force=force, key=key)
    _tell_change(change, as_json=as_json)


def shadow(
    *,
    shelf: Shelf,
    guard: Annotated[
        Path | None,
        typer.Option("--guard", help="The folder of the guard that is to score in shadow."),
    ] = None,
    clear: Annotated[
        bool,
        typer.Option("--clear", help="Take the challenger out of shadow, in place of --guard."),
    ] = False,
    why: Why,
    who: Who = "",
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Let a guard score beside the current one, counted only, or end that."""
    from reluguard.detector.shelf import shelf as shelves

    if clear == (guard is not None):
        raise typer.BadParameter("expected either --guard or --clear")
    who = who or _user()
    if guard is None:
        change = shelves.clear(shelf, who=who, why=why)
    else:
        change = shelves.shadow(shelf, guard, who=who, why=why, key=key)
    _tell_change(change, as_json=as_json)


def rollback(*, shelf: Shelf, why: Why, who: Who = "", as_json: Json = False) -> None:
    """Make the version current that was so before; again, one further back."""
    from reluguard.detector.shelf.shelf import rollback as go_back

    _tell_change(go_back(shelf, who=who or _user(), why=why), as_json=as_json)


def _tell_change(change: "Change", *, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        typer.echo(json.dumps(asdict(change)))
        return
    is_now = {"shadow": "in shadow", "clear": "out of shadow"}.get(change.action, "current")
    before = f", before {change.before[:16]}" if change.before and change.action != "clear" else ""
    typer.echo(f"{change.action}: {change.guard[:16]} is {is_now}{before}")


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
