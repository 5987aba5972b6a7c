"""grpc.health.v1: for the server as a whole, each service and each model by name."""

from collections.abc import Iterable
from typing import Any

from grpc_health.v1 import health, health_pb2, health_pb2_grpc

__all__ = ["SERVICE", "Health"]

SERVICE: str = health.SERVICE_NAME
_STATUS = {
    True: health_pb2.HealthCheckResponse.SERVING,
    False: health_pb2.HealthCheckResponse.NOT_SERVING,
}


class Health:
    """What balancers and probes are told. Nothing is SERVING until it is said so."""

    def __init__(self, names: Iterable[str]) -> None:
        self._servicer = health.aio.HealthServicer()  # type: ignore[attr-defined] # missing in the stubs
        self._names = ("", *names)
        self._serving: dict[str, bool] = {}
        self._draining = False

    async def start(self, server: Any) -> None:
        """Add the service to a gRPC server."""
        for name in self._names:
            await self.set(name, serving=False)
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set(self, name: str, *, serving: bool) -> None:
        """Say whether this name is served; without effect once draining."""
        if self._serving.get(name) is not serving and not self._draining:
            self._serving[name] = serving
            await self._servicer.set(name, _STATUS[serving])

    async def drain(self) -> None:
        """Say NOT_SERVING for everything, for good."""
        self._draining = True
        await self._servicer.enter_graceful_shutdown()

    @property
    def is_serving(self) -> bool:
        """Whether the server as a whole is served."""
        return not self._draining and self._serving.get("", False)
