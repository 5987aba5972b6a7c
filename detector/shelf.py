"""The shelf: guard versions side by side, one of them current, and the history of that.

    CURRENT          the name of the version that serves; replaced by rename, so never half-written
    CHALLENGER       the name of the one that scores beside it in shadow, if there is one
    history.jsonl    one line per change, appended and flushed to disk: who, when, why
    VERSION/         a guard folder, named by the first 16 characters of its digest
    .lock            held while something changes

A server whose guard is the shelf follows CURRENT and CHALLENGER.
"""

import datetime as dt
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from detector.artifact import GuardArtifact, folder_aside, read_guard, write_file, write_guard
from detector.errors import GuardError, HeldError
from detector.history import Change, ShelfError, append, earlier, history
from detector.lock import hold
from detector.signature import SIGNATURE, sign

__all__ = [
    "CHALLENGER",
    "CURRENT",
    "Change",
    "ShelfError",
    "challenger",
    "clear",
    "current",
    "history",
    "pointed",
    "promote",
    "rollback",
    "shadow",
    "versions",
]

CURRENT = "CURRENT"
CHALLENGER = "CHALLENGER"
LOCK = ".lock"
NAME = 16
_ARRAYS = ("head.npz", "golden.npz")


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def pointed(shelf: Path, pointer: str) -> Path | None:
    """Return the folder that a pointer of the shelf names, or None if there is no such pointer.

    Raises:
        ShelfError: it names no version of this shelf.
    """
    file = shelf / pointer
    try:
        name = file.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None
    if not name or Path(name).name != name or name in {".", ".."} or "\0" in name:
        raise ShelfError(f"expected the name of one version in {file}, got {name[:64]!r}")
    return shelf / name


def current(shelf: Path) -> GuardArtifact | None:
    """Return the version that serves, checked, or None on a shelf without one.

    Raises:
        ShelfError: CURRENT names no version of this shelf.
        GuardError: the version is damaged.
    """
    place = pointed(shelf, CURRENT)
    return None if place is None else read_guard(place)


def challenger(shelf: Path) -> GuardArtifact | None:
    """Return the version that scores in shadow, checked, or None.

    One that has become current since is no challenger any more.

    Raises:
        ShelfError: CHALLENGER names no version of this shelf.
        GuardError: the version is damaged.
    """
    place = pointed(shelf, CHALLENGER)
    return None if place is None or place == pointed(shelf, CURRENT) else read_guard(place)


def versions(shelf: Path) -> dict[str, GuardArtifact]:
    """Return the readable versions by name; what is damaged is left out."""
    found = {}
    for folder in sorted(shelf.iterdir()) if shelf.is_dir() else ():
        if folder.is_dir() and not folder.name.startswith("."):
            try:
                found[folder.name] = read_guard(folder)
            except GuardError:
                continue
    return found


def promote(
    shelf: Path,
    guard: Path,
    *,
    who: str,
    why: str,
    force: bool = False,
    key: Path | None = None,
    wait_s: float = 10.0,
    clock: Callable[[], dt.datetime] = _now,
) -> Change:
    """Place a guard on the shelf, make it current and return the line of history.

    A challenger that is promoted is no challenger any more; another one stays.

    Args:
        shelf: the folder; made if it isn't there.
        guard: the guard's folder; it stays where it is.
        who: goes into history.
        why: goes into history.
        force: promote what the gate refused or never judged against the current version. The
            version then says so in its manifest, so its digest is another than the guard's.
        key: a PEM file with an Ed25519 private key to sign the version with.
        wait_s: how long to wait for another promotion.
        clock: tells the time.

    Raises:
        ShelfError: the gate does not allow it, the guard is for another model than the current one,
            or another promotion takes too long.
        GuardError: the guard or the key can't be read.
    """
    shelf.mkdir(parents=True, exist_ok=True)
    with _locked(shelf, wait_s):
        artifact, live = read_guard(guard), current(shelf)
        problem = None if live is None else _problem(artifact, live)
        if problem and not force:
            raise ShelfError(f"{problem}; --force promotes it all the same and says so in it")
        if problem:
            forced = {"who": who, "why": why, "when": _stamp(clock), "although": problem}
            placed = _place_forced(shelf, artifact, forced)
        else:
            placed = _place(shelf, artifact)
        if key is not None:
            sign(placed, key)
        before = None if live is None else live.digest
        change = _record(shelf, "promote", placed.digest, before, who, why, clock, bool(problem))
        _point(shelf, CURRENT, placed)
        rival = pointed(shelf, CHALLENGER)
        if rival is not None and rival.name in {artifact.digest[:NAME], placed.digest[:NAME]}:
            _unpoint(shelf, CHALLENGER)
        return change


def rollback(
    shelf: Path,
    *,
    who: str,
    why: str,
    wait_s: float = 10.0,
    clock: Callable[[], dt.datetime] = _now,
) -> Change:
    """Make the version current that was so before this one and return the line of history.

    A second rollback goes one further back. The current version may be damaged: then this is
    needed most.

    Raises:
        ShelfError: there is none before, or another promotion takes too long.
        GuardError: the version before is damaged: what is current stays.
    """
    with _locked(shelf, wait_s):
        live = _named_digest(shelf, pointed(shelf, CURRENT))
        below = earlier(history(shelf), live)
        if live is None or not below:
            raise ShelfError(f"expected an earlier version to go back to in {shelf}, got none")
        target = read_guard(shelf / below[-1][:NAME])
        change = _record(shelf, "rollback", target.digest, live, who, why, clock)
        _point(shelf, CURRENT, target)
        return change


def shadow(
    shelf: Path,
    guard: Path,
    *,
    who: str,
    why: str,
    key: Path | None = None,
    wait_s: float = 10.0,
    clock: Callable[[], dt.datetime] = _now,
) -> Change:
    """Place a guard on the shelf as challenger and return the line of history.

    It scores in the same pass as the current version and is only counted, so the gate is not asked.

    Args:
        shelf: a shelf with a current version.
        guard: the guard's folder; it stays where it is.
        who: goes into history.
        why: goes into history.
        key: a PEM file with an Ed25519 private key to sign the version with.
        wait_s: how long to wait for another promotion.
        clock: tells the time.

    Raises:
        ShelfError: there is no current version, the guard is it, or is for another model, or
            another promotion takes too long.
        GuardError: the guard or the key can't be read.
    """
    with _locked(shelf, wait_s):
        artifact, live = read_guard(guard), current(shelf)
        if live is None:
            raise ShelfError(f"expected a current version to shadow in {shelf}, got none")
        _same_model(artifact, live)
        if artifact.digest == live.digest:
            raise ShelfError(f"{guard} is the current version: it can't be its own challenger")
        placed = _place(shelf, artifact)
        if key is not None:
            sign(placed, key)
        before = _named_digest(shelf, pointed(shelf, CHALLENGER))
        change = _record(shelf, "shadow", placed.digest, before, who, why, clock)
        _point(shelf, CHALLENGER, placed)
        return change


def clear(
    shelf: Path,
    *,
    who: str,
    why: str,
    wait_s: float = 10.0,
    clock: Callable[[], dt.datetime] = _now,
) -> Change:
    """Take the challenger out of shadow, whatever state it is in; the version stays on the shelf.

    Raises:
        ShelfError: there is none, or another promotion takes too long.
    """
    with _locked(shelf, wait_s):
        place = pointed(shelf, CHALLENGER)
        digest = _named_digest(shelf, place)
        if digest is None:
            raise ShelfError(f"expected a challenger to clear in {shelf}, got none")
        change = _record(shelf, "clear", digest, digest, who, why, clock)
        _unpoint(shelf, CHALLENGER)
        return change


def _problem(artifact: GuardArtifact, live: GuardArtifact) -> str | None:
    """Return why the gate does not let a guard take the current one's place, if so."""
    _same_model(artifact, live)
    if artifact.digest == live.digest:
        return None
    gate: Mapping[str, Any] = artifact.manifest.metrics.get("gate", {})
    if gate.get("champion") != live.digest:
        return f"{artifact.path} was never judged against the current version {live.digest[:NAME]}"
    if gate.get("passed") is not True:
        return f"the gate refused {artifact.path}: {'; '.join(map(str, gate.get('reasons', ())))}"
    return None


def _same_model(artifact: GuardArtifact, live: GuardArtifact) -> None:
    if artifact.manifest.model_sha256 != live.manifest.model_sha256:
        raise ShelfError(
            f"{artifact.path} was fitted to another model than the current version: "
            "another model needs another shelf"
        )


def _place(shelf: Path, artifact: GuardArtifact) -> GuardArtifact:
    """Copy a guard's files as they are; what is there already, whole, is used."""
    place = shelf / artifact.digest[:NAME]
    try:
        return read_guard(place)
    except GuardError:
        names = [*_files(artifact.path), SIGNATURE]
        with folder_aside(place) as aside:
            for name in names:
                if (artifact.path / name).is_file():
                    write_file(aside / name, (artifact.path / name).read_bytes())
            if read_guard(aside).digest != artifact.digest:
                raise ShelfError(f"{artifact.path} changed while it was copied") from None
        return replace(artifact, path=place)


def _place_forced(shelf: Path, artifact: GuardArtifact, forced: Mapping[str, str]) -> GuardArtifact:
    reports = {
        name: (artifact.path / name).read_bytes()
        for name in _files(artifact.path)
        if name not in {"manifest.json", *_ARRAYS}
    }
    manifest = artifact.manifest
    provenance = {**manifest.provenance, "forced": dict(forced)}
    aside = shelf / f".forced-{os.getpid()}-{threading.get_ident()}"
    try:
        draft = write_guard(
            aside,
            manifest=replace(manifest, provenance=provenance),
            head=artifact.head,
            golden=artifact.golden,
            reports=reports,
        )
        return _place(shelf, draft)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _files(guard: Path) -> Sequence[str]:
    document = json.loads((guard / "manifest.json").read_bytes())
    return ["manifest.json", *document["files"]]


def _record(
    shelf: Path,
    action: str,
    guard: str,
    before: str | None,
    who: str,
    why: str,
    clock: Callable[[], dt.datetime],
    forced: bool = False,
) -> Change:
    """Write history before the pointer moves: what serves has a reason on file, whenever we die."""
    change = Change(
        number=len(history(shelf)) + 1,
        action=action,
        guard=guard,
        before=before,
        who=who,
        why=why,
        when=_stamp(clock),
        forced=forced,
    )
    append(shelf, change)
    return change


def _point(shelf: Path, pointer: str, target: GuardArtifact) -> None:
    write_file(shelf / pointer, f"{target.digest[:NAME]}\n".encode())
    _sync(shelf)


def _unpoint(shelf: Path, pointer: str) -> None:
    (shelf / pointer).unlink(missing_ok=True)
    _sync(shelf)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _named_digest(shelf: Path, place: Path | None) -> str | None:
    """Return the digest behind a version's name by history: its folder may be damaged or gone."""
    if place is None:
        return None
    known = [c.guard for c in history(shelf) if c.guard.startswith(place.name)]
    return known[-1] if known else place.name


def _stamp(clock: Callable[[], dt.datetime]) -> str:
    return clock().isoformat(timespec="seconds")


@contextmanager
def _locked(shelf: Path, wait_s: float) -> Iterator[None]:
    if not shelf.is_dir():
        raise ShelfError(f"expected a shelf of guards at {shelf}, there is no folder")
    with ExitStack() as held:
        try:
            held.enter_context(hold(shelf, name=LOCK, wait_s=wait_s))
        except HeldError as error:
            raise ShelfError(
                f"another promotion holds {shelf / LOCK} for more than {wait_s:g} s: {error}"
            ) from error
        yield
