"""What there is: versions, captures, and what a running server says of itself."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reluguard.commands.console import fail
from reluguard.commands.options import Json

if TYPE_CHECKING:
    from reluguard.detector.metrics import RedTeamSummary

__all__ = ["status"]


def status(
    *,
    shelf: Annotated[
        Path | None, typer.Option("--shelf", help="The folder of versions that a server follows.")
    ] = None,
    captures: Annotated[
        Path | None, typer.Option("--captures", help="A server's capture folder.")
    ] = None,
    server: Annotated[
        str, typer.Option("--server", help="The metrics port of a running server, as host:port.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Show champion, challenger, gate, history, what waits for labels, and a live server's view."""
    if shelf is None and captures is None and not server:
        raise typer.BadParameter("expected --shelf, --captures or --server")
    document: dict[str, Any] = {}
    lines: list[str] = []
    if shelf is not None:
        _shelf_status(shelf, document, lines)
    if captures is not None:
        _capture_status(captures, document, lines)
    if server:
        _server_status(server, document, lines)
    typer.echo(json.dumps(document) if as_json else "\n".join(lines))


def _shelf_status(shelf: Path, document: dict[str, Any], lines: list[str]) -> None:
    from dataclasses import asdict

    from reluguard.detector.metrics import gate_of, red_team_of
    from reluguard.detector.shelf.shelf import challenger, current, history, versions

    live, rival = current(shelf), challenger(shelf)
    known, changes = versions(shelf), history(shelf)
    gate = None if live is None else gate_of(live.manifest)
    red_team = None if live is None else red_team_of(live.manifest)
    document |= {
        "current": live and live.digest,
        "challenger": rival and rival.digest,
        "versions": {name: found.manifest.created_at for name, found in known.items()},
        "gate": {} if gate is None else gate.to_json(),
        "red_team": {} if red_team is None else red_team.to_json(),
        "history": [asdict(change) for change in changes],
    }
    marks = {found.digest: mark for mark, found in (("*", live), ("?", rival)) if found}
    words = {"*": "  current", "?": "  challenger"}
    for name, found in known.items():
        mark = marks.get(found.digest, " ")
        lines.append(f"{mark} {name}  fitted {found.manifest.created_at}{words.get(mark, '')}")
    if gate:
        lines.append(f"gate: {'passed' if gate.passed else 'refused'}")
    if live is not None:
        lines += _red_team_lines(red_team)
    for change in changes:
        forced = ", forced" if change.forced else ""
        lines.append(
            f"{change.number:>4} {change.when} {change.action:<8} {change.guard[:16]} "
            f"by {change.who}{forced}: {change.why}"
        )


def _red_team_lines(found: "RedTeamSummary | None") -> list[str]:
    """Return what the red team published with a guard, or that it did not."""
    if found is None:
        return ["red team: nothing published with this guard, see `reluguard redteam --publish`"]
    lines = []
    for size, rates in found.evaded.items():
        shares = ", ".join(f"{entry:.2f} at {rate}" for rate, entry in rates.items())
        lines.append(f"red team, {float(size):g}/255, {found.images} images: evades {shares}")
    return lines


def _capture_status(captures: Path, document: dict[str, Any], lines: list[str]) -> None:
    import sqlite3
    from dataclasses import asdict

    from reluguard.service.captures.counts import count_captures

    try:
        found = count_captures(captures)
    except sqlite3.Error as error:
        fail(f"expected captures in {captures}, its index can't be read: {error}")
    document["captured"] = asdict(found)
    waiting = ", ".join(f"{count} {name}" for name, count in found.waiting.items())
    labels = ", ".join(f"{count} {name}" for name, count in found.labels.items()) or "none"
    lines.append(f"captured {found.images}; waiting for labels: {waiting}; labelled: {labels}")


def _server_status(address: str, document: dict[str, Any], lines: list[str]) -> None:
    from reluguard.service.web.fetched import fetch_status, in_words

    document["server"] = fetch_status(address)
    lines += in_words(document["server"])
