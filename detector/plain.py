"""Dataclasses as plain values and back: what goes into JSON is written down once, as types.

A field is a key of the same name. What a dataclass does not know is left out when it is read, and
what is not stored takes the field's default, so that files of older and newer versions open.
"""

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from functools import cache
from typing import Any, Self, Union, get_args, get_origin, get_type_hints

from reluguard.detector.errors import GuardError

__all__ = ["UNSAID", "Plain", "named"]

UNSAID: dict[str, Any] = {"unsaid": True}
_NUMBERS: Mapping[Any, tuple[type, ...]] = types.MappingProxyType(
    {float: (int, float), int: (int,), str: (str,), bool: (bool,), type(None): (type(None),)}
)


def named(key: str) -> dict[str, Any]:
    """Return a field's metadata for a key that is no name in Python."""
    return {"key": key}


class Plain:
    """A frozen dataclass of plain values, others of its kind, mappings by word and tuples.

    A field with the metadata `UNSAID` is left out of the JSON while it is what it is by default.
    """

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values, in the order of the fields."""
        found: dict[str, Any] = {}
        for item in _fields(type(self)):
            value = getattr(self, item.name)
            if "unsaid" in item.metadata and value == _default(item):
                continue
            found[item.metadata.get("key", item.name)] = _plain(value)
        return found

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Undo `to_json`.

        Raises:
            GuardError: a key is missing, or its value is of another type.
        """
        if not isinstance(stored, Mapping):
            raise GuardError(f"expected a {cls.__name__} by key, got {type(stored).__name__}")
        values: dict[str, Any] = {}
        kind: Any = cls
        hints = _hints(kind)
        for item in _fields(cls):
            key = item.metadata.get("key", item.name)
            if key in stored:
                values[item.name] = _typed(hints[item.name], stored[key], f"{cls.__name__}.{key}")
            elif item.default is MISSING and item.default_factory is MISSING:
                raise GuardError(f"expected {key} in the stored {cls.__name__}, it is missing")
        return cls(**values)


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _fields(kind: Any) -> tuple[Field[Any], ...]:
    return fields(kind)


def _default(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _plain(value: Any) -> Any:
    if isinstance(value, Plain):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    return value


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Return a stored value as what its field holds."""
    arguments = get_args(hint)
    if get_origin(hint) in {Union, types.UnionType}:
        if value is None and type(None) in arguments:
            return None
        hint = next(one for one in arguments if one is not type(None))
    if isinstance(hint, type) and issubclass(hint, Plain):
        return hint.from_json(value)
    if _holds_several(hint):
        return _several(hint, value, where)
    kinds = _NUMBERS.get(hint, ())
    is_one = isinstance(value, kinds) and (hint is bool or not isinstance(value, bool))
    if not (is_one or hint is Any or value in get_args(hint)):
        raise _unlike(value, where)
    return value


def _holds_several(hint: Any) -> bool:
    origin = get_origin(hint)
    return isinstance(origin, type) and (origin is tuple or issubclass(origin, Mapping))


def _several(hint: Any, value: Any, where: str) -> Any:
    """Return what a tuple or a mapping holds, each as its type says."""
    inner = get_args(hint)
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise _unlike(value, where)
        return tuple(_typed(inner[0], one, where) for one in value)
    if not isinstance(value, Mapping):
        raise _unlike(value, where)
    return {str(key): _typed(inner[1], one, where) for key, one in value.items()}


def _unlike(value: Any, where: str) -> GuardError:
    return GuardError(f"expected another kind of value in {where}, got {type(value).__name__}")
