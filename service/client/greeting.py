"""Is it gRPC at all that listens there? Asked once, before the first call of a client.

gRPC retries a port that speaks something else until the deadline, and then says that nobody could
be reached. A server of gRPC answers the first bytes of HTTP/2 with its settings (RFC 9113, section
3.4); the metrics port answers with a page, and a port with TLS with an alert or not at all.
"""

import asyncio
import socket

import grpc

from reluguard.service.errors import CallError

__all__ = ["Greeting"]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_FRAME_BYTES = 9
_SETTINGS, _ALERT = 4, 0x15
_PATIENCE_S = 0.4


class Greeting:
    """The first words with one address.

    Args:
        address: as a client was given it.
        secure: whether it is asked by TLS, whose handshake fails soon enough by itself.
    """

    def __init__(self, address: str, *, secure: bool) -> None:
        host, _, port = address.rpartition(":")
        self._address = address
        self._place = (host.strip("[]"), int(port)) if port.isdigit() else ("", 0)
        self._is_due = not secure and port.isdigit() and not address.startswith(_RESOLVED)

    def speak(self) -> None:
        """Raise CallError if what listens there is no gRPC server."""
        if not self._is_due:
            return
        answer = b""
        try:
            with socket.create_connection(self._place, timeout=_PATIENCE_S) as spoken:
                spoken.sendall(_PREFACE)
                answer = spoken.recv(_FRAME_BYTES)
        except OSError:
            pass  # nobody there, or nobody in a hurry: gRPC knows how to wait
        self._judge(answer)

    async def speak_async(self) -> None:
        """Raise CallError if what listens there is no gRPC server."""
        if not self._is_due:
            return
        answer = b""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                reader, writer = await asyncio.open_connection(*self._place)
                try:
                    writer.write(_PREFACE)
                    answer = await reader.read(_FRAME_BYTES)
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            pass
        self._judge(answer)

    def _judge(self, answer: bytes) -> None:
        if not answer:
            return
        if answer[0] == _ALERT:
            raise CallError(
                grpc.StatusCode.UNAVAILABLE, f"{self._address} speaks TLS: give `ca` (or `--ca`)"
            )
        if len(answer) < _FRAME_BYTES or answer[3] != _SETTINGS or any(answer[5:]):
            raise CallError(
                grpc.StatusCode.UNAVAILABLE,
                f"{self._address} speaks no gRPC: is it the metrics port?",
            )
        self._is_due = False


_RESOLVED = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "xds:", "vsock:")
