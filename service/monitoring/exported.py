"""Decisions as OpenTelemetry log records: an extra, `reluguard[otel]`, off and unloaded by default.

One record per line of the decision log: what it says as attributes, WARN for what is flagged, not
scored or refused, INFO for the rest. Where they go is up to OpenTelemetry's own variables:
OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_HEADERS and the like.
"""

import os
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from reluguard.service.errors import StartError
from reluguard.service.settings import TracingMode

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import LoggerProvider

__all__ = ["Exported", "open_export"]

_NAME = "reluguard"
_NS = 1_000_000_000


class Exported:
    """Sends decisions out.

    Args:
        provider: where they go.
    """

    def __init__(self, provider: "LoggerProvider") -> None:
        from opentelemetry._logs import SeverityNumber

        self._provider = provider
        self._logger = provider.get_logger(f"{_NAME}.decisions")
        self._info, self._warn = SeverityNumber.INFO, SeverityNumber.WARN

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Send one line of the decision log; a full queue of OpenTelemetry's drops the oldest."""
        word = str(line.get("verdict", line["event"]))
        calm = word == "clean"
        self._logger.emit(
            timestamp=int(datetime.fromisoformat(line["time"]).timestamp() * _NS),
            severity_number=self._info if calm else self._warn,
            severity_text="INFO" if calm else "WARN",
            body=word,
            event_name=f"{_NAME}.{line['event']}",
            attributes={f"{_NAME}.{name}": value for name, value in line.items() if name != "time"},
        )

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def open_export(mode: TracingMode) -> Exported | None:
    """Return what sends decisions out, or None where nothing does.

    Raises:
        StartError: the extra is not installed.
    """
    if mode == "none":
        return None
    try:
        from opentelemetry.sdk._logs import LoggerProvider
        from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, ConsoleLogExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource

        exporter: Any
        if mode == "console":
            exporter = ConsoleLogExporter(out=sys.stdout)
        else:
            from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter

            exporter = OTLPLogExporter()
    except ModuleNotFoundError as error:
        raise StartError(
            f"decision_export={mode} needs the extra: pip install 'reluguard[otel]'"
            f" (no {error.name} here)"
        ) from error
    named = {} if "OTEL_SERVICE_NAME" in os.environ else {SERVICE_NAME: _NAME}
    provider = LoggerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter))
    return Exported(provider)
