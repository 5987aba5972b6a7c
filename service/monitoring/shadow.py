"""What a challenger says of live traffic, counted beside the champion. No caller ever sees it."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from reluguard.detector.head import is_scored
from reluguard.detector.verdict import Verdicts

__all__ = ["DIRECTIONS", "Agreement", "Direction", "Shadow", "compare"]

Direction = Literal["challenger_only", "champion_only"]
DIRECTIONS: tuple[Direction, ...] = ("challenger_only", "champion_only")


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How many images both, one or neither of two guards call adversarial.

    `unscored` are those that one of them could not score; they count as nothing else.
    """

    both: int = 0
    neither: int = 0
    challenger_only: int = 0
    champion_only: int = 0
    unscored: int = 0

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(
            both=self.both + other.both,
            neither=self.neither + other.neither,
            challenger_only=self.challenger_only + other.challenger_only,
            champion_only=self.champion_only + other.champion_only,
            unscored=self.unscored + other.unscored,
        )

    @property
    def images(self) -> int:
        """All images."""
        return self.scored + self.unscored

    @property
    def scored(self) -> int:
        """Images that both scored."""
        return self.both + self.neither + self.challenger_only + self.champion_only

    @property
    def disagreements(self) -> int:
        """Images on which the verdicts differ."""
        return self.challenger_only + self.champion_only


def compare(verdicts: Verdicts) -> Agreement:
    """Return how the champion's and the challenger's verdicts on one request agree.

    Raises:
        ValueError: there is no challenger.
    """
    theirs = verdicts.challenge
    if theirs is None:
        raise ValueError("expected verdicts with a challenge, got none")
    scored = ~verdicts.unscored & is_scored(theirs.score)
    ours, other = verdicts.is_adversarial & scored, theirs.is_adversarial & scored
    both = int((ours & other).sum())
    challenger_only, champion_only = int((other & ~ours).sum()), int((ours & ~other).sum())
    return Agreement(
        both=both,
        neither=int(scored.sum()) - both - challenger_only - champion_only,
        challenger_only=challenger_only,
        champion_only=champion_only,
        unscored=len(verdicts) - int(scored.sum()),
    )


@dataclass(slots=True, kw_only=True)
class Shadow:
    """The tally of one challenger since it went live. Safe to call from any thread.

    Attributes:
        digest: the challenger's.
        bounds: upper bounds of the buckets of its score histogram; one more is above them all.
    """

    digest: str
    bounds: Sequence[float]
    _agreement: Agreement = field(default_factory=Agreement, init=False)
    _buckets: list[int] = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self._buckets = [0] * (len(self.bounds) + 1)

    def add(self, verdicts: Verdicts) -> None:
        """Count the verdicts on one request; those of another challenger's time are left out."""
        theirs = verdicts.challenge
        if theirs is None:
            return
        agreement = compare(verdicts)
        at = np.searchsorted(np.asarray(self.bounds), theirs.score[is_scored(theirs.score)])
        found = np.bincount(at, minlength=len(self._buckets)).tolist()
        with self._lock:
            self._agreement += agreement
            self._buckets = [a + b for a, b in zip(self._buckets, found, strict=True)]

    @property
    def agreement(self) -> Agreement:
        """The counts so far."""
        with self._lock:
            return self._agreement

    @property
    def buckets(self) -> list[int]:
        """Images per bucket of the challenger's score, in the order of `bounds`."""
        with self._lock:
            return list(self._buckets)
