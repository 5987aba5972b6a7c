"""One picture of a server: its models, guards, challengers, captures, drift and changes.

The status page draws it, `/status.json` and `reluguard status --server` hand it to machines.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from reluguard.detector.artifact import GuardArtifact, read_guard
from reluguard.detector.errors import GuardError
from reluguard.detector.looks.thresholds import Thresholds
from reluguard.detector.metrics import GateResult, gate_of
from reluguard.detector.runtime import Guard
from reluguard.detector.shelf.history import HISTORY
from reluguard.detector.shelf.shelf import ShelfError, history
from reluguard.service.captures.counts import CaptureStatus
from reluguard.service.captures.drift import Drift
from reluguard.service.models.models import Model
from reluguard.service.monitoring.shadow import Agreement
from reluguard.service.room import Room
from reluguard.service.watching.watch import WatchStatus

__all__ = [
    "ChallengerStatus",
    "ChangeStatus",
    "GuardStatus",
    "HourStatus",
    "ModelStatus",
    "ServerStatus",
    "last_changes",
    "model_status",
]

_CHANGES = 8
_NAME = 16  # characters of a digest that name a version on its shelf


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardStatus:
    """One guard.

    Attributes:
        digest: of its files.
        created_at: when it was fitted.
        target_fpr: the share of clean images it may flag.
        threshold: the score above which images are flagged; NaN where there is no single one.
        lowest: no image of this first score or a lower one is flagged.
        highest: every image of a higher first score is.
        by_class: whether the rate holds within each class, by a threshold of its own.
        flags: what is flagged, in words.
        second_look: who looks a second time, and when, in words; empty for nobody.
    """

    digest: str
    created_at: str
    target_fpr: float
    threshold: float
    lowest: float
    highest: float
    by_class: bool
    flags: str
    second_look: str = ""

    @classmethod
    def of(
        cls, artifact: GuardArtifact, thresholds: Thresholds, *, second_look: str = ""
    ) -> "GuardStatus":
        """Return the picture of a guard that flags by these thresholds."""
        return cls(
            digest=artifact.digest,
            created_at=artifact.manifest.created_at,
            target_fpr=thresholds.fpr,
            threshold=thresholds.single,
            lowest=thresholds.lowest,
            highest=thresholds.highest,
            by_class=thresholds.is_by_class,
            flags=thresholds.words,
            second_look=second_look,
        )


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
        assert guard.challenger_thresholds is not None
        bounds = (*version.shadow.bounds, math.inf)
        challenger = ChallengerStatus(
            guard=GuardStatus.of(guard.challenger, guard.challenger_thresholds),
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
        else GuardStatus.of(guard.artifact, guard.thresholds, second_look=_looks(guard)),
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
