"""The HTTP side: /metrics for Prometheus, the status page for people, its JSON for machines."""

import base64
import binascii
import ipaddress
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from reluguard.service.errors import (
    ForbiddenError,
    NotReadyError,
    StartError,
    UnauthenticatedError,
)
from reluguard.service.monitoring.flagged import Flag, write_flags
from reluguard.service.places import Place
from reluguard.service.security import Scope, Tokens
from reluguard.service.web.flags import flags_page
from reluguard.service.web.page import page
from reluguard.service.web.snapshot import ServerStatus

__all__ = ["Shared", "WebServer", "check_admin"]

_REALM = "reluguard: any name, and an admin's token as the password"
_TIMEOUT_S = 5.0
_MOST = 64  # connections, each with a thread: scrapers and people are fewer
# the library's own name of it moved between its versions
_METRICS = "text/plain; version=0.0.4; charset=utf-8"
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}


class WebServer:
    """Serves /metrics, / and /status.json, and /flagged to admins, on a thread of its own.

    Args:
        place: where to listen.
        registry: what Prometheus sees.
        status: the picture of the server.
        flagged: the last flagged images, newest first.
        tokens: of which an admin's opens /flagged; without any nobody may look.

    Raises:
        StartError: the port is in use.
    """

    def __init__(
        self,
        place: Place,
        registry: CollectorRegistry,
        status: Callable[[], ServerStatus],
        flagged: Callable[[], Sequence[Flag]] = tuple,
        tokens: Tokens | None = None,
    ) -> None:
        self._place = place
        try:
            listener = place.bound()
        except StartError as error:
            raise StartError(f"the metrics port {place.address} can't be used: {error}") from error
        shared = {
            "/metrics": (lambda: generate_latest(registry), _METRICS),
            "/": (lambda: page(status()).encode(), "text/html; charset=utf-8"),
            "/status.json": (lambda: json.dumps(status().to_json()).encode(), "application/json"),
        }
        self._server = _Server(listener, _Shown(Shared(), shared, flagged, tokens))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="metrics", daemon=True
        )

    @property
    def address(self) -> str:
        """Where it listens, as host:port or unix:PATH."""
        return self._place.bound_address(self._server.socket)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._place.release(self._server.socket)
        self._server.server_close()
        self._thread.join()


@dataclass(slots=True)
class Shared:
    """Pictures that take time, each made once for all who asked before it was begun.

    A crowd that asks for them takes `share` of a core: making one holds the interpreter, for which
    callers' requests wait.
    """

    share: float = 0.2
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _made: dict[str, tuple[float, bytes]] = field(default_factory=dict, init=False)
    _rested: float = field(default=0.0, init=False)

    def get(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Return the picture of this name, begun after it was asked for."""
        asked = time.monotonic()
        with self._lock:
            begun, picture = self._made.get(name, (-math.inf, b""))
            if begun >= asked:
                return picture
            time.sleep(max(0.0, self._rested - time.monotonic()))
            begun, worked = time.monotonic(), time.thread_time()
            picture = make()
            self._made[name] = begun, picture
            self._rested = time.monotonic() + (time.thread_time() - worked) / self.share
            return picture


@dataclass(frozen=True, slots=True)
class _Shown:
    """What is shown, and to whom."""

    shared: Shared
    pages: Mapping[str, tuple[Callable[[], bytes], str]]
    flagged: Callable[[], Sequence[Flag]]
    tokens: Tokens | None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket, shown: _Shown) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.shown = shown
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = "reluguard", 0
        self._open: dict[Any, None] = {}  # oldest first
        self._count = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer on a thread of its own; of too many the one that waited longest makes way."""
        with self._count:
            self._open[request] = None
            oldest = next(iter(self._open)) if len(self._open) > _MOST else None
            if oldest is not None:
                del self._open[oldest]
                with suppress(OSError):  # it may just have gone
                    oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._count:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Pass over callers that went away; the base class prints a trace for each."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _TIMEOUT_S
    server_version = "reluguard"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path in self.server.shown.pages:
            self._show(path)
        elif path in {"/flagged", "/flagged.json"}:
            self._show_flagged(path)
        else:
            self._send(b"not found\n", "text/plain", HTTPStatus.NOT_FOUND)

    def _show(self, path: str) -> None:
        make, kind = self.server.shown.pages[path]
        try:
            shown = self.server.shown.shared.get(path, make)
        except NotReadyError as error:
            self._refuse(error, HTTPStatus.SERVICE_UNAVAILABLE)
        else:
            self._send(shown, kind)

    def _show_flagged(self, path: str) -> None:
        try:
            told = self.headers.get_all("Authorization", [])
            check_admin(self.server.shown.tokens, self.client_address, told)
            flags = self.server.shown.flagged()
        except UnauthenticatedError as error:
            ask = {"WWW-Authenticate": f'Basic realm="{_REALM}", charset="UTF-8"'}
            self._refuse(error, HTTPStatus.UNAUTHORIZED, **ask)
        except ForbiddenError as error:
            self._refuse(error, HTTPStatus.FORBIDDEN)
        except NotReadyError as error:
            self._refuse(error, HTTPStatus.SERVICE_UNAVAILABLE)
        else:
            if path == "/flagged":
                self._send(flags_page(flags).encode(), "text/html; charset=utf-8")
            else:
                self._send(json.dumps(write_flags(flags)).encode(), "application/json")

    def _refuse(self, error: Exception, code: HTTPStatus, **headers: str) -> None:
        self._send(f"{error}\n".encode(), "text/plain; charset=utf-8", code, **headers)

    def _send(
        self, body: bytes, kind: str, code: HTTPStatus = HTTPStatus.OK, **headers: str
    ) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": kind, **_HEADERS, **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay quiet: a scrape every few seconds is no news."""


def check_admin(tokens: Tokens | None, peer: Any, authorization: Sequence[str]) -> None:
    """Let only an admin pass, who asks from this machine.

    Args:
        tokens: those there are.
        peer: where the request comes from, as `socketserver` has it.
        authorization: headers: Bearer, or Basic with the token as its password.

    Raises:
        UnauthenticatedError: no token, an unknown or an expired one.
        ForbiddenError: another's token, no token file, or a request from elsewhere: the port is in
            plain text, and nobody should send a token over it.
    """
    if tokens is None:
        raise ForbiddenError("this page needs an admin's token, and the server has no token file")
    if isinstance(peer, tuple) and not _is_loopback(peer[0]):  # a unix socket has no address
        raise ForbiddenError(
            "this page is shown on the server's own machine alone, since the port is in plain text:"
            " go by `ssh -L` or `kubectl port-forward`"
        )
    tokens.caller(*map(_as_bearer, authorization)).require(Scope.ADMIN)


def _is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _as_bearer(header: str) -> str:
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "basic":
        return header
    try:
        password = base64.b64decode(text, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""
    return f"Bearer {password}"
