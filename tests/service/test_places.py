"""Servers on IPv6 and on unix sockets: every port, the client, the probe, the status command."""

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks.faults.certificates import Authority
from reluguard.commands.app import app
from reluguard.detector.errors import SettingsError
from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.service.background import on_loop, running
from reluguard.service.client.client import AsyncClient, Client
from reluguard.service.client.probe import is_healthy
from reluguard.service.errors import StartError
from reluguard.service.places import Place
from reluguard.service.settings import Settings
from reluguard.service.web.fetched import fetch_status

hosts = st.sampled_from(["127.0.0.1", "::1", "localhost", "fe80::1", "0.0.0.0", "guard.example"])


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        return False
    return True


@given(hosts, st.integers(0, 65535))
def test_an_address_says_where_it_came_from(host: str, port: int) -> None:
    """What clients are given can be given to a server, with a port of its own or without."""
    place = Place.of(host, port)
    assert (place.host, place.port) == (host, port)
    assert Place.of(place.address, 7) == place


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[::1", "expected an IPv6 address in brackets"),
        ("[localhost]:5", "expected an IPv6 address in brackets"),
        ("[::1]5", "expected an IPv6 address in brackets"),
        ("[::1]:x", r"expected a port in 0\.\.65535"),
        ("localhost:99999", r"expected a port in 0\.\.65535"),
        ("http://localhost", "expected a host, an address or unix:PATH|expected a port"),
        ("/run/guard.sock", "expected a host, an address or unix:PATH"),
        ("unix:", "a path of 1 to 107 bytes"),
        ("unix:/" + "x" * 107, "a path of 1 to 107 bytes"),
    ],
)
def test_what_is_no_place(text: str, message: str) -> None:
    """Refused when the settings are read, in words."""
    with pytest.raises(SettingsError, match=message):
        Settings(host=text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "unix:/a", "metrics_host": "unix:/a"}, "for one port only, got /a twice"),
        ({"http_host": "unix:/a"}, "expected http_port beside http_host"),
        ({"metrics_host": "[::1"}, "expected an IPv6 address in brackets"),
    ],
)
def test_places_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    """Or belong to a port that is off."""
    with pytest.raises(SettingsError, match=message):
        Settings(**settings)


def test_places_follow_the_host() -> None:
    """Metrics and HTTP are where gRPC is, unless that is a socket or they say otherwise."""
    both = Settings(host="[::1]:7", http_port=9)
    assert both.place == Place(host="::1", port=7)
    assert (both.metrics_place, both.http_place) == (
        Place(host="::1", port=9464), Place(host="::1", port=9)
    )  # fmt: skip
    local = Settings(host="unix:/a", metrics_port=1)
    assert (local.place, local.metrics_place) == (Place(path="/a"), Place(host="127.0.0.1", port=1))
    assert local.place.is_private
    assert not Settings(host="::").place.is_private
    assert Settings(metrics_port=None).metrics_place is None


def check_all(server: Any, images: Images, prediction: list[int]) -> None:
    """Ask a server in every way there is."""
    with Client(server.address) as client:
        assert client.inspect(images).prediction.tolist() == prediction

    async def asked() -> list[int]:
        async with AsyncClient(server.address) as client:
            return list((await client.inspect(images)).prediction)

    assert on_loop(asked()) == prediction
    assert is_healthy(server.address)
    assert not is_healthy(server.address, service="nobody")
    assert fetch_status(server.metrics_address)["state"] == "serving"
    done = CliRunner().invoke(app, ["status", "--server", server.metrics_address])
    assert done.output.startswith("serving, version")
    done = CliRunner().invoke(app, ["health", "--address", server.address])
    assert (done.exit_code, done.output) == (0, "SERVING\n")


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "[::1]", "[::1]:0"])
def test_ipv6(guard: Guard, clean: Images, host: str) -> None:
    """In brackets or without."""
    own = guard.inspect(clean[:3]).prediction.tolist()
    with running(guard, host=host, http_port=0) as server:
        for address in (server.address, server.metrics_address, server.http_address):
            assert str(address).startswith("[::1]:")
        check_all(server, clean[:3], own)
        connection = HTTPConnection("::1", int(str(server.http_address).rpartition(":")[2]))
        connection.request("GET", "/v2")
        assert connection.getresponse().status == 200
        connection.close()


def test_unix_sockets(guard: Guard, clean: Images, tmp_path: Path) -> None:
    """All three ports, and nothing is left of them."""
    own = guard.inspect(clean[:3]).prediction.tolist()
    paths = [tmp_path / name for name in ("grpc", "metrics", "http")]
    host, metrics, http = (f"unix:{path}" for path in paths)
    with running(guard, host=host, metrics_host=metrics, http_host=http, http_port=0) as server:
        assert (server.address, server.metrics_address, server.http_address) == (
            host, metrics, http
        )  # fmt: skip
        check_all(server, clean[:3], own)
        with socket.socket(socket.AF_UNIX) as spoken:
            spoken.connect(str(paths[2]))
            spoken.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
            assert spoken.recv(100).startswith(b"HTTP/1.1 200 ")
        for name, other in (("host", host), ("metrics_host", metrics), ("http_host", http)):
            with (
                pytest.raises(StartError, match=f"can't listen on {other}: somebody else does"),
                running(guard, **{name: other, "http_port": 0}),
            ):
                pass
    assert not any(path.exists() for path in paths)


def test_what_lies_where_a_socket_should(guard: Guard, tmp_path: Path) -> None:
    """A killed server's socket is replaced, another file is not."""
    left = tmp_path / "left"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(left))
    with running(guard, host=f"unix:{left}") as server:
        assert is_healthy(server.address)
    file = tmp_path / "file"
    file.write_text("mine")
    for settings in ({"host": f"unix:{file}"}, {"metrics_host": f"unix:{file}"}):
        with pytest.raises(StartError, match="another file"), running(guard, **settings):
            pass
    assert file.read_text() == "mine"
    with pytest.raises(StartError), running(guard, host=f"unix:{tmp_path / 'no' / 'folder'}"):
        pass


def test_a_server_that_hangs_keeps_its_socket(guard: Guard, tmp_path: Path) -> None:
    """One with a full backlog is there all the same: nobody waits, nobody takes its file."""
    path = tmp_path / "hung"
    with contextlib.ExitStack() as held:
        hung = held.enter_context(socket.socket(socket.AF_UNIX))
        hung.bind(str(path))
        hung.listen(0)
        while True:
            waiting = held.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            if waiting.connect_ex(str(path)):
                break
        for settings in ({"host": f"unix:{path}"}, {"metrics_host": f"unix:{path}"}):
            with pytest.raises(StartError, match="somebody else does"), running(guard, **settings):
                pass
    assert path.exists()


def test_the_status_command_knows_who_answers(tmp_path: Path) -> None:
    """No HTTP, and nobody: one line each; a proxy of the environment is not asked."""
    path = tmp_path / "odd"
    with socket.socket(socket.AF_UNIX) as odd:
        odd.bind(str(path))
        odd.listen()

        def say() -> None:
            spoken, _ = odd.accept()
            spoken.recv(1000)
            spoken.sendall(b"hello\r\n")
            spoken.close()

        speaking = threading.Thread(target=say)
        speaking.start()
        with pytest.raises(OSError, match="got no HTTP"):
            fetch_status(f"unix:{path}")
        speaking.join()
    with pytest.raises(OSError, match="refused"):
        fetch_status("127.0.0.1:1")


def test_a_probe_costs_next_to_nothing(guard: Guard, tmp_path: Path) -> None:
    """Under .1 s of a processor, Python's own start and TLS included, whatever proxy is named."""
    authority = Authority.made(tmp_path / "ca")
    certificate, key, _ = authority.issue("server")
    with running(guard, tls_certificate=certificate, tls_key=key) as server:
        command = [
            *(sys.executable, "-m", "reluguard", "health", "--address", server.address),
            *("--ca", str(authority.path), "--server-name", "localhost"),
        ]
        proxy = {f"{name}_proxy": "http://127.0.0.1:9" for name in ("http", "https", "grpc", "all")}
        costs = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(
                command, env={**os.environ, **proxy}, capture_output=True, text=True, check=False
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert (done.returncode, done.stdout) == (0, "SERVING\n"), done.stderr
            costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        wrong = [*command[:-1], "elsewhere"]
        assert subprocess.run(wrong, capture_output=True, check=False).returncode == 1
    assert min(costs) < 0.1


def test_tls_on_a_socket_needs_a_name(tmp_path: Path) -> None:
    """There is no host that a certificate could be checked for."""
    authority = Authority.made(tmp_path / "ca")
    with pytest.raises(ValueError, match="expected server_name beside 'unix:/a'"):
        is_healthy("unix:/a", ca=authority.path)


def test_a_server_asked_by_the_wrong_security(guard: Guard, tmp_path: Path) -> None:
    """TLS where there is none, none where there is, and the metrics port: a sentence each."""
    from reluguard.service.errors import CallError

    authority = Authority.made(tmp_path / "ca")
    certificate, key, _ = authority.issue("server")
    image = np.zeros((1, 12, 12, 3), np.uint8)
    secure = {"tls_certificate": certificate, "tls_key": key}
    with running(guard) as plain, running(guard, **secure) as tls:
        for address, ca, message in (
            (plain.address, authority.path, "speaks no TLS: leave `ca`"),
            (tls.address, None, "speaks TLS: give `ca`"),
            (plain.metrics_address, authority.path, "speaks no gRPC: is it the metrics port"),
        ):
            with (
                Client(str(address), ca=ca, deadline_s=30) as client,
                pytest.raises(CallError, match=message),
            ):
                client.inspect(image)
        with Client(tls.address, ca=authority.path) as client:
            assert len(client.inspect(image)) == 1
            assert json.dumps(client.describe().model)
