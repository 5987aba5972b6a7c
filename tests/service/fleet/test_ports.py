"""A port held for several processes, and from other servers."""

import socket
from contextlib import ExitStack

import pytest

from reluguard.service.errors import StartError
from reluguard.service.fleet.ports import hold_port
from reluguard.service.places import Place


def listening(port: int, *, shared: bool) -> socket.socket:
    with ExitStack() as stack:
        one = stack.enter_context(socket.socket())
        if shared:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(("127.0.0.1", port))
        one.listen()
        stack.pop_all()
    return one


def test_those_it_is_held_for_may_listen_and_no_other_server() -> None:
    """While it is held, and again when it is not."""
    with ExitStack() as stack:
        held, port = hold_port(Place.of("127.0.0.1", 0))
        stack.enter_context(held)
        stack.enter_context(listening(port, shared=True))
        stack.enter_context(listening(port, shared=True))
        with pytest.raises(OSError, match="in use"):
            listening(port, shared=False)
        with pytest.raises(StartError, match=f"can't listen on 127.0.0.1:{port}: the port is in"):
            hold_port(Place.of("127.0.0.1", port))
    held, port = hold_port(Place.of("127.0.0.1", port))
    with held, pytest.raises(StartError, match="the port is in use"):
        hold_port(Place.of("127.0.0.1", port))  # nobody listens yet


def test_a_port_that_another_has_is_refused() -> None:
    """One that would share it, too."""
    for shared in (False, True):
        with listening(0, shared=shared) as other, pytest.raises(StartError, match="in use"):
            hold_port(Place.of("127.0.0.1", other.getsockname()[1]))


@pytest.mark.parametrize("host", ["localhost", "::1", "::", "0.0.0.0"])
def test_names_and_both_families_are_held(host: str) -> None:
    """Every address that a name stands for."""
    try:
        held, port = hold_port(Place.of(host, 0))
    except StartError:
        if ":" not in host:
            raise
        pytest.skip("this machine has no IPv6")
    with held:
        assert port


@pytest.mark.parametrize("host", ["unix:/tmp/x", "unix:x"])
def test_a_unix_socket_has_no_port_to_share(host: str) -> None:
    """The message says what could be shared."""
    with pytest.raises(StartError, match=r"expected one process on unix.*: only a port"):
        hold_port(Place.of(host, 0))


def test_an_address_of_another_machine_is_refused() -> None:
    """As a lone server refuses it."""
    with pytest.raises(StartError, match=r"can't listen on 192\.0\.2\.1:0"):
        hold_port(Place.of("192.0.2.1", 0))
