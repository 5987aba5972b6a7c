"""Messages of the bytes that came."""

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from reluguard.service.errors import RequestError

__all__ = ["parse"]

Request = TypeVar("Request", bound=Message)


def parse(request_class: type[Request], data: bytes) -> Request:
    """Return the message these bytes hold.

    Raises:
        RequestError: they hold none.
    """
    try:
        return request_class.FromString(data)
    except DecodeError as error:
        name = request_class.DESCRIPTOR.full_name
        raise RequestError(f"expected a {name} message, got bytes that are none") from error
