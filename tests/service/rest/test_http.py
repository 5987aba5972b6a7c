"""The HTTP port against callers who mean it well, and those who don't: over real sockets."""

import http.client
import json
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.faults.certificates import Authority
from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.service.background import Running, on_loop, running
from reluguard.service.client.client import Client
from reluguard.service.errors import CallError, StartError
from reluguard.service.security import Scope, token_entry
from tests.waiting import until

INFER = "/v2/models/tiny/infer"
JSON = {"Content-Type": "application/json"}


def document(tensor: NDArray[Any], **more: Any) -> dict[str, Any]:
    """Return a request with its numbers in JSON."""
    given = {"name": "image", "datatype": "FP32", "shape": list(tensor.shape),
             "data": tensor.ravel().tolist()}  # fmt: skip
    return {"inputs": [given], **more}


def ask(
    address: str,
    path: str,
    body: Any = None,
    *,
    headers: dict[str, str] | None = None,
    context: ssl.SSLContext | None = None,
) -> tuple[int, Any, http.client.HTTPMessage]:
    """Return status, document and headers of one request on a connection of its own."""
    plain = http.client.HTTPConnection(address, timeout=20)
    if context is not None:
        plain = http.client.HTTPSConnection(address, timeout=20, context=context)
    with closing(plain) as connection:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        connection.request("GET" if body is None else "POST", path, data, headers or {})
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read()), reply.headers


def talk(address: str, *parts: bytes, patience_s: float = 20) -> bytes:
    """Send bytes as they are and return all that comes until the server hangs up."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=patience_s) as spoken:
        for part in parts:
            spoken.sendall(part)
        heard = b""
        while part := spoken.recv(65536):
            heard += part
    return heard


def head(length: int | None, *more: str, path: str = INFER) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", *more]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


def refused(server: Running, reason: str) -> float:
    registry = server.server.metrics.registry
    return registry.get_sample_value("reluguard_refused_calls_total", {"reason": reason}) or 0


@pytest.fixture(scope="module")
def rest(guard: Guard) -> Iterator[Running]:
    with running(
        guard, name="tiny", max_batch=16, max_rows=64, http_port=0, receive_s=0.5
    ) as server:
        yield server


@pytest.fixture(scope="module")
def address(rest: Running) -> str:
    assert rest.http_address is not None
    return rest.http_address


def test_off_by_default(server: Running) -> None:
    """Nobody gets a port they didn't ask for."""
    assert server.http_address is None


def test_json_by_hand(address: str, guard: Guard, tensor: NDArray[np.float32]) -> None:
    """What curl would send; NaN, which JSON has no word for, is null."""
    outputs = [{"name": "logits"}, {"name": "reluguard_is_adversarial"}]
    status, told, headers = ask(address, INFER, document(tensor[:3], id="7", outputs=outputs))
    own = guard.inspect_tensor(tensor[:3])
    assert status == 200
    assert (told["id"], told["model_name"], told["model_version"]) == ("7", "tiny", "1")
    assert told["parameters"]["reluguard_guard"] == guard.artifact.digest
    logits, flags = told["outputs"]
    assert (logits["datatype"], logits["shape"]) == ("FP32", [3, 5])
    assert_array_equal(np.float32(logits["data"]).reshape(3, 5), own.outputs["logits"])
    assert flags["data"] == own.is_adversarial.tolist()
    assert len(headers["x-request-id"]) == 32
    status, _, headers = ask(address, "/v2", headers={"X-Request-Id": "mine"})
    assert (status, headers["x-request-id"]) == (200, "mine")


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/models/tiny", "/x"])
def test_head_is_get_without_its_body(address: str, path: str) -> None:
    """As balancers ask: the same status and length, and the connection serves on."""
    asked = f"{path} HTTP/1.1\r\nHost: x\r\n".encode()
    last = asked + b"Connection: close\r\n\r\n"
    whole, _, body = talk(address, b"GET ", last).partition(b"\r\n\r\n")
    twice = talk(address, b"HEAD ", asked, b"\r\n", b"HEAD ", last)
    first, second, rest = twice.split(b"\r\n\r\n")
    assert rest == b""
    assert first.split(b"\r\n")[0] == second.split(b"\r\n")[0] == whole.split(b"\r\n")[0]
    assert b"Content-Length: %d" % len(body) in first


def test_several_requests_on_one_connection(address: str) -> None:
    """One behind the other, sent at once, are answered in order."""
    one = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /v2/nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    heard = talk(address, head(2, path="/v2/repository/index"), b"{}" + one + one + last)
    assert re.findall(rb"HTTP/1.1 (\d+)", heard) == [b"200", b"200", b"200", b"404"]
    assert heard.count(b'{"live": true}') == 2


def test_a_target_may_name_the_server(address: str) -> None:
    """As a proxy asks: `GET http://HOST/v2`, whatever the host is called here."""
    for origin in (b"", b"http://x", b"HTTPS://[::1]:8080"):
        heard = talk(address, b"GET " + origin + b"/v2/health/live HTTP/1.1\r\nHost: x\r\n"
                     b"Connection: close\r\n\r\n")  # fmt: skip
        assert heard.endswith(b'{"live": true}')


def test_a_body_in_chunks(address: str, tensor: NDArray[np.float32]) -> None:
    """And one that waits to be asked for it."""
    body = json.dumps(document(tensor[:2])).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part)
                      for part in (body[:1000], body[1000:])) + b"0\r\n\r\n"  # fmt: skip
    heard = talk(address, head(None, "Transfer-Encoding: chunked", "Connection: close"), chunks)
    assert heard.startswith(b"HTTP/1.1 200 ")
    heard = talk(address, head(len(body), "Expect: 100-continue", "Connection: close"), body)
    assert heard.startswith(b"HTTP/1.1 100 ")
    assert b"HTTP/1.1 200 " in heard


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        (b"hello\r\n\r\n", 400, "expected HTTP/1.1"),
        (b"\r\n\r\n", 400, "expected HTTP/1.1"),
        (b"\x16\x03\x01\x02\x00\x01\n\n", 400, "expected HTTP/1.1"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "expected HTTP/1.1"),
        (head(0, "X: " + "a" * 20_000), 431, "over 16384 bytes"),
        (b"GET /v2 HTTP/1.1\r\n" + b"a:b\r\n" * 4000, 431, "over 16384 bytes"),
        (head(0, *["a: b"] * 200), 431, "over 100 headers"),
        (head(5, "Transfer-Encoding: chunked"), 400, "both Transfer-Encoding and Content-Length"),
        (head(5, "Content-Length: 6"), 400, "conflicting Content-Length"),
        (head(None, "Content-Length: -1"), 400, "bad Content-Length"),
        (head(None, "Content-Length: 0x10"), 400, "bad Content-Length"),
        (head(None, "Content-Length: " + "9" * 40), 400, "bad Content-Length"),
        (head(10**15), 413, "expected a body of at most"),
        (head(5, "Content-Encoding: gzip"), 400, "Content-Encoding 'gzip'"),
        (head(None, "Transfer-Encoding: gzip"), 501, "expected HTTP/1.1"),
        (head(None, "Transfer-Encoding: chunked") + b"zz\r\n", 400, "a body as HTTP has it"),
        (head(None, "Transfer-Encoding: chunked") + b"1\r\nx\r\n" * 9000, 400, "chunks of at"),
        (head(None, "Transfer-Encoding: chunked") + b"ffffffff\r\n", 429, "too long to come"),
        (head(10) + b"{", 429, "too long to come"),
        (head(2, "Inference-Header-Content-Length: x") + b"{}", 400, "that is a number"),
        (head(2, "Inference-Header-Content-Length: 9") + b"{}", 400, "the body's 2 bytes, got 9"),
        (head(2, "Inference-Header-Content-Length: 2", "Inference-Header-Content-Length: 1")
         + b"{}", 400, "expected one Inference-Header"),
        (b"GET " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n", 405, "expected POST, got GET"),
        (b"BREW /v2 HTTP/1.1\r\nHost: x\r\n\r\n", 405, "expected GET, got BREW"),
        (b"GET /../v2 HTTP/1.1\r\nHost: x\r\n\r\n", 404, "expected a path of"),
        (b"GET /v2/models/a%2fb/x HTTP/1.1\r\nHost: x\r\n\r\n", 404, "expected a path of"),
        (b"GET /v2/models/%ff HTTP/1.1\r\nHost: x\r\n\r\n", 404, "unknown model"),
        (b"GET ftp://elsewhere/v2 HTTP/1.1\r\nHost: x\r\n\r\n", 404, "expected a path of"),
        (b"GET /http://x/v2 HTTP/1.1\r\nHost: x\r\n\r\n", 404, "expected a path of"),
        (b"GET /v2/models/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 404, "a path of"),
        (b"GET /v2/models//ready HTTP/1.1\r\nHost: x\r\n\r\n", 400, "the name of a model"),
    ],
    ids=lambda value: repr(value[:120]) if isinstance(value, bytes) else None,
)  # fmt: skip
def test_what_is_refused(address: str, sent: bytes, status: int, message: str) -> None:
    """In words, once, whatever was promised; and the port serves on."""
    heard = talk(address, sent.replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n", 1))
    assert heard.startswith(b"HTTP/1.1 %d " % status), heard[:200]
    assert message in json.loads(heard.partition(b"\r\n\r\n")[2])["error"]
    assert ask(address, "/v2/health/ready")[0] == 200


def test_tokens_come_before_the_body(guard: Guard, tmp_path: Path) -> None:
    """401 on the headers, 403 by scope; life signs need none; the body isn't asked for."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(token_entry("t", name="mine", scopes=[Scope.INFER]))
    with running(guard, tokens=tokens, name="tiny", http_port=0) as server:
        address = str(server.http_address)
        assert ask(address, "/v2/health/ready")[0] == 200
        status, told, headers = ask(address, "/v2")
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert "Bearer TOKEN" in told["error"]
        heard = talk(address, head(10**6, "Expect: 100-continue"))
        assert heard.startswith(b"HTTP/1.1 401 ")
        assert server.server.reading == 0
        two = ("Authorization: Bearer t", "Authorization: Bearer t", "Connection: close")
        assert talk(address, head(2, *two), b"{}").startswith(b"HTTP/1.1 401 ")
        mine = {"Authorization": "Bearer t"}
        assert ask(address, "/v2", headers=mine)[0] == 200
        named = [output["name"] for output in
                 ask(address, "/v2/models/tiny", headers=mine)[1]["outputs"]]  # fmt: skip
        assert "reluguard_likelihood" in named
        assert "reluguard_score" not in named
        asked = {"inputs": [], "outputs": [{"name": "reluguard_score"}]}
        status, told, _ = ask(address, INFER, asked, headers=mine)
        assert (status, "'privileged'" in told["error"]) == (403, True)
        assert refused(server, "unauthenticated") == 3


def test_an_admin_may_load_and_unload(pair: Any, tmp_path: Path) -> None:
    """By the same word as by gRPC."""
    from reluguard.service.settings import Settings

    tokens = tmp_path / "tokens.toml"
    tokens.write_text(token_entry("a", name="admin", scopes=[Scope.ADMIN]))
    settings = Settings(
        model=pair.model, guard=pair.guard, name="tiny", port=0, metrics_port=0, http_port=0,
        tokens=tokens, repository_control=True, threads=1,
    )  # fmt: skip
    with running(settings) as server:
        mine = {"Authorization": "Bearer a"}
        address = str(server.http_address)
        place = "/v2/repository/models/tiny"
        assert ask(address, f"{place}/unload", {}, headers=mine)[:2] == (200, {})
        assert ask(address, "/v2/models/tiny/ready", headers=mine)[0] == 503
        assert ask(address, "/v2/health/ready")[0] == 503
        index = ask(address, "/v2/repository/index", {}, headers=mine)[1]
        assert index == [
            {"name": "tiny", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
        ]
        status, told, _ = ask(address, f"{place}/load", {"parameters": {"x": 1}}, headers=mine)
        assert (status, "don't come from callers" in told["error"]) == (400, True)
        assert ask(address, f"{place}/load", b"", headers=mine)[0] == 200
        assert ask(address, "/v2/models/tiny/ready", headers=mine)[0] == 200


def test_one_quota_for_both_protocols(guard: Guard, clean: Images) -> None:
    """A caller is known by its address whichever way it comes; 429 says when to come again."""
    with running(guard, caller_calls_per_s=0.1, name="tiny", http_port=0) as server:
        with Client(server.address) as client:
            client.inspect(clean[:1])
        status, told, headers = ask(str(server.http_address), INFER, b"{}")
        assert status == 429
        assert "calls a second of one caller" in told["error"]
        assert int(headers["Retry-After"]) >= 1
        assert refused(server, "calls_per_second") == 1


def test_tls_and_its_rotation(guard: Guard, tmp_path: Path) -> None:
    """The same files as gRPC's, followed the same way; client certificates too."""
    authority = Authority.made(tmp_path / "ca")
    certificate, key, serial = authority.issue("server")
    own, own_key, _ = authority.issue("client")
    files = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": authority.path}
    with running(guard, name="tiny", http_port=0, **files) as server:
        address = str(server.http_address)
        context = ssl.create_default_context(cafile=str(authority.path))
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask(address, "/v2", context=context)
        context.load_cert_chain(own, own_key)
        assert ask(address, "/v2", context=context)[0] == 200
        assert shown(address, context) == serial
        *_, newer = authority.issue("server")
        assert shown(address, context) == newer
        certificate.write_text("no certificate")
        assert shown(address, context) == newer
        assert ask(address, "/v2", context=context)[0] == 200
        assert talk(address, b"GET /v2 HTTP/1.1\r\n\r\n")[:4] != b"HTTP"


def shown(address: str, context: ssl.SSLContext) -> int:
    """Return the serial number of the certificate that is shown."""
    from cryptography import x509

    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        found = secure.getpeercert(binary_form=True)
    assert found is not None
    return x509.load_der_x509_certificate(found).serial_number


def test_who_hangs_up_is_forgotten(gate: Any, tensor: NDArray[np.float32]) -> None:
    """A request nobody waits for leaves the queue, as by gRPC."""
    with running(cast("Guard", gate), name="tiny", http_port=0, max_batch=1) as server:
        host, _, port = str(server.http_address).rpartition(":")
        body = json.dumps(document(tensor[:1])).encode()
        with ExitStack() as stack:
            for _ in range(3):
                spoken = stack.enter_context(socket.create_connection((host, int(port))))
                spoken.sendall(head(len(body)) + body)
            assert gate.entered.acquire(timeout=20)
            until(lambda: server.server.in_flight == 3)
        until(lambda: server.server.in_flight == 0)
        gate.opened.set()
    assert len(gate.rows) == 1


def test_who_only_waits_makes_way(guard: Guard) -> None:
    """With all connections taken by callers who say nothing, a new one is served."""
    with (
        running(guard, name="tiny", http_port=0, http_connections=4) as server,
        ExitStack() as all_,
    ):
        host, _, port = str(server.http_address).rpartition(":")
        silent = [all_.enter_context(socket.create_connection((host, int(port)), timeout=5))
                  for _ in range(12)]  # fmt: skip
        for _ in range(3):
            assert ask(str(server.http_address), "/v2/health/live")[0] == 200
        with pytest.raises((ConnectionError, AssertionError)):
            assert silent[0].recv(1)


def test_a_stopping_server_answers_what_it_began(gate: Any, tensor: NDArray[np.float32]) -> None:
    """What is under way gets its answer, what comes is told 503, and then it is over."""
    with running(cast("Guard", gate), name="tiny", http_port=0) as server:
        address = str(server.http_address)
        first: list[Any] = []
        asking = threading.Thread(
            target=lambda: first.append(ask(address, INFER, document(tensor[:1])))
        )
        asking.start()
        assert gate.entered.acquire(timeout=20)
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=20) as waiting:
            until(lambda: server.server.in_flight == 1)
            stopping = threading.Thread(target=lambda: on_loop(server.server.stop()))
            stopping.start()
            until(lambda: refused(server, "draining") > 0 or _told_503(waiting))
            gate.opened.set()
            stopping.join(20)
        asking.join(20)
        assert first[0][0] == 200
        with pytest.raises(OSError, match="refused"):
            ask(address, "/v2")


def _told_503(waiting: socket.socket) -> bool:
    waiting.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    return waiting.recv(4096).startswith(b"HTTP/1.1 503 ")


def test_a_taken_port_stops_the_start(guard: Guard, address: str) -> None:
    """In words."""
    port = int(address.rpartition(":")[2])
    with (
        pytest.raises(StartError, match=f"can't listen on 127.0.0.1:{port}: Address already"),
        running(guard, http_port=port),
    ):
        pass


def test_string_outputs(pairs: Any, new_guard: Any, tmp_path: Path) -> None:
    """Class names travel as BYTES: texts in JSON, behind their lengths in binary."""
    made = pairs(tmp_path / "named")
    model = onnx.load(made.model)
    words = [f"cl\u00e4ss {k}".encode() for k in range(5)]
    names = numpy_helper.from_array(np.array(words, dtype=object), "names")
    model.graph.initializer.append(names)
    model.graph.node.append(helper.make_node("Gather", ["names", "label"], ["name"]))
    model.graph.output.append(helper.make_tensor_value_info("name", TensorProto.STRING, ["N"]))
    onnx.save(model, made.model)
    new_guard(made, tag="named")
    guard = made.open()
    images = np.zeros((2, 12, 12, 3), np.uint8)
    label = guard.inspect(images).outputs["label"]
    with running(guard, name="tiny", http_port=0) as server:
        address = str(server.http_address)
        metadata = ask(address, "/v2/models/tiny")[1]
        assert {"name": "name", "datatype": "BYTES", "shape": [-1]} in metadata["outputs"]
        given = {"name": "image", "datatype": "UINT8", "shape": [2, 12, 12, 3],
                 "data": images.ravel().tolist()}  # fmt: skip
        asked = {"inputs": [given], "outputs": [{"name": "name"}]}
        told = ask(address, INFER, asked)[1]
        assert told["outputs"][0]["data"] == [f"cl\u00e4ss {k}" for k in label]
        asked["outputs"] = [{"name": "name", "parameters": {"binary_data": True}}]
        data = json.dumps(asked).encode()
        heard = talk(address, head(len(data), "Connection: close"), data)
        top, _, rest = heard.partition(b"\r\n\r\n")
        length = int(top.lower().partition(b"inference-header-content-length: ")[2].split()[0])
        size = json.loads(rest[:length])["outputs"][0]["parameters"]["binary_data_size"]
        words = [f"cl\u00e4ss {k}".encode() for k in label]
        expected = b"".join(len(word).to_bytes(4, "little") + word for word in words)
        assert rest[length:] == expected
        assert size == len(expected)


def test_calls_are_counted(rest: Running, address: str) -> None:
    """With gRPC's names, so that every dashboard and alert sees them."""
    ask(address, "/v2")
    labels = {"grpc_type": "unary", "grpc_service": "http.v2", "grpc_method": "ServerMetadata"}
    registry = rest.server.metrics.registry
    assert (registry.get_sample_value("grpc_server_started_total", labels) or 0) >= 1
    assert registry.get_sample_value("grpc_server_handled_total", labels | {"grpc_code": "OK"})
    with Client(rest.address) as client, pytest.raises(CallError):
        client.inspect(np.zeros((1, 5, 5, 3), np.uint8))
