"""How the server listens, what it serves and what it allows."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from reluguard.detector.errors import SettingsError
from reluguard.detector.looks.judging import Looks
from reluguard.service.places import Place
from reluguard.service.settings.allowed import (
    FailMode,
    Policy,
    TracingMode,
    WatchMode,
    check_values,
)
from reluguard.service.settings.values import checked, parsed, read_config

__all__ = ["PREFIX", "Settings"]

PREFIX = "RELUGUARD_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every field can come from the environment: RELUGUARD_PORT, RELUGUARD_DRAIN_S, ...

    Attributes:
        model: ONNX file to serve; goes with `guard`. None for the export beside that.
        guard: guard folder, a link to one, or a folder whose `CURRENT` file names one inside it.
        challenger: folder of a second guard that scores in the same pass and is only counted; None
            for what `guard`'s own CHALLENGER file names, if anything.
        looks: when a guard looks a second time: `first` for never, `suspicious` where the first
            look finds something suspicious, `always` at every image, which alone helps against an
            attacker who knows of the first look; None for `suspicious` where the guard can.
        second_model: ONNX file of the network that looks again, of a guard that was fitted with
            one; None for the file of its name beside model or guard.
        public_key: PEM, an Ed25519 public key: guards its owner did not sign are refused.
        name: what callers call the model; the ONNX file's stem if None.
        models: instead of `model` and `guard`, a folder with one `NAME/model.onnx` and `NAME/guard`
            for each model, and maybe `NAME/challenger`.
        host: address to listen on: a name, an IPv4 or IPv6 address, either with a port of its own
            (`[::1]:50051`), or `unix:PATH` for a socket that those may use who may write to it.
        port: gRPC port; 0 lets the system choose.
        metrics_port: HTTP port for /metrics and the status page; 0 for any, None for none
            (`--set metrics_port=none`).
        metrics_host: address of that port, as `host` has it; `host` if None.
        http_port: port of the Open Inference Protocol by HTTP, with the same certificates, tokens
            and limits; 0 for any, None for none.
        http_host: address of that port, as `host` has it; `host` if None.
        http_connections: most connections to it; beyond them the one that waited longest makes way.
        health_port: port of `grpc.health.v1` alone, in plain text, without tokens, for probes that
            speak no TLS; 0 for any, None for none.
        health_host: address of that port, as `host` has it; `host` if None.
        max_rows: most images in one request.
        max_batch: most images in one model run.
        max_delay_s: longest time the first request of a batch waits for company. 0 still merges
            what gathers while the model runs, and on a processor nothing beat it.
        max_queue_rows: most images waiting per model.
        max_wait_s: a request that would wait longer than this, by the measured speed, is refused.
        max_in_flight: most calls being handled at once, over all models.
        processes: that answer on the same port, each with a copy of the models, the limits below
            and those above; quotas are of all together.
        workers: model runs at the same time, per process.
        threads: ONNX Runtime threads per run; None: the processors we may use over `processes`
            and `workers`.
        providers: ONNX Runtime execution providers, in order; None for its default.
        max_message_bytes: largest request; None: as many tensors as `max_rows`, or as fit 16 MiB or
            `max_batch` if those are fewer, and 1 MiB.
        max_bytes_in_flight: bytes of requests held at once, whole ones and half ones; None: 512 MiB
            or a quarter of this process's part of the memory, whichever is less; Describe and
            the status page say how much memory that and the other limits come to.
        max_connections: most connections; what is beyond is hung up on.
        max_open_streams: most InspectStream calls; None: as fit a quarter of `max_bytes_in_flight`.
        receive_s: longest time a request may take to come.
        caller_calls: most calls of one caller at once, by token or, without tokens, by address; the
            token file may say otherwise for each token. None for any.
        caller_calls_per_s: most calls of one caller a second; None for any.
        caller_rows_per_s: most images of one caller a second; None for any.
        watch: `count` tells near-equal questions of one caller, the way of an attack that only
            asks; `refuse` also refuses them while the caller is under suspicion. Patents on
            similarity to historical queries exist in the US, so `off` unless somebody turns it on.
        watch_near: near-equal questions that put a caller under suspicion.
        watch_distance: how far apart near-equal questions are at most, as the share of a print's
            256 bits that differ; unlike images of one class differ in a quarter and more.
        watch_s: time in which what was counted halves, and as long a suspicion lasts.
        watch_max_bytes: of all that the watch remembers, of all processes together.
        max_pixels: most pixels in one request's encoded images, together.
        decode_s: longest time to decode one request's images; their process is ended after it.
        max_streams: most concurrent calls of one connection; a client holds back what is beyond.
        keepalive_s: idle time after which the server pings; None leaves gRPC's two hours.
        min_ping_s: shortest time between a client's pings.
        max_connection_idle_s: connections without a call are closed after this; None for never.
        max_connection_age_s: connections are asked to reconnect after this, so that client-side
            balancing sees new replicas; None for never.
        tls_certificate: PEM chain; goes with `tls_key`. Read again when the files change.
        tls_key: PEM private key.
        tls_client_ca: PEM certificates that clients' certificates must lead to (mTLS).
        tokens: TOML file of bearer tokens and scopes. None makes every caller privileged, so leave
            it None on a trusted network only.
        policy: `annotate` adds verdicts, `reject` keeps adversarial answers back, `shadow` only
            counts.
        fail: when scoring fails, `open` answers without a verdict, `closed` treats the row as
            adversarial.
        likelihood_step: unprivileged callers see the likelihood in steps of this size.
        repository_control: serve RepositoryModelLoad and Unload (to admin tokens).
        reload_s: how often guard pointers are looked at for a new guard; 0: on SIGHUP only.
        drain_delay_s: time between NOT_SERVING and refusing new calls.
        drain_s: longest wait for calls in flight at shutdown.
        reflection: serve gRPC reflection.
        log_level: DEBUG, INFO, WARNING or ERROR.
        tracing: OpenTelemetry spans of each request, `otlp` to where OTEL_EXPORTER_OTLP_ENDPOINT
            says or `console`; needs the extra `reluguard[otel]`.
        capture: folder that a sample of the traffic is kept in, for labels, retraining and drift.
        capture_share: share kept of what looks clean; above the threshold everything is.
        capture_images: keep raw input too: pixels, decoded files or the caller's own tensors.
        capture_max_bytes: of all that is kept; the oldest without a label goes first.
        capture_ttl_s: age at which what has no label goes, and raw input of what has one.
        decision_log: file of JSON lines that say what was answered to whom; None for none.
        decision_export: the same as OpenTelemetry log records, with a file or without: `otlp` to
            where OTEL_EXPORTER_OTLP_ENDPOINT says, or `console`; needs the extra `reluguard[otel]`.
        decision_share: share of images told there that are neither flagged nor unscored.
        decision_log_bytes: size at which the file is rotated.
        decision_log_files: rotated files that are kept.
        drift_s: how often the drift of what was captured is read.
    """

    model: Path | None = None
    guard: Path | None = None
    challenger: Path | None = None
    looks: Looks | None = None
    second_model: Path | None = None
    public_key: Path | None = None
    name: str | None = None
    models: Path | None = None
    host: str = "127.0.0.1"
    port: int = 50051
    metrics_port: int | None = 9464
    metrics_host: str | None = None
    http_port: int | None = None
    http_host: str | None = None
    http_connections: int = 512
    health_port: int | None = None
    health_host: str | None = None
    max_rows: int = 256
    max_batch: int = 32
    max_delay_s: float = 0.0
    max_queue_rows: int = 1024
    max_wait_s: float = 0.5
    max_in_flight: int = 1024
    processes: int = 1
    workers: int = 1
    threads: int | None = None
    providers: tuple[str, ...] | None = None
    max_message_bytes: int | None = None
    max_bytes_in_flight: int | None = None
    max_connections: int = 4096
    max_open_streams: int | None = None
    receive_s: float = 30.0
    caller_calls: int | None = None
    caller_calls_per_s: float | None = None
    caller_rows_per_s: float | None = None
    watch: WatchMode = "off"
    watch_near: int = 40
    watch_distance: float = 0.0625
    watch_s: float = 3600.0
    watch_max_bytes: int = 16_777_216
    max_pixels: int = 67_108_864
    decode_s: float = 5.0
    max_streams: int = 256
    keepalive_s: float | None = None
    min_ping_s: float = 10.0
    max_connection_idle_s: float | None = 600.0
    max_connection_age_s: float | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tokens: Path | None = None
    policy: Policy = "annotate"
    fail: FailMode = "open"
    likelihood_step: float = 0.25
    repository_control: bool = False
    reload_s: float = 5.0
    drain_delay_s: float = 0.0
    drain_s: float = 20.0
    reflection: bool = False
    log_level: str = "INFO"
    tracing: TracingMode = "none"
    capture: Path | None = None
    capture_share: float = 0.01
    capture_images: bool = False
    capture_max_bytes: int = 1_073_741_824
    capture_ttl_s: float = 2_592_000.0
    decision_log: Path | None = None
    decision_export: TracingMode = "none"
    decision_share: float = 1.0
    decision_log_bytes: int = 67_108_864
    decision_log_files: int = 5
    drift_s: float = 60.0

    def __post_init__(self) -> None:
        self._check_sources()
        self._check_places()
        self._check_security()
        check_values({field.name: getattr(self, field.name) for field in fields(self)})
        if self.watch == "refuse" and self.policy == "shadow":
            raise SettingsError(
                "expected watch of off or count with policy shadow, which refuses nobody,"
                " got refuse"
            )
        if self.max_queue_rows < self.max_rows:
            raise SettingsError(
                f"expected max_queue_rows of at least max_rows, {self.max_rows}, "
                f"got {self.max_queue_rows}"
            )

    def _check_sources(self) -> None:
        if self.models is not None and (self.model or self.guard or self.name or self.challenger):
            raise SettingsError("expected either models, or model and guard: got both")
        if self.challenger is not None and self.guard is None:
            raise SettingsError("expected challenger beside a guard: got it alone")
        if self.model is not None and self.guard is None:
            raise SettingsError("expected a guard beside the model: got the model alone")

    def _check_places(self) -> None:
        places = [self.place, self.metrics_place, self.http_place, self.health_place]
        paths = [place.path for place in places if place is not None and place.path]
        if len(set(paths)) < len(paths):
            raise SettingsError(f"expected a unix socket for one port only, got {paths[0]} twice")
        for name in ("http", "health"):
            host, port = getattr(self, f"{name}_host"), getattr(self, f"{name}_port")
            if host is not None and port is None:
                raise SettingsError(
                    f"expected {name}_port beside {name}_host (0 for a unix socket)"
                )

    def _check_security(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise SettingsError("expected tls_certificate and tls_key together: got only one")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise SettingsError("tls_client_ca needs tls_certificate and tls_key")
        if self.repository_control and self.tokens is None:
            raise SettingsError("repository_control needs tokens: only an admin token may use it")

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for `from_json`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: str(value) if isinstance(value, Path) else value for name, value in values.items()
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Settings":
        """Return the settings that `to_json` was asked of."""
        hints = get_type_hints(cls)
        values: dict[str, Any] = {
            name: None if value is None else checked(name, value, hints[name], Path("settings"))
            for name, value in document.items()
        }
        return cls(**values)

    @property
    def has_readings(self) -> bool:
        """Whether what guards read is kept with their verdicts."""
        return self.capture is not None or self.watch != "off"

    @property
    def place(self) -> Place:
        """Where gRPC listens."""
        return Place.of(self.host, self.port)

    @property
    def metrics_place(self) -> Place | None:
        """Where the metrics and the status page are, None for nowhere."""
        return self._beside(self.metrics_host, self.metrics_port)

    @property
    def http_place(self) -> Place | None:
        """Where the open protocol is by HTTP, None for nowhere."""
        return self._beside(self.http_host, self.http_port)

    @property
    def health_place(self) -> Place | None:
        """Where probes ask, None for nowhere."""
        return self._beside(self.health_host, self.health_port)

    def _beside(self, host: str | None, port: int | None) -> Place | None:
        if port is None:
            return None
        if host is not None:
            return Place.of(host, port)
        # beside a unix socket others are asked for by machines that can't reach it
        return Place(host=self.place.host or "127.0.0.1", port=port)

    @property
    def is_open(self) -> bool:
        """Whether anybody who reaches the port may use the server."""
        return self.tokens is None and self.tls_client_ca is None

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        config: Path | None = None,
        **overrides: Any,
    ) -> "Settings":
        """Return settings from RELUGUARD_* variables; an override that isn't None wins.

        Args:
            environ: the variables; those of the process if None.
            config: a TOML file of settings by name, which variables and overrides win over.
            overrides: settings by name.

        Raises:
            SettingsError: an unknown name, or a value of the wrong type or meaning.
        """
        environ = os.environ if environ is None else environ
        known = {field.name: field for field in fields(cls)}
        hints = get_type_hints(cls)
        values = {} if config is None else read_config(config, hints)
        for variable, text in environ.items():
            if not variable.startswith(PREFIX):
                continue
            name = variable.removeprefix(PREFIX).lower()
            if name not in known or variable != PREFIX + name.upper():
                raise SettingsError(f"unknown environment variable {variable}")
            values[name] = parsed(variable, text, hints[name])
        unknown = sorted(set(overrides) - set(known))
        if unknown:
            raise SettingsError(f"unknown settings: {', '.join(unknown)}")
        values |= {name: value for name, value in overrides.items() if value is not None}
        return cls(**values)
