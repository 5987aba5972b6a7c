"""How calls end: counted, and told to callers by the table in `status`."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from reluguard.service.edge.identity import request_id
from reluguard.service.monitoring.rpc_metrics import MethodMetrics
from reluguard.service.status import INTERNAL, Status, status_of

__all__ = ["Outcome", "counted", "go_name", "status_told"]

_log = logging.getLogger(__name__)
Context = Any  # grpc.aio.ServicerContext is generic over messages that we parse ourselves
_LONGEST_RETRY_S = 30.0  # a call that a client holds open for longer helps nobody


@dataclass(slots=True)
class Outcome:
    """How one call ended: cancelled, unless it got to its end or failed."""

    code: grpc.StatusCode = grpc.StatusCode.CANCELLED
    status: Status | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Keep whatever the call raises, as the table in `status` has it."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the table decides, with a closed default
            self.fail(error)
        else:
            self.code = grpc.StatusCode.OK

    def fail(self, error: Exception) -> None:
        """Take what the call raised."""
        self.status = status_told(error)
        self.code = self.status.code

    async def tell(self, context: Context) -> None:
        """Tell the caller if the call failed. After counting: who was told can look it up."""
        if self.status is None:
            return
        trailing = [("x-request-id", request_id.get())]
        if self.status.retry_after_s is not None:
            trailing += _pushback(self.status.retry_after_s)
        try:
            await context.abort(self.status.code, self.status.message, tuple(trailing))
        except grpc.aio.InternalError:  # the caller has gone: gRPC ends the call itself
            _log.debug("nobody to tell about %s", self.status.code.name)


def _pushback(wait_s: float) -> list[tuple[str, str]]:
    """Return when a client may try again: by itself, or where that is far away, not by itself."""
    if wait_s <= _LONGEST_RETRY_S:
        return [("grpc-retry-pushback-ms", str(int(wait_s * 1000)))]
    return [("grpc-retry-pushback-ms", "-1"), ("retry-after", str(math.ceil(wait_s)))]


@contextmanager
def counted(counts: MethodMetrics) -> Iterator[Outcome]:
    """Count one call, however it ends."""
    outcome = Outcome()
    counts.started.inc()
    started = time.perf_counter()
    try:
        yield outcome
    finally:
        counts.ended(go_name(outcome.code), time.perf_counter() - started)


def status_told(error: Exception) -> Status:
    """Return what the caller is told of an error; one that nobody foresaw is logged."""
    status = status_of(error)
    if status is INTERNAL:
        _log.error("request %s failed", request_id.get(), exc_info=error)
    return status


def go_name(code: grpc.StatusCode) -> str:
    """Return the code as go-grpc-prometheus writes it: InvalidArgument, Canceled, OK."""
    if code is grpc.StatusCode.OK:
        return "OK"
    name: str = code.name
    return name.title().replace("_", "").replace("Cancelled", "Canceled")
