"""The page of a trial on this machine: one document, no script or picture from elsewhere.

Whoever can open the address can have pictures decoded and attacked here, so: it listens on this
machine alone, the address holds a secret, a name that was rebound to this machine is refused by its
`Host`, and what a form of another site posts by its `Origin`.
"""

import json
import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from reluguard.detector.errors import DetectorError, ImageTooLargeError, SettingsError
from reluguard.detector.images import Images
from reluguard.training.trial.replies import described, png, told
from reluguard.training.trial.trial import Trial

__all__ = ["MOST_BYTES", "TrialPage"]

MOST_BYTES = 16 * 2**20  # of an uploaded picture
_TIMEOUT_S = 20.0
_MOST_CALLS = 8  # at once: more are told to wait, so that a stuck browser can't fill the memory
_LENGTH_DIGITS = 12
_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_HERE = ("127.0.0.1", "localhost", "[::1]")
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_PARAMETERS = {"sample": int, "attack": str, "strength": float, "change": str, "amount": float}


class TrialPage:
    """Serves a trial on a thread of its own; a context manager.

    Args:
        trial: what is played with.
        title: of the page.
        host: where it listens; another than this machine's own is reachable for others.
        port: 0 lets the system choose.

    Raises:
        SettingsError: it can't listen there.
    """

    def __init__(self, trial: Trial, *, title: str, host: str = "127.0.0.1", port: int = 0) -> None:
        self._secret = secrets.token_urlsafe(16)
        try:
            self._server = _Server((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise SettingsError(f"can't listen on {host}:{port}: {error}") from error
        self._host = host
        names = {*_HERE, host} if host not in {"0.0.0.0", "::"} else None  # noqa: S104 - asked for
        allowed = None if names is None else {f"{name}:{self.port}" for name in names}
        site = _Site(
            trial=trial,
            about=described(trial, title),
            document=files(__package__).joinpath("page.html").read_text(encoding="utf-8"),
            secret=self._secret,
            allowed=allowed,
            calls=threading.BoundedSemaphore(_MOST_CALLS),
        )
        self._server.RequestHandlerClass = type("Handler", (_Handler,), {"site": site})
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """The address to open, with its secret."""
        return f"http://{self._host}:{self.port}/{self._secret}/"

    def wait(self) -> None:
        """Return when it is closed."""
        self._thread.join()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Pass over callers that went away; the base class prints a trace for each."""


class _RefusedError(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    """What every request is answered from.

    Attributes:
        trial: what is played with.
        about: what the page is built from.
        document: the page.
        secret: the first part of every path.
        allowed: what `Host` may say, None for anything.
        calls: how many pictures may be worked on at once.
    """

    trial: Trial
    about: dict[str, Any]
    document: str
    secret: str
    allowed: set[str] | None
    calls: threading.BoundedSemaphore


class _Handler(BaseHTTPRequestHandler):
    site: _Site
    timeout = _TIMEOUT_S
    server_version = "reluguard"
    sys_version = ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, made: Callable[[str], None]) -> None:
        try:
            self._check()
            made(self._inner())
        except _RefusedError as refused:
            self.close_connection = True  # what was not read of it can't be told from the next
            self._json({"error": str(refused)}, refused.status)
        except ImageTooLargeError as error:
            self._json({"error": str(error)}, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        except DetectorError as error:
            self._json({"error": str(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)
        except OSError:
            raise  # the browser went away
        except Exception:
            logging.getLogger(__name__).exception("a request failed")
            self._json({"error": "internal error"}, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _check(self) -> None:
        host = self.headers.get("Host", "")
        if self.site.allowed is not None and host not in self.site.allowed:
            raise _RefusedError(HTTPStatus.MISDIRECTED_REQUEST, "not the name of this page")
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise _RefusedError(HTTPStatus.FORBIDDEN, "asked by another site")

    def _inner(self) -> str:
        first, _, rest = urlsplit(self.path).path.lstrip("/").partition("/")
        if not secrets.compare_digest(first.encode(), self.site.secret.encode()):
            raise _RefusedError(
                HTTPStatus.NOT_FOUND, "nothing here: open the address that was printed"
            )
        return rest

    def _get(self, path: str) -> None:
        kind, _, place = path.partition("/")
        samples = self.site.trial.samples
        if path == "":
            nonce = secrets.token_urlsafe(16)
            body = self.site.document.replace("{{nonce}}", nonce).encode()
            self._send(body, "text/html; charset=utf-8", policy=_POLICY.format(nonce=nonce))
        elif path == "about.json":
            self._json(self.site.about)
        elif kind == "sample" and place.isdecimal() and int(place) < len(samples):
            self._json({"image": png(samples[int(place)].image)})
        else:
            raise _RefusedError(HTTPStatus.NOT_FOUND, "nothing here")

    def _post(self, path: str) -> None:
        if path != "try":
            raise _RefusedError(HTTPStatus.NOT_FOUND, "nothing here")
        if not self.site.calls.acquire(blocking=False):
            raise _RefusedError(HTTPStatus.TOO_MANY_REQUESTS, "too many at once, try again")
        try:
            given = _given(urlsplit(self.path).query)
            image = self._image(self._body(), given.pop("sample", None))
            self._json(told(self.site.trial, self.site.trial.run(image, **given)))
        finally:
            self.site.calls.release()

    def _image(self, data: bytes, sample: int | None) -> Images:
        trial = self.site.trial
        if sample is None:
            return trial.decode(data)
        if not 0 <= sample < len(trial.samples):
            raise _RefusedError(HTTPStatus.NOT_FOUND, f"no sample {sample}")
        return trial.samples[sample].image

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()):
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "expected the length of the picture")
        if len(length) > _LENGTH_DIGITS or int(length) > MOST_BYTES:
            raise _RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"expected a picture of at most {MOST_BYTES // 2**20} MiB",
            )
        return self.rfile.read(int(length))

    def _json(self, values: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        body = json.dumps(values, allow_nan=False).encode()
        self._send(body, "application/json", status, policy="default-src 'none'")

    def _send(
        self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, *, policy: str
    ) -> None:
        self.send_response(status)
        named = {"Content-Type": kind, "Content-Security-Policy": policy, **_HEADERS}
        for name, value in named.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay quiet: the terminal is for the address."""


def _given(query: str) -> dict[str, Any]:
    """Return what a request asks for, each as its type."""
    given: dict[str, Any] = {}
    for name, text in parse_qsl(query):
        if name not in _PARAMETERS:
            raise _RefusedError(
                HTTPStatus.BAD_REQUEST, f"expected {', '.join(_PARAMETERS)}, got {name}"
            )
        try:
            given[name] = _PARAMETERS[name](text)
        except ValueError:
            raise _RefusedError(
                HTTPStatus.BAD_REQUEST, f"expected a number for {name}, got {text!r}"
            ) from None
    return given
