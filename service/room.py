"""How much room callers have: what they can make the server hold, known before it starts."""

import math
from dataclasses import dataclass

import numpy as np

from reluguard.detector.allowance import available_cores, available_memory
from reluguard.detector.images import InputSpec
from reluguard.service.settings import Settings

__all__ = ["Room", "room_of", "row_bytes"]

_MIB = 2**20
_BESIDE_BYTES = _MIB  # for names, and for files that are larger than the pixels asked for
_AT_LEAST_BYTES = 16 * _MIB  # as far as the rows of one request need it
_LOBBY_BYTES = 32 * _MIB  # of all who have not said who they are
_CONNECTION_BYTES = 64 * 1024  # of a stream that nobody reads: gRPC's first window
_HTTP_BYTES = 512 * 1024  # of a connection by HTTP: Python's TLS keeps half of that
_MOST_LANES = 256
_MOST_HELD = 512 * _MIB
_FIELDS, _FIELDS_PER_ROW = 256, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What callers may use of one server, all of them together.

    Where a server has several processes, each has this room; the memory is that of all.

    Attributes:
        max_message_bytes: of one request.
        max_connections: open at once.
        max_http_connections: the same by HTTP, 0 without it.
        max_streams: calls of one connection.
        max_open_streams: InspectStream calls.
        max_in_flight: calls being handled.
        max_bytes_in_flight: of requests that are whole.
        quick, slow, lobby: messages that may be half here, see `intake`.
        max_fields: of one message.
        watch_bytes: what the watch over question streams remembers, of all processes; 0 without.
        memory_bytes: more than an idle server needs, at most, when all of that is used up.
    """

    max_message_bytes: int
    max_connections: int
    max_http_connections: int
    max_streams: int
    max_open_streams: int
    max_in_flight: int
    max_bytes_in_flight: int
    quick: int
    slow: int
    lobby: int
    max_fields: int
    watch_bytes: int
    memory_bytes: int


def row_bytes(spec: InputSpec) -> int:
    """Return the bytes of one image in the model's tensor."""
    return math.prod(spec.tensor_shape) * np.dtype(spec.dtype).itemsize


def _message_bytes(settings: Settings, largest_row: int) -> int:
    """Return the largest message there may be: as the setting says, or all rows of a request.

    Of large images fewer rows fit than a request may have: a batch of the model's at least.
    """
    if settings.max_message_bytes is not None:
        return settings.max_message_bytes
    most = max(_AT_LEAST_BYTES, settings.max_batch * largest_row)
    whole = min(settings.max_rows * largest_row, most) + _BESIDE_BYTES
    return min(whole, 2**31 - 1)


def _held(processes: int) -> int:
    """Return how many bytes of requests each process may hold where no setting says it."""
    memory = available_memory()
    return _MOST_HELD if memory is None else min(_MOST_HELD, memory // 4 // processes)


def room_of(settings: Settings, largest_row: int) -> Room:
    """Return what callers may use of a server with these settings.

    Half of the bytes are for requests that are whole, a quarter for streams, which may have a
    message half here for as long as they last, and a quarter for all other messages on their way.
    """
    message = _message_bytes(settings, largest_row)
    most = settings.max_bytes_in_flight or _held(settings.processes)
    part = max(1, most // 4 // message)
    quick = min(max(4, part // 2), _MOST_LANES)
    slow = min(max(4, part - part // 2), _MOST_LANES)
    open_streams = settings.max_open_streams or min(max(8, part), _MOST_LANES)
    lobby = min(max(2, _LOBBY_BYTES // message), 32)
    whole = max(most // 2, message)
    by_http = 0 if settings.http_port is None else settings.http_connections
    rows = settings.max_queue_rows + available_cores() * settings.max_rows
    watch_bytes = 0 if settings.watch == "off" else settings.watch_max_bytes
    return Room(
        max_message_bytes=message,
        max_connections=settings.max_connections,
        max_http_connections=by_http,
        max_streams=settings.max_streams,
        max_open_streams=open_streams,
        max_in_flight=settings.max_in_flight,
        max_bytes_in_flight=whole,
        quick=quick,
        slow=slow,
        lobby=lobby,
        max_fields=_FIELDS + _FIELDS_PER_ROW * settings.max_rows,
        watch_bytes=watch_bytes,
        memory_bytes=watch_bytes
        + settings.processes
        * (
            whole
            + (quick + slow + lobby + open_streams) * message
            + rows * largest_row
            + settings.max_connections * _CONNECTION_BYTES
            + by_http * _HTTP_BYTES
        ),
    )
