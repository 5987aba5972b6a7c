"""Verdicts as tables: one row an image, for spreadsheets, data frames and line-by-line readers.

N images, L taps.
"""

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.errors import SettingsError

__all__ = ["FORMATS", "as_bytes", "format_of"]

FORMATS = ("npz", "csv", "jsonl", "parquet")

Columns = Mapping[str, NDArray[Any]]


def format_of(name: str) -> str:
    """Return the format that a file's name ends in, npz of a name without an ending.

    Raises:
        SettingsError: it is none of `FORMATS`.
    """
    ending = name.rpartition(".")[2].lower() if "." in name else "npz"
    if ending not in FORMATS:
        known = ", ".join(f".{one}" for one in FORMATS)
        raise SettingsError(f"expected a file that ends in one of {known}, got {name!r}")
    return ending


def as_bytes(columns: Columns, kind: str) -> bytes:
    """Return a table as a file's content.

    In `csv` a column of rows, like `evidence` (N, L), becomes one column a place, `evidence_0` on;
    in `jsonl`, a JSON object a line, and in `parquet` it stays one column of lists. Numbers that
    are not finite are empty in `csv` and null in `jsonl`.

    Args:
        columns: arrays (N,) or (N, L) by name.
        kind: "csv", "jsonl" or "parquet".

    Raises:
        SettingsError: it is another one, or pyarrow is not installed for `parquet`.
    """
    if kind == "csv":
        return _csv(columns)
    if kind == "jsonl":
        return _lines(columns)
    if kind == "parquet":
        return _parquet(columns)
    raise SettingsError(f"expected csv, jsonl or parquet, got {kind!r}")


def _parquet(columns: Columns) -> bytes:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise SettingsError(
            "expected pyarrow for a Parquet file: pip install 'reluguard[tables]'"
        ) from error
    buffer = io.BytesIO()
    values = {name: a if a.ndim == 1 else list(a) for name, a in columns.items()}
    pq.write_table(pa.table(values), buffer)
    return buffer.getvalue()


def _flat(columns: Columns) -> dict[str, NDArray[Any]]:
    flat = {}
    for name, array in columns.items():
        if array.ndim == 1:
            flat[name] = array
        else:
            flat |= {f"{name}_{place}": array[:, place] for place in range(array.shape[1])}
    return flat


def _csv(columns: Columns) -> bytes:
    flat = _flat(columns)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(flat)
    writer.writerows(zip(*(map(_cell, array) for array in flat.values()), strict=True))
    return text.getvalue().encode()


def _lines(columns: Columns) -> bytes:
    names = list(columns)
    rows = zip(*columns.values(), strict=True)
    lines = [
        json.dumps({name: _plain(x) for name, x in zip(names, row, strict=True)}) for row in rows
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def _cell(value: Any) -> Any:
    plain = _plain(value)
    return "" if plain is None else str(plain).lower() if isinstance(plain, bool) else plain


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(one) for one in value]
    # a float32 is told in its own digits, not in those of the double that holds it
    plain = (
        float(str(value))
        if isinstance(value, np.floating)
        else getattr(value, "item", lambda: value)()
    )
    if isinstance(plain, float) and not np.isfinite(plain):
        return None
    return plain
