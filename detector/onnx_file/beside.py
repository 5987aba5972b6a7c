"""The ONNX file of a guard's model: one that is given, or the export that lies beside the guard.

What is fitted to a model of torch's is fitted to an export of it, which lies beside the guard under
the guard's name and `.onnx`. The guard knows its digest, so it needs no other name.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reluguard.detector.errors import ModelError
from reluguard.detector.onnx_file.kinds import WORDS, is_named, is_onnx, kind_of

__all__ = ["beside", "kept_beside", "model_file"]


def beside(guard: Path | str) -> Path:
    """Return where the export of a guard's model lies, or of the one model of a shelf of guards."""
    folder = Path(guard)
    if folder.name in {"", ".."}:
        folder = folder.resolve()
    return folder.with_name(f"{folder.name}.onnx")


def model_file(model: Path | str | None, guard: Path | str) -> Path:
    """Return the ONNX file that runs: the one that is given, or else the one beside the guard.

    Nothing is read of either: whether the guard is there and fitted to this file, whoever opens
    both finds out.

    Args:
        model: an ONNX file; None for the export beside the guard.
        guard: the guard's folder, or a shelf.

    Raises:
        ModelError: there is none beside the guard, or what is given is no ONNX file but something
            of torch's: then the file beside the guard is named.
    """
    kept = beside(guard)
    if model is None:
        if not kept.is_file() and Path(guard).is_dir():
            raise ModelError(
                f"expected the model of the guard {guard}: none is given (--model), and {kept}, "
                "where one that fit exported would be, is not there: give the ONNX file that the "
                "guard was fitted to"
            )
        return kept
    if is_onnx(model):
        return Path(str(model))
    what = (
        f"give {kept}, which was exported for this guard, or no model at all"
        if kept.is_file()
        else f"fit exports one and puts it beside its guard, and {kept} is not there"
    )
    raise ModelError(f"expected an ONNX file to run, {_said(model)}: {what}")


def _said(model: Any) -> str:
    if not isinstance(model, (str, Path)):
        return f"got a {type(model).__name__}"
    if is_named(str(model)):
        return f"{model} is the name of a network"
    kind = kind_of(Path(model))
    return f"{model} is {WORDS[kind] if kind else 'what makes a torch module'}"


@contextmanager
def kept_beside(file: Path | None, guard: Path) -> Iterator[None]:
    """Put a copy of an export beside a guard when the block, which writes the guard, ends well.

    Args:
        file: the export; nothing is put there for None.
        guard: the guard's folder, or a shelf.
    """
    if file is None:
        yield
        return
    place = beside(guard)
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.with_name(f".{place.name}.aside")
    try:
        shutil.copyfile(file, aside)  # before the guard is: a full disk leaves both as before
        yield
        aside.replace(place)
    finally:
        aside.unlink(missing_ok=True)
