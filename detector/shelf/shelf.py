"""The shelf: guard versions side by side, one of them current, and the history of that.

    CURRENT          the name of the version that serves; replaced by rename, so never half-written
    CHALLENGER       the name of the one that scores beside it in shadow, if there is one
    history.jsonl    one line per change, appended and flushed to disk: who, when, why
    VERSION/         a guard folder, named by the first 16 characters of its digest
    .lock            held while something changes

A server whose guard is the shelf follows CURRENT and CHALLENGER.
"""

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from reluguard.detector.artifact import GuardArtifact, open_files, read_files, read_guard
from reluguard.detector.errors import HeldError
from reluguard.detector.lock import hold
from reluguard.detector.metrics import gate_of
from reluguard.detector.onnx_file.beside import beside, kept_beside
from reluguard.detector.onnx_file.weights import read_model
from reluguard.detector.shelf.history import Change, ShelfError, append, earlier, history
from reluguard.detector.shelf.versions import (
    CHALLENGER,
    CURRENT,
    NAME,
    challenger,
    current,
    named_digest,
    point,
    pointed,
    put,
    put_forced,
    unpoint,
    versions,
)
from reluguard.detector.signature import sign

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

LOCK = ".lock"


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


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

    A challenger that is promoted is no challenger any more; another one stays. The export of the
    model, where one lies beside the guard, is put beside the shelf too: `SHELF.onnx`.

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
        read = read_files(guard)
        artifact, live = open_files(read), current(shelf)
        problem = None if live is None else _problem(artifact, live)
        if problem and not force:
            raise ShelfError(f"{problem}; --force promotes it all the same and says so in it")
        if problem:
            forced = {"who": who, "why": why, "when": _stamp(clock), "although": problem}
            placed = put_forced(shelf, read, forced)
        else:
            placed = put(shelf, read)
        if key is not None:
            sign(placed, key)
        before = None if live is None else live.digest
        digest, was_forced = placed.digest, bool(problem)
        with kept_beside(_export(artifact, guard, shelf), shelf):
            change = _record(shelf, "promote", digest, before, who, why, clock, was_forced)
            point(shelf, CURRENT, placed)
        rival = pointed(shelf, CHALLENGER)
        if rival is not None and rival.name in {artifact.digest[:NAME], placed.digest[:NAME]}:
            unpoint(shelf, CHALLENGER)
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
        live = named_digest(shelf, pointed(shelf, CURRENT))
        below = earlier(history(shelf), live)
        if live is None or not below:
            raise ShelfError(f"expected an earlier version to go back to in {shelf}, got none")
        target = read_guard(shelf / below[-1][:NAME])
        change = _record(shelf, "rollback", target.digest, live, who, why, clock)
        point(shelf, CURRENT, target)
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
        read = read_files(guard)
        artifact, live = open_files(read), current(shelf)
        if live is None:
            raise ShelfError(f"expected a current version to shadow in {shelf}, got none")
        _same_model(artifact, live)
        if artifact.digest == live.digest:
            raise ShelfError(f"{guard} is the current version: it can't be its own challenger")
        placed = put(shelf, read)
        if key is not None:
            sign(placed, key)
        before = named_digest(shelf, pointed(shelf, CHALLENGER))
        change = _record(shelf, "shadow", placed.digest, before, who, why, clock)
        point(shelf, CHALLENGER, placed)
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
        digest = named_digest(shelf, place)
        if digest is None:
            raise ShelfError(f"expected a challenger to clear in {shelf}, got none")
        change = _record(shelf, "clear", digest, digest, who, why, clock)
        unpoint(shelf, CHALLENGER)
        return change


def _export(artifact: GuardArtifact, guard: Path, shelf: Path) -> Path | None:
    """Return the export beside a guard, to be put beside its shelf; None where there is nothing to.

    All versions on a shelf have one model, so what lies there stays.
    """
    file = beside(guard)
    if not file.is_file() or beside(shelf).exists():
        return None
    return file if read_model(file)[1] == artifact.manifest.model_sha256 else None


def _problem(artifact: GuardArtifact, live: GuardArtifact) -> str | None:
    """Return why the gate does not let a guard take the current one's place, if so."""
    _same_model(artifact, live)
    if artifact.digest == live.digest:
        return None
    gate = gate_of(artifact.manifest)
    if gate is None or gate.champion != live.digest:
        return f"{artifact.path} was never judged against the current version {live.digest[:NAME]}"
    if not gate.passed:
        return f"the gate refused {artifact.path}: {'; '.join(gate.reasons)}"
    return None


def _same_model(artifact: GuardArtifact, live: GuardArtifact) -> None:
    if artifact.manifest.model_sha256 != live.manifest.model_sha256:
        raise ShelfError(
            f"{artifact.path} was fitted to another model than the current version: "
            "another model needs another shelf"
        )


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
