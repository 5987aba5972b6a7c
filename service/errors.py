"""What can go wrong at the edge, one class per thing a caller or an operator could do about it.

ServiceError
├── RequestError          the request is malformed: change it
├── NotFoundError         no such model, or no such version
├── NotReadyError         the server is starting, draining, or the model is unloaded: try elsewhere
├── OverloadedError       too much is queued: wait and try again
├── ExpiredError          the deadline passed before the model ran
├── RejectedError         policy `reject`: the input looks adversarial
├── ReloadError           the new guard or model was refused; the last good one stays
├── UnauthenticatedError  no token, or a token we don't know
├── ForbiddenError        the token lacks the scope
├── LabelError            a label that can't be taken: unknown id, conflict, cap
├── DisabledError         this server does not offer that
├── CallError             client side: the server refused a call, or could not be reached
└── StartError            the server can't start: port, certificate, token file
"""

import grpc

__all__ = [
    "CallError",
    "DisabledError",
    "ExpiredError",
    "ForbiddenError",
    "LabelError",
    "NotFoundError",
    "NotReadyError",
    "OverloadedError",
    "RejectedError",
    "ReloadError",
    "RequestError",
    "ServiceError",
    "StartError",
    "UnauthenticatedError",
]


class ServiceError(Exception):
    """Base of every error this package raises on purpose."""


class RequestError(ServiceError):
    """The request is malformed."""


class NotFoundError(ServiceError):
    """No such model, or no such version of it."""


class NotReadyError(ServiceError):
    """The server is starting or draining, or the model is unloaded."""


class OverloadedError(ServiceError):
    """Too much is queued already."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ExpiredError(ServiceError):
    """The caller's deadline passed before the model ran."""


class RejectedError(ServiceError):
    """The policy refuses inputs that look adversarial."""


class ReloadError(ServiceError):
    """The new guard or model was refused, and the last good one stays."""


class UnauthenticatedError(ServiceError):
    """The call carries no token, or one we don't know."""


class ForbiddenError(ServiceError):
    """The caller's token lacks the scope."""


class LabelError(ServiceError):
    """A label on a captured image can't be taken."""


class DisabledError(ServiceError):
    """This server does not offer that."""


class CallError(ServiceError):
    """The server refused a call, or could not be reached.

    Attributes:
        code: why, as gRPC says it.
        request_id: names the call in the server's log; empty if it never got there.
    """

    def __init__(self, code: grpc.StatusCode, message: str, *, request_id: str = "") -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.request_id = request_id


class StartError(ServiceError):
    """The server can't start."""
