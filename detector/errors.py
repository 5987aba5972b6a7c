"""What can go wrong in the detector, one class per thing a caller could do about it.

DetectorError
├── ImageError       the caller's image or tensor does not fit the model
│   └── ImageTooLargeError   it is bigger than the limit, in pixels, bytes or rows
├── ModelError       the ONNX model can't be read, run or guarded
│   └── NoTapsError  the model has no piecewise-linear gate to read
├── GuardError       the guard can't be read or is damaged
│   ├── GuardFormatError     it was written by another format version
│   └── ModelMismatchError   it was fitted to another model
├── CapturesError    captured images can't be read
├── HeldError        another process works in the folder
└── SettingsError    a setting has no meaning
"""

import difflib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

__all__ = [
    "CapturesError",
    "DetectorError",
    "GuardError",
    "GuardFormatError",
    "HeldError",
    "ImageError",
    "ImageTooLargeError",
    "ModelError",
    "ModelMismatchError",
    "NoTapsError",
    "SettingsError",
    "did_you_mean",
    "near_path",
]

_MOST_NAMES = 10_000  # of a folder, among which a misspelt one is looked for


class DetectorError(Exception):
    """Base of every error this package raises on purpose."""


class ImageError(DetectorError):
    """The caller's image or tensor does not fit the model."""


class ImageTooLargeError(ImageError):
    """The caller sent more pixels, bytes or rows than the limit allows."""


class ModelError(DetectorError):
    """The ONNX model can't be read, run or guarded."""


class NoTapsError(ModelError):
    """The model has no piecewise-linear gate whose sign could be read."""


class GuardError(DetectorError):
    """The guard can't be read, or its files are damaged."""


class GuardFormatError(GuardError):
    """The guard was written by a format version this reader doesn't know."""


class ModelMismatchError(GuardError):
    """The guard was fitted to another model."""


class CapturesError(DetectorError):
    """Captured images can't be read, or their files are damaged."""


class HeldError(DetectorError):
    """Another process works in a folder that only one may work in."""


class SettingsError(DetectorError):
    """A setting has no meaning."""


def did_you_mean(text: str, known: Iterable[str]) -> str:
    """Return the end of a message that names the known words most like this one, "" without any."""
    close = _close(text, known)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def near_path(path: Path) -> str:
    """Return the end of a message on a place where nothing is: what lies there by a like name."""
    missing = next((one for one in reversed(path.parents) if not one.exists()), None)
    if missing is not None:
        return f": there is no folder {missing}{_beside(missing)}"
    return _beside(path) or ("" if path.is_absolute() else f": looked for it from {Path.cwd()}")


def _beside(path: Path) -> str:
    try:
        names = [entry.name for entry in islice(path.parent.iterdir(), _MOST_NAMES)]
    except OSError:
        return ""
    alike = [n for n in names if Path(n).suffix == path.suffix and not n.startswith(".")]
    close = _close(path.name, alike)
    found = [repr(str(path.parent / name)) for name in close]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _close(text: str, known: Iterable[str]) -> list[str]:
    spelled = {word.casefold(): word for word in known}
    return [spelled[word] for word in difflib.get_close_matches(text.casefold(), spelled, 2, 0.65)]
