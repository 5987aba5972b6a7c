"""Whose turn it is to run."""

from collections import deque
from collections.abc import Callable

__all__ = ["Slots"]


class Slots:
    """How many runs may go at once, shared by all models: first come, first served.

    Belongs to one event loop.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[Callable[[], None]] = deque()

    def take(self, then: Callable[[], None]) -> bool:
        """Take a slot and return True, or return False and call `then` once when one is free."""
        if self._free:
            self._free -= 1
            return True
        if then not in self._waiting:
            self._waiting.append(then)
        return False

    def release(self) -> None:
        """Give a slot back; who waited longest is called first."""
        self._free += 1
        while self._free and self._waiting:
            self._waiting.popleft()()
