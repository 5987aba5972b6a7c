"""The one table from our errors to gRPC codes."""

from dataclasses import dataclass

import grpc

from reluguard.detector import errors as detector
from reluguard.service import errors as service

__all__ = ["CODES", "INTERNAL", "Status", "status_of"]

_Code = grpc.StatusCode

CODES: dict[type[Exception], grpc.StatusCode] = {
    detector.ImageError: _Code.INVALID_ARGUMENT,
    service.RequestError: _Code.INVALID_ARGUMENT,
    service.NotFoundError: _Code.NOT_FOUND,
    service.NotReadyError: _Code.UNAVAILABLE,
    service.OverloadedError: _Code.RESOURCE_EXHAUSTED,
    service.ExpiredError: _Code.DEADLINE_EXCEEDED,
    service.RejectedError: _Code.FAILED_PRECONDITION,
    service.ReloadError: _Code.FAILED_PRECONDITION,
    service.UnauthenticatedError: _Code.UNAUTHENTICATED,
    service.ForbiddenError: _Code.PERMISSION_DENIED,
    service.LabelError: _Code.FAILED_PRECONDITION,
    service.DisabledError: _Code.UNIMPLEMENTED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What a caller is told. `expected` is false for anything outside the table."""

    code: grpc.StatusCode
    message: str
    expected: bool = True
    retry_after_s: float | None = None


INTERNAL = Status(code=_Code.INTERNAL, message="internal error", expected=False)


def status_of(error: BaseException) -> Status:
    """Return what the caller is told of this error: `INTERNAL` unless its class is in the table."""
    for kind in type(error).__mro__:
        if kind in CODES:
            retry = error.retry_after_s if isinstance(error, service.OverloadedError) else None
            return Status(code=CODES[kind], message=str(error), retry_after_s=retry)
    return INTERNAL
