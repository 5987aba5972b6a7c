import hashlib
import os
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.service.background import running
from reluguard.service.client.client import Client
from reluguard.service.client.probe import is_healthy
from reluguard.service.errors import CallError, ForbiddenError, StartError, UnauthenticatedError
from reluguard.service.security import ANYBODY, Scope, Tokens, token_entry

IMAGE = np.zeros((1, 12, 12, 3), np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A certificate authority that lives for one test."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def made(cls, folder: Path, name: str = "ca") -> "Authority":
        """Make a key and a certificate that signs itself."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _signed(name, key.public_key(), name, key, is_ca=True)
        folder.mkdir(exist_ok=True)
        authority = cls(folder=folder, key=key, certificate=certificate)
        authority.path.write_bytes(_pem(certificate))
        return authority

    @property
    def path(self) -> Path:
        """Return where its certificate lies."""
        return self.folder / "ca.pem"

    def issue(self, name: str) -> tuple[Path, Path]:
        """Write a certificate and its key, each by an atomic rename, and return their paths."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _signed(name, key.public_key(), "ca", self.key, is_ca=False)
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        for path, data in zip(paths, (_pem(certificate), secret), strict=True):
            aside = path.with_suffix(".new")
            aside.write_bytes(data)
            aside.rename(path)
        return paths


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _signed(
    name: str,
    public: ec.EllipticCurvePublicKey,
    issuer: str,
    key: ec.EllipticCurvePrivateKey,
    *,
    is_ca: bool,
) -> x509.Certificate:
    now = datetime.now(UTC)
    alternatives = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(key, hashes.SHA256())
    )


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.made(tmp_path / "ca")


@pytest.fixture
def server_files(authority: Authority) -> tuple[Path, Path]:
    return authority.issue("server")


@pytest.fixture
def tls(server_files: tuple[Path, Path]) -> dict[str, Path]:
    return {"tls_certificate": server_files[0], "tls_key": server_files[1]}


def serial_shown_by(address: str, authority: Authority) -> int:
    """Return the serial number of the certificate the server shows right now."""
    host, port = address.split(":")
    context = ssl.create_default_context(cafile=str(authority.path))
    with (
        socket.create_connection((host, int(port)), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        shown = secure.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


def test_tls(guard: Guard, authority: Authority, tls: dict[str, Any], clean: Images) -> None:
    """A client that trusts the authority is served; others never get through the handshake."""
    stranger = Authority.made(authority.folder.parent / "stranger")
    with running(guard, **tls) as server:
        with Client(server.address, ca=authority.path) as client:
            assert len(client.inspect(clean[:4])) == 4
        assert is_healthy(server.address, ca=authority.path)
        assert is_healthy(server.address, ca=authority.path, server_name="localhost")
        assert not is_healthy(server.address, ca=authority.path, server_name="elsewhere")
        assert not is_healthy(server.address)
        others: list[dict[str, Any]] = [{"ca": stranger.path}, {}]
        for options in others:
            with (
                Client(server.address, deadline_s=1.0, **options) as client,
                pytest.raises(CallError, match=r"UNAVAILABLE|DEADLINE_EXCEEDED"),
            ):
                client.inspect(IMAGE)
        with Client(server.address, ca=authority.path) as client:
            client.inspect(IMAGE)


def test_mtls(guard: Guard, authority: Authority, tls: dict[str, Any]) -> None:
    """Only a client whose certificate leads to the authority is served."""
    stranger = Authority.made(authority.folder.parent / "stranger")
    certificate, key = authority.issue("client")
    wrong, wrong_key = stranger.issue("client")
    with running(guard, **tls, tls_client_ca=authority.path) as server:
        with Client(server.address, ca=authority.path, certificate=certificate, key=key) as client:
            client.inspect(IMAGE)
        assert is_healthy(server.address, ca=authority.path, certificate=certificate, key=key)
        assert not is_healthy(server.address, ca=authority.path)
        others: list[dict[str, Any]] = [{}, {"certificate": wrong, "key": wrong_key}]
        for options in others:
            with (
                Client(server.address, deadline_s=1.0, ca=authority.path, **options) as client,
                pytest.raises(CallError, match=r"UNAVAILABLE|DEADLINE_EXCEEDED"),
            ):
                client.inspect(IMAGE)


def test_certificates_rotate_without_a_restart(
    guard: Guard, authority: Authority, tls: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """New handshakes get the new files, old connections live on, a broken file changes nothing."""
    with running(guard, **tls) as server, Client(server.address, ca=authority.path) as client:
        client.inspect(IMAGE)
        first = serial_shown_by(server.address, authority)
        assert serial_shown_by(server.address, authority) == first
        authority.issue("server")
        second = serial_shown_by(server.address, authority)
        assert second != first
        tls["tls_certificate"].write_text("no certificate")
        assert serial_shown_by(server.address, authority) == second
        assert "the last good ones stay" in caplog.text
        authority.issue("server")
        assert serial_shown_by(server.address, authority) not in {first, second}
        client.inspect(IMAGE)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tls_certificate", None, "No such file"),
        ("tls_certificate", "x", "can't be used"),
        ("tls_key", "x", "can't be used"),
    ],
)
def test_unusable_tls_files_stop_the_start(
    guard: Guard, tls: dict[str, Any], name: str, text: str | None, message: str
) -> None:
    """Never a server in plain text because a file was wrong."""
    if text is None:
        tls[name].unlink()
    else:
        tls[name].write_text(text)
    with pytest.raises(StartError, match=message), running(guard, **tls):
        pass


def test_a_key_of_another_certificate_stops_the_start(
    guard: Guard, authority: Authority, tls: dict[str, Any]
) -> None:
    """Certificate and key must belong together."""
    _, other = authority.issue("other")
    with (
        pytest.raises(StartError, match="the key does not belong to the certificate"),
        running(guard, tls_certificate=tls["tls_certificate"], tls_key=other),
    ):
        pass


def test_a_key_with_a_password_stops_the_start(guard: Guard, tls: dict[str, Any]) -> None:
    """In words: nobody is there to be asked for it."""
    key = load_pem_private_key(tls["tls_key"].read_bytes(), password=None)
    secret = BestAvailableEncryption(b"secret")
    tls["tls_key"].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))
    message = "can't be used: expected a private key without a password"
    with pytest.raises(StartError, match=message), running(guard, **tls):
        pass


INFER, PRIVILEGED, ADMIN = "infer-token", "privileged-token", "admin-token"


def write_tokens(path: Path, *entries: str) -> None:
    aside = path.with_suffix(".new")
    aside.write_text("\n".join(entries))
    aside.rename(path)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    past = datetime.now(UTC) - timedelta(seconds=1)
    future = datetime.now(UTC) + timedelta(days=1)
    write_tokens(
        path,
        token_entry(INFER, name="pipeline", scopes=[Scope.INFER]),
        token_entry(PRIVILEGED, name="analyst", scopes=[Scope.PRIVILEGED], expires=future),
        token_entry(ADMIN, name="operator", scopes=[Scope.ADMIN]),
        token_entry("old", name="old", scopes=[Scope.ADMIN], expires=past),
    )
    return path


def test_scopes_include_the_lower_ones(token_file: Path) -> None:
    """An admin may do all, a pipeline may ask."""
    tokens = Tokens(token_file)
    assert tokens.caller(f"Bearer {INFER}").scopes == {Scope.INFER}
    assert tokens.caller(f"bearer {PRIVILEGED}").scopes == {Scope.INFER, Scope.PRIVILEGED}
    assert tokens.caller(f"Bearer {ADMIN}").scopes == set(Scope)
    assert tokens.caller(f"Bearer {INFER}").name == "pipeline"
    with pytest.raises(ForbiddenError, match="a token with the scope 'admin'"):
        tokens.caller(f"Bearer {PRIVILEGED}").require(Scope.ADMIN)
    assert not ANYBODY.may(Scope.ADMIN)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "expected metadata 'authorization: Bearer TOKEN'"),
        ("", "expected metadata"),
        (INFER, "expected metadata"),
        (f"Basic {INFER}", "expected metadata"),
        ("Bearer ", "expected metadata"),
        ("Bearer \t  ", "expected metadata"),
        ("Bearer wrong", "unknown token"),
        ("Bearer old", "expired token"),
    ],
)
def test_anything_but_a_live_token_is_refused(
    token_file: Path, header: str | None, message: str
) -> None:
    """Each refusal says what is wrong, and nothing of other tokens."""
    with pytest.raises(UnauthenticatedError, match=message):
        Tokens(token_file).caller(*([] if header is None else [header]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[token]", "can't be read"),
        ("[other]", "unknown key 'other'"),
        ("token = 1", r"expected \[\[token\]\] tables"),
        ("[[token]]\nscopes=['infer']", "expected 64 lower-case hex digits"),
        (f"[[token]]\nsha256='{'0' * 64}'", "expected scopes of admin, infer, privileged"),
        (f"[[token]]\nsha256='{'0' * 64}'\nscopes=['root']", "expected scopes of"),
        (f"[[token]]\nsha256='{'0' * 64}'\nscopes=[['infer']]", "expected scopes of"),
        (
            f"[[token]]\nsha256='{'0' * 64}'\nscopes=['infer']\n" * 2,
            "once, got one as token 1 and 2",
        ),
        (f"[[token]]\nsha256='{'0' * 64}'\nscopes=['infer']\nexpires=2030-01-01", "expected a dat"),
        (
            f"[[token]]\nsha256='{'0' * 64}'\nscopes=['infer']\nexpires=2030-01-01T00:00:00",
            "expected a time zone",
        ),
        (f"[[token]]\nsha256='{'0' * 64}'\nscopes=['infer']\nscope=1", "unknown key 'scope'"),
        (f"[[token]]\nsha256='{'0' * 64}'\nscopes=['infer']\ncalls=0", "expected calls of more"),
        (f"[[token]]\nsha256='{'0' * 64}'\nscopes=['infer']\ncalls=1.5", "expected calls of more"),
        *(
            (
                f"[[token]]\nsha256='{hashlib.sha256(blank).hexdigest()}'\nscopes=['infer']",
                "a blank",
            )
            for blank in (b"", b" ", b"\n", b"\r\n")
        ),
    ],
)
def test_an_unreadable_token_file_stops_the_start(tmp_path: Path, text: str, message: str) -> None:
    """Never an open server because the file was wrong."""
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(StartError, match=message):
        Tokens(path)


@pytest.fixture
def guarded(guard: Guard, token_file: Path) -> Iterator[str]:
    with running(guard, tokens=token_file) as server:
        yield server.address


def test_what_each_scope_sees(guarded: str, guard: Guard, mixed: Images) -> None:
    """A pipeline sees verdict and coarse likelihood, a privileged caller everything."""
    own = guard.inspect(mixed[:8])
    with Client(guarded, token=INFER) as client:
        coarse = client.inspect(mixed[:8])
        thresholds = client.describe().thresholds
    assert (coarse.is_adversarial == own.is_adversarial).all()
    assert set(coarse.likelihood.tolist()) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert np.isnan(coarse.score).all()
    assert coarse.evidence.shape == (8, 0)
    assert np.isnan(list(thresholds.values())).all()
    with Client(guarded, token=PRIVILEGED) as client:
        full = client.inspect(mixed[:8])
        assert np.isfinite(list(client.describe().thresholds.values())).all()
    assert (full.score == own.score).all()


@pytest.mark.parametrize("token", [None, "wrong", "old"])
def test_without_a_live_token_only_health_answers(guarded: str, token: str | None) -> None:
    """Probes need no secret; everything else does, streams too."""
    assert is_healthy(guarded)
    with Client(guarded, token=token) as client:
        for call in (lambda: client.inspect(IMAGE), client.describe,
                     lambda: list(client.stream(iter([IMAGE])))):  # fmt: skip
            with pytest.raises(CallError) as caught:
                call()
            assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED


def test_two_headers_are_none(guarded: str, token_file: Path) -> None:
    """A proxy may have looked at the other one, so neither counts, however good it is."""
    with pytest.raises(UnauthenticatedError, match="expected one 'authorization', got 2"):
        Tokens(token_file).caller(f"Bearer {INFER}", f"Bearer {INFER}")
    both = [("authorization", f"Bearer {name}") for name in (INFER, ADMIN)]
    with grpc.insecure_channel(guarded) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/reluguard.v1.Guard/Describe")(b"", metadata=both)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    for text in ("", " \n", " mine", "two words", "schl\u00fcssel"):
        with pytest.raises(ValueError, match="visible ASCII characters, which a header can bring"):
            token_entry(text, name="blank", scopes=[Scope.INFER])


def test_tokens_rotate_without_a_restart(
    token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A new token works, a revoked one doesn't, a broken file changes nothing."""
    tokens = Tokens(token_file)
    tokens.caller(f"Bearer {INFER}")
    write_tokens(token_file, token_entry("new", name="new", scopes=[Scope.INFER]))
    assert tokens.caller("Bearer new").name == "new"
    with pytest.raises(UnauthenticatedError):
        tokens.caller(f"Bearer {INFER}")
    token_file.write_text("[[")
    assert tokens.caller("Bearer new").name == "new"
    assert "the last good one stays" in caplog.text
    caplog.clear()
    token_file.unlink()
    for _ in range(3):
        assert tokens.caller("Bearer new").name == "new"
    assert caplog.text.count("the last good one stays") == 1  # callers can't fill the log
    assert os.fspath(token_file) not in caplog.text or "No such file" in caplog.text


def test_token_files_of_any_editor_are_read(tmp_path: Path) -> None:
    """A byte order mark, lines ended as Windows does and blank ones say nothing."""
    path = tmp_path / "tokens.toml"
    text = token_entry("mine", name="mine", scopes=[Scope.INFER])
    path.write_bytes(b"\xef\xbb\xbf\r\n\r\n" + text.replace("\n", "\r\n").encode() + b"\r\n \r\n")
    assert Tokens(path).caller("Bearer mine").name == "mine"


def test_a_revoked_token_ends_an_open_stream(guard: Guard, token_file: Path) -> None:
    """The token is looked at for each message, not for the connection's life."""
    seen = Event()

    def batches() -> Iterator[Images]:
        yield IMAGE
        assert seen.wait(30)
        write_tokens(token_file, token_entry("new", name="new", scopes=[Scope.INFER]))
        yield IMAGE

    with running(guard, tokens=token_file) as server, Client(server.address, token=INFER) as client:
        stream = client.stream(batches())
        assert not isinstance(next(stream), CallError)
        seen.set()
        with pytest.raises(CallError, match="UNAUTHENTICATED: unknown token"):
            next(stream)
