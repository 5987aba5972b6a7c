"""The same server on a background thread, for demos and tests."""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from reluguard.detector.runtime import Guard
from reluguard.service.loop import Loop
from reluguard.service.server import Server
from reluguard.service.settings import Settings

__all__ = ["Running", "on_loop", "running"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server on a background thread."""

    address: str
    metrics_address: str | None
    http_address: str | None
    health_address: str | None
    server: Server


class _Background:
    """The one event loop of this process that `running` servers share.

    grpc.aio wants one loop per process: with more, their pollers wake each other (grpc #25364).
    """

    _lock = threading.Lock()
    _loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def loop(cls) -> asyncio.AbstractEventLoop:
        with cls._lock:
            if cls._loop is None:
                cls._loop = Loop()
                threading.Thread(target=cls._loop.run_forever, name="grpc", daemon=True).start()
            return cls._loop


def on_loop(work: Coroutine[Any, Any, T]) -> T:
    """Return what this coroutine gives on the background loop that `running` servers share."""
    return asyncio.run_coroutine_threadsafe(work, _Background.loop()).result()


@contextlib.contextmanager
def running(what: Guard | Settings, **changes: Any) -> Iterator[Running]:
    """Run a real server on a background thread until the block ends, on free ports.

    Args:
        what: a guard to serve under the name "model", or settings.
        changes: settings to go with a guard.

    Raises:
        StartError: the server could not start.
    """
    if isinstance(what, Settings):
        server = Server(what)
    else:
        free = {"port": 0, "metrics_port": 0, "drain_s": 5.0}
        server = Server(Settings(**(free | changes)), guard=what)
    on_loop(server.start())
    try:
        yield Running(
            address=server.address,
            metrics_address=server.metrics_address,
            http_address=server.http_address,
            health_address=server.health_address,
            server=server,
        )
    finally:
        on_loop(server.stop())
