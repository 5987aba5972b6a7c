"""Is it gRPC at all that listens there? Asked once, before the first call of a client.

gRPC retries a port that speaks something else until the deadline, and then says that nobody could
be reached. A server of gRPC answers the first bytes of HTTP/2 with its settings (RFC 9113, section
3.4); the metrics port answers with a page, and a port with TLS with an alert or not at all.
"""

import asyncio
import socket
import ssl

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
        secure: whether it is asked by TLS.
    """

    def __init__(self, address: str, *, secure: bool) -> None:
        host, _, port = address.rpartition(":")
        self._address = address
        self._place = (host.strip("[]"), int(port)) if port.isdigit() else ("", 0)
        self._secure = secure
        self._is_due = port.isdigit() and not address.startswith(_RESOLVED)

    def speak(self) -> None:
        """Raise CallError if what listens there is no gRPC server."""
        if not self._is_due:
            return
        answer = self._heard()
        self._judge(answer, tls=answer == b"" and not self._secure and self._speaks_tls())

    async def speak_async(self) -> None:
        """Raise CallError if what listens there is no gRPC server."""
        if self._is_due:
            await asyncio.to_thread(self.speak)

    def _heard(self) -> bytes | None:
        """Return what is answered to a greeting in plain text, None where nobody does in time."""
        try:
            with socket.create_connection(self._place, timeout=_PATIENCE_S) as spoken:
                spoken.sendall(_PREFACE)
                return spoken.recv(_FRAME_BYTES)
        except OSError:
            return None  # nobody there, or nobody in a hurry: gRPC knows how to wait

    def _speaks_tls(self) -> bool:
        """Return whether TLS is answered with TLS; nothing is said by it, so nobody is checked."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        try:
            with (
                socket.create_connection(self._place, timeout=_PATIENCE_S) as plain,
                context.wrap_socket(plain),
            ):
                return True
        except (OSError, ValueError):
            return False

    def _judge(self, answer: bytes | None, *, tls: bool) -> None:
        wrong = "speaks TLS: give `ca` (or `--ca`)" if tls else ""
        if answer:
            wrong = self._wrong(answer)
            self._is_due = False
        if wrong:
            self._is_due = True
            raise CallError(grpc.StatusCode.UNAVAILABLE, f"{self._address} {wrong}")

    def _wrong(self, answer: bytes) -> str:
        """Return what is wrong with whoever gives this answer to a greeting in plain text."""
        if answer[0] == _ALERT:
            return "" if self._secure else "speaks TLS: give `ca` (or `--ca`)"
        if len(answer) < _FRAME_BYTES or answer[3] != _SETTINGS or any(answer[5:]):
            return "speaks no gRPC: is it the metrics port?"
        return "speaks no TLS: leave `ca` and `certificate` out" if self._secure else ""


_RESOLVED = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "xds:", "vsock:")
