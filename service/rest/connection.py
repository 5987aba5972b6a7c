"""One HTTP/1.1 connection: requests one after the other, bodies only when they are asked for.

h11 knows the protocol; here is what it leaves to its user: how much is read, how fast, and how long
anybody is waited for.
"""

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Literal

import h11

from reluguard.service.errors import RequestError
from reluguard.service.rest.exchange import BodyTooLargeError, Exchange, Head, Reply

__all__ = ["Connection", "State"]

State = Literal["idle", "busy", "over"]
_log = logging.getLogger(__name__)
_MOST_HEAD = 16 * 1024  # bytes, as gRPC's metadata
_MOST_LINES = 100
_HEAD_S = 10.0
_LINE_END = re.compile(rb"\n\r?\n")
_FREE_CHUNKS = 64  # a body may begin with as many small chunks as it likes
_LEAST_CHUNK = 512  # bytes, on average, after that: each costs as much as a kilobyte
_WRITE_S = 30.0
_LINGER_S = 1.0


class Connection(asyncio.BufferedProtocol):
    """Serves one connection until it ends.

    Args:
        serve: answers one exchange.
        peer: where it comes from, as gRPC writes it.
        max_body: bytes of one body.
        idle_s: longest time between two requests; None for any.
        buffer: what all connections of a loop read into, one after the other.
        told: called with whether the connection waits for its caller, and once it is over.
    """

    def __init__(
        self,
        serve: Callable[[Exchange], Awaitable[Reply]],
        *,
        peer: str,
        max_body: int,
        idle_s: float | None,
        buffer: bytearray,
        told: Callable[["Connection", State], None],
    ) -> None:
        self._serve, self._peer = serve, peer
        self._max_body, self._idle_s = max_body, idle_s
        self._buffer, self._told = buffer, told
        self._http = h11.Connection(h11.SERVER)
        self._unread = bytearray()
        self._at_end = False
        self._paused = False
        self._wanted: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: Any = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = transport
        self._task = asyncio.get_running_loop().create_task(self._run())

    def get_buffer(self, _: int) -> bytearray:
        """Return what is read into, until `buffer_updated` a moment later."""
        return self._buffer

    def buffer_updated(self, size: int) -> None:
        """Keep what came until it is wanted."""
        self._unread += memoryview(self._buffer)[:size]
        if len(self._unread) > _MOST_HEAD:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        """Close: who hangs up waits for no answer."""
        self._at_end = True
        self._wake()

    def connection_lost(self, _: Exception | None) -> None:
        """End whatever is done for the caller."""
        self._at_end = True
        self._writable.set()
        if self._task is not None:
            self._task.cancel()
        self._told(self, "over")

    def pause_writing(self) -> None:
        """Wait for a caller who reads slowly."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Go on."""
        self._writable.set()

    # what the server calls

    def close_soon(self) -> None:
        """Let no other request follow."""
        self._closing = True

    def hang_up(self) -> None:
        """End once what was answered is out."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End now."""
        if self._transport is not None:
            self._transport.abort()

    def _wake(self) -> None:
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)

    async def _more(self) -> bool:
        """Wait for bytes that weren't looked at, and return whether there are any."""
        self._wanted = asyncio.get_running_loop().create_future()
        if self._at_end:
            return False
        self._go_on()
        await self._wanted
        return True

    def _go_on(self) -> None:
        if self._paused and not self._at_end:
            self._paused = False
            self._transport.resume_reading()

    async def _run(self) -> None:
        patience: float | None = _HEAD_S  # the first request comes at once
        try:
            while not self._closing and (head := await self._head(patience)) is not None:
                self._told(self, "busy")
                if not await self._one(head):
                    break
                patience = self._idle_s
            self._close()
        except (TimeoutError, h11.LocalProtocolError):
            self.abort()
        except h11.RemoteProtocolError as error:
            refusal = _refusal(HTTPStatus(error.error_status_hint), f"expected HTTP/1.1: {error}")
            with contextlib.suppress(TimeoutError, h11.LocalProtocolError):
                await self._send(refusal, last=True)
                await self._linger()
            self._close()
        except Exception:  # noqa: BLE001 - it ends one connection, not the server
            _log.exception("a connection failed")
            self.abort()

    def _close(self) -> None:
        """Close once all is sent, or nobody reads it."""
        self._transport.close()
        asyncio.get_running_loop().call_later(_WRITE_S, self._transport.abort)

    async def _head(self, patience: float | None) -> Head | None:
        """Return the next request's head, None when there is none to come."""
        self._told(self, "idle")
        async with asyncio.timeout(patience):
            while not self._unread:
                if not await self._more():
                    return None
        async with asyncio.timeout(_HEAD_S):
            while (end := _LINE_END.search(self._unread)) is None or end.end() > _MOST_HEAD:
                if len(self._unread) > _MOST_HEAD:
                    raise h11.RemoteProtocolError(
                        f"the head is over {_MOST_HEAD} bytes", error_status_hint=431
                    )
                if not await self._more():
                    return None
        head = bytes(self._unread[: end.end()])
        del self._unread[: end.end()]
        if head.count(b"\n") > _MOST_LINES:
            raise h11.RemoteProtocolError(
                f"there are over {_MOST_LINES} headers", error_status_hint=431
            )
        self._http.receive_data(head)
        event = self._http.next_event()
        if not isinstance(event, h11.Request):
            raise h11.RemoteProtocolError("no request came")
        if event.http_version not in {b"1.0", b"1.1"}:
            raise h11.RemoteProtocolError("another version came", error_status_hint=505)
        found = Head(
            method=event.method.decode("ascii"),
            target=event.target.decode("ascii"),
            headers=[
                (key.decode("ascii"), value.decode("latin-1")) for key, value in event.headers
            ],
        )
        if found.all("transfer-encoding") and found.all("content-length"):
            # of which a proxy in front may have gone by the other
            raise h11.RemoteProtocolError("both Transfer-Encoding and Content-Length came")
        return found

    async def _one(self, head: Head) -> bool:
        """Answer one request, and return whether another may follow."""
        exchange = Exchange(head, self._peer, lambda: self._body(head))
        reply = await self._serve(exchange)
        whole = self._is_whole()
        await self._send(reply, last=self._closing or not whole, bodiless=head.method == "HEAD")
        if not whole:
            await self._linger()
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        left, _ = self._http.trailing_data
        self._unread[:0] = left
        self._http = h11.Connection(h11.SERVER)
        return True

    def _is_whole(self) -> bool:
        """Return whether all of a request was read; one without a body ends here."""
        try:
            if self._http.their_state is h11.SEND_BODY:
                return isinstance(self._http.next_event(), h11.EndOfMessage)
        except h11.RemoteProtocolError:
            return False
        return self._http.their_state is h11.DONE

    async def _linger(self) -> None:
        """Let a caller who still sends read the answer: closing at once would take it away."""
        if self._transport.can_write_eof():
            with contextlib.suppress(OSError):  # who has hung up reads no answer
                self._transport.write_eof()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                self._unread.clear()
                while await self._more():
                    self._unread.clear()

    async def _body(self, head: Head) -> bytearray:
        """Return a request's body.

        Raises:
            RequestError: it is no HTTP.
            BodyTooLargeError: as it says.
        """
        encodings = [text for text in head.all("content-encoding") if text.lower() != "identity"]
        if encodings:
            raise RequestError(f"expected a body as it is, got one with the Content-Encoding"
                               f" {encodings[0][:32]!r}")  # fmt: skip
        lengths = head.all("content-length")
        if lengths and int(lengths[0]) > self._max_body:
            raise self._too_large(int(lengths[0]))
        if self._http.they_are_waiting_for_100_continue:
            told = h11.InformationalResponse(status_code=100, headers=[])
            self._transport.write(self._http.send(told))
        body, chunks = bytearray(), 0
        while isinstance(event := await self._part(), h11.Data):
            body += event.data
            chunks += event.chunk_end
            if len(body) > self._max_body:
                raise self._too_large(len(body))
            if chunks > _FREE_CHUNKS and len(body) < chunks * _LEAST_CHUNK:
                raise RequestError(
                    f"expected chunks of at least {_LEAST_CHUNK} bytes on average, got"
                    f" {chunks} of {len(body)} together"
                )
        return body

    async def _part(self) -> Any:
        """Return a body's next part, or what ends it."""
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                if self._unread or await self._more():
                    self._http.receive_data(bytes(self._unread))
                    self._unread.clear()
                    self._go_on()  # so that one who hangs up is noticed
                else:
                    self._http.receive_data(b"")
        except h11.RemoteProtocolError as error:
            raise RequestError(f"expected a body as HTTP has it: {error}") from None
        return event

    def _too_large(self, size: int) -> BodyTooLargeError:
        return BodyTooLargeError(
            f"expected a body of at most {self._max_body} bytes, got {size} or more"
        )

    async def _send(self, reply: Reply, *, last: bool, bodiless: bool = False) -> None:
        """Send an answer, or its head alone, and wait until most of it is gone."""
        if self._http.our_state is not h11.IDLE and self._http.our_state is not h11.SEND_RESPONSE:
            return
        size = sum(map(len, reply.body))
        headers = [*reply.headers, ("Content-Length", str(size)), ("Cache-Control", "no-store")]
        if last:
            headers.append(("Connection", "close"))
        response = h11.Response(
            status_code=reply.status, reason=reply.status.phrase.encode(), headers=headers
        )
        parts = [self._http.send(response)]
        for part in () if bodiless else reply.body:
            parts += self._http.send_with_data_passthrough(h11.Data(data=part)) or []
        parts.append(self._http.send(h11.EndOfMessage()))
        self._transport.writelines([part for part in parts if part])
        async with asyncio.timeout(_WRITE_S):
            await self._writable.wait()


def _refusal(status: HTTPStatus, message: str) -> Reply:
    return Reply(
        status=status,
        body=[json.dumps({"error": message}).encode()],
        headers=[("Content-Type", "application/json")],
    )
