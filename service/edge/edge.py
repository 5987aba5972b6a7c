"""What every call goes through: admission, tokens, request ids, counting, and the error table."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from reluguard.service.edge.identity import address_of, metadata_of, name_request, request_id
from reluguard.service.edge.messages import parse
from reluguard.service.edge.outcome import Outcome, counted, go_name, status_told
from reluguard.service.edge.stream import pump
from reluguard.service.errors import (
    NotReadyError,
    OverloadedError,
    UnauthenticatedError,
)
from reluguard.service.intake import EvictedError, Intake
from reluguard.service.monitoring.decisions import DecisionLog
from reluguard.service.monitoring.metrics import Metrics
from reluguard.service.monitoring.rpc_metrics import MethodMetrics
from reluguard.service.monitoring.tracing import Handler, Tracing
from reluguard.service.payload import Fields, check_parts, lift
from reluguard.service.quotas import Quotas
from reluguard.service.room import Room
from reluguard.service.security import ANYBODY, Caller, Scope, Tokens
from reluguard.service.status import Status

__all__ = ["Call", "Edge"]

_NO_DEADLINE_S = 10**8  # gRPC says 9e18 s for none
_PUSHBACK_S = 0.1

Request = TypeVar("Request", bound=Message)
Context = Any  # grpc.aio.ServicerContext is generic over messages that we parse ourselves
Parts = Callable[[bytes, Context], tuple[Any, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Who asks, and until when the answer is of use.

    Attributes:
        caller: by token.
        deadline: in the event loop's time; None for none.
        who: whose quota it is: the token's name, or the address.
    """

    caller: Caller
    deadline: float | None
    who: str = ""


class Edge:
    """Wraps our methods into gRPC handlers.

    Who asks is settled on the headers, before a byte of the message is read: handlers are of the
    kind that reads for itself, although most calls have one message only.

    Args:
        metrics: where calls are counted.
        tokens: who may call; None for everybody.
        quotas: how much each caller may.
        room: how much there is of everything.
        receive_s: longest time that a message may take to come.
        decisions: where refused tokens are told; None for nowhere.
        tracing: what writes spans; None for nothing.

    Attributes:
        intake: where messages of known callers are read.
        lobby: the same for methods that are open to all.
        stopping: set when calls in flight should finish and streams should end.
        idle: set while no call is being handled.
        turned_away: calls that came while stopping.
    """

    def __init__(
        self,
        *,
        metrics: Metrics,
        tokens: Tokens | None,
        quotas: Quotas,
        room: Room,
        receive_s: float,
        decisions: DecisionLog | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._decisions = decisions
        self._metrics = metrics
        self._tokens = tokens
        self._quotas = quotas
        self._room = room
        self._open_streams = 0
        self.intake = Intake(
            quick=room.quick,
            slow=room.slow,
            max_message_bytes=room.max_message_bytes,
            max_bytes=room.max_bytes_in_flight,
            longest_s=receive_s,
            refused=metrics.call_refused,
        )
        self.lobby = Intake(
            quick=room.lobby,
            slow=0,
            max_message_bytes=room.max_message_bytes,
            max_bytes=room.lobby * room.max_message_bytes,
            longest_s=receive_s,
            refused=metrics.call_refused,
        )
        self._tracing = tracing
        self._in_flight = 0
        metrics.in_flight.set_function(lambda: self._in_flight)
        self.stopping = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self.turned_away = 0

    @property
    def in_flight(self) -> int:
        """Return how many calls are being handled."""
        return self._in_flight

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count one call in, and out again.

        Raises:
            NotReadyError: the server is stopping.
            OverloadedError: too many calls are being handled.
        """
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def _enter(self) -> None:
        if self.stopping.is_set():
            self.turned_away += 1
            self._metrics.call_refused("draining")
            raise NotReadyError("the server is shutting down")
        if self._in_flight >= self._room.max_in_flight:
            self._metrics.call_refused("too_many_calls")
            raise OverloadedError(
                f"expected at most {self._room.max_in_flight} calls at once",
                retry_after_s=_PUSHBACK_S,
            )
        self._in_flight += 1
        if self._in_flight == 1:
            self.idle.clear()

    def _leave(self) -> None:
        self._in_flight -= 1
        if not self._in_flight:
            self.idle.set()

    def call(self, context: Context, scope: Scope | None) -> Call:
        """Return who asks.

        Raises:
            UnauthenticatedError: the token is missing or unknown.
            ForbiddenError: the token lacks the scope.
        """
        caller, who = ANYBODY, ""
        if self._tokens is not None and scope is not None:
            try:
                caller = self._tokens.caller(*metadata_of(context, "authorization"))
            except UnauthenticatedError as error:
                self._metrics.call_refused("unauthenticated")
                if self._decisions is not None:
                    self._decisions.refused(
                        caller=address_of(context.peer()),
                        request=request_id.get(),
                        reason=str(error),
                    )
                raise
            who = caller.name
        elif scope is not None:
            who = address_of(context.peer())
        if scope is not None:
            caller.require(scope)
        left = context.time_remaining()
        unlimited = left is None or left > _NO_DEADLINE_S
        deadline = None if unlimited else asyncio.get_running_loop().time() + left
        return Call(caller=caller, deadline=deadline, who=who)

    def unary(
        self,
        path: tuple[str, str],
        request_class: type[Request] | None,
        method: Callable[..., Awaitable[Message | bytes]],
        *,
        scope: Scope | None = Scope.INFER,
        large: Fields | None = None,
    ) -> grpc.RpcMethodHandler:
        """Return the handler of one request, one answer.

        Args:
            path: service and method.
            request_class: what the bytes hold; None for requests that say nothing: they are not
                read.
            method: answers call and request, with a message or with one serialised; whatever it
                raises goes through the table in `status`.
            scope: what the caller's token must allow; None leaves the method open to all.
            large: where the request's payload is; the method gets it as a third argument, None
                where it stays in the request.
        """
        parts = self._reader(request_class, large)
        asked = _Method(parts, method, scope, reads=request_class is not None)
        return grpc.stream_unary_rpc_method_handler(self._handler(path, asked))

    def exchange(
        self,
        path: tuple[str, str],
        method: Callable[..., Awaitable[bytes]],
        *,
        reads: bool,
        scope: Scope | None = Scope.INFER,
    ) -> Handler:
        """Return the handler of one request, one answer, of a protocol that isn't gRPC.

        Args:
            path: service and method, as they are counted.
            method: answers the call, its context and the body; what it returns is for the context
                to send, and so is whatever it raises, by the table in `status`.
            reads: whether there is a body to read; without one the method gets nothing of it.
            scope: as `unary` has it.
        """

        def body(data: bytes, context: Context) -> tuple[Any, ...]:
            return (context, data) if reads else (context,)

        return self._handler(path, _Method(body, method, scope, reads=reads))

    def _handler(self, path: tuple[str, str], asked: "_Method") -> Handler:
        counts = self._metrics.rpc.method("unary", *path)

        async def handle(_: Any, context: Context) -> bytes:
            # what every call pays: plain statements, where a stream can afford context managers
            name_request(context)
            counts.started.inc()
            started = time.perf_counter()
            outcome = Outcome()
            encoded = b""
            try:
                encoded = await self._answer(asked, context, counts)
                counts.sent.inc()
                outcome.code = grpc.StatusCode.OK
            except EvictedError as error:
                outcome.code = grpc.StatusCode.RESOURCE_EXHAUSTED
                raise grpc.aio.AbortError("told already") from error
            except Exception as error:  # noqa: BLE001 - the table decides, with a closed default
                outcome.fail(error)
            finally:
                counts.ended(go_name(outcome.code), time.perf_counter() - started)
            if outcome.status is not None:
                await outcome.tell(context)
            return encoded

        return self._traced(path, handle)

    async def _answer(self, asked: "_Method", context: Context, counts: MethodMetrics) -> bytes:
        """Return one call's serialised answer: who asks comes first, then what."""
        if self.stopping.is_set():
            self._enter()  # which says so
        call = self.call(context, asked.scope)
        has_quota = asked.scope is not None and self._quotas.enter(call.who, call.caller.quota)
        intake = self.lobby if asked.scope is None else self.intake
        data, held = b"", 0
        try:
            if asked.reads:
                data = await intake.read(context)
                counts.received.inc()
                intake.hold(len(data))
                held = len(data)
            self._enter()
            try:
                answer = await asked.method(call, *asked.parts(data, context))
            finally:
                self._leave()
        finally:
            intake.let_go(held)
            if has_quota:
                self._quotas.leave(call.who)
        return answer if isinstance(answer, bytes) else answer.SerializeToString()

    def stream(
        self,
        path: tuple[str, str],
        request_class: type[Request],
        method: Callable[..., Awaitable[Message]],
        failed: Callable[[Request, Status], Message],
        *,
        scope: Scope = Scope.INFER,
        large: Fields | None = None,
        window: int = 8,
    ) -> grpc.RpcMethodHandler:
        """Return the handler of a stream of requests, each answered in order.

        Args:
            path: service and method.
            request_class: what each message holds.
            method: answers one message.
            failed: makes the answer to a message that failed, so that its neighbours go on.
            scope: looked at again for each message: a revoked token ends the stream.
            large: as `unary` has it.
            window: most messages of one stream being handled; reading stops beyond it.
        """
        counts = self._metrics.rpc.method("bidi_stream", *path)
        parts = self._reader(request_class, large)

        async def answer(context: Context, data: bytes) -> bytes:
            request = request_class()
            held = 0
            try:
                self.intake.hold(len(data))
                held = len(data)
                call = self.call(context, scope)
                with self._within_quota(call), self.admitted():
                    request, *payload = parts(data, context)
                    message = await method(call, request, *payload)
            except Exception as error:
                status = status_told(error)
                if status.code in {
                    grpc.StatusCode.UNAUTHENTICATED,
                    grpc.StatusCode.PERMISSION_DENIED,
                }:
                    raise
                message = failed(request, status)
            finally:
                self.intake.let_go(held)
            return message.SerializeToString()

        async def handle(_: Any, context: Context) -> None:
            name_request(context)
            with counted(counts) as outcome, outcome.caught():
                self.call(context, scope)
                with self._open_stream():
                    await pump(context, counts, answer, window=window, stopping=self.stopping)
            await outcome.tell(context)

        return grpc.stream_stream_rpc_method_handler(self._traced(path, handle))

    @contextmanager
    def _within_quota(self, call: Call) -> Iterator[None]:
        has_quota = self._quotas.enter(call.who, call.caller.quota)
        try:
            yield
        finally:
            if has_quota:
                self._quotas.leave(call.who)

    @contextmanager
    def _open_stream(self) -> Iterator[None]:
        if self._open_streams >= self._room.max_open_streams:
            self._metrics.call_refused("too_many_streams")
            raise OverloadedError(
                f"expected at most {self._room.max_open_streams} streams at once",
                retry_after_s=_PUSHBACK_S,
            )
        self._open_streams += 1
        try:
            yield
        finally:
            self._open_streams -= 1

    def _reader(self, kind: type[Message] | None, large: Fields | None) -> Parts:
        """Return what makes a message of bytes, and its payload where one is looked for."""

        def parts(data: bytes, _: Context) -> tuple[Any, ...]:
            if kind is None:
                return ()
            check_parts(data, kind.DESCRIPTOR, most=self._room.max_fields)
            if large is None:
                return (parse(kind, data),)
            rest, payload = lift(data, large)
            return parse(kind, rest), payload

        return parts

    def _traced(self, path: tuple[str, str], handle: Handler) -> Handler:
        return handle if self._tracing is None else self._tracing.rpc(path, handle)


@dataclass(frozen=True, slots=True)
class _Method:
    """One of our methods: what is made of the bytes, who answers, who may ask, if any are read."""

    parts: Parts
    method: Callable[..., Awaitable[Message | bytes]]
    scope: Scope | None
    reads: bool = True
