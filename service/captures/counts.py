"""How much was captured, and how much of it waits for a label."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reluguard.detector.captures import index

__all__ = ["CaptureStatus", "count_captures"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureStatus:
    """What was captured of a model.

    Attributes:
        images: all of them.
        waiting: those without a label, by stratum.
        labels: how many have which label.
    """

    images: int
    waiting: Mapping[str, int]
    labels: Mapping[str, int]


def count_captures(folder: Path, model_sha256: str | None = None) -> CaptureStatus:
    """Return what was captured, of one model or of all.

    Raises:
        sqlite3.Error: the index is locked, damaged or none.
    """
    where, values = ("", ()) if model_sha256 is None else ("WHERE model = ?", (model_sha256,))
    with index(folder) as connection:
        rows = connection.execute(
            f"SELECT stratum, label, COUNT(*) FROM captures {where} GROUP BY stratum, label",  # noqa: S608 - our own words
            values,
        ).fetchall()
    waiting, labels = dict.fromkeys(("above", "band", "uniform"), 0), dict[str, int]()
    for stratum, label, count in rows:
        if label is None:
            waiting[stratum] = waiting.get(stratum, 0) + count
        else:
            labels[label] = labels.get(label, 0) + count
    images = sum(waiting.values()) + sum(labels.values())
    return CaptureStatus(images=images, waiting=waiting, labels=dict(sorted(labels.items())))
