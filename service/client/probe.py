"""Is a server SERVING? Asked with as little as can be: a socket, and one call written out by hand.

A probe runs every few seconds in a process of its own. Loading gRPC takes half a second of a
processor for the thirty bytes that are said here, and would take the way through a proxy that the
environment names. What is sent is HTTP/2 (RFC 9113) with header fields as literals (RFC 7541,
section 6.2.2), and a `grpc.health.v1.HealthCheckRequest`.
"""

import socket
import ssl
import time
from pathlib import Path

__all__ = ["is_healthy"]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_STREAM = 1
_MOST_FRAMES = 64
_SERVING = b"\x08\x01"  # HealthCheckResponse.status = SERVING
_MOST_NAME = 127  # bytes: lengths below 128 are one byte


def is_healthy(
    address: str,
    *,
    service: str = "",
    deadline_s: float = 3.0,
    ca: Path | str | bool | None = None,
    certificate: Path | str | None = None,
    key: Path | str | None = None,
    server_name: str | None = None,
) -> bool:
    """Return whether the server says SERVING: for `reluguard health` and container probes.

    Args:
        address: host:port, or `unix:PATH`.
        service: empty for the server as a whole, or a service's or model's name.
        deadline_s: longest time to wait.
        ca: PEM file of the certificates to trust; turns TLS on. True: the system's.
        certificate: PEM file of our own certificate, for mTLS; goes with `key`.
        key: PEM file of our private key.
        server_name: the name to expect in the server's certificate, if not the address.

    Raises:
        OSError: a file can't be read.
        ValueError: the address has no port, or the name is too long.
    """
    host, port = _place(address)
    name = service.encode()
    if len(name) > _MOST_NAME:
        raise ValueError(f"expected a name of at most {_MOST_NAME} bytes, got {len(name)}")
    context = _context(ca, certificate, key)
    if context is not None and port is None and server_name is None:
        raise ValueError(f"expected server_name beside {address!r}: TLS needs a name to check")
    until = time.monotonic() + deadline_s
    try:
        with _connected(host, port, deadline_s) as plain:
            if context is None:
                return _ask(plain, name, until)
            with context.wrap_socket(plain, server_hostname=server_name or host) as secure:
                return _ask(secure, name, until)
    except (OSError, EOFError):  # nobody there, no answer in time, or another protocol
        return False


def _place(address: str) -> tuple[str, int | None]:
    if address.startswith("unix:"):
        return address.removeprefix("unix:").removeprefix("//"), None
    host, colon, port = address.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()):
        raise ValueError(f"expected host:port, got {address!r}")
    return host.strip("[]"), int(port)


def _context(
    ca: Path | str | bool | None, certificate: Path | str | None, key: Path | str | None
) -> ssl.SSLContext | None:
    if not ca and certificate is None:
        return None
    file = str(ca) if isinstance(ca, str | Path) else None
    context = ssl.create_default_context(cafile=file)
    context.set_alpn_protocols(["h2"])
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


def _connected(host: str, port: int | None, deadline_s: float) -> socket.socket:
    if port is not None:
        return socket.create_connection((host, port), timeout=deadline_s)
    local = socket.socket(socket.AF_UNIX)
    local.settimeout(deadline_s)
    local.connect(host)
    return local


def _ask(connection: socket.socket, name: bytes, until: float) -> bool:
    fields = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/grpc.health.v1.Health/Check"),
        (b":authority", b"probe"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    )
    block = b"".join(
        b"\0" + bytes([len(field)]) + field + bytes([len(value)]) + value for field, value in fields
    )
    asked = b"" if not name else b"\x0a" + bytes([len(name)]) + name
    message = b"\0" + len(asked).to_bytes(4) + asked
    connection.sendall(
        _PREFACE
        + _frame(_SETTINGS, 0, 0)
        + _frame(_HEADERS, _END_HEADERS, _STREAM, block)
        + _frame(_DATA, _END_STREAM, _STREAM, message)
    )
    answer = b""
    for _ in range(_MOST_FRAMES):
        connection.settimeout(max(0.001, until - time.monotonic()))
        kind, flags, stream, payload = _read_frame(connection)
        if kind == _SETTINGS and not flags & _ACK:
            connection.sendall(_frame(_SETTINGS, _ACK, 0))
        elif kind == _PING and not flags & _ACK:
            connection.sendall(_frame(_PING, _ACK, 0, payload))
        elif kind == _DATA and stream == _STREAM:
            answer += payload
        ends = kind in {_HEADERS, _DATA} and stream == _STREAM and flags & _END_STREAM
        if ends or kind in {_RESET, _GOAWAY} or len(answer) >= 5 + len(_SERVING):
            break
    return answer[5:] == _SERVING


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _read_frame(connection: socket.socket) -> tuple[int, int, int, bytes]:
    head = _exactly(connection, 9)
    payload = _exactly(connection, int.from_bytes(head[:3]))
    return head[3], head[4], int.from_bytes(head[5:]), payload


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
