"""grpc.health.v1: for the server as a whole, each service and each model by name.

Not grpcio-health-checking's servicer: its open Watch streams hold a stopping server for the whole
grace period. Ours end when the server stops.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from reluguard.service.errors import OverloadedError, RequestError
from reluguard.service.intake import EvictedError, Intake

__all__ = ["LIVE", "SERVICE", "Health"]

SERVICE: str = health.SERVICE_NAME
LIVE = "reluguard.live"  # SERVING as long as anything is answered: a draining server lives
_Status = health_pb2.HealthCheckResponse
_MOST_BYTES = 1024  # a name: whoever sends more is no probe
_MOST_WATCHES = 4  # of a connection: each holds 15 kB for as long as it likes, without a token


class Health:
    """What balancers and probes are told. Nothing is SERVING until it is said so."""

    def __init__(self, names: Iterable[str]) -> None:
        self._serving = {**dict.fromkeys(["", *names], False), LIVE: True}
        self._draining = False
        self._closed = False
        self._changed = asyncio.Condition()
        self._watching: Counter[str] = Counter()  # by connection, which gRPC tells as a peer

    def handlers(self, lobby: Intake) -> grpc.GenericRpcHandler:
        """Return this service for a gRPC server. It is open to all: probes have no token.

        Args:
            lobby: where their requests are read.
        """

        async def asked(context: Any) -> str:
            try:
                return _name_in(await lobby.read(context))
            except RequestError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            except OverloadedError as error:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
            except EvictedError as error:
                raise grpc.aio.AbortError("told already") from error
            raise AssertionError  # abort raises

        async def check(_: Any, context: Any) -> Any:
            return await self._check(await asked(context), context)

        async def watch(_: Any, context: Any) -> None:
            peer = context.peer()
            if self._watching[peer] >= _MOST_WATCHES and not peer.startswith("unix:"):
                await context.abort(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"expected at most {_MOST_WATCHES} watches on one connection",
                )
            self._watching[peer] += 1
            try:
                async for status in self._watch(await asked(context)):
                    await context.write(status)
            finally:
                self._watching[peer] -= 1
                if not self._watching[peer]:
                    del self._watching[peer]

        answer = _Status.SerializeToString
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Check": grpc.stream_unary_rpc_method_handler(check, response_serializer=answer),
                "Watch": grpc.stream_stream_rpc_method_handler(watch, response_serializer=answer),
            },
        )

    def _status(self, name: str) -> Any:
        serving = self._serving.get(name)
        if serving is None:
            return _Status.SERVICE_UNKNOWN
        ends = self._draining and name != LIVE
        return _Status.SERVING if serving and not ends else _Status.NOT_SERVING

    async def _check(self, name: str, context: Any) -> Any:
        if name not in self._serving:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return _Status(status=self._status(name))

    async def _watch(self, name: str) -> AsyncIterator[Any]:
        told = None
        while True:
            status = self._status(name)
            if status != told:
                told = status
                yield _Status(status=status)
                continue  # look again: it may have changed while that was sent
            if self._closed:
                return
            async with self._changed:
                if self._status(name) == told and not self._closed:
                    await self._changed.wait()

    async def set(self, name: str, *, serving: bool) -> None:
        """Say whether this name is served; without effect once draining."""
        self._serving[name] = serving or name == LIVE
        await self._tell()

    async def drain(self) -> None:
        """Say NOT_SERVING for everything, for good."""
        self._draining = True
        await self._tell()

    async def close(self) -> None:
        """End every Watch."""
        self._closed = True
        await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    @property
    def is_serving(self) -> bool:
        """Whether the server as a whole is served."""
        return not self._draining and self._serving[""]


def _name_in(data: bytes) -> str:
    if len(data) > _MOST_BYTES:
        raise RequestError(f"expected at most {_MOST_BYTES} bytes to ask for health, got more")
    try:
        name: str = health_pb2.HealthCheckRequest.FromString(data).service
    except DecodeError as error:
        raise RequestError("expected a HealthCheckRequest, got bytes that are none") from error
    return name
