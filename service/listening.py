"""How a server listens: port, certificates, gRPC's own limits, and what reflection shows."""

from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection

from reluguard.service.errors import StartError
from reluguard.service.places import Place
from reluguard.service.protocols import open_inference, servicers
from reluguard.service.protocols.descriptors import pool
from reluguard.service.protocols.health import SERVICE as HEALTH
from reluguard.service.protocols.inspection import Limits
from reluguard.service.security import Certificates
from reluguard.service.settings import Settings

__all__ = [
    "SERVICES",
    "bind",
    "certificate_files",
    "certificates",
    "probe_options",
    "reflect",
    "server_options",
]

_PROBE_BYTES = 4096
_LONGEST_MS = 2**31 - 1
_HANDSHAKE_MS = 10_000  # gRPC's own two minutes let strangers hold connections

SERVICES = (servicers.SERVICE, open_inference.SERVICE)


def certificate_files(settings: Settings) -> Certificates | None:
    """Return the files that TLS needs, None without TLS."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return Certificates(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)


def certificates(settings: Settings) -> grpc.ServerCredentials | None:
    """Return what TLS needs, None without TLS."""
    files = certificate_files(settings)
    return None if files is None else files.credentials()


def server_options(
    settings: Settings, limits: Limits, *, shared: bool = False
) -> list[tuple[str, int]]:
    """Return gRPC's own settings; `shared` lets other processes listen on the same port."""
    options = {
        # on by default on Linux: a second server would silently share the port
        "grpc.so_reuseport": int(shared),
        "grpc.max_receive_message_length": limits.max_message_bytes,
        "grpc.max_send_message_length": -1,
        "grpc.max_concurrent_streams": settings.max_streams,
        "grpc.max_allowed_incoming_connections": settings.max_connections,
        "grpc.server_handshake_timeout_ms": _HANDSHAKE_MS,
        "grpc.http2.min_ping_interval_without_data_ms": _ms(settings.min_ping_s),
        "grpc.http2.min_recv_ping_interval_without_data_ms": _ms(settings.min_ping_s),
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.max_metadata_size": 16 * 1024,
        "grpc.absolute_max_metadata_size": 32 * 1024,
    }
    if settings.max_connection_idle_s is not None:
        options["grpc.max_connection_idle_ms"] = _ms(settings.max_connection_idle_s)
    if settings.keepalive_s is not None:
        options["grpc.keepalive_time_ms"] = _ms(settings.keepalive_s)
    if settings.max_connection_age_s is not None:
        options["grpc.max_connection_age_ms"] = _ms(settings.max_connection_age_s)
        options["grpc.max_connection_age_grace_ms"] = _ms(settings.drain_s)
    return list(options.items())


def _ms(seconds: float) -> int:
    """Return milliseconds as gRPC takes them: 25 days at most, which is as good as for ever."""
    return min(int(seconds * 1000), _LONGEST_MS)


def probe_options(*, shared: bool) -> list[tuple[str, int]]:
    """Return gRPC's settings of the port that probes alone ask."""
    options = {
        "grpc.so_reuseport": int(shared),
        "grpc.max_receive_message_length": _PROBE_BYTES,
        "grpc.max_concurrent_streams": 8,
        "grpc.max_allowed_incoming_connections": 32,
        "grpc.server_handshake_timeout_ms": _HANDSHAKE_MS,
        "grpc.max_connection_idle_ms": _HANDSHAKE_MS,
        "grpc.max_metadata_size": _PROBE_BYTES,
        "grpc.absolute_max_metadata_size": _PROBE_BYTES,
    }
    return list(options.items())


def bind(server: Any, place: Place, credentials: grpc.ServerCredentials | None) -> int:
    """Listen, and return the port.

    Raises:
        StartError: the port is in use, or the address is not this machine's.
    """
    place.clear()
    address = place.address
    try:
        port: int = (
            server.add_insecure_port(address)
            if credentials is None
            else server.add_secure_port(address, credentials)
        )
    except RuntimeError as error:
        taken = "its folder can't be written" if place.path else "the port is in use"
        raise StartError(
            f"can't listen on {address}: {taken}, or the address is not this machine's"
        ) from error
    return port


def reflect(server: Any) -> None:
    """Let clients ask which services and messages there are."""
    from grpc_health.v1 import health_pb2
    from grpc_reflection.v1alpha import reflection_pb2

    names = pool()
    for module in (health_pb2, reflection_pb2):
        # adding the same file again is allowed and changes nothing
        names.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    reflection.enable_server_reflection(
        (*SERVICES, HEALTH, reflection.SERVICE_NAME), server, pool=names
    )
