"""One request by HTTP and its answer, in the words in which the edge speaks to gRPC."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import grpc

from reluguard.service.errors import RequestError

__all__ = ["BodyTooLargeError", "Exchange", "Head", "Reply", "http_status"]

_CODES = {
    grpc.StatusCode.OK: HTTPStatus.OK,
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.UNPROCESSABLE_ENTITY,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}


def http_status(code: grpc.StatusCode) -> HTTPStatus:
    """Return what HTTP calls this."""
    return _CODES.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What comes before a body: method, target, and headers with their names in lower case."""

    method: str
    target: str
    headers: Sequence[tuple[str, str]]

    def all(self, name: str) -> list[str]:
        """Return the values of all headers of this name."""
        return [value for key, value in self.headers if key == name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What is answered: a status, headers beside those of every answer, and the parts of a body."""

    status: HTTPStatus
    body: Sequence[bytes]
    headers: Sequence[tuple[str, str]] = ()


class Exchange:
    """One request and its answer, in the words in which `Edge` speaks to gRPC.

    Args:
        head: of the request.
        peer: where it comes from, as gRPC writes it.
        body: reads the body.
    """

    def __init__(self, head: Head, peer: str, body: Callable[[], Awaitable[bytearray]]) -> None:
        self.head = head
        self.reply: Reply | None = None
        self.failure: tuple[grpc.StatusCode, str] | None = None
        self.is_too_large = False
        self._peer, self._body = peer, body
        self._trailing: tuple[tuple[str, str], ...] = ()
        self._reading: asyncio.Task[bytearray] | None = None

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        """Return the headers."""
        return self.head.headers

    def peer(self) -> str:
        """Return where the request comes from."""
        return self._peer

    def time_remaining(self) -> None:
        """Return no deadline: HTTP has none but the `timeout` of the request itself."""

    def code(self) -> grpc.StatusCode:
        """Return how it ended."""
        return grpc.StatusCode.OK if self.failure is None else self.failure[0]

    def set_trailing_metadata(self, trailing: tuple[tuple[str, str], ...]) -> None:
        """Keep headers of the answer."""
        self._trailing = trailing

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return them."""
        return self._trailing

    async def read(self) -> bytearray:
        """Return the body.

        Raises:
            grpc.aio.AbortError: the call was ended meanwhile.
            RequestError: it is too large, or not what HTTP has.
        """
        self._reading = asyncio.ensure_future(self._body())
        try:
            return await self._reading
        except asyncio.CancelledError:
            if self.failure is None:
                raise
            raise grpc.aio.AbortError from None
        except BodyTooLargeError:
            self.is_too_large = True
            raise

    async def abort(
        self, code: grpc.StatusCode, message: str, trailing: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """End the call.

        Raises:
            grpc.aio.AbortError: always, as gRPC has it.
        """
        if self.failure is None:
            self.failure = (code, message)
            self._trailing = (*self._trailing, *trailing)
            if self._reading is not None:
                self._reading.cancel()
        raise grpc.aio.AbortError(message)


class BodyTooLargeError(RequestError):
    """The body is larger than any request may be."""
