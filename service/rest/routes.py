"""Which path is what: the v2 REST of the Open Inference Protocol, on the methods that gRPC has."""

import asyncio
import dataclasses
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import grpc

from reluguard.service.edge import Call, Edge
from reluguard.service.errors import RequestError
from reluguard.service.protocols.infer_input import check_sizes
from reluguard.service.protocols.inspection import Inspector, check_rows
from reluguard.service.protocols.open_inference import OpenInferenceServicer
from reluguard.service.protocols.pb import open_inference as pb
from reluguard.service.protocols.wire import datatype_of
from reluguard.service.rest.documents import read_document
from reluguard.service.rest.exchange import Exchange, Head, Reply, http_status
from reluguard.service.rest.inference import read_infer, write_answer
from reluguard.service.room import Room
from reluguard.service.security import Scope

__all__ = ["SERVICE", "Routes"]

SERVICE = "http.v2"
_HEADER_LENGTH = "inference-header-content-length"
_JSON = ("Content-Type", "application/json")
_MOST_SMALL = 64 * 1024  # bytes of a body that says no more than a name
_INLINE_BYTES = 32 * 1024  # below this a hop to a thread costs more than the work
_INLINE_NUMBERS = 1024
_FIXED = {
    ("v2",): "ServerMetadata",
    ("v2", "health", "live"): "ServerLive",
    ("v2", "health", "ready"): "ServerReady",
    ("v2", "repository", "index"): "RepositoryIndex",
}
_OF_MODEL = {(): "ModelMetadata", ("ready",): "ModelReady", ("infer",): "ModelInfer"}
_ORIGIN = re.compile(r"https?://[^/?#]*", re.IGNORECASE)  # RFC 9112, 3.2.2: as proxies ask
_SHOWN = "/v2, /v2/health/live, /v2/health/ready, /v2/models/NAME, …/ready, …/infer"

Method = Callable[..., Awaitable[bytes]]
Handler = Callable[[Any, Any], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class _Route:
    verb: str
    handle: Handler


@dataclass(frozen=True, slots=True)
class _Target:
    """What a path asks for, and of which model."""

    name: str
    model: str = ""
    version: str = ""


class Routes:
    """Answers every path of the protocol.

    Args:
        edge: what each call goes through, whatever its protocol.
        servicer: the methods.
        inspector: whose limits and threads they use.
        room: what callers may use.
    """

    def __init__(
        self, edge: Edge, servicer: OpenInferenceServicer, inspector: Inspector, room: Room
    ) -> None:
        self._servicer, self._inspector, self._room = servicer, inspector, room
        rows: list[tuple[str, str, Method, Scope | None]] = [
            ("ServerLive", "GET", self._live, None),
            ("ServerReady", "GET", self._ready, None),
            ("ServerMetadata", "GET", self._server, Scope.INFER),
            ("ModelMetadata", "GET", self._model, Scope.INFER),
            ("ModelReady", "GET", self._model_ready, Scope.INFER),
            ("ModelInfer", "POST", self._infer, Scope.INFER),
            ("RepositoryIndex", "POST", self._index, Scope.INFER),
            ("RepositoryModelLoad", "POST", self._load, Scope.INFER),
            ("RepositoryModelUnload", "POST", self._unload, Scope.INFER),
        ]
        self._routes = {
            name: _Route(
                verb,
                edge.exchange((SERVICE, name), method, reads=verb == "POST", scope=scope),
            )
            for name, verb, method, scope in rows
        }

    async def serve(self, exchange: Exchange) -> Reply:
        """Return the answer to one exchange, an error's too."""
        target = _target(exchange.head.target)
        if target is None:
            return _error(HTTPStatus.NOT_FOUND, f"expected a path of {_SHOWN}, got another")
        route = self._routes[target.name]
        # HEAD is GET without the body, which the connection leaves out
        verb = "GET" if exchange.head.method == "HEAD" else exchange.head.method
        if verb != route.verb:
            message = f"expected {route.verb}, got {exchange.head.method[:16]}"
            return _error(HTTPStatus.METHOD_NOT_ALLOWED, message, [("Allow", route.verb)])
        try:
            await route.handle(None, exchange)
        except grpc.aio.AbortError:
            if exchange.failure is None:
                raise
        return _finished(exchange)

    # what the edge calls: with a body where there is one

    async def _live(self, call: Call, exchange: Exchange) -> bytes:
        reply = await self._servicer.server_live(call)
        return _tell(exchange, {"live": reply.live})

    async def _ready(self, call: Call, exchange: Exchange) -> bytes:
        reply = await self._servicer.server_ready(call)
        return _tell(exchange, {"ready": reply.ready}, _readiness(reply.ready))

    async def _server(self, call: Call, exchange: Exchange) -> bytes:
        reply = await self._servicer.server_metadata(call, pb.ServerMetadataRequest())
        extensions = [*reply.extensions, "binary_tensor_data"]
        about = {"name": reply.name, "version": reply.version, "extensions": extensions}
        return _tell(exchange, about)

    async def _model(self, call: Call, exchange: Exchange) -> bytes:
        target = _asked(exchange)
        request = pb.ModelMetadataRequest(name=target.model, version=target.version)
        reply = await self._servicer.model_metadata(call, request)
        return _tell(
            exchange,
            {
                "name": reply.name,
                "versions": list(reply.versions),
                "platform": reply.platform,
                "inputs": _tensors(reply.inputs),
                "outputs": _tensors(reply.outputs),
                "properties": dict(reply.properties),
            },
        )

    async def _model_ready(self, call: Call, exchange: Exchange) -> bytes:
        target = _asked(exchange)
        request = pb.ModelReadyRequest(name=target.model, version=target.version)
        reply = await self._servicer.model_ready(call, request)
        about = {"name": target.model, "ready": reply.ready}
        return _tell(exchange, about, _readiness(reply.ready))

    async def _infer(self, call: Call, exchange: Exchange, body: bytes) -> bytes:
        target = _asked(exchange)
        loop = asyncio.get_running_loop()
        header_bytes = _header_bytes(exchange.head)
        limits = self._inspector.limits
        spec = self._servicer.model(target.model, target.version).version.guard.spec

        def check(datatype: str, shape: tuple[int, ...]) -> None:
            check_rows(shape[0] if shape else 0, limits)
            if datatype in {datatype_of(spec.dtype), "UINT8"}:
                check_sizes(shape, spec, datatype)

        def read() -> Any:
            return read_infer(
                body,
                header_bytes,
                most_parts=self._room.max_fields,
                most_bytes=limits.max_message_bytes,
                check=check,
            )

        small = (len(body) if header_bytes is None else header_bytes) <= _INLINE_BYTES
        asked = read() if small else await loop.run_in_executor(self._inspector.decoder, read)
        asked.message.model_name = target.model
        asked.message.model_version = target.version
        answer = await self._servicer.infer(call, asked.message, asked.payload)
        started = time.perf_counter()
        numbers = sum(
            array.size
            for name, array in answer.tensors.items()
            if not asked.binary.get(name, asked.all_binary)
        )
        if numbers <= _INLINE_NUMBERS:
            document, behind = write_answer(answer, asked)
        else:
            document, behind = await loop.run_in_executor(
                self._inspector.decoder, write_answer, answer, asked
            )
        answer.model.metrics.stage("encode", time.perf_counter() - started)
        headers = [_JSON]
        if behind:
            headers = [
                ("Content-Type", "application/octet-stream"),
                ("Inference-Header-Content-Length", str(len(document))),
            ]
        exchange.reply = Reply(status=HTTPStatus.OK, body=[document, *behind], headers=headers)
        return b""

    async def _index(self, call: Call, exchange: Exchange, body: bytes) -> bytes:
        document = _small(body)
        ready = document.get("ready", False)
        if not isinstance(ready, bool):
            raise RequestError("expected true or false as 'ready', got something else")
        reply = await self._servicer.index(call, pb.RepositoryIndexRequest(ready=ready))
        rows = [
            {"name": row.name, "version": row.version, "state": row.state}
            | ({"reason": row.reason} if row.reason else {})
            for row in reply.models
        ]
        return _tell(exchange, rows)

    async def _load(self, call: Call, exchange: Exchange, body: bytes) -> bytes:
        request = pb.RepositoryModelLoadRequest(model_name=_asked(exchange).model)
        if _small(body).get("parameters"):
            raise RequestError("expected no parameters: files and settings don't come from callers")
        await self._servicer.load(call, request)
        return _tell(exchange, {})

    async def _unload(self, call: Call, exchange: Exchange, body: bytes) -> bytes:
        _small(body)
        request = pb.RepositoryModelUnloadRequest(model_name=_asked(exchange).model)
        await self._servicer.unload(call, request)
        return _tell(exchange, {})


def _target(text: str) -> _Target | None:
    """Return what a request's target asks for, None for what isn't offered."""
    path = _ORIGIN.sub("", text, count=1) if text[:1] != "/" else text
    path = path.partition("?")[0]
    # whatever isn't UTF-8 is no model's name either
    parts = [unquote(part, errors="replace") for part in path.removeprefix("/").split("/")]
    if tuple(parts) in _FIXED:
        return _Target(_FIXED[tuple(parts)])
    match parts:
        case ["v2", "repository", "models", model, ("load" | "unload") as what]:
            return _Target(f"RepositoryModel{what.title()}", model)
        case ["v2", "models", model, "versions", version, *rest] if tuple(rest) in _OF_MODEL:
            return _Target(_OF_MODEL[tuple(rest)], model, version)
        case ["v2", "models", model, *rest] if tuple(rest) in _OF_MODEL:
            return _Target(_OF_MODEL[tuple(rest)], model)
    return None


def _asked(exchange: Exchange) -> _Target:
    target = _target(exchange.head.target)
    assert target is not None  # or it would not have come here
    return target


def _header_bytes(head: Head) -> int | None:
    given = head.all(_HEADER_LENGTH)
    if not given:
        return None
    if len(given) > 1 or not (given[0].isascii() and given[0].isdigit() and len(given[0]) < 12):
        raise RequestError(
            f"expected one Inference-Header-Content-Length that is a number, got {given[0][:32]!r}"
        )
    return int(given[0])


def _small(body: bytes) -> Mapping[str, Any]:
    """Return the document of a request that needs none."""
    if len(body) > _MOST_SMALL:
        raise RequestError(f"expected a body of at most {_MOST_SMALL} bytes, got {len(body)}")
    if not body.strip():
        return {}
    document = read_document(bytes(body), most=64)
    if not isinstance(document, dict):
        raise RequestError("expected a JSON object, got something else")
    return document


def _tensors(rows: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"name": row.name, "datatype": row.datatype, "shape": list(row.shape)} for row in rows]


def _readiness(ready: bool) -> HTTPStatus:
    return HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE


def _tell(exchange: Exchange, document: Any, status: HTTPStatus = HTTPStatus.OK) -> bytes:
    exchange.reply = Reply(status=status, body=[json.dumps(document).encode()], headers=[_JSON])
    return b""


def _error(status: HTTPStatus, message: str, headers: Sequence[tuple[str, str]] = ()) -> Reply:
    body = json.dumps({"error": message}).encode()
    return Reply(status=status, body=[body], headers=[_JSON, *headers])


def _finished(exchange: Exchange) -> Reply:
    """Return what a call ended with, and under which name the log knows it."""
    trailing = dict(exchange.trailing_metadata())
    named = [(name, trailing[name]) for name in ("x-request-id",) if name in trailing]
    if exchange.failure is None:
        assert exchange.reply is not None  # every method leaves one
        return dataclasses.replace(exchange.reply, headers=[*exchange.reply.headers, *named])
    code, message = exchange.failure
    status = http_status(code)
    if exchange.is_too_large:
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    if status is HTTPStatus.UNAUTHORIZED:
        named.append(("WWW-Authenticate", "Bearer"))
    if "retry-after" in trailing:
        named.append(("Retry-After", trailing["retry-after"]))
    elif "grpc-retry-pushback-ms" in trailing:
        seconds = -(-int(trailing["grpc-retry-pushback-ms"]) // 1000)
        named.append(("Retry-After", str(max(1, seconds))))
    return _error(status, message, named)
