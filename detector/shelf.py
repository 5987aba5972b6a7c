"""The shelf: guard versions side by side, one of them current, and the history of that.

    CURRENT          the name of the version that serves; replaced by rename, so never half-written
    history.jsonl    one line per change, appended and flushed to disk: who, when, why
    VERSION/         a guard folder, named by the first 16 characters of its digest
    .lock            held while something changes

A server whose guard is the shelf follows CURRENT. The order of history is that of its lines: the
clock is only written down.
"""

import datetime as dt
import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from detector.artifact import GuardArtifact, folder_aside, read_guard, write_file, write_guard
from detector.errors import GuardError
from detector.signature import SIGNATURE, sign

__all__ = ["Change", "ShelfError", "current", "history", "promote", "rollback", "versions"]

CURRENT = "CURRENT"
HISTORY = "history.jsonl"
LOCK = ".lock"
NAME = 16
_POLL_S = 0.02
_ARRAYS = ("head.npz", "golden.npz")


class ShelfError(GuardError):
    """A promotion or rollback is refused, or the shelf's own files are damaged."""


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One line of history.

    Attributes:
        number: of the change, from 1.
        action: "promote" or "rollback".
        guard: the digest of the version that became current.
        before: the digest of the one that was, or None.
        who: whoever says so.
        why: in their words.
        when: by the clock of the machine, ISO 8601.
        forced: whether the gate had refused, or never judged.
    """

    number: int
    action: str
    guard: str
    before: str | None
    who: str
    why: str
    when: str
    forced: bool = False


def current(shelf: Path) -> GuardArtifact | None:
    """Return the version that serves, checked, or None on a shelf without one.

    Raises:
        ShelfError: CURRENT names no version of this shelf.
        GuardError: the version is damaged.
    """
    pointer = shelf / CURRENT
    if not pointer.is_file():
        return None
    name = pointer.read_text(encoding="utf-8", errors="replace").strip()
    if not name or Path(name).name != name or name in {".", ".."}:
        raise ShelfError(f"expected the name of one version in {pointer}, got {name[:64]!r}")
    return read_guard(shelf / name)


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


def history(shelf: Path) -> list[Change]:
    """Return every change in the order it was made; a last line that was cut does not count.

    Raises:
        ShelfError: a line before the last is damaged.
    """
    changes: list[Change] = []
    for number, line in enumerate(_whole_lines(shelf), 1):
        try:
            changes.append(Change(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ShelfError(f"line {number} of {shelf / HISTORY} is damaged") from error
    return changes


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
        return _point(shelf, "promote", placed, before, who, why, clock, forced=bool(problem))


def rollback(
    shelf: Path,
    *,
    who: str,
    why: str,
    wait_s: float = 10.0,
    clock: Callable[[], dt.datetime] = _now,
) -> Change:
    """Make the version current that was so before this one and return the line of history.

    A second rollback goes one further back.

    Raises:
        ShelfError: there is none before, or another promotion takes too long.
        GuardError: the version before is damaged: what is current stays.
    """
    with _locked(shelf, wait_s):
        live = current(shelf)
        earlier = _earlier(history(shelf), None if live is None else live.digest)
        if live is None or not earlier:
            raise ShelfError(f"expected an earlier version to go back to in {shelf}, got none")
        target = read_guard(shelf / earlier[-1][:NAME])
        return _point(shelf, "rollback", target, live.digest, who, why, clock)


def _problem(artifact: GuardArtifact, live: GuardArtifact) -> str | None:
    """Return why the gate does not let a guard take the current one's place, if so."""
    if artifact.manifest.model_sha256 != live.manifest.model_sha256:
        raise ShelfError(
            f"{artifact.path} was fitted to another model than the current version: "
            "another model needs another shelf"
        )
    if artifact.digest == live.digest:
        return None
    gate: Mapping[str, Any] = artifact.manifest.metrics.get("gate", {})
    if gate.get("champion") != live.digest:
        return f"{artifact.path} was never judged against the current version {live.digest[:NAME]}"
    if gate.get("passed") is not True:
        return f"the gate refused {artifact.path}: {'; '.join(map(str, gate.get('reasons', ())))}"
    return None


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


def _point(
    shelf: Path,
    action: str,
    target: GuardArtifact,
    before: str | None,
    who: str,
    why: str,
    clock: Callable[[], dt.datetime],
    *,
    forced: bool = False,
) -> Change:
    """Write history, then move the pointer: what serves has a reason on file, whenever we die."""
    change = Change(
        number=len(history(shelf)) + 1,
        action=action,
        guard=target.digest,
        before=before,
        who=who,
        why=why,
        when=_stamp(clock),
        forced=forced,
    )
    lines = _whole_lines(shelf)
    with (shelf / HISTORY).open("ab") as stream:
        stream.truncate(sum(map(len, lines)))
        stream.write(json.dumps(asdict(change)).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    write_file(shelf / CURRENT, f"{target.digest[:NAME]}\n".encode())
    folder = os.open(shelf, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return change


def _earlier(changes: Sequence[Change], live: str | None) -> list[str]:
    """Return the versions below the current one, oldest first: promote adds, rollback takes off.

    A change after which something else was current never took effect: we died before the pointer.
    """
    after = [*(change.before for change in changes[1:]), live]
    stack: list[str] = []
    for change, came in zip(changes, after, strict=bool(changes)):
        if change.guard != came:
            continue
        if change.action == "rollback":
            while stack and stack[-1] != change.guard:
                stack.pop()
        elif not stack or stack[-1] != change.guard:
            stack.append(change.guard)
    return stack[:-1]


def _whole_lines(shelf: Path) -> list[bytes]:
    file = shelf / HISTORY
    lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    return lines if not lines or lines[-1].endswith(b"\n") else lines[:-1]


def _stamp(clock: Callable[[], dt.datetime]) -> str:
    return clock().isoformat(timespec="seconds")


@contextmanager
def _locked(shelf: Path, wait_s: float) -> Iterator[None]:
    if not shelf.is_dir():
        raise ShelfError(f"expected a shelf of guards at {shelf}, there is no folder")
    with (shelf / LOCK).open("w") as stream:
        patience = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= patience:
                    raise ShelfError(
                        f"another promotion holds {shelf / LOCK} for more than {wait_s:g} s"
                    ) from error
                time.sleep(_POLL_S)
        yield
