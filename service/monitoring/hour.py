"""The last hour's verdicts, for the status page."""

import math
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["SCORES", "Hour"]

SCORES = (-20, -10, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 10, 20)
_MINUTES = 60


@dataclass(slots=True)
class _Minute:
    minute: int
    images: int = 0
    adversarial: int = 0
    unscored: int = 0
    scores: list[int] = field(default_factory=lambda: [0] * (len(SCORES) + 1))


@dataclass(slots=True)
class Hour:
    """What the last hour's verdicts were, for the status page. Sixty minutes, fixed memory.

    `looked_again` counts second looks since the start.
    """

    clock: Callable[[], float] = time.monotonic
    looked_again: int = 0
    _minutes: deque[_Minute] = field(default_factory=lambda: deque(maxlen=_MINUTES))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, scores: Sequence[float], *, adversarial: int, unscored: int) -> None:
        """Count one request's verdicts."""
        now = int(self.clock() // 60)
        with self._lock:
            if not self._minutes or self._minutes[-1].minute != now:
                self._minutes.append(_Minute(minute=now))
            minute = self._minutes[-1]
            minute.images += len(scores) + unscored
            minute.adversarial += adversarial
            minute.unscored += unscored
            for score in scores:
                minute.scores[bisect_left(SCORES, score)] += 1

    def _recent(self) -> list[_Minute]:
        oldest = int(self.clock() // 60) - _MINUTES
        with self._lock:
            return [minute for minute in self._minutes if minute.minute > oldest]

    def counts(self) -> tuple[int, int, int]:
        """Return images, adversarial images and unscored images of the last hour."""
        recent = self._recent()
        return (
            sum(minute.images for minute in recent),
            sum(minute.adversarial for minute in recent),
            sum(minute.unscored for minute in recent),
        )

    def minutes(self) -> list[tuple[int, int]]:
        """Return (images, adversarial images) of each of the last sixty minutes, oldest first."""
        now = int(self.clock() // 60)
        found = {minute.minute: (minute.images, minute.adversarial) for minute in self._recent()}
        return [found.get(now - ago, (0, 0)) for ago in reversed(range(_MINUTES))]

    def histogram(self) -> list[tuple[float, int]]:
        """Return (upper bound, images) per score bucket, the last bound infinite."""
        bounds = [*map(float, SCORES), math.inf]
        recent = self._recent()
        return [
            (bound, sum(minute.scores[i] for minute in recent)) for i, bound in enumerate(bounds)
        ]
