"""The HTTP port: takes connections, as many as there is room for, and ends them."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable

from reluguard.service.rest.connection import Connection, State
from reluguard.service.rest.exchange import Exchange, Reply

__all__ = ["HttpServer"]

_log = logging.getLogger(__name__)
_HANDSHAKE_S = 10.0
_PAUSE_S = 0.1  # after the system had no room for a connection
_BUFFER_BYTES = 64 * 1024


class HttpServer:
    """Listens on one socket. Belongs to one event loop.

    When all connections are taken, the one that has waited longest for its caller makes way.

    Args:
        listener: bound and listening.
        serve: answers one exchange.
        tls: None for plain text.
        max_connections: at once, handshakes included.
        max_body: bytes of one request's body.
        idle_s: longest time between two requests of a connection; None for any.
    """

    def __init__(
        self,
        listener: socket.socket,
        serve: Callable[[Exchange], Awaitable[Reply]],
        *,
        tls: ssl.SSLContext | None,
        max_connections: int,
        max_body: int,
        idle_s: float | None,
    ) -> None:
        self._listener, self._serve, self._tls = listener, serve, tls
        self._most, self._max_body, self._idle_s = max_connections, max_body, idle_s
        self._buffer = bytearray(_BUFFER_BYTES)
        self._open: set[Connection] = set()
        # dictionaries keep the order they were filled in: the first waits longest
        self._idle: dict[Connection, None] = {}
        self._empty, self._changed = asyncio.Event(), asyncio.Event()
        self._greeting: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to take connections."""
        self._listener.setblocking(False)
        self._task = asyncio.get_running_loop().create_task(self._accept())

    async def close(self, grace_s: float) -> None:
        """Take no more, let what is being answered go out, and hang up.

        Args:
            grace_s: longest time for that.
        """
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._listener.close()
        if not self._open:
            self._empty.set()
        for connection in self._open:
            connection.close_soon()
        for connection in list(self._idle):
            connection.hang_up()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._empty.wait()
        for task in self._greeting:
            task.cancel()
        for connection in list(self._open):
            connection.abort()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, where = await loop.sock_accept(self._listener)
            except OSError as error:
                _log.error("no connection could be taken: %s", error)
                await asyncio.sleep(_PAUSE_S)
                continue
            if not await self._room():
                accepted.close()
                continue
            if accepted.family != socket.AF_UNIX:
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = loop.create_task(self._greet(accepted, _peer(accepted.family, where)))
            self._greeting.add(task)
            task.add_done_callback(self._greeting.discard)

    async def _room(self) -> bool:
        """Return whether there is room for one more connection, or soon is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PAUSE_S):
                while len(self._open) + len(self._greeting) >= self._most:
                    if not self._make_way():
                        self._changed.clear()
                        await self._changed.wait()
                return True
        return False

    def _make_way(self) -> bool:
        """Hang up on who has waited longest, and return whether there was one."""
        for connection in self._idle:
            self._told(connection, "over")
            connection.abort()
            return True
        return False

    async def _greet(self, accepted: socket.socket, peer: str) -> None:
        connection = Connection(
            self._serve,
            peer=peer,
            max_body=self._max_body,
            idle_s=self._idle_s,
            buffer=self._buffer,
            told=self._told,
        )
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else _HANDSHAKE_S,
            )
        except (OSError, ssl.SSLError, TimeoutError) as error:
            _log.debug("a handshake failed: %s", error)
            accepted.close()

    def _told(self, connection: Connection, state: State) -> None:
        self._idle.pop(connection, None)
        self._changed.set()
        if state == "over":
            self._open.discard(connection)
            if not self._open:
                self._empty.set()
            return
        self._open.add(connection)
        self._empty.clear()
        if state == "idle":
            self._idle[connection] = None


def _peer(family: int, where: "tuple[str, int] | str") -> str:
    """Return an address as gRPC writes it, so that a caller has one quota by both protocols."""
    if family == socket.AF_INET:
        return f"ipv4:{where[0]}:{where[1]}"
    if family == socket.AF_INET6:
        return f"ipv6:%5B{where[0]}%5D:{where[1]}"
    return "unix:"
