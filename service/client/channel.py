"""The way to a server: a channel with our retries, balancing and certificates, and its calls."""

import json
from pathlib import Path
from typing import Any

import grpc

from reluguard.detector.errors import SettingsError
from reluguard.service.protocols.pb import reluguard_v1 as pb

__all__ = ["check_address", "guard_calls", "open_channel"]

_SERVICE = "/reluguard.v1.Guard/"
_RESOLVERS = {"dns", "ipv4", "ipv6", "unix", "unix-abstract", "xds", "vsock"}
_ATTEMPTS = 5  # gRPC allows no more


def open_channel(
    family: Any,
    address: str,
    *,
    ca: Path | str | bool | None,
    certificate: Path | str | None,
    key: Path | str | None,
    server_name: str | None,
) -> Any:
    """Return a channel that retries, balances, and leaves a server that says NOT_SERVING.

    Args:
        family: `grpc` or `grpc.aio`, whose channel it is.
        address: as `Client`, and so are the others.
        ca: see there.
        certificate: see there.
        key: see there.
        server_name: see there.
    """
    credentials = _credentials(ca, certificate, key)
    options = _options(server_name)
    if credentials is None:
        return family.insecure_channel(address, options=options)
    return family.secure_channel(address, credentials, options=options)


def check_address(address: str) -> None:
    """Raise SettingsError unless a channel can be opened to this address.

    gRPC itself takes any text and says only much later, in its own words, that nobody answers.
    """
    kind, colon, rest = address.partition(":")
    if colon and kind in _RESOLVERS:
        return
    if rest.startswith("//"):
        raise SettingsError(
            f"expected host:port, got {address!r}: leave {kind}:// out (TLS is what `ca` turns on)"
        )
    host, colon, port = address.rpartition(":")
    if not colon or not host or (":" in host and not host.startswith("[")):
        raise SettingsError(f"expected host:port, got {address!r} without a port")
    if not (port.isascii() and port.isdigit() and 0 < int(port) <= 65535):
        raise SettingsError(f"expected host:port with a port in 1..65535, got {address!r}")


def _credentials(
    ca: Path | str | bool | None, certificate: Path | str | None, key: Path | str | None
) -> grpc.ChannelCredentials | None:
    if not ca and certificate is None:
        return None
    return grpc.ssl_channel_credentials(
        root_certificates=Path(ca).read_bytes() if isinstance(ca, str | Path) else None,
        private_key=None if key is None else Path(key).read_bytes(),
        certificate_chain=None if certificate is None else Path(certificate).read_bytes(),
    )


def _options(server_name: str | None) -> list[tuple[str, Any]]:
    # gRPC's own retries: they keep the deadline and honour the server's pushback
    policy = {
        "loadBalancingConfig": [{"round_robin": {}}],
        # leave a server that says NOT_SERVING before it hangs up
        "healthCheckConfig": {"serviceName": ""},
        "methodConfig": [
            {
                "name": [{"service": "reluguard.v1.Guard"}],
                "retryPolicy": {
                    "maxAttempts": _ATTEMPTS,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "3s",
                    "backoffMultiplier": 3,
                    # CANCELLED is how a stopping gRPC server drops a call it never read
                    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
                },
            }
        ],
    }
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps(policy)),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 5000),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # by default a request over 256 KiB is forgotten once sent, and so never retried
        ("grpc.per_rpc_retry_buffer_size", 2**30),
    ]
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    return options


def guard_calls(channel: Any) -> dict[str, Any]:
    """Return the calls of our own protocol by name."""
    calls = {
        name: channel.unary_unary(
            _SERVICE + name,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reply.FromString,
        )
        for name, reply in (("Inspect", pb.InspectResponse), ("Describe", pb.DescribeResponse))
    }
    calls["InspectStream"] = channel.stream_stream(
        _SERVICE + "InspectStream",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=pb.InspectStreamResponse.FromString,
    )
    return calls
