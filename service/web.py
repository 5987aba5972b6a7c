"""The HTTP side: /metrics for Prometheus and a small status page for people."""

import html
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from service.drift import Drift
from service.errors import StartError

__all__ = ["ModelStatus", "WebServer", "page"]

_TIMEOUT_S = 5.0
_LAYERS = 3  # shown: those that moved furthest
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  color: #1b1b1b; background: #fff }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #ddd;
  font-variant-numeric: tabular-nums }
code { font-size: .85em } .bar { background: #3465a4; height: .8rem; min-width: 1px }
.ok { color: #1a6b1a } .bad { color: #a40000 }
@media (prefers-color-scheme: dark) { body { color: #eee; background: #16181c }
  th, td { border-color: #444 } .ok { color: #7c7 } .bad { color: #f88 } }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """One model on the status page."""

    name: str
    state: str
    is_ready: bool
    guard: str
    created_at: str
    threshold: float
    target_fpr: float
    images: int
    adversarial: int
    unscored: int
    histogram: Sequence[tuple[float, int]]
    drift: Drift | None = None


class WebServer:
    """Serves /metrics and / on a thread of its own.

    Raises:
        StartError: the port is in use.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        status: Callable[[], tuple[str, Sequence[ModelStatus]]],
    ) -> None:
        try:
            self._server = _Server((host, port), _handler(registry, status))
        except OSError as error:
            raise StartError(f"the metrics port {host}:{port} can't be used: {error}") from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="metrics", daemon=True
        )

    @property
    def address(self) -> str:
        """Where it listens, as host:port."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Pass over callers that went away; the base class prints a trace for each."""


def _handler(
    registry: CollectorRegistry, status: Callable[[], tuple[str, Sequence[ModelStatus]]]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _TIMEOUT_S
        server_version = "reluguard"
        sys_version = ""

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._send(generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4)
            elif path == "/":
                self._send(page(*status()).encode(), "text/html; charset=utf-8")
            else:
                self._send(b"not found\n", "text/plain", HTTPStatus.NOT_FOUND)

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


def page(state: str, models: Sequence[ModelStatus]) -> str:
    """Return the status page."""
    mood = "ok" if state == "serving" else "bad"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'><meta http-equiv=refresh content=10>",
        f"<title>reluguard: {html.escape(state)}</title><style>{_STYLE}</style>",
        f"<h1>reluguard <span class={mood} id=state>{html.escape(state)}</span></h1>",
        *map(_section, models),
        "<p><a href=/metrics>Metrics</a></p></html>",
    ]
    return "\n".join(parts)


def _section(model: ModelStatus) -> str:
    text = html.escape
    share = f"{model.adversarial / model.images:.2%}" if model.images else "-"
    rows = {
        "State": f"<span class={'ok' if model.is_ready else 'bad'}>{text(model.state)}</span>",
        "Guard": f"<code>{text(model.guard[:16]) or '-'}</code>",
        "Fitted": text(model.created_at) or "-",
        "Threshold": f"score above {model.threshold:.3f}, at a target false-positive rate of"
        f" {model.target_fpr:.2%}",
        "Last hour": f"{model.images} images, {model.adversarial} adversarial ({share}),"
        f" {model.unscored} unscored",
    }
    if model.drift is not None:
        rows["Drift"] = text(_drift(model.drift))
    table = "".join(f"<tr><th>{name}<td>{value}" for name, value in rows.items())
    most = max((count for _, count in model.histogram), default=0) or 1
    bars = "".join(
        f"<tr><td>{'above' if math.isinf(bound) else f'up to {bound:g}'}<td>{count}"
        f"<td style='width:70%'><div class=bar style='width:{100 * count / most:.1f}%'></div>"
        for bound, count in model.histogram
    )
    return (
        f"<h2>{text(model.name)}</h2><table>{table}</table>"
        f"<h3>Scores of the last hour</h3><table><tr><th>Score<th>Images<th></tr>{bars}</table>"
    )


def _drift(drift: Drift) -> str:
    samples = f"{drift.samples:.0f} images' worth of captures"
    if drift.advice == "wait":
        return f"too few to tell, from {samples}"
    words = {
        "none": "as calibrated",
        "recalibrate": "clean inputs moved: recalibrate",
        "retrain": "something new is above the threshold: label and retrain",
    }
    numbers = [
        f"{name} {value:.3f} of {drift.sizes.get(name, 0):.0f}"
        for name, value in drift.statistics.items()
    ]
    furthest = sorted(drift.layers, key=lambda name: -drift.layers[name])[:_LAYERS]
    numbers += [f"{name} {drift.layers[name]:.3f}" for name in furthest]
    return f"{words[drift.advice]} ({', '.join(numbers)}; {samples})"
