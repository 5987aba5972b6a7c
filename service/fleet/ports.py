"""A port that several processes listen on, held for them by one that does not."""

import contextlib
import socket
import sys

from reluguard.service.errors import StartError
from reluguard.service.places import Place

__all__ = ["hold_port"]


def hold_port(place: Place) -> tuple[contextlib.ExitStack, int]:
    """Return what holds the port until it is closed, and its number.

    The sockets are bound and do not listen, so no connection comes to them; the kernel spreads
    those that come among all who listen (SO_REUSEPORT), which it would let a second server do too:
    whoever holds the port refuses that one.

    Args:
        place: its port may be 0.

    Raises:
        StartError: the port is in use, or the address is not this machine's or has no ports.
    """
    host, port = place.host, place.port
    if place.path:
        raise StartError(
            f"expected one process on {place.address}: only a port can be shared by several"
        )
    held = contextlib.ExitStack()
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            where = (address[0], port or address[1], *address[2:])
            probe = held.enter_context(socket.socket(family, kind, protocol))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _only(probe, family)
            probe.bind(where)  # which nobody may while another listens
            port = port or probe.getsockname()[1]
            probe.close()
            one = held.enter_context(socket.socket(family, kind, protocol))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _only(one, family)
            one.bind((address[0], port, *address[2:]))
        if sys.platform == "linux":  # of two that start at once the second is refused
            mark = held.enter_context(socket.socket(socket.AF_UNIX))
            mark.bind(f"\0reluguard/{place.of_port(port)}")
    except OSError as error:
        held.close()
        raise StartError(
            f"can't listen on {place.address}: the port is in use, or the address is not this"
            " machine's"
        ) from error
    return held, port


def _only(one: socket.socket, family: int) -> None:
    """Take IPv6 alone, as IPv4 has a socket of its own."""
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
