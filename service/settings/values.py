"""What stands in the environment and in TOML files, as values of the settings' types."""

import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from reluguard.detector.errors import SettingsError

__all__ = ["checked", "parsed", "read_config"]

_WANTED = {
    str: "a text", Path: "a path", int: "a whole number", float: "a number", bool: "true or false"
}  # fmt: skip
_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def read_config(file: Path, hints: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a TOML file. Paths in it are relative to the file.

    Args:
        file: the TOML file.
        hints: each known setting's type.

    Raises:
        SettingsError: it can't be read, or holds an unknown name or a value of the wrong type.
    """
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8-sig"))  # some editors mark it
    except (OSError, ValueError) as error:
        raise SettingsError(f"the configuration {file} can't be read: {error}") from error
    unknown = sorted(set(document) - set(hints))
    if unknown:
        raise SettingsError(f"unknown setting {unknown[0]!r} in {file}")
    return {name: checked(name, value, hints[name], file) for name, value in document.items()}


def checked(name: str, value: Any, hint: Any, file: Path) -> Any:
    """Return a value of TOML or JSON as its setting's type.

    Args:
        name: of the setting.
        value: as it stands there.
        hint: the type.
        file: where it stands: paths are relative to it.

    Raises:
        SettingsError: it is no such value.
    """
    every = get_args(hint) if get_origin(hint) in {types.UnionType, typing.Union} else (hint,)
    kinds = tuple(kind for kind in every if kind is not types.NoneType)
    if value == "none" and len(kinds) < len(every):
        return None  # TOML has no word for it
    (kind,) = kinds
    if kind is Path and isinstance(value, str):
        return file.parent / value
    if get_origin(kind) is tuple and isinstance(value, list):
        if all(isinstance(part, str) for part in value):
            return tuple(value)
    elif get_origin(kind) is Literal:
        kind = str
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in {str, int, float, bool} and type(value) is kind:
        return value
    raise SettingsError(f"expected {_WANTED.get(kind, 'a list of texts')} for {name} in {file}, "
                        f"got {value!r}")  # fmt: skip


def parsed(variable: str, text: str, hint: Any) -> Any:
    """Return the text of an environment variable as its setting's type.

    Raises:
        SettingsError: it is no such value.
    """
    if get_origin(hint) in {types.UnionType, typing.Union}:
        if text.lower() in {"", "none"}:
            return None
        (hint,) = (part for part in get_args(hint) if part is not types.NoneType)
    if hint is bool:
        if text.lower() not in _WORDS:
            raise SettingsError(f"expected true or false in {variable}, got {text!r}")
        return _WORDS[text.lower()]
    if get_origin(hint) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if hint is Path:
        return Path(text)
    if hint in {int, float}:
        try:
            return hint(text)
        except ValueError as error:
            what = "a whole number" if hint is int else "a number"
            # Kubernetes sets NAME_PORT=tcp://... for every Service of that name in the namespace.
            links = " (Kubernetes service links? set enableServiceLinks: false)"
            raise SettingsError(
                f"expected {what} in {variable}, got {text!r}{links if '://' in text else ''}"
            ) from error
    return text
