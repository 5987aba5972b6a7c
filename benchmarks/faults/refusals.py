"""Who has no right to an answer gets a clear refusal: tokens, certificates, signatures."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from benchmarks.faults.certificates import Authority, replace_file
from benchmarks.faults.pair import Pair, make_pair
from benchmarks.faults.process import Process, served
from benchmarks.faults.report import Finding
from benchmarks.faults.traffic import NO_RETRIES, Ask, Kit, code_of
from reluguard.detector.artifact import read_guard
from reluguard.detector.signature import sign
from reluguard.service.protocols.pb import open_inference as oip
from reluguard.service.protocols.pb import reluguard_v1 as pb
from reluguard.service.security import Scope, token_entry

__all__ = ["run"]

_LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"
_FEEDBACK = "/reluguard.v1.Guard/Feedback"


def run(pair: Pair | None, folder: Path, *, short: bool) -> list[Finding]:  # noqa: ARG001 - as its peers
    """Try each of them once."""
    pair = pair or make_pair(folder / "pair")
    kit = Kit(pair)
    ask = kit.inspect_tensor(kit.images(1))
    return [
        _finding("tokens", _tokens(pair, ask, folder)),
        _finding("certificates", _certificates(pair, ask, folder)),
        _finding("signatures", _signatures(pair, folder)),
    ]


def _finding(what: str, cases: Mapping[str, tuple[str, str]]) -> Finding:
    """Hold what came against what must come: the beginning of "CODE: details"."""
    missed = {name: got for name, (wanted, got) in cases.items() if not got.startswith(wanted)}
    return Finding(
        exercise=f"refusals, {what}",
        goal="each a clear refusal by code and words",
        figures={name: got[:120] for name, (_, got) in cases.items()},
        met=not missed,
    )


def _answer(
    address: str,
    ask: Ask,
    *,
    token: str | None = None,
    credentials: grpc.ChannelCredentials | None = None,
) -> str:
    options = list(NO_RETRIES)
    channel = (
        grpc.insecure_channel(address, options)
        if credentials is None
        else grpc.secure_channel(address, credentials, options)
    )
    metadata = None if token is None else [("authorization", token)]
    with channel:
        try:
            channel.unary_unary(ask.method)(ask.data, timeout=5, metadata=metadata)
        except grpc.RpcError as error:
            failed: Any = error
            return f"{code_of(error)}: {failed.details()}"
    return "OK"


def _entries(*rows: tuple[str, Scope, datetime | None]) -> bytes:
    return "".join(
        token_entry(token, name=token, scopes=[scope], expires=expires)
        for token, scope, expires in rows
    ).encode()


def _tokens(pair: Pair, ask: Ask, folder: Path) -> dict[str, tuple[str, str]]:
    file = folder / "tokens.toml"
    past, hour = datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC) + timedelta(hours=1)
    file.write_bytes(
        _entries(
            ("asks", Scope.INFER, hour), ("old", Scope.INFER, past), ("rules", Scope.ADMIN, None)
        )
    )
    load = Ask(
        method=_LOAD, data=oip.RepositoryModelLoadRequest(model_name="small").SerializeToString()
    )
    label = Ask(method=_FEEDBACK, data=pb.FeedbackRequest().SerializeToString())
    settings = {"tokens": file, "repository_control": "true"}
    with served(pair, settings=settings) as server:
        at = server.address
        cases = {
            "a good token": ("OK", _answer(at, ask, token="Bearer asks")),
            "no token": ("UNAUTHENTICATED: expected metadata", _answer(at, ask)),
            "an unknown token": (
                "UNAUTHENTICATED: unknown token", _answer(at, ask, token="Bearer x"),
            ),
            "another scheme": (
                "UNAUTHENTICATED: expected metadata", _answer(at, ask, token="Basic asks"),
            ),
            "an expired token": (
                "UNAUTHENTICATED: expired token", _answer(at, ask, token="Bearer old"),
            ),
            "load without the scope": (
                "PERMISSION_DENIED", _answer(at, load, token="Bearer asks"),
            ),
            "labels without the scope": (
                "PERMISSION_DENIED", _answer(at, label, token="Bearer asks"),
            ),
            "load with the scope": ("OK", _answer(at, load, token="Bearer rules")),
        }  # fmt: skip
        # "rules" loses its scope, "asks" its life
        replace_file(file, _entries(("rules", Scope.INFER, None)))
        cases |= {
            "a revoked token": (
                "UNAUTHENTICATED: unknown token", _answer(at, ask, token="Bearer asks"),
            ),
            "a revoked scope": (
                "PERMISSION_DENIED", _answer(at, load, token="Bearer rules"),
            ),
            "what it kept": ("OK", _answer(at, ask, token="Bearer rules")),
        }  # fmt: skip
    return cases


def _certificates(pair: Pair, ask: Ask, folder: Path) -> dict[str, tuple[str, str]]:
    authority, stranger = Authority.made(folder / "ca"), Authority.made(folder / "other")
    certificate, key, _ = authority.issue("server")

    def trusting(*pair_of: Path) -> grpc.ChannelCredentials:
        own = [path.read_bytes() for path in pair_of]
        chain, secret = own or (None, None)
        return grpc.ssl_channel_credentials(authority.path.read_bytes(), secret, chain)

    tls = {"tls_certificate": certificate, "tls_key": key}
    cases: dict[str, tuple[str, str]] = {}
    with served(pair, settings=tls) as server:
        other = grpc.ssl_channel_credentials(stranger.path.read_bytes())
        cases |= {
            "TLS": ("OK", _answer(server.address, ask, credentials=trusting())),
            "plain text on a TLS port": ("UNAVAILABLE", _answer(server.address, ask)),
            "a caller that trusts another authority": (
                "UNAVAILABLE", _answer(server.address, ask, credentials=other),
            ),
        }  # fmt: skip
    with served(pair) as server:
        cases["TLS on a plain port"] = (
            "UNAVAILABLE", _answer(server.address, ask, credentials=trusting()),
        )  # fmt: skip
        cases["and the plain port afterwards"] = ("OK", _answer(server.address, ask))
    with served(pair, settings=tls | {"tls_client_ca": authority.path}) as server:
        own, foreign = authority.issue("client")[:2], stranger.issue("client")[:2]
        cases |= {
            "mTLS": ("OK", _answer(server.address, ask, credentials=trusting(*own))),
            "no client certificate": (
                "UNAVAILABLE", _answer(server.address, ask, credentials=trusting()),
            ),
            "another authority's client certificate": (
                "UNAVAILABLE", _answer(server.address, ask, credentials=trusting(*foreign)),
            ),
        }  # fmt: skip
    return cases


def _signatures(pair: Pair, folder: Path) -> dict[str, tuple[str, str]]:
    guard = read_guard(pair.guard)
    keys = {name: _key_pair(folder, name) for name in ("ours", "theirs")}
    cases = {}
    settings = {"public_key": keys["ours"][1]}
    cases["an unsigned guard"] = ("1: reluguard: expected a signed guard", _start(pair, settings))
    sign(guard, keys["theirs"][0])
    cases["another key's guard"] = ("1: reluguard: the signature of", _start(pair, settings))
    sign(guard, keys["ours"][0])
    with served(pair, settings=settings) as server:
        cases["our key's guard"] = ("serving", "serving")
        sign(guard, keys["theirs"][0])
        cases["another key's guard by reload"] = ("kept, refused", _reload(server))
    (guard.path / "manifest.sig").unlink()
    return cases


def _key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    key = Ed25519PrivateKey.generate()
    paths = folder / f"{name}.key", folder / f"{name}.pub"
    paths[0].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    paths[1].write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return paths


def _start(pair: Pair, settings: Mapping[str, Any]) -> str:
    """Return how a start ends that must fail: its exit code and last line."""
    named = {"model": pair.model, "guard": pair.guard, "port": 0, "metrics_port": 0} | dict(
        settings
    )
    environ = os.environ | {
        f"RELUGUARD_{name.upper()}": str(value) for name, value in named.items()
    }
    done = subprocess.run(
        [sys.executable, "-m", "reluguard", "serve"],
        env=environ, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return f"{done.returncode}: {done.stderr.strip().splitlines()[-1]}"


def _reload(server: Process) -> str:
    server.send(signal.SIGHUP)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if any("refused" in json.dumps(line) for line in server.messages()):
            return "kept, refused" if server.popen.poll() is None else "dead"
        time.sleep(0.05)
    return "not refused"
