"""Decisions as OpenTelemetry logs: off and unloaded by default, on the wire when asked for."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from reluguard.detector.errors import SettingsError
from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.service.background import running
from reluguard.service.client.client import Client
from reluguard.service.errors import CallError, StartError
from reluguard.service.monitoring.exported import open_export
from reluguard.service.security import Scope, token_entry
from reluguard.service.settings import Settings

pytest.importorskip("opentelemetry.sdk._logs", reason="needs the extra otel")
EXPORT = "opentelemetry.proto.collector.logs.v1.LogsService"


class Collector:
    """What an OpenTelemetry collector gets to see."""

    def __init__(self) -> None:
        from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as pb

        self.requests: list[Any] = []

        def export(request: Any, _: Any) -> Any:
            self.requests.append(request)
            return pb.ExportLogsServiceResponse()

        handler = grpc.unary_unary_rpc_method_handler(
            export,
            request_deserializer=pb.ExportLogsServiceRequest.FromString,
            response_serializer=pb.ExportLogsServiceResponse.SerializeToString,
        )
        self.server = grpc.server(ThreadPoolExecutor(1))
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(EXPORT, {"Export": handler}),)
        )
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def records(self) -> list[Any]:
        """Return all records."""
        return [
            record
            for request in self.requests
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    found = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{found.port}")
    yield found
    found.server.stop(None).wait()


def attributes(record: Any) -> dict[str, Any]:
    kinds = {pair.key: pair.value for pair in record.attributes}
    return {key: getattr(value, value.WhichOneof("value")) for key, value in kinds.items()}


def test_what_was_decided_arrives(
    guard: Guard, mixed: Images, collector: Collector, tmp_path: Path
) -> None:
    """One record per image and refused token, as the file would say it; never a pixel."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(token_entry("t", name="mine", scopes=[Scope.INFER]))
    with running(guard, name="tiny", decision_export="otlp", tokens=tokens) as server:
        with Client(server.address, token="t") as client:
            client.inspect(mixed[:8])
        with Client(server.address, token="other") as client, pytest.raises(CallError):
            client.describe()
    own = guard.inspect(mixed[:8])
    told, refused = collector.records()[:8], collector.records()[8:]
    assert [record.body.string_value for record in told] == [
        "adversarial" if flagged else "clean" for flagged in own.is_adversarial
    ]
    assert {record.severity_text for record in told} == {"INFO", "WARN"}
    first = attributes(told[0])
    assert (first["reluguard.caller"], first["reluguard.model"]) == ("mine", "tiny")
    assert first["reluguard.p_value"] == pytest.approx(own.p_value[0], abs=1e-6)
    assert told[0].event_name == "reluguard.decision"
    assert told[0].time_unix_nano > 0
    (one,) = refused
    assert one.body.string_value == "unauthenticated"
    assert attributes(one)["reluguard.reason"] == "unknown token"
    (resource,) = {
        attributes(part.resource)["service.name"]
        for request in collector.requests
        for part in request.resource_logs
    }
    assert resource == "reluguard"


def test_a_collector_that_is_not_there_holds_nobody_up(
    guard: Guard, clean: Images, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Answers come, the file is written, and the server stops."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    file = tmp_path / "decisions.jsonl"
    with (
        running(guard, decision_export="otlp", decision_log=file) as server,
        Client(server.address) as client,
    ):
        assert len(client.inspect(clean[:5])) == 5
    assert len(file.read_text().splitlines()) == 5


def test_off_loads_nothing() -> None:
    """Nobody pays for what nobody asked for, see `test_tracing`; a misspelt mode is refused."""
    assert open_export("none") is None
    with pytest.raises(SettingsError, match="expected decision_export one of none, console, otlp"):
        Settings(decision_export="oltp")  # type: ignore[arg-type] # the test's point


def test_without_the_extra_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, in words."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk._logs", None)
    with pytest.raises(StartError, match=r"decision_export=otlp needs the extra: pip install"):
        open_export("otlp")
