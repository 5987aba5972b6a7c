"""OpenTelemetry spans of each request: an extra, `reluguard[otel]`, off and unloaded by default.

    reluguard.v1.Guard/Inspect      the call, child of the caller's span by W3C `traceparent`
    ├── decode                      bytes to the model's tensor
    ├── queue                       waiting for a run
    └── batch                       from joining a run to the answer
        └── run                     the model, with everybody's rows

Spans carry counts and names of our own, never an image, a score or a verdict. Where they go is up
to OpenTelemetry's own variables: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER and the like.
"""

import functools
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from reluguard.service.errors import StartError
from reluguard.service.settings import TracingMode

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["Handler", "Timing", "Tracing", "open_tracing"]

_NAME = "reluguard"
_NS = 1_000_000_000
Handler = Callable[[Any, Any], Awaitable[Any]]


class Timing(Protocol):
    """How long one request waited and ran, as `batching.Answer` has it."""

    @property
    def queue_s(self) -> float:
        """Seconds from joining the queue to the run."""

    @property
    def model_s(self) -> float:
        """Seconds of the run."""

    @property
    def run_rows(self) -> int:
        """Images of that run, this request's and others'."""


class Tracing:
    """Writes the spans of one server.

    Args:
        provider: where the spans go.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import context, propagate, trace

        self._provider = provider
        self._tracer = provider.get_tracer(_NAME)
        self._trace, self._context = trace, context
        self._extract = propagate.extract

    def rpc(self, path: tuple[str, str], handle: Handler) -> Handler:
        """Return the handler of a call inside a span of its own."""
        service, method = path
        server = self._trace.SpanKind.SERVER
        fixed = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}

        @functools.wraps(handle)
        async def traced(data: Any, context: Any) -> Any:
            parent = self._extract(_carrier(context))
            span = self._tracer.start_span(
                f"{service}/{method}", context=parent, kind=server, attributes=fixed
            )
            token = self._context.attach(self._trace.set_span_in_context(span, parent))
            try:
                return await handle(data, context)
            finally:
                self._context.detach(token)
                self._end(span, context)

        return traced

    def _end(self, span: Any, context: Any) -> None:
        code = context.code()
        number = code.value[0] if hasattr(code, "value") else code or 0
        span.set_attribute("rpc.grpc.status_code", number)
        trailing = dict(context.trailing_metadata() or ())
        if "x-request-id" in trailing:
            span.set_attribute("reluguard.request_id", trailing["x-request-id"])
        if number:
            span.set_status(self._trace.StatusCode.ERROR)
        span.end()

    def inspected(
        self, *, decode_s: float, asked: int, model: str, rows: int, timing: Timing
    ) -> None:
        """Write the spans below the current call's, once its answer is there.

        Args:
            decode_s: how long decoding took.
            asked: when the request joined the queue, nanoseconds since the epoch.
            model: our own name of it.
            rows: images of the request.
            timing: of the request.
        """
        now = time.time_ns()
        runs = asked + int(timing.queue_s * _NS)
        about: Mapping[str, str | int] = {"reluguard.model": model, "reluguard.images": rows}
        self._span("decode", asked - int(decode_s * _NS), asked, about)
        self._span("queue", asked, runs, about)
        batch = self._tracer.start_span("batch", start_time=runs, attributes=about)
        self._span(
            "run",
            runs,
            runs + int(timing.model_s * _NS),
            {"reluguard.model": model, "reluguard.images": timing.run_rows},
            self._trace.set_span_in_context(batch),
        )
        batch.end(now)

    def _span(
        self,
        name: str,
        start: int,
        end: int,
        attributes: Mapping[str, str | int],
        parent: Any = None,
    ) -> None:
        span = self._tracer.start_span(
            name, context=parent, start_time=start, attributes=dict(attributes)
        )
        span.end(end)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _carrier(context: Any) -> dict[str, str]:
    pairs = context.invocation_metadata() or ()
    return {key: value for key, value in pairs if isinstance(value, str)}


def open_tracing(mode: TracingMode) -> Tracing | None:
    """Return what writes spans, or None where tracing is off.

    Raises:
        StartError: the extra is not installed.
    """
    if mode == "none":
        return None
    try:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import (
            BatchSpanProcessor,
            ConsoleSpanExporter,
            SpanExporter,
        )

        exporter: SpanExporter
        if mode == "console":
            exporter = ConsoleSpanExporter(out=sys.stdout)
        else:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter()
    except ModuleNotFoundError as error:
        raise StartError(
            f"tracing={mode} needs the extra: pip install 'reluguard[otel]' (no {error.name} here)"
        ) from error
    named = {} if "OTEL_SERVICE_NAME" in os.environ else {SERVICE_NAME: _NAME}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)
