"""OpenTelemetry spans: off and unloaded by default, of every request when asked for."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from reluguard.detector.errors import SettingsError
from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.service.background import on_loop, running
from reluguard.service.client.client import Client
from reluguard.service.errors import CallError, StartError
from reluguard.service.monitoring.tracing import Tracing, open_tracing
from reluguard.service.protocols.pb import reluguard_v1 as pb
from reluguard.service.server import Server
from reluguard.service.settings import Settings

pytest.importorskip("opentelemetry.sdk.trace", reason="needs the extra otel")
ROOT = Path(__file__).parents[3]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Traced:
    """A server whose spans land in memory."""

    def __init__(self, guard: Guard) -> None:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self._memory = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._memory))
        settings = Settings(port=0, metrics_port=None, name="tiny", max_batch=64)
        self.server = Server(settings, guard=guard, tracing=Tracing(provider))

    def spans(self, last: str = "reluguard.v1.Guard/Inspect") -> dict[str, Any]:
        """Return the finished spans by name once this one is there, and forget them."""
        found: dict[str, Any] = {}
        patience = time.monotonic() + 20
        while (
            last not in found and time.monotonic() < patience
        ):  # a refused caller is told before the span ends
            found = {span.name: span for span in self._memory.get_finished_spans()}
            threading.Event().wait(0.005)
        self._memory.clear()
        return found


@pytest.fixture
def traced(guard: Guard) -> Iterator[Traced]:
    traced = Traced(guard)
    on_loop(traced.server.start())
    yield traced
    on_loop(traced.server.stop())


def inspect(address: str, images: Images, **metadata: str) -> None:
    n, h, w, c = images.shape
    pixels = pb.Pixels(count=n, height=h, width=w, channels=c, data=images.tobytes())
    with grpc.insecure_channel(address) as channel:
        channel.unary_unary("/reluguard.v1.Guard/Inspect")(
            pb.InspectRequest(pixels=pixels).SerializeToString(),
            timeout=10,
            metadata=tuple((key.replace("_", "-"), value) for key, value in metadata.items()),
        )


def test_a_request_is_a_tree_of_spans_under_its_caller(traced: Traced, clean: Images) -> None:
    """The call continues the caller's trace; decode, queue, batch and run lie inside it in time."""
    inspect(
        traced.server.address, clean[:3], traceparent=f"00-{TRACE}-{PARENT}-01", x_request_id="r1"
    )
    spans = traced.spans()
    assert set(spans) == {"reluguard.v1.Guard/Inspect", "decode", "queue", "batch", "run"}
    rpc = spans["reluguard.v1.Guard/Inspect"]
    assert f"{rpc.context.trace_id:032x}" == TRACE
    assert f"{rpc.parent.span_id:016x}" == PARENT
    assert rpc.attributes == {
        "rpc.system": "grpc", "rpc.service": "reluguard.v1.Guard", "rpc.method": "Inspect",
        "rpc.grpc.status_code": 0, "reluguard.request_id": "r1",
    }  # fmt: skip
    for name, parent in (("decode", rpc), ("queue", rpc), ("batch", rpc), ("run", spans["batch"])):
        span = spans[name]
        assert span.parent.span_id == parent.context.span_id, name
        assert span.context.trace_id == rpc.context.trace_id
        assert span.start_time <= span.end_time
        assert dict(span.attributes) == {"reluguard.model": "tiny", "reluguard.images": 3}
    assert spans["decode"].end_time <= spans["queue"].start_time
    assert spans["queue"].end_time == spans["batch"].start_time == spans["run"].start_time
    slack = 50_000_000  # two clocks, monotonic and wall
    assert rpc.start_time - slack <= spans["decode"].start_time
    assert spans["run"].end_time <= spans["batch"].end_time + slack
    assert spans["batch"].end_time <= rpc.end_time + slack


def test_without_a_caller_s_trace_a_new_one_begins(traced: Traced, clean: Images) -> None:
    """Nothing, or something that is no traceparent, starts a trace of its own."""
    seen = set()
    for metadata in ({}, {"traceparent": "nonsense"}):
        inspect(traced.server.address, clean[:1], **metadata)
        rpc = traced.spans()["reluguard.v1.Guard/Inspect"]
        assert rpc.parent is None
        seen.add(rpc.context.trace_id)
    assert len(seen) == 2


def test_a_refused_call_is_an_error_span(traced: Traced) -> None:
    """With its code and without the steps it never reached."""
    with Client(traced.server.address) as client, pytest.raises(CallError):
        client.inspect(np.zeros((1, 5, 5, 3), np.uint8))
    spans = traced.spans()
    assert set(spans) == {"reluguard.v1.Guard/Inspect"}
    (span,) = spans.values()
    assert span.attributes["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert not span.status.is_ok


def test_a_stream_and_the_open_inference_protocol_are_traced(traced: Traced, clean: Images) -> None:
    """Each message's steps hang on the stream's span."""
    with Client(traced.server.address) as client:
        assert len(list(client.stream(iter([clean[:2], clean[2:4]])))) == 2
    stream = "reluguard.v1.Guard/InspectStream"
    spans = traced.spans(stream)
    assert spans["run"].context.trace_id == spans[stream].context.trace_id
    with grpc.insecure_channel(traced.server.address) as channel:
        channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=10)
    traced.spans("inference.GRPCInferenceService/ServerLive")


def test_no_span_carries_images_scores_or_verdicts(
    traced: Traced, guard: Guard, rough: Images
) -> None:
    """Only counts and names of our own: values are short words and small whole numbers."""
    inspect(traced.server.address, rough[:5])
    for span in traced.spans().values():
        assert not span.events
        for value in span.attributes.values():
            assert isinstance(value, str | int)
            assert len(str(value)) <= 64
    assert guard.inspect(rough[:5]).is_adversarial.any()


def test_tracing_is_off_and_unloaded_by_default() -> None:
    """A server's imports bring no OpenTelemetry, and no setting means no tracing."""
    assert open_tracing("none") is None
    code = (
        "import sys, reluguard.service.server, reluguard.service.monitoring.tracing; "
        "print('opentelemetry' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_tracing_without_the_extra_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(StartError, match=r"tracing=otlp needs the extra: .*reluguard\[otel\]"):
        open_tracing("otlp")
    with pytest.raises(SettingsError, match="expected tracing one of none, console, otlp"):
        Settings(tracing="jaeger")  # type: ignore[arg-type] # that is the point


def test_the_console_shows_spans(
    guard: Guard, clean: Images, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """`tracing=console` by setting, flushed when the server stops."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "front-door")
    with running(guard, tracing="console") as server, Client(server.address) as client:
        client.inspect(clean[:1])
    said = capsys.readouterr().out
    assert '"name": "run"' in said
    assert "front-door" in said


def test_spans_reach_a_collector(
    guard: Guard, clean: Images, monkeypatch: pytest.MonkeyPatch, exported: Callable[[], Any]
) -> None:
    """`tracing=otlp` sends them by gRPC to the usual variable's address."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_INSECURE", "true")
    with running(guard, tracing="otlp") as server, Client(server.address) as client:
        client.inspect(clean[:1])
    assert {"reluguard.v1.Guard/Inspect", "queue", "run"} <= exported()


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], set[str]]]:
    """A collector on a free port; gives the names of the spans that arrived."""
    from concurrent.futures import ThreadPoolExecutor

    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp

    names: set[str] = set()

    def export(request: Any, _: Any) -> Any:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                names.update(span.name for span in scope.spans)
        return otlp.ExportTraceServiceResponse()

    collector = grpc.server(ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(
        export,
        request_deserializer=otlp.ExportTraceServiceRequest.FromString,
        response_serializer=otlp.ExportTraceServiceResponse.SerializeToString,
    )
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    collector.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"Export": handler}),)
    )
    port = collector.add_insecure_port("127.0.0.1:0")
    collector.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    yield lambda: names
    collector.stop(None)
