"""The port for probes: plain text where all else is TLS and tokens, and health alone."""

import threading
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from benchmarks.faults.certificates import Authority
from reluguard.detector.errors import SettingsError
from reluguard.detector.runtime import Guard
from reluguard.service.background import on_loop, running
from reluguard.service.client.client import Client
from reluguard.service.client.probe import is_healthy
from reluguard.service.errors import StartError
from reluguard.service.protocols.health import LIVE
from reluguard.service.security import Scope, token_entry
from reluguard.service.settings import Settings


def test_health_and_nothing_else(guard: Guard, tmp_path: Path) -> None:
    """No TLS, no token, every name that the main port knows; nothing that answers about images."""
    authority = Authority.made(tmp_path / "ca")
    certificate, key, _ = authority.issue("server")
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(token_entry("t", name="mine", scopes=[Scope.INFER]))
    with running(
        guard, name="tiny", health_port=0, tokens=tokens, tls_certificate=certificate, tls_key=key
    ) as server:
        address = str(server.health_address)
        for service in ("", "tiny", "inference.GRPCInferenceService", LIVE):
            assert is_healthy(address, service=service)
        assert not is_healthy(address, service="nobody")
        assert not is_healthy(server.address)
        with grpc.insecure_channel(address) as channel:
            for path in (
                "/reluguard.v1.Guard/Describe",
                "/inference.GRPCInferenceService/ModelInfer",
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    channel.unary_unary(path)(b"", timeout=10)
                error: Any = caught.value
                assert error.code() is grpc.StatusCode.UNIMPLEMENTED
            with pytest.raises(grpc.RpcError):
                channel.unary_unary("/grpc.health.v1.Health/Check")(bytes(5000), timeout=10)


def test_a_draining_server_lives(gate: Any) -> None:
    """Not ready, and not to be killed either."""
    with running(cast("Guard", gate), health_port=0, drain_s=20.0) as server:
        address = str(server.health_address)
        with Client(server.address) as client:
            import numpy as np

            asking = threading.Thread(
                target=client.inspect, args=(np.zeros((1, 12, 12, 3), np.uint8),)
            )
            asking.start()
            assert gate.entered.acquire(timeout=20)
            stopping = threading.Thread(target=lambda: on_loop(server.server.stop()))
            stopping.start()
            while is_healthy(address):
                pass
            assert is_healthy(address, service=LIVE)
            assert not is_healthy(address)
            gate.opened.set()
            asking.join(20)
            stopping.join(20)
    assert not is_healthy(address, service=LIVE, deadline_s=0.5)


def test_where_it_is(guard: Guard, tmp_path: Path) -> None:
    """Off by default, on a socket if wanted; a taken port stops the start."""
    with running(guard) as server:
        assert server.health_address is None
        port = int(server.address.rpartition(":")[2])
        with (
            pytest.raises(StartError, match=f"can't listen on 127.0.0.1:{port}"),
            running(guard, health_port=port),
        ):
            pass
    path = tmp_path / "health"
    with running(guard, health_host=f"unix:{path}", health_port=0) as server:
        assert is_healthy(f"unix:{path}")
    assert not path.exists()
    with pytest.raises(SettingsError, match="expected health_port beside health_host"):
        Settings(health_host="::1")
