"""The event loop that servers run on: asyncio's own, spared what it wakes up for in vain."""

import asyncio
import functools
import selectors
import socket
from collections.abc import Callable
from typing import Any

__all__ = ["Loop"]

_GRPC = "PollerCompletionQueue"
_MOST = 256
_TURNS = 3  # without a look at the sockets


class _Selector(selectors.DefaultSelector):
    """Looks at the sockets every few turns only while there is work without them.

    A call is a dozen small steps, each of which asks for the next; a loop looks at all its sockets
    between any two, and finds nothing that could not wait until the steps are done.
    """

    _left = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready; nothing now and then if the loop has not to wait."""
        if timeout is not None and timeout <= 0 and self._left:
            self._left -= 1
            return []
        self._left = _TURNS
        found: list[tuple[selectors.SelectorKey, int]] = super().select(timeout)
        return found


class Loop(asyncio.SelectorEventLoop):
    """Looks at its sockets when that is due, and then takes all events that gRPC has for it.

    gRPC writes a byte to a socket of the loop's for each event, three or four for a call, and its
    reader takes one byte and all events: the other bytes wake the loop for nothing. This loop takes
    all bytes but that one first. A gRPC that does otherwise is left as it is.
    """

    def __init__(self) -> None:
        super().__init__(_Selector())

    def add_reader(  # type: ignore[override] # args are callback's, whatever those are
        self, fd: Any, callback: Callable[..., Any], *args: Any
    ) -> None:
        """Watch a file descriptor."""
        super().add_reader(fd, _once(fd, callback), *args)


def _once(fd: Any, callback: Callable[..., Any]) -> Callable[..., Any]:
    """Return a callback that reads what woke it up; the same where it is not gRPC's."""
    function = callback.func if isinstance(callback, functools.partial) else callback
    reader = type(getattr(function, "__self__", None)).__name__
    if reader != _GRPC or not isinstance(fd, socket.socket):
        return callback

    def take_all(*args: Any) -> None:
        # events come before their bytes, so none is left behind: what comes later writes again
        woken = len(fd.recv(_MOST, socket.MSG_PEEK))
        if woken > 1:
            fd.recv(woken - 1)
        callback(*args)

    return take_all
