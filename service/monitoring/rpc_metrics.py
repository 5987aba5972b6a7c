"""What Prometheus sees of calls: go-grpc-prometheus's names, which public dashboards expect."""

from dataclasses import dataclass, field
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram

__all__ = ["SECONDS", "MethodMetrics", "RpcMetrics"]

RpcKind = Literal["unary", "bidi_stream"]

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class RpcMetrics:
    """The set that go-grpc-prometheus exports, for methods we declare."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["grpc_type", "grpc_service", "grpc_method"]
        self._started = Counter(
            "grpc_server_started_total", "RPCs started.", labels, registry=registry
        )
        self._handled = Counter(
            "grpc_server_handled_total", "RPCs completed, by code.",
            [*labels, "grpc_code"], registry=registry,
        )  # fmt: skip
        self._received = Counter(
            "grpc_server_msg_received_total", "Messages received.", labels, registry=registry
        )
        self._sent = Counter(
            "grpc_server_msg_sent_total", "Messages sent.", labels, registry=registry
        )
        self._seconds = Histogram(
            "grpc_server_handling_seconds", "Time to handle an RPC.",
            labels, buckets=SECONDS, registry=registry,
        )  # fmt: skip

    def method(self, kind: RpcKind, service: str, method: str) -> "MethodMetrics":
        """Return the metrics of one method; its series begin at 0."""
        labels = (kind, service, method)
        metrics = MethodMetrics(
            started=self._started.labels(*labels),
            received=self._received.labels(*labels),
            sent=self._sent.labels(*labels),
            seconds=self._seconds.labels(*labels),
            _handled=self._handled,
            _labels=labels,
        )
        metrics.handled("OK", count=0)
        return metrics


@dataclass(slots=True, kw_only=True)
class MethodMetrics:
    """The metrics of one method, looked up once."""

    started: Counter
    received: Counter
    sent: Counter
    seconds: Histogram
    _handled: Counter
    _labels: tuple[str, str, str]
    _codes: dict[str, Counter] = field(default_factory=dict)

    def ended(self, code: str, seconds: float) -> None:
        """Count a completed call by its code, and its time."""
        self.handled(code)
        self.seconds.observe(seconds)

    def handled(self, code: str, *, count: int = 1) -> None:
        """Count a completed call by its code."""
        counter = self._codes.get(code)
        if counter is None:
            counter = self._codes[code] = self._handled.labels(*self._labels, code)
        counter.inc(count)
