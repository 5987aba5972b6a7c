"""How long runs of a model take, learned from those that were.

A run costs something beside its rows, so that one row alone tells little of 32 together: times are
kept by size, and sizes that were not seen are read between their neighbours.
"""

__all__ = ["Speed"]

_SMOOTHING = 0.2  # weight of the newest run


class Speed:
    """Seconds a run takes by how many rows it has; nothing is known at first."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def learn(self, rows: int, took_s: float) -> None:
        """Count a run.

        Args:
            rows: 1 or more.
            took_s: its seconds.
        """
        size = _size(rows)
        whole = took_s * size / rows  # as if it had been full; a run has at least half of its size
        known = self._seconds.get(size, whole)
        self._seconds[size] = known + _SMOOTHING * (whole - known)

    def run_s(self, rows: int) -> float:
        """Return the seconds that a run of so many rows takes, 0 where nothing is known."""
        if rows <= 0 or not self._seconds:
            return 0.0
        below = max((size for size in self._seconds if size <= rows), default=None)
        above = min((size for size in self._seconds if size >= rows), default=None)
        if below is None or above is None:
            edge = max(self._seconds) if above is None else min(self._seconds)
            return self._seconds[edge] * max(1.0, rows / edge)
        if below == above:
            return self._seconds[below]
        share = (rows - below) / (above - below)
        return (1 - share) * self._seconds[below] + share * self._seconds[above]

    def rows_s(self, rows: int, max_batch: int) -> float:
        """Return the seconds for rows in runs of `max_batch` and what is left over."""
        full, rest = divmod(rows, max_batch)
        return full * self.run_s(max_batch) + self.run_s(rest)


def _size(rows: int) -> int:
    """Return the power of two at or above."""
    return 1 << (rows - 1).bit_length()
