"""Who may connect and what they may do: TLS with rotation, bearer tokens with scopes."""

import hashlib
import hmac
import logging
import re
import ssl
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from reluguard.service.errors import ForbiddenError, StartError, UnauthenticatedError
from reluguard.service.quotas import Quota

__all__ = ["ANYBODY", "Caller", "Certificates", "Scope", "Tokens", "token_entry"]

_log = logging.getLogger(__name__)
_TOKEN = re.compile(r"[!-~]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEYS = {"name", "scopes", "sha256", "expires", "calls", "calls_per_s", "rows_per_s", "watched"}
# what `sha256sum` says of nothing at all, and of what one gets from an unset variable
_BLANKS = ("", *(blank * count for blank in " \t\n" for count in range(1, 9)), "\r\n", " \n")
_BLANK = {hashlib.sha256(text.encode()).hexdigest() for text in _BLANKS}


class Scope(StrEnum):
    """What a token allows. Each includes the ones before it."""

    INFER = "infer"  # ask, and see coarse verdicts
    PRIVILEGED = "privileged"  # see scores, p-values, evidence, thresholds
    ADMIN = "admin"  # load and unload models


_INCLUDES = {
    Scope.INFER: {Scope.INFER},
    Scope.PRIVILEGED: {Scope.INFER, Scope.PRIVILEGED},
    Scope.ADMIN: {Scope.INFER, Scope.PRIVILEGED, Scope.ADMIN},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, and what they may.

    `watched` says whether near-equal questions count, where the server counts them.
    """

    name: str
    scopes: frozenset[Scope]
    quota: Quota | None = None
    watched: bool = True

    def may(self, scope: Scope) -> bool:
        """Return whether this caller has the scope."""
        return scope in self.scopes

    def require(self, scope: Scope) -> None:
        """Raise ForbiddenError unless this caller has the scope."""
        if not self.may(scope):
            raise ForbiddenError(f"this call needs a token with the scope {scope.value!r}")


ANYBODY = Caller(name="anybody", scopes=frozenset({Scope.INFER, Scope.PRIVILEGED}))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    name: str
    digest: bytes
    scopes: frozenset[Scope]
    expires: datetime | None
    quota: Quota | None
    watched: bool


@dataclass(slots=True)
class Tokens:
    """The tokens of one TOML file, read again when it changes; a broken file changes nothing.

    ```toml
    [[token]]
    name = "pipeline"             # for the log
    scopes = ["infer"]
    sha256 = "..."                # of the token, in hex: the file holds no secret
    expires = 2027-01-01T00:00:00Z  # may be left out, and so may these:
    calls = 8                     # at once
    calls_per_s = 100
    rows_per_s = 1000
    watched = false               # a camera: near-equal images are what it sends
    ```

    Raises:
        StartError: the file can't be read when the server starts.
    """

    path: Path
    _entries: tuple[_Entry, ...] = field(default=(), init=False)
    _seen: tuple[int, ...] = field(default=(), init=False)
    _trouble: str = field(default="", init=False)

    def __post_init__(self) -> None:
        try:
            self._seen = _fingerprint([self.path])
            self._entries = _read_tokens(self.path)
        except (OSError, ValueError) as error:
            raise StartError(f"the token file {self.path} can't be read: {error}") from error

    def caller(self, *authorization: str) -> Caller:
        """Return who these `authorization` headers speak for.

        Raises:
            UnauthenticatedError: no bearer token, an unknown one, or an expired one; or several
                headers, of which a proxy may have looked at another than we would.
        """
        self._refresh()
        if len(authorization) > 1:
            raise UnauthenticatedError(f"expected one 'authorization', got {len(authorization)}")
        scheme, _, token = "".join(authorization).partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise UnauthenticatedError("expected metadata 'authorization: Bearer TOKEN'")
        digest = hashlib.sha256(token.encode()).digest()
        found = None
        for entry in self._entries:  # all of them, so that time tells nothing
            if hmac.compare_digest(entry.digest, digest):
                found = entry
        if found is None:
            raise UnauthenticatedError("unknown token")
        if found.expires is not None and found.expires <= datetime.now(UTC):
            raise UnauthenticatedError("expired token")
        return Caller(
            name=found.name, scopes=found.scopes, quota=found.quota, watched=found.watched
        )

    def _refresh(self) -> None:
        try:
            seen = _fingerprint([self.path])
            if seen == self._seen:
                return
            self._seen = seen
            self._entries = _read_tokens(self.path)
        except (OSError, ValueError) as error:
            if str(error) != self._trouble:  # once: whoever calls would fill the log
                _log.error("the token file can't be read, the last good one stays: %s", error)
            self._trouble = str(error)
        else:
            self._trouble = ""
            _log.info("read %d tokens", len(self._entries))


def token_entry(
    token: str, *, name: str, scopes: Iterable[Scope], expires: datetime | None = None
) -> str:
    """Return the lines of a token file for this token.

    Raises:
        ValueError: no header could bring it: it is blank, has blanks, or is not ASCII.
    """
    if not _TOKEN.fullmatch(token):
        raise ValueError("expected a token of visible ASCII characters, which a header can bring")
    lines = [
        "[[token]]",
        f'name = "{name}"',
        f"scopes = [{', '.join(repr(str(scope)) for scope in scopes)}]",
        f'sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"',
    ]
    if expires is not None:
        lines.append(f"expires = {expires.isoformat()}")
    return "\n".join([*lines, ""])


def _read_tokens(path: Path) -> tuple[_Entry, ...]:
    document = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors write a mark
    unknown = sorted(set(document) - {"token"})
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}")
    rows = document.get("token", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected [[token]] tables")
    entries = [_entry(number, row) for number, row in enumerate(rows, 1)]
    first: dict[bytes, int] = {}
    for number, entry in enumerate(entries, 1):
        # or one would be looked at, and what the other forbids be allowed
        if (other := first.setdefault(entry.digest, number)) != number:
            raise ValueError(f"expected each token once, got one as token {other} and {number}")
    return tuple(entries)


def _entry(number: int, row: dict[str, Any]) -> _Entry:
    unknown = sorted(set(row) - _KEYS)
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r} in token {number}")
    digest = row.get("sha256")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise ValueError(f"expected 64 lower-case hex digits as sha256 in token {number}")
    if digest in _BLANK:
        raise ValueError(f"expected the sha256 of a token in token {number}, got that of a blank")
    scopes = row.get("scopes")
    known = [scope.value for scope in Scope]
    if not isinstance(scopes, list) or not scopes or any(scope not in known for scope in scopes):
        raise ValueError(f"expected scopes of {', '.join(sorted(known))} in token {number}")
    expires = row.get("expires")
    if expires is not None and not isinstance(expires, datetime):
        raise ValueError(f"expected a date and time as expires in token {number}")
    if expires is not None and expires.tzinfo is None:
        raise ValueError(f"expected a time zone in expires of token {number}")
    watched = row.get("watched", True)
    if not isinstance(watched, bool):
        raise ValueError(  # noqa: TRY004 - the file is wrong, not the program
            f"expected watched of true or false in token {number}, got {watched!r}"
        )
    return _Entry(
        name=str(row.get("name", f"token {number}")),
        digest=bytes.fromhex(digest),
        scopes=frozenset().union(*(_INCLUDES[Scope(scope)] for scope in scopes)),
        expires=expires,
        quota=_quota(number, row),
        watched=watched,
    )


def _quota(number: int, row: dict[str, Any]) -> Quota | None:
    found = {name: row[name] for name in ("calls", "calls_per_s", "rows_per_s") if name in row}
    for name, value in found.items():
        kinds = int if name == "calls" else int | float
        if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise ValueError(f"expected {name} of more than 0 in token {number}, got {value!r}")
    return Quota(**found) if found else None


def _fingerprint(paths: Sequence[Path]) -> tuple[int, ...]:
    stats = [path.stat() for path in paths]
    return tuple(value for stat in stats for value in (stat.st_mtime_ns, stat.st_size, stat.st_ino))


@dataclass(slots=True)
class Certificates:
    """The server's certificate, key and client CA, looked at again on each handshake.

    A broken or mismatched set of files leaves the last good one in use.

    Raises:
        StartError: the files can't be used when the server starts.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    _seen: tuple[int, ...] = field(default=(), init=False)
    _trouble: str = field(default="", init=False)

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials that follow the files."""
        try:
            self._seen = _fingerprint(self._paths)
            first = self._read()
        except (OSError, ValueError) as error:
            raise StartError(f"the TLS files can't be used: {error}") from error
        return grpc.dynamic_ssl_server_credentials(
            first,
            self._fetch,
            require_client_authentication=self.client_ca is not None,
        )

    def context(self) -> ssl.SSLContext:
        """Return the same for a port that Python's own TLS serves; it follows the files too."""
        try:
            self._seen = _fingerprint(self._paths)
            self._read()
            latest: list[Any] = [self._seen, self._context()]
        except (OSError, ValueError) as error:
            raise StartError(f"the TLS files can't be used: {error}") from error

        def follow(connection: ssl.SSLObject, *_: object) -> None:
            try:
                seen = _fingerprint(self._paths)
                if seen != latest[0]:
                    latest[0] = seen
                    self._read()
                    latest[1] = self._context()
            except (OSError, ValueError) as error:
                self._tell(error)
            connection.context = latest[1]

        first: ssl.SSLContext = latest[1]
        first.sni_callback = follow
        return first

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.certificate, self.key)
        context.set_alpn_protocols(["http/1.1"])
        if self.client_ca is not None:
            context.load_verify_locations(self.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    @property
    def _paths(self) -> list[Path]:
        paths = [self.certificate, self.key]
        return paths if self.client_ca is None else [*paths, self.client_ca]

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Return a new configuration, or None to keep the last one. Called by gRPC's threads."""
        try:
            seen = _fingerprint(self._paths)
            if seen == self._seen:
                return None
            # remembered before reading: a file half written now changes once more when it is whole
            self._seen = seen
            configuration = self._read()
        except (OSError, ValueError) as error:
            self._tell(error)
            return None
        self._trouble = ""
        _log.info("read new TLS files")
        return configuration

    def _tell(self, error: Exception) -> None:
        if str(error) != self._trouble:  # once: whoever shakes hands would fill the log
            _log.error("the TLS files can't be used, the last good ones stay: %s", error)
        self._trouble = str(error)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        chain = self.certificate.read_bytes()
        key = self.key.read_bytes()
        roots = None if self.client_ca is None else self.client_ca.read_bytes()
        own = _public(x509.load_pem_x509_certificates(chain)[0].public_key())
        try:
            theirs = _public(load_pem_private_key(key, password=None).public_key())
        except (TypeError, UnsupportedAlgorithm) as error:
            raise ValueError(
                "expected a private key without a password, of a kind that certificates have: "
                f"{error}"
            ) from error
        if own != theirs:
            raise ValueError("the key does not belong to the certificate")
        if roots is not None:
            x509.load_pem_x509_certificates(roots)
        return grpc.ssl_server_certificate_configuration([(key, chain)], roots)


def _public(key: Any) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded
