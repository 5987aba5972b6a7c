"""Labels on captured requests: what a person says they were. Nothing follows from a label alone."""

import codecs
import csv
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reluguard.detector.captures import INDEX, LABEL, index
from reluguard.service.errors import LabelError

__all__ = ["MOST_PER_SOURCE", "Row", "export_csv", "import_csv", "list_captures", "set_label"]

MOST_PER_SOURCE = 1000  # labels on one caller's images: no single caller teaches the next guard
_COLUMNS = (
    "id", "time", "source", "stratum", "score", "p_value", "prediction", "label", "request",
    "repeats",
)  # fmt: skip
_BETWEEN = (",", ";", "\t")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One captured image as a labeller sees it.

    `request` is what its caller called it, `repeats` how often the same came again.
    """

    id: str
    time: float
    source: str
    stratum: str
    score: float
    p_value: float
    prediction: int
    label: str | None
    request: str = ""
    repeats: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


@contextmanager
def _opened(folder: Path) -> Iterator[sqlite3.Connection]:
    if not (folder / INDEX).is_file():
        raise LabelError(f"expected captures in {folder}, it has no {INDEX}")
    try:
        with index(folder) as connection:
            yield connection
    except sqlite3.Error as error:
        raise LabelError(f"the captures can't be used: {error}") from error


def list_captures(
    folder: Path,
    *,
    limit: int = 100,
    unlabelled: bool = False,
    source: str | None = None,
    only: str | None = None,
    request: str | None = None,
) -> list[Row]:
    """Return captured images, the most adversarial first.

    Args:
        folder: of the captures.
        limit: so many at most.
        unlabelled: only what waits for a label.
        source: only what this caller sent.
        only: the one with this id.
        request: only what came in a request that its caller called so.

    Raises:
        LabelError: no captures there, none of this id, or the index is locked or damaged.
    """
    where = "WHERE (? IS NULL OR id = ?) AND (? IS NULL OR source = ?) "
    where += "AND (? IS NULL OR request = ?)"
    where += " AND label IS NULL" if unlabelled else ""
    with _opened(folder) as connection:
        found = connection.execute(
            f"SELECT {', '.join(_COLUMNS)} FROM captures {where} "  # noqa: S608 - our own words
            "ORDER BY score DESC, id LIMIT ?",
            (only, only, source, source, request, request, limit),
        ).fetchall()
    if only is not None and not found:
        raise LabelError(f"no capture has the id {only[:96]!r}")
    return [Row(**dict(zip(_COLUMNS, values, strict=True))) for values in found]


def set_label(
    folder: Path,
    labels: Iterable[tuple[str, str]],
    *,
    labeller: str,
    most_per_source: int = MOST_PER_SOURCE,
    replace: bool = False,
) -> int:
    """Label captured images, all of them or none, and return how many were new.

    Args:
        folder: of the captures.
        labels: id and `clean` or `attack:NAME`.
        labeller: who says so.
        most_per_source: labels allowed on the images of one caller.
        replace: take back what was said before where it was something else.

    Raises:
        LabelError: an unknown id, a label that is none or contradicts one given before, too many on
            one caller's images, or an index that can't be used.
    """
    new = 0
    with _opened(folder) as connection:
        connection.execute("BEGIN IMMEDIATE")
        for name, label in labels:
            if not LABEL.fullmatch(label):
                raise LabelError(f"expected the label clean or attack:NAME, got {label[:64]!r}")
            found = connection.execute(
                "SELECT label, source FROM captures WHERE id = ?", (name,)
            ).fetchone()
            if found is None:
                raise LabelError(f"no capture has the id {name[:96]!r}")
            before, source = found
            if before == label:
                continue
            if before is not None and not replace:
                raise LabelError(f"{name[:96]!r} is labelled {before!r} already, got {label!r}")
            (count,) = connection.execute(
                "SELECT COUNT(*) FROM captures WHERE source = ? AND label IS NOT NULL", (source,)
            ).fetchone()
            if before is None and count >= most_per_source:
                raise LabelError(
                    f"expected at most {most_per_source} labels on images of one caller,"
                    f" {source!r} has {count}"
                )
            connection.execute(
                "UPDATE captures SET label = ?, labeller = ?, labelled_at = ? WHERE id = ?",
                (label, labeller, time.time(), name),
            )
            new += 1
    return new


def export_csv(folder: Path, out: Path, *, limit: int = 1_000_000) -> int:
    """Write the captures as CSV for a person to fill the column `label`, and return how many.

    What a caller named so that a spreadsheet would take it for a formula begins with an apostrophe.

    Raises:
        LabelError: no captures there, or the index is locked or damaged.
    """
    rows = list_captures(folder, limit=limit)
    with out.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(_COLUMNS)
        writer.writerows([_cell(getattr(row, name)) for name in _COLUMNS] for row in rows)
    return len(rows)


def import_csv(folder: Path, file: Path, *, labeller: str, replace: bool = False) -> int:
    """Take the labels of a CSV with the columns `id` and `label`, and return how many were new.

    As spreadsheets write them: with commas, semicolons or tabs between, columns in any order and
    others beside, UTF-8 or UTF-16, blanks around words, `Clean` for `clean`.

    Raises:
        LabelError: the columns are missing, the file is no text, or as `set_label`; then no label
            is taken.
    """
    lines = _text(file).splitlines()
    if lines and lines[0].lower().startswith("sep="):  # Excel's own word on what stands between
        lines = lines[1:]
    between = max(_BETWEEN, key=(lines or [""])[0].count)
    reader = csv.DictReader(lines, delimiter=between)
    names = {name.strip().casefold(): name for name in reader.fieldnames or ()}
    if not {"id", "label"} <= set(names):
        found = ", ".join(reader.fieldnames or ())[:200] or "nothing"
        raise LabelError(f"expected the columns id and label in {file}, its first line is {found}")
    told = ((row[names["id"]] or "", row[names["label"]] or "") for row in reader)
    pairs = [(name.strip(), _label(label)) for name, label in told if label.strip()]
    return set_label(folder, pairs, labeller=labeller, replace=replace)


def _cell(value: object) -> object:
    """Return a value that no spreadsheet runs."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _label(text: str) -> str:
    """Return a label whose fixed part may be in capitals, as spreadsheets begin words."""
    kind, colon, name = text.strip().partition(":")
    return f"{kind.strip().lower()}{colon}{name.strip()}"


def _text(file: Path) -> str:
    content = file.read_bytes()
    if content.startswith(b"PK"):
        raise LabelError(f"expected CSV in {file}, it is a workbook: save it as CSV")
    sixteen = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if sixteen else "utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")  # ids and labels are ASCII
