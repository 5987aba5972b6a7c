"""Which values each setting may have, whatever the others are."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from reluguard.detector.errors import SettingsError
from reluguard.service.watching.table import LEAST_BYTES

__all__ = ["FailMode", "Policy", "TracingMode", "WatchMode", "check_values"]

Policy = Literal["annotate", "reject", "shadow"]
FailMode = Literal["open", "closed"]
TracingMode = Literal["none", "console", "otlp"]
WatchMode = Literal["off", "count", "refuse"]
_CHOICES = {
    "policy": get_args(Policy),
    "fail": get_args(FailMode),
    "tracing": get_args(TracingMode),
    "decision_export": get_args(TracingMode),
    "watch": get_args(WatchMode),
    "log_level": ("DEBUG", "INFO", "WARNING", "ERROR"),
}
_SHARES = ("likelihood_step", "capture_share")
_PORTS = ("port", "metrics_port", "http_port", "health_port")
_ONE_OR_MORE = (
    "max_rows", "max_batch", "max_queue_rows", "max_in_flight", "workers", "processes", "threads",
    "max_message_bytes", "max_pixels", "max_streams", "max_bytes_in_flight", "max_connections",
    "max_open_streams", "http_connections", "caller_calls", "capture_max_bytes",
    "decision_log_bytes", "decision_log_files", "watch_near",
)  # fmt: skip
_NONE_OR_MORE = ("max_delay_s", "reload_s", "drain_delay_s", "drain_s")
_MORE_THAN_NONE = (
    "max_wait_s", "keepalive_s", "min_ping_s", "max_connection_age_s", "max_connection_idle_s",
    "receive_s", "decode_s", "caller_calls_per_s", "caller_rows_per_s", "capture_ttl_s", "drift_s",
    "watch_s",
)  # fmt: skip
_MOST, _MOST_BYTES = 2**31 - 1, 2**62


def check_values(values: Mapping[str, Any]) -> None:
    """Raise SettingsError for the first value that its setting can't have.

    Args:
        values: of all settings, by name; None where a setting has no value.
    """
    for name, allowed in _CHOICES.items():
        if values[name] not in allowed:
            raise SettingsError(
                f"expected {name} one of {', '.join(allowed)}, got {values[name]!r}"
            )
    _check_shares(values)
    _check_numbers(values)
    _check_largest(values)


def _check_numbers(values: Mapping[str, Any]) -> None:
    for name in _PORTS:
        port = values[name]
        if port is not None and not 0 <= port <= 65535:
            raise SettingsError(f"expected {name} in 0..65535, got {port}")
    for name in _ONE_OR_MORE:
        number = values[name]
        if number is not None and number < 1:
            raise SettingsError(f"expected {name} of 1 or more, got {number}")
    for name in _NONE_OR_MORE:
        if not 0 <= values[name] < float("inf"):
            raise SettingsError(f"expected {name} of 0 or more, got {values[name]}")
    for name in _MORE_THAN_NONE:
        number = values[name]
        if number is not None and not 0 < number < float("inf"):
            raise SettingsError(f"expected {name} of more than 0, got {number}")


def _check_shares(values: Mapping[str, Any]) -> None:
    for name in _SHARES:
        if not 0 < values[name] <= 1:
            raise SettingsError(f"expected {name} in (0, 1], got {values[name]}")
    distance, remembered = values["watch_distance"], values["watch_max_bytes"]
    if not 0 < distance < 0.5:
        raise SettingsError(
            "expected watch_distance in (0, 0.5), where unlike images differ in half of the "
            f"bits, got {distance}"
        )
    if remembered < LEAST_BYTES:
        raise SettingsError(f"expected watch_max_bytes of {LEAST_BYTES} or more, got {remembered}")
    if not 0 <= values["decision_share"] <= 1:
        raise SettingsError(f"expected decision_share in [0, 1], got {values['decision_share']}")


def _check_largest(values: Mapping[str, Any]) -> None:
    """Raise SettingsError for a number that what takes it can't hold."""
    for name, number in values.items():
        in_bytes = "bytes" in name and name != "max_message_bytes"  # which gRPC counts shorter
        most = _MOST_BYTES if in_bytes else _MOST
        if isinstance(number, int | float) and number > most:
            raise SettingsError(f"expected {name} of at most {most}, got {number}")
