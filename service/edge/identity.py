"""Who a call is from, and what it is called."""

import contextvars
import random
import re
from typing import Any

__all__ = ["address_of", "metadata_of", "name_request", "request_id"]

Context = Any  # grpc.aio.ServicerContext is generic over messages that we parse ourselves
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ids = random.Random()  # noqa: S311 - names for a log, no secrets, and asked for on every call

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")


def name_request(context: Context) -> None:
    """Take the caller's request id, or a new one if it sent none that is fit for a log."""
    sent = metadata_of(context, "x-request-id")
    name = sent[-1] if sent and _ID.fullmatch(sent[-1]) else f"{_ids.getrandbits(128):032x}"
    request_id.set(name)
    context.set_trailing_metadata((("x-request-id", name),))


def metadata_of(context: Context, wanted: str) -> list[str]:
    """Return the texts sent under this key."""
    return [
        value
        for key, value in context.invocation_metadata() or ()
        if key == wanted and isinstance(value, str)
    ]


def address_of(peer: str) -> str:
    """Return a peer's address without its port: gRPC says ipv4:1.2.3.4:5 and ipv6:%5B::1%5D:5."""
    kind, _, rest = peer.partition(":")
    return peer if kind not in {"ipv4", "ipv6"} else rest.rpartition(":")[0]
