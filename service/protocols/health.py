"""grpc.health.v1: for the server as a whole, each service and each model by name.

Not grpcio-health-checking's servicer: its open Watch streams hold a stopping server for the whole
grace period. Ours end when the server stops.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

__all__ = ["SERVICE", "Health"]

SERVICE: str = health.SERVICE_NAME
_Status = health_pb2.HealthCheckResponse


class Health:
    """What balancers and probes are told. Nothing is SERVING until it is said so."""

    def __init__(self, names: Iterable[str]) -> None:
        self._serving = dict.fromkeys(["", *names], False)
        self._draining = False
        self._closed = False
        self._changed = asyncio.Condition()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return this service for a gRPC server. It is open to all: probes have no token."""
        request = health_pb2.HealthCheckRequest.FromString
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Check": grpc.unary_unary_rpc_method_handler(
                    self._check,
                    request_deserializer=request,
                    response_serializer=_Status.SerializeToString,
                ),
                "Watch": grpc.unary_stream_rpc_method_handler(
                    self._watch,
                    request_deserializer=request,
                    response_serializer=_Status.SerializeToString,
                ),
            },
        )

    def _status(self, name: str) -> Any:
        serving = self._serving.get(name)
        if serving is None:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if serving and not self._draining else _Status.NOT_SERVING

    async def _check(self, request: Any, context: Any) -> Any:
        if request.service not in self._serving:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return _Status(status=self._status(request.service))

    async def _watch(self, request: Any, _: Any) -> AsyncIterator[Any]:
        told = None
        while True:
            status = self._status(request.service)
            if status != told:
                told = status
                yield _Status(status=status)
                continue  # look again: it may have changed while that was sent
            if self._closed:
                return
            async with self._changed:
                if self._status(request.service) == told and not self._closed:
                    await self._changed.wait()

    async def set(self, name: str, *, serving: bool) -> None:
        """Say whether this name is served; without effect once draining."""
        self._serving[name] = serving
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
