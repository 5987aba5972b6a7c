"""A server's life in its process: started, told by signals, ended with an exit code."""

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from reluguard.service.settings import Settings

__all__ = ["Serving", "live"]

_GARBAGE = 10_000  # objects between looks for circles of them; a call leaves none
_LEFT_S = 0.8  # after the drain, so that all is over within a second of it
_log = logging.getLogger(__name__)


class Serving(Protocol):
    """What can be started, told to look at its files again, and stopped."""

    settings: Settings

    async def start(self) -> None:
        """Serve."""

    async def reload(self) -> None:
        """Take what is new on disk."""

    async def stop(self) -> None:
        """Drain and close."""


S = TypeVar("S", bound=Serving)


async def live(
    server: S,
    *,
    ready: Callable[[S], None] | None = None,
    over: Awaitable[object] | None = None,
    left_s: float = _LEFT_S,
    last: Callable[[], None] | None = None,
) -> int:
    """Serve until SIGTERM, SIGINT or `over`, and return the exit code: 0 after a drain.

    A second signal ends at once, and so does a drain that takes too long.

    Args:
        server: to start and stop; SIGHUP reloads it.
        ready: called once it serves.
        over: ends it too, when it is done.
        left_s: what the end may take beyond the drain.
        last: called before the process ends without having drained.

    Raises:
        StartError: it can't start.
    """
    loop = asyncio.get_running_loop()
    stop, second = asyncio.Event(), asyncio.Event()

    def ask_to_stop() -> None:
        (second if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask_to_stop)
    if over is not None:
        asyncio.ensure_future(over).add_done_callback(lambda _: stop.set())
    starting = loop.create_task(server.start())
    # before it says that it serves: to a process that has not asked for it, SIGHUP is the end
    _reload_on_sighup(server, starting)
    stopping = loop.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting}, timeout=left_s)
        if not starting.done():
            _leave(0, last)
        return 0
    await starting
    # what was loaded stays: whoever looks for garbage need not look there again and again
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE, *gc.get_threshold()[1:])
    if ready is not None:
        ready(server)
    await stopping
    settings = server.settings
    drained = loop.create_task(server.stop())
    impatient = loop.create_task(second.wait())
    patience = settings.drain_delay_s + settings.drain_s + left_s
    await asyncio.wait({drained, impatient}, return_when=asyncio.FIRST_COMPLETED, timeout=patience)
    if not drained.done():
        why = "a second signal" if impatient.done() else "work that does not end"
        _log.warning("%s: ending at once", why)
        _leave(1, last)
    impatient.cancel()
    await drained
    return 0


def _reload_on_sighup(server: Serving, starting: asyncio.Task[None]) -> None:
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        await asyncio.wait({starting})
        if not starting.cancelled() and starting.exception() is None:
            await server.reload()

    def ask() -> None:
        task = loop.create_task(reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, ask)


def _leave(code: int, last: Callable[[], None] | None) -> None:
    """End this process now: threads in a model's run or a file's reading can't be interrupted."""
    if last is not None:
        last()
    logging.shutdown()
    os._exit(code)
