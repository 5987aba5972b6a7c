"""promote, rollback and status from the command line, and a server that follows the shelf."""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from reluguard.commands.app import app
from reluguard.detector.artifact import GuardArtifact, read_guard, write_guard
from reluguard.detector.shelf.shelf import ShelfError, promote, rollback
from reluguard.service.background import running
from reluguard.service.client.client import Client
from reluguard.service.settings import Settings


@pytest.fixture
def heir(tiny_guard: Path, tmp_path: Path) -> GuardArtifact:
    """A guard that the gate passed against `tiny_guard`."""
    first = read_guard(tiny_guard)
    gate = {"champion": first.digest, "passed": True, "reasons": []}
    manifest = replace(first.manifest, metrics={"gate": gate})
    return write_guard(tmp_path / "heir", manifest=manifest, head=first.head, golden=first.golden)


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_commands_move_the_pointer_and_tell(
    tiny_guard: Path, heir: GuardArtifact, tmp_path: Path
) -> None:
    """What promote and rollback did is what status shows."""
    shelf = tmp_path / "shelf"
    first = read_guard(tiny_guard).digest
    assert "is current" in run(
        "promote", "--shelf", shelf, "--guard", tiny_guard, "--why", "first", "--who", "ann"
    )
    said = json.loads(
        run("promote", "--shelf", shelf, "--guard", heir.path, "--why", "better", "--json")
    )
    assert (said["guard"], said["before"]) == (heir.digest, first)
    found = json.loads(run("status", "--shelf", shelf, "--json"))
    assert found["current"] == heir.digest
    assert found["gate"]["passed"]
    run("rollback", "--shelf", shelf, "--why", "worse", "--who", "bob")
    text = run("status", "--shelf", shelf)
    assert f"* {first[:16]}" in text
    assert "by bob: worse" in text


def test_a_refused_promotion_is_an_error(
    tiny_guard: Path, heir: GuardArtifact, tmp_path: Path
) -> None:
    """Without the gate's word against the current version only --force promotes."""
    shelf = tmp_path / "shelf"
    run("promote", "--shelf", shelf, "--guard", heir.path, "--why", "first")
    where: Sequence[str | Path] = ("--shelf", shelf, "--guard", tiny_guard, "--why", "hurry")
    with pytest.raises(ShelfError, match="never judged"):
        run("promote", *where)
    assert json.loads(run("promote", *where, "--force", "--json"))["forced"]


def test_a_challenger_by_command(tiny_guard: Path, heir: GuardArtifact, tmp_path: Path) -> None:
    """Into shadow, shown, promoted without being named, and another one cleared."""
    shelf = tmp_path / "shelf"
    where: Sequence[str | Path] = ("--shelf", shelf, "--why", "see")
    first = read_guard(tiny_guard).digest
    run("promote", *where, "--guard", tiny_guard)
    with pytest.raises(ShelfError, match="has no challenger to promote"):
        run("promote", *where)
    assert "is in shadow" in run("promote", *where, "--guard", heir.path, "--shadow")
    found = json.loads(run("status", "--shelf", shelf, "--json"))
    assert (found["current"], found["challenger"]) == (first, heir.digest)
    assert f"? {heir.digest[:16]}" in run("status", "--shelf", shelf)
    assert json.loads(run("promote", *where, "--json"))["guard"] == heir.digest
    found = json.loads(run("status", "--shelf", shelf, "--json"))
    assert (found["current"], found["challenger"]) == (heir.digest, None)
    assert "is in shadow" in run("shadow", *where, "--guard", tiny_guard)
    assert "is out of shadow" in run("shadow", *where, "--clear")
    assert json.loads(run("status", "--shelf", shelf, "--json"))["challenger"] is None
    for wrong in (("shadow", *where), ("promote", *where, "--shadow", "--force")):
        done = CliRunner().invoke(app, [str(word) for word in wrong])
        assert done.exit_code == 2, done.output


@pytest.mark.slow
def test_a_server_follows_the_shelf_and_loses_no_request(
    tiny_model: Path,
    tiny_guard: Path,
    heir: GuardArtifact,
    tmp_path: Path,
    make_images: Callable[..., Any],
) -> None:
    """Under load the answers move to the promoted version and back, and none fails."""
    shelf = tmp_path / "shelf"
    first = promote(shelf, tiny_guard, who="ann", why="first").guard
    settings = Settings(
        model=tiny_model, guard=shelf, port=0, metrics_port=None, threads=1, reload_s=0.05
    )
    images, stop = make_images(2), threading.Event()
    answered, failed = [], []

    def ask(address: str) -> None:
        with Client(address) as client:
            while not stop.is_set():
                try:
                    answered.append(len(client.inspect(images)))
                except Exception as error:  # noqa: BLE001 - whatever fails is what we count
                    failed.append(error)

    with running(settings) as server, Client(server.address) as client:
        callers = [threading.Thread(target=ask, args=(server.address,)) for _ in range(3)]
        for caller in callers:
            caller.start()

        def wait_for(digest: str) -> bool:
            patience = monotonic() + 60
            while monotonic() < patience and client.describe().guard != digest:
                client.inspect(images)
            return client.describe().guard == digest

        moved = []
        try:
            for _ in range(3):
                promote(shelf, heir.path, who="ann", why="better")
                moved.append(wait_for(heir.digest))
                rollback(shelf, who="ann", why="worse")
                moved.append(wait_for(first))
        finally:
            stop.set()
            for caller in callers:
                caller.join()
    assert all(moved)
    assert not failed
    assert np.all(np.array(answered) == 2)
    assert len(answered) > 20
