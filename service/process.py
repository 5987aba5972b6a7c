"""The server as a process: starts, follows signals, ends with an exit code."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable

from reluguard.service import logs
from reluguard.service.errors import StartError
from reluguard.service.server import Server
from reluguard.service.settings import Settings

__all__ = ["serve"]

_LEFT_S = 0.8  # after the drain, so that all is over within a second of it
_log = logging.getLogger(__name__)


def serve(settings: Settings, *, ready: Callable[[Server], None] | None = None) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code. A second signal ends at once.

    Args:
        settings: what and how.
        ready: called once the server is SERVING.

    Returns:
        0 after a drain; 1 if the server could not start, with one line on standard error.
    """
    logs.set_up(settings.log_level)
    try:
        return asyncio.run(_serve(settings, ready))
    except StartError as error:
        sys.stderr.write(f"reluguard: {error}\n")
        return 1


async def _serve(settings: Settings, ready: Callable[[Server], None] | None) -> int:
    loop = asyncio.get_running_loop()
    server = Server(settings)
    stop = asyncio.Event()
    second = asyncio.Event()
    reloads: set[asyncio.Task[None]] = set()

    def ask_to_stop() -> None:
        (second if stop.is_set() else stop).set()

    def ask_to_reload() -> None:
        task = loop.create_task(server.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask_to_stop)
    starting = loop.create_task(server.start())
    stopping = loop.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting}, timeout=_LEFT_S)
        if not starting.done():  # a model is being read, and a thread can't be ended
            _leave(0)
        return 0
    await starting
    loop.add_signal_handler(signal.SIGHUP, ask_to_reload)
    if ready is not None:
        ready(server)
    await stopping
    drained = loop.create_task(server.stop())
    impatient = loop.create_task(second.wait())
    patience = settings.drain_delay_s + settings.drain_s + _LEFT_S
    await asyncio.wait({drained, impatient}, return_when=asyncio.FIRST_COMPLETED, timeout=patience)
    if not drained.done():
        why = "a second signal" if impatient.done() else "work that does not end"
        _log.warning("%s: ending at once", why)
        _leave(1)
    impatient.cancel()
    await drained
    return 0


def _leave(code: int) -> None:
    """End this process now: threads in a model's run or a file's reading can't be interrupted."""
    logging.shutdown()
    os._exit(code)
