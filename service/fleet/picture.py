"""One picture of a server of several processes, from what each of them shows."""

import builtins
import collections.abc
import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from reluguard.service.monitoring.shadow import Agreement
from reluguard.service.web.snapshot import (
    ChallengerStatus,
    HourStatus,
    ModelStatus,
    ServerStatus,
)

__all__ = ["read_picture", "together", "write_picture"]

T = TypeVar("T")


def write_picture(status: ServerStatus) -> dict[str, Any]:
    """Return plain values, from which `read_picture` makes the same again."""
    return dataclasses.asdict(status)


def read_picture(document: Mapping[str, Any]) -> ServerStatus:
    """Return what `write_picture` was given."""
    status: ServerStatus = _read(ServerStatus, document)
    return status


def _read(hint: Any, value: Any) -> Any:
    """Return plain values as what a type says they are."""
    if value is None:
        return None
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        return hint(**{name: _read(hints[name], part) for name, part in value.items()})
    return _read_parts(hint, get_args(hint), value)


def _read_parts(hint: Any, parts: tuple[Any, ...], value: Any) -> Any:
    match get_origin(hint):
        case types.UnionType | typing.Union:
            (hint,) = (part for part in parts if part is not types.NoneType)
            return _read(hint, value)
        case collections.abc.Sequence:
            return tuple(_read(parts[0], item) for item in value)
        case builtins.tuple:
            return tuple(_read(part, item) for part, item in zip(parts, value, strict=True))
        case collections.abc.Mapping:
            return {name: _read(parts[1], item) for name, item in value.items()}
    return value


def together(statuses: Sequence[ServerStatus]) -> ServerStatus:
    """Return the picture of all processes: what they counted is added up.

    Args:
        statuses: one or more, in the order of the processes; what is the same for all is taken from
            the first that knows it.
    """
    first = statuses[0]
    serving = any(status.state == "serving" for status in statuses)
    names = dict.fromkeys(model.name for status in statuses for model in status.models)
    return dataclasses.replace(
        first,
        state="serving" if serving else first.state,
        models=[
            _model([m for status in statuses for m in status.models if m.name == name])
            for name in names
        ],
    )


def _model(parts: Sequence[ModelStatus]) -> ModelStatus:
    ready = [part for part in parts if part.is_ready]
    shown = (ready or parts)[0]
    challengers = [part.challenger for part in parts if part.challenger is not None]
    return dataclasses.replace(
        shown,
        hour=_hour([part.hour for part in parts]),
        challenger=_challenger(challengers) if challengers else None,
        challenger_refused=any(part.challenger_refused for part in parts),
        captured=_known(part.captured for part in parts),
        drift=_known(part.drift for part in parts),
    )


def _known(values: typing.Iterable[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)


def _hour(parts: Sequence[HourStatus]) -> HourStatus:
    return dataclasses.replace(
        parts[0],
        images=sum(part.images for part in parts),
        adversarial=sum(part.adversarial for part in parts),
        unscored=sum(part.unscored for part in parts),
        looked_again=sum(part.looked_again for part in parts),
        minutes=[
            (sum(images for images, _ in minute), sum(flagged for _, flagged in minute))
            for minute in zip(*(part.minutes for part in parts), strict=True)
        ],
        histogram=_histogram([part.histogram for part in parts]),
    )


def _histogram(parts: Sequence[Sequence[tuple[float, int]]]) -> list[tuple[float, int]]:
    return [
        (bucket[0][0], sum(images for _, images in bucket)) for bucket in zip(*parts, strict=True)
    ]


def _challenger(parts: Sequence[ChallengerStatus]) -> ChallengerStatus:
    return dataclasses.replace(
        parts[0],
        since=min(part.since for part in parts),
        agreement=sum((part.agreement for part in parts), Agreement()),
        histogram=_histogram([part.histogram for part in parts]),
    )
