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
        await asyncio.gather(starting, return_exceptions=True)
        return 0
    await starting
    loop.add_signal_handler(signal.SIGHUP, ask_to_reload)
    if ready is not None:
        ready(server)
    await stopping
    drained = loop.create_task(server.stop())
    impatient = loop.create_task(second.wait())
    await asyncio.wait({drained, impatient}, return_when=asyncio.FIRST_COMPLETED)
    if not drained.done():
        _log.warning("a second signal: ending at once")
        # model threads can't be interrupted, so leave without waiting for them
        logging.shutdown()
        os._exit(1)
    impatient.cancel()
    await drained
    return 0
