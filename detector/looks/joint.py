"""What is read of two looks together. N images, K classes, D and E rates of the two looks.

The row that a second look's head reads: the rates of the first look, those of the second, and what
changed between them. What changed stands as a run of numbers of its own, as if it were one more
tap: of the answers the twelve numbers of CHANGES, and where both looks read the same taps of the
same network, for each tap and level the mean absolute change of its rates.

The NumPy side; `compile` writes the same arithmetic as operators, and a test holds them together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reluguard.detector.taps import Tap

__all__ = ["CHANGES", "LOG_FLOOR", "Joint", "Run", "shared_runs"]

Floats = NDArray[np.float32]

CHANGES = (
    "given",  # log-probability that the second look gives to the first one's answer
    "runner_up",  # and to its runner-up
    "lead",  # the answer's over the best other class
    "fall",  # how much less likely the answer became
    "climb",  # how much likelier the runner-up
    "distance",  # sum of absolute differences of the probabilities
    "forward",  # Kullback-Leibler divergence of the second look from the first
    "backward",  # and of the first from the second
    "differs",  # 1 where the answers differ
    "entropy",  # of the second look
    "peak",  # log-probability of its own answer
    "energy",  # its log-sum-exp
)
LOG_FLOOR = np.float32(-30)
FAR = np.float32(1e6)


@dataclass(frozen=True, slots=True)
class Run:
    """A run of columns of a joint reading: so many rates. The runs of a reading are its taps."""

    rates: int


def shared_runs(first: Sequence[Tap], second: Sequence[Tap]) -> NDArray[np.int64]:
    """Return which rates are averaged together, int64 (D,): the tap and level of each.

    Empty unless both looks read the same taps.
    """
    if tuple(first) != tuple(second):
        return np.zeros(0, np.int64)
    channels = [tap.channels for tap in first for _ in tap.levels]
    return np.repeat(np.arange(len(channels)), channels)


@dataclass(frozen=True, slots=True)
class Joint:
    """How two readings become one.

    Attributes:
        first, second: taps of the two looks.
    """

    first: tuple[Tap, ...]
    second: tuple[Tap, ...]

    @property
    def shared(self) -> NDArray[np.int64]:
        """As `shared_runs` has it."""
        return shared_runs(self.first, self.second)

    @property
    def changes(self) -> int:
        """How many numbers say what changed."""
        return len(CHANGES) + (int(self.shared.max()) + 1 if self.shared.size else 0)

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs of a reading: the first look's taps, the second's, and what changed."""
        taps = [Run(tap.rates) for tap in (*self.first, *self.second)]
        return (*taps, Run(self.changes))

    @property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Which runs the probes read beside the one that reads all: each look's, the late ones."""
        a, b = len(self.first), len(self.second)
        late = (*range(2 * a // 3, a), *range(a + 2 * b // 3, a + b))
        return tuple(range(a)), tuple(range(a, a + b)), late

    def read(
        self,
        first_rates: NDArray[np.floating],
        first_logits: NDArray[np.floating],
        second_rates: NDArray[np.floating],
        second_logits: NDArray[np.floating],
    ) -> Floats:
        """Return the joint reading: float32, (N, D + E + changes).

        Args:
            first_rates: (N, D).
            first_logits: (N, K).
            second_rates: (N, E).
            second_logits: (N, K).
        """
        one, two = first_rates.astype(np.float32), second_rates.astype(np.float32)
        parts = [one, two, _answers(first_logits, second_logits)]
        shared = self.shared
        if shared.size:
            starts = np.flatnonzero(np.diff(shared, prepend=-1))
            widths = np.diff([*starts, len(shared)])
            moved = np.add.reduceat(np.abs(two - one), starts, axis=1)
            parts.append((moved / widths).astype(np.float32))
        return np.concatenate(parts, axis=1)


def _answers(first: NDArray[np.floating], second: NDArray[np.floating]) -> Floats:
    """Return the numbers of CHANGES: float32, (N, 12)."""
    first, second = first.astype(np.float32), second.astype(np.float32)
    p, q = _log_probabilities(first), _log_probabilities(second)
    ordered = np.partition(first, -2, axis=1)
    answer, runner_up = ((first == ordered[:, -1 - i, None]).astype(np.float32) for i in range(2))
    own = (second == second.max(axis=1, keepdims=True)).astype(np.float32)
    pp, qq = np.exp(p), np.exp(q)
    given, second_given = (q * answer).sum(axis=1), (q * runner_up).sum(axis=1)
    columns = [
        given,
        second_given,
        given - (q - FAR * answer).max(axis=1),
        (p * answer).sum(axis=1) - given,
        second_given - (p * runner_up).sum(axis=1),
        np.abs(pp - qq).sum(axis=1),
        (pp * (p - q)).sum(axis=1),
        (qq * (q - p)).sum(axis=1),
        1 - (answer * own).sum(axis=1),
        -(qq * q).sum(axis=1),
        q.max(axis=1),
        second.max(axis=1) - q.max(axis=1),
    ]
    stacked: Floats = np.stack(columns, axis=1).astype(np.float32)
    return stacked


def _log_probabilities(logits: Floats) -> Floats:
    top = logits.max(axis=1, keepdims=True)
    p = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    floored: Floats = np.maximum(p, LOG_FLOOR)
    return floored
