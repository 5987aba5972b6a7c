"""Who asks many near-equal questions, as attacks do that only ask: Square, HopSkipJump.

A question is compared with the caller's own earlier ones by its print (`prints`). One that is near
none becomes a leader, which later ones are compared with; one that is near a leader adds to its
weight, which halves every `watch_s` seconds. A caller is under suspicion once a leader's weight
reaches `near`, until that has halved. A question that is equal to one of the last, byte for byte,
is a retry and counts nothing. What is remembered is in `table`.

N images of one request.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.artifact import GuardArtifact
from reluguard.service.watching.prints import BITS, Prints, exact, nearest
from reluguard.service.watching.table import LEADERS, RECENT, Table

__all__ = ["KINDS", "Kind", "Seen", "Suspect", "Watch", "WatchStatus", "as_shown"]

Kind = Literal["new", "near", "equal"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_NEW, _NEAR, _EQUAL = range(3)
_FORGOTTEN = 4.0  # half-lives without a question, after which a leader or a caller is forgotten
_MOMENT = 0.5  # what may fade while questions come at once
_AT_ONCE = 16  # questions in which a caller's row is held
_GUARDS = 16  # whose directions are kept at hand
_SHOWN = 20  # suspects on a page


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the watch says of one request.

    Attributes:
        kinds: uint8, (N,). Indices into `KINDS`; of one that is refused up to the row that did it.
        near: float32, as many. Near-equal questions of late, this one among them; 0 if not near.
        suspected: whether the caller is under suspicion now.
        raised: whether it has come under it with this request.
        refused: whether the request is to be refused.
        wait_s: until the caller is no longer under suspicion, where it is refused.
    """

    kinds: NDArray[np.uint8]
    near: NDArray[np.float32]
    suspected: bool = False
    raised: bool = False
    refused: bool = False
    wait_s: float = 0.0

    @classmethod
    def nothing(cls) -> "Seen":
        """Return what is said of no questions."""
        return cls(kinds=np.zeros(0, np.uint8), near=np.zeros(0, np.float32))

    def is_told(self, row: int) -> bool:
        """Whether the decision log tells of this image whatever the verdict."""
        return self.suspected and row < len(self.kinds) and self.kinds[row] == _NEAR


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A caller under suspicion.

    Attributes:
        caller: name of its token or, without tokens, its address; the beginning of a long one.
        near: near-equal questions, by what was left of the heaviest leader's weight.
        asked: questions since it was first seen.
        for_s: seconds since it came under suspicion.
    """

    caller: str
    near: float
    asked: int
    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchStatus:
    """What the watch is doing.

    Attributes:
        mode: `count` or `refuse`.
        near: questions that raise suspicion.
        half_life_s: time in which their weight halves.
        max_bytes: that the table takes at most.
        callers: remembered now.
        under_suspicion: callers.
        suspects: those whose questions weigh most, heaviest first.
    """

    mode: str
    near: int
    half_life_s: float
    max_bytes: int
    callers: int
    under_suspicion: int
    suspects: Sequence[Suspect]


class Watch:
    """Compares questions and remembers. Safe to call from any thread.

    Args:
        table: what is remembered.
        key: secret, of the prints.
        refuses: whether near-equal questions of a caller under suspicion are refused.
        near: near-equal questions that raise suspicion.
        distance: share of a print's bits in which near-equal ones differ at most.
        half_life_s: time in which a leader's weight halves.
        clock: seconds, the same for all processes.
    """

    def __init__(
        self,
        table: Table,
        *,
        key: bytes,
        refuses: bool,
        near: int,
        distance: float,
        half_life_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table, self._key, self._refuses = table, key, refuses
        self._near, self._half_life_s, self._clock = near, half_life_s, clock
        self._most = int(distance * BITS)
        self._prints: dict[str, Prints] = {}

    @property
    def half_life_s(self) -> float:
        """Time in which a weight halves."""
        return self._half_life_s

    def prints_of(self, artifact: GuardArtifact) -> Prints:
        """Return what makes prints of a guard's readings."""
        found = self._prints.get(artifact.digest)
        if found is None:
            if len(self._prints) >= _GUARDS:
                self._prints.pop(next(iter(self._prints)))
            found = self._prints[artifact.digest] = Prints(artifact, self._key)
        return found

    def ask(
        self,
        who: str,
        artifact: GuardArtifact,
        tensor: NDArray[Any],
        rates: NDArray[np.float32],
        unscored: NDArray[np.bool_],
    ) -> Seen:
        """Compare one request's questions with those before, in order, and remember them.

        Args:
            who: the caller.
            artifact: the guard that read.
            tensor: (N, ...). The model's own input.
            rates: float32, (N, D). What the guard read.
            unscored: bool, (N,). Rows whose pass failed: nothing was read that could be compared.
        """
        prints = self.prints_of(artifact)(rates)
        hashes = exact(tensor, self._key)
        now = self._clock()
        told = Seen.nothing()
        for start in range(0, len(prints), _AT_ONCE):  # others of this caller wait meanwhile
            rows = slice(start, start + _AT_ONCE)
            with self._table.held(who, now) as row:
                before = self._is_suspected(row, now)
                part = self._compare(row, prints[rows], hashes[rows], unscored[rows], now)
                suspected = self._is_suspected(row, now)
                wait_s = self._wait_s(row, now) if part.refused else 0.0
            told = Seen(
                kinds=np.concatenate([told.kinds, part.kinds]),
                near=np.concatenate([told.near, part.near]),
                suspected=suspected,
                raised=told.raised or (suspected and not before),
                refused=part.refused,
                wait_s=wait_s,
            )
            if part.refused:
                break
        return told

    def _compare(
        self,
        row: Any,
        prints: NDArray[np.uint64],
        hashes: NDArray[np.uint64],
        unscored: NDArray[np.bool_],
        now: float,
    ) -> Seen:
        """Compare questions with what a caller's row remembers, and remember them."""
        n = len(prints)
        kinds, near = np.zeros(n, np.uint8), np.zeros(n, np.float32)
        for i in range(n):
            if unscored[i]:
                continue
            if hashes[i] in row["recent"]:
                kinds[i] = _EQUAL
                row["asked"] += 1
                continue
            leader = self._leader(row, prints[i], now)
            if leader is None:
                self._lead(row, prints[i], now)
            else:
                kinds[i] = _NEAR
                if self._refuses and self._is_suspected(row, now):
                    near[i] = self._left(row["weight"][leader], row["at"][leader], now)
                    return Seen(kinds=kinds[: i + 1], near=near[: i + 1], refused=True)
                near[i] = self._add(row, leader, now)
            row["recent"][row["asked"] % RECENT] = hashes[i]
            row["asked"] += 1
        return Seen(kinds=kinds, near=near)

    def forget(self) -> None:
        """Wipe what was not asked about for long."""
        self._table.forget(self._clock() - _FORGOTTEN * self._half_life_s)

    def under_suspicion(self) -> int:
        """Return how many callers are."""
        return len(self._suspects(self._clock()))

    def status(self) -> WatchStatus:
        """Return the picture of the watch."""
        now = self._clock()
        rows = self._suspects(now)
        suspects = [
            Suspect(
                caller=bytes(row["shown"]).decode(errors="replace"),
                near=round(float(self._left(row["level"], row["level_at"], now)), 1),
                asked=int(row["asked"]),
                for_s=round(now - float(row["since"]), 1),
            )
            for row in rows
        ]
        suspects.sort(key=lambda suspect: -suspect.near)
        return WatchStatus(
            mode="refuse" if self._refuses else "count",
            near=self._near,
            half_life_s=self._half_life_s,
            max_bytes=self._table.bytes,
            callers=int((self._table.rows["seen"] > 0).sum()),
            under_suspicion=len(suspects),
            suspects=tuple(suspects[:_SHOWN]),
        )

    def _suspects(self, now: float) -> list[Any]:
        rows = self._table.rows
        found = rows[rows["suspected"] != 0]
        return [row for row in found if self._is_suspected(row, now)]

    def _left(self, weight: Any, at: Any, now: float) -> Any:
        """Return what time has left of weights, one or several."""
        return weight * 2.0 ** ((at - now) / self._half_life_s)

    def _is_suspected(self, row: Any, now: float) -> bool:
        if not row["suspected"]:
            return False
        return bool(self._left(row["level"], row["level_at"], now) >= self._near / 2)

    def _wait_s(self, row: Any, now: float) -> float:
        """Return how long a caller is under suspicion from now on, unless it adds to it."""
        left = float(self._left(row["level"], row["level_at"], now))
        return max(0.0, math.log2(2 * left / self._near)) * self._half_life_s

    def _leader(self, row: Any, one: NDArray[np.uint64], now: float) -> int | None:
        """Return the nearest leader that is near enough, the earliest place of equals; or None."""
        far = nearest(one, row["prints"])
        dead = (row["weight"] == 0) | (row["at"] < now - _FORGOTTEN * self._half_life_s)
        far[dead] = BITS + 1
        leader = int(far.argmin())
        return leader if far[leader] <= self._most else None

    def _add(self, row: Any, leader: int, now: float) -> float:
        """Add a near-equal question to a leader, raise suspicion if it is one too many."""
        weight = float(self._left(row["weight"][leader], row["at"][leader], now)) + 1
        row["weight"][leader], row["at"][leader] = weight, now
        level = max(weight, float(self._left(row["level"], row["level_at"], now)))
        row["level"], row["level_at"] = level, now
        if weight > self._near - _MOMENT:
            if not self._is_suspected(row, now) or not row["since"]:
                row["since"] = now
            row["suspected"] = 1
        return weight

    def _lead(self, row: Any, one: NDArray[np.uint64], now: float) -> None:
        """Make a question a leader, in place of the lightest of those that were not met of late.

        The half that were met last are never given up: what was just begun must be met again
        before it can gain weight.
        """
        at, weight = row["at"], row["weight"]
        oldest = np.argpartition(at, LEADERS // 2)[: LEADERS // 2]
        left = self._left(weight[oldest], at[oldest], now)
        place = int(oldest[np.lexsort((oldest, at[oldest], left))[0]])
        row["prints"][place], row["weight"][place], row["at"][place] = one, 1.0, now


def as_shown(seen: Seen, row: int) -> dict[str, Any]:
    """Return what the decision log says of one image."""
    told: dict[str, Any] = {}
    if row < len(seen.kinds):
        told["question"] = KINDS[seen.kinds[row]]
        if seen.near[row]:
            told["near"] = round(float(seen.near[row]), 1)
    if seen.suspected:
        told["suspected"] = True
    if seen.refused:
        told["refused"] = True
    return told
