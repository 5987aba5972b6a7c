"""The versions on a shelf: folders named by digest, and the pointers that name two of them."""

import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from reluguard.detector.artifact import (
    OWN_FILES,
    GuardArtifact,
    GuardFiles,
    open_files,
    read_files,
    read_guard,
    write_file,
    write_guard,
)
from reluguard.detector.errors import GuardError
from reluguard.detector.shelf.history import ShelfError, history

__all__ = [
    "CHALLENGER",
    "CURRENT",
    "NAME",
    "challenger",
    "current",
    "named_digest",
    "point",
    "pointed",
    "put",
    "put_forced",
    "unpoint",
    "versions",
]

CURRENT = "CURRENT"
CHALLENGER = "CHALLENGER"
NAME = 16


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


def put(shelf: Path, read: GuardFiles) -> GuardArtifact:
    """Place a guard's files as they were read; what is there already, whole, is used.

    Raises:
        ShelfError: another version has this one's name.
        GuardError: the files are no guard.
    """
    artifact = open_files(read)  # what can't be read back never gets a place
    place = shelf / read.digest[:NAME]
    try:
        there = read_guard(place)
    except GuardError:
        read.write(place)
        return replace(artifact, path=place)
    if there.digest != read.digest:
        raise ShelfError(f"{place} is another version than {read.path}, whose name would be its")
    return there


def put_forced(shelf: Path, read: GuardFiles, forced: Mapping[str, str]) -> GuardArtifact:
    """Place a guard that says in its manifest who forced it, and why; its digest is another."""
    artifact = open_files(read)
    provenance = {**artifact.manifest.provenance, "forced": dict(forced)}
    aside = shelf / f".forced-{os.getpid()}-{threading.get_ident()}"
    try:
        write_guard(
            aside,
            manifest=replace(artifact.manifest, provenance=provenance),
            head=artifact.head,
            golden=artifact.golden,
            second=artifact.second,
            reports={name: data for name, data in read.files.items() if name not in OWN_FILES},
        )
        return put(shelf, read_files(aside))
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def point(shelf: Path, pointer: str, target: GuardArtifact) -> None:
    """Let a pointer name this version, on disk before anything else is."""
    write_file(shelf / pointer, f"{target.digest[:NAME]}\n".encode())
    _sync(shelf)


def unpoint(shelf: Path, pointer: str) -> None:
    """Remove a pointer, if it is there."""
    (shelf / pointer).unlink(missing_ok=True)
    _sync(shelf)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def named_digest(shelf: Path, place: Path | None) -> str | None:
    """Return the digest behind a version's name by history: its folder may be damaged or gone."""
    if place is None:
        return None
    known = [c.guard for c in history(shelf) if c.guard.startswith(place.name)]
    return known[-1] if known else place.name
