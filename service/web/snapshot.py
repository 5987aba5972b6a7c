"""One picture of a server: its models, guards, challengers, captures, drift and changes.

The status page draws it, `/status.json` and `reluguard status --server` hand it to machines.
"""

import contextlib
import dataclasses
import http.client
import json
import math
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from reluguard.detector.artifact import GuardArtifact, read_guard
from reluguard.detector.captures import index
from reluguard.detector.errors import GuardError
from reluguard.detector.metrics import GateResult, gate_of
from reluguard.detector.runtime import Guard
from reluguard.detector.shelf.history import HISTORY
from reluguard.detector.shelf.shelf import ShelfError, history
from reluguard.service.captures.drift import Drift
from reluguard.service.models.models import Model
from reluguard.service.monitoring.shadow import Agreement
from reluguard.service.places import Place
from reluguard.service.room import Room
from reluguard.service.watching.watch import WatchStatus

__all__ = [
    "CaptureStatus",
    "ChallengerStatus",
    "ChangeStatus",
    "GuardStatus",
    "HourStatus",
    "ModelStatus",
    "ServerStatus",
    "count_captures",
    "fetch_status",
    "in_words",
    "last_changes",
    "model_status",
]

_CHANGES = 8
_MAX_BYTES = 2**24
_NAME = 16  # characters of a digest that name a version on its shelf


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardStatus:
    """One guard: its digest, when it was fitted, its threshold and the rate that stands for."""

    digest: str
    created_at: str
    threshold: float
    target_fpr: float
    second_look: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HourStatus:
    """The last hour's verdicts.

    Attributes:
        images: all of them.
        adversarial: those flagged.
        unscored: those without a score.
        looked_again: second looks, since the server started.
        minutes: images and adversarial ones per minute, oldest first.
        histogram: upper bound and images per bucket of the score; the last bound is infinite.
    """

    images: int
    adversarial: int
    unscored: int
    looked_again: int = 0
    minutes: Sequence[tuple[int, int]]
    histogram: Sequence[tuple[float, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChallengerStatus:
    """A challenger in shadow: how it agrees with the champion since `since`."""

    guard: GuardStatus
    since: str
    agreement: Agreement
    histogram: Sequence[tuple[float, int]]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeStatus:
    """One line of the shelf's history and what the gate had said of that guard."""

    number: int
    action: str
    guard: str
    who: str
    why: str
    when: str
    forced: bool
    passed: bool | None
    reasons: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """One model. `challenger_refused` says that one should be there and was refused."""

    name: str
    state: str
    is_ready: bool
    policy: str
    hour: HourStatus
    guard: GuardStatus | None = None
    challenger: ChallengerStatus | None = None
    challenger_refused: bool = False
    captured: CaptureStatus | None = None
    drift: Drift | None = None
    changes: Sequence[ChangeStatus] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """One server at one time.

    `room` is what callers may use together, None where nobody says; `watch` is that over question
    streams, None where there is none.
    """

    state: str
    version: str
    when: str
    models: Sequence[ModelStatus]
    room: Room | None = None
    watch: WatchStatus | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values; what is not a finite number is null."""
        document: dict[str, Any] = _plain(dataclasses.asdict(self))
        return document


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def model_status(
    model: Model, policy: str, *, captured: CaptureStatus | None, drift: Drift | None
) -> ModelStatus:
    """Return the picture of one model."""
    hour = model.metrics.hour
    images, adversarial, unscored = hour.counts()
    version = model.version if model.is_ready else None
    guard = None if version is None else version.guard
    challenger = None
    if version is not None and guard is not None and version.shadow is not None:
        assert guard.challenger is not None
        limit = guard.challenger_threshold
        bounds = (*version.shadow.bounds, math.inf)
        challenger = ChallengerStatus(
            guard=_guard_status(guard.challenger, limit, guard.challenger_fpr),
            since=datetime.fromtimestamp(version.since, UTC).isoformat(timespec="seconds"),
            agreement=version.shadow.agreement,
            histogram=tuple(zip(bounds, version.shadow.buckets, strict=True)),
        )
    return ModelStatus(
        name=model.name,
        state="ready" if version is not None else model.reason,
        is_ready=version is not None,
        policy=policy,
        hour=HourStatus(
            images=images,
            adversarial=adversarial,
            unscored=unscored,
            looked_again=hour.looked_again,
            minutes=hour.minutes(),
            histogram=hour.histogram(),
        ),
        guard=None
        if guard is None
        else dataclasses.replace(
            _guard_status(guard.artifact, guard.threshold, guard.fpr), second_look=_looks(guard)
        ),
        challenger=challenger,
        challenger_refused=version is not None and bool(version.refused),
        captured=captured,
        drift=drift,
        changes=() if model.source is None else last_changes(model.source.guard),
    )


def _looks(guard: Guard) -> str:
    """Return what a guard looks at a second time, and when; empty where it looks once."""
    again = guard.again
    if again is None:
        return ""
    when = "at every image" if again.looks == "always" else "at what is suspicious"
    return f"{again.second.look.name}, {when}"


def _guard_status(artifact: GuardArtifact, threshold: float, fpr: float) -> GuardStatus:
    return GuardStatus(
        digest=artifact.digest,
        created_at=artifact.manifest.created_at,
        threshold=float(threshold),
        target_fpr=fpr,
    )


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


def last_changes(shelf: Path, count: int = _CHANGES) -> tuple[ChangeStatus, ...]:
    """Return the last changes of a shelf, newest first; none of what is no readable shelf."""
    if not (shelf / HISTORY).is_file():
        return ()
    try:
        changes = history(shelf)
    except (ShelfError, OSError):
        return ()
    found = []
    for change in reversed(changes[-count:]):
        try:
            gate = _gate(shelf / change.guard[:_NAME])
        except GuardError:
            gate = None
        found.append(
            ChangeStatus(
                number=change.number,
                action=change.action,
                guard=change.guard,
                who=change.who,
                why=change.why,
                when=change.when,
                forced=change.forced,
                passed=None if gate is None else gate.passed,
                reasons=() if gate is None else gate.reasons,
            )
        )
    return tuple(found)


@lru_cache(maxsize=64)
def _gate(version: Path) -> GateResult | None:
    """Return what the gate said of a version: its name is its digest, so it never changes."""
    return gate_of(read_guard(version).manifest)


def fetch_status(address: str, *, timeout_s: float = 5.0) -> dict[str, Any]:
    """Return what `/status.json` of a server's metrics port says.

    Raises:
        OSError: nobody answers there, or somebody else.
        SettingsError: it is no address.
    """
    place = Place.of(address, 0)
    connection = _Connection(place, timeout=timeout_s)
    url = f"http://{address}/status.json"
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/status.json")
            data = connection.getresponse().read(_MAX_BYTES)
        except http.client.HTTPException as error:
            raise OSError(f"expected a reluguard server's status at {url}, got no HTTP") from error
    try:
        document = json.loads(data)
    except ValueError as error:
        raise OSError(f"expected a reluguard server's status at {url}, got no JSON") from error
    if not isinstance(document, dict) or not {"state", "models"} <= set(document):
        raise OSError(f"expected a reluguard server's status at {url}, got other JSON")
    return document


class _Connection(http.client.HTTPConnection):
    """HTTP to a place, a unix socket too, and never by way of a proxy."""

    def __init__(self, place: Place, *, timeout: float) -> None:
        super().__init__(place.host or "localhost", place.port, timeout=timeout)
        self._path = place.path

    def connect(self) -> None:
        """Connect."""
        if not self._path:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def in_words(document: Mapping[str, Any]) -> list[str]:
    """Return the lines a person reads of what `fetch_status` gave."""
    lines = [f"{document['state']}, version {document['version']}, at {document['when']}"]
    if document.get("room"):
        memory = document["room"]["memory_bytes"] / 2**20
        lines.append(f"callers can make it hold {memory:,.0f} MiB more than it does idle")
    if document.get("watch"):
        watch = document["watch"]
        lines.append(
            f"question streams: {watch['callers']} callers remembered, "
            f"{watch['under_suspicion']} under suspicion"
        )
        lines += [
            f"  {one['caller']}: {one['near']:.0f} near-equal questions of late,"
            f" {one['asked']} in all"
            for one in watch["suspects"]
        ]
    for model in document["models"]:
        hour, guard, rival = model["hour"], model["guard"], model["challenger"]
        digest = guard["digest"][:_NAME] if guard else "-"
        lines.append(f"{model['name']}: {model['state']}, guard {digest}")
        lines.append(
            f"  last hour: {hour['images']} images, {hour['adversarial']} adversarial, "
            f"{hour['unscored']} unscored"
        )
        if guard and guard["second_look"]:
            lines.append(
                f"  looks again: {guard['second_look']}; {hour['looked_again']} images since start"
            )
        if rival:
            agreed = rival["agreement"]
            lines.append(
                f"  challenger {rival['guard']['digest'][:_NAME]} since {rival['since']}: both "
                f"flag {agreed['both']}, only it {agreed['challenger_only']}, only the champion "
                f"{agreed['champion_only']}, neither {agreed['neither']}"
            )
        if model["challenger_refused"]:
            lines.append("  challenger: refused, the server's log says why")
        if model["captured"]:
            waiting = sum(model["captured"]["waiting"].values())
            lines.append(f"  captured: {model['captured']['images']}, {waiting} wait for labels")
        if model["drift"]:
            suspect = model["drift"]["suspect"]
            whose = f", {suspect} sends what is unlike calibration" if suspect else ""
            lines.append(f"  drift: {model['drift']['advice']}{whose}")
        for change in model["changes"][:1]:
            gate = {True: "passed", False: "refused"}.get(change["passed"], "not asked")
            lines.append(f"  last change: {change['action']}, gate {gate}: {change['why']}")
    return lines
