"""The HTTP side: /metrics for Prometheus, the status page for people, its JSON for machines."""

import json
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from reluguard.service.errors import NotReadyError, StartError
from reluguard.service.places import Place
from reluguard.service.web.page import page
from reluguard.service.web.snapshot import ServerStatus

__all__ = ["WebServer"]

_TIMEOUT_S = 5.0
# the library's own name of it moved between its versions
_METRICS = "text/plain; version=0.0.4; charset=utf-8"
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}


class WebServer:
    """Serves /metrics, / and /status.json on a thread of its own.

    Raises:
        StartError: the port is in use.
    """

    def __init__(
        self,
        place: Place,
        registry: CollectorRegistry,
        status: Callable[[], ServerStatus],
    ) -> None:
        self._place = place
        try:
            listener = place.bound()
        except StartError as error:
            raise StartError(f"the metrics port {place.address} can't be used: {error}") from error
        self._server = _Server(listener, _handler(registry, status))
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


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("", 0), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = "reluguard", 0

    def handle_error(self, request: object, client_address: object) -> None:
        """Pass over callers that went away; the base class prints a trace for each."""


def _handler(
    registry: CollectorRegistry, status: Callable[[], ServerStatus]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _TIMEOUT_S
        server_version = "reluguard"
        sys_version = ""

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._send(generate_latest(registry), _METRICS)
            elif path in {"/", "/status.json"}:
                self._show(path)
            else:
                self._send(b"not found\n", "text/plain", HTTPStatus.NOT_FOUND)

        def _show(self, path: str) -> None:
            try:
                shown = status()
            except NotReadyError as error:
                self._send(f"{error}\n".encode(), "text/plain", HTTPStatus.SERVICE_UNAVAILABLE)
                return
            if path == "/":
                self._send(page(shown).encode(), "text/html; charset=utf-8")
            else:
                self._send(json.dumps(shown.to_json()).encode(), "application/json")

        def _send(self, body: bytes, kind: str, code: HTTPStatus = HTTPStatus.OK) -> None:
            self.send_response(code)
            for name, value in {"Content-Type": kind, **_HEADERS}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Stay quiet: a scrape every few seconds is no news."""

    return Handler
