"""The server as a process, or as several: starts, follows signals, ends with an exit code."""

import asyncio
import sys
from collections.abc import Callable

from reluguard.service import logs
from reluguard.service.errors import StartError
from reluguard.service.fleet.parent import Fleet
from reluguard.service.lifetime import live
from reluguard.service.loop import Loop
from reluguard.service.server import Server
from reluguard.service.settings import Settings

__all__ = ["serve"]

_LEFT_S = 0.95  # children have a little less after the drain


def serve(settings: Settings, *, ready: Callable[[Server | Fleet], None] | None = None) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code. A second signal ends at once.

    Args:
        settings: what and how; with `processes` of more than one this process watches them.
        ready: called once the server is SERVING.

    Returns:
        0 after a drain; 1 if the server could not start, with one line on standard error.
    """
    logs.set_up(settings.log_level)
    try:
        with asyncio.Runner(loop_factory=Loop) as runner:
            return runner.run(_serve(settings, ready))
    except StartError as error:
        sys.stderr.write(f"reluguard: {error}\n")
        return 1


async def _serve(settings: Settings, ready: Callable[[Server | Fleet], None] | None) -> int:
    if settings.processes == 1:
        return await live(Server(settings), ready=ready)
    fleet = Fleet(settings)
    return await live(fleet, ready=ready, left_s=_LEFT_S, last=fleet.end_now)
