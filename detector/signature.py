"""A guard's signature: who vouches for it, as an Ed25519 signature of its digest.

The digest is the manifest's SHA-256 and the manifest holds the SHA-256 of every other file, so 64
bytes in `manifest.sig` beside it vouch for the whole folder. Keys are PEM files, as
`openssl genpkey -algorithm ed25519` writes them.
"""

from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from reluguard.detector.artifact import SIGNATURE, GuardArtifact, write_file
from reluguard.detector.errors import GuardError, SettingsError

__all__ = ["SIGNATURE", "sign", "vouched"]

_PURPOSE = b"reluguard guard, format 1\0"  # a signature made for anything else does not count


def sign(artifact: GuardArtifact, key: Path) -> None:
    """Write the signature beside the manifest, replacing one that is there.

    Args:
        artifact: the guard as read; its folder gets the file.
        key: PEM, an Ed25519 private key without a passphrase.

    Raises:
        SettingsError: it isn't such a key.
    """
    try:
        private = load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"expected an Ed25519 private key in {key}, can't read one") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise SettingsError(f"expected an Ed25519 private key in {key}, got another kind")
    write_file(artifact.path / SIGNATURE, private.sign(_message(artifact.digest)))


def vouched(path: Path | str, key: Path) -> Callable[[str, bytes | None], None]:
    """Return what `read_guard` asks before it reads anything large: is this guard signed?

    Args:
        path: of the guard, for messages.
        key: PEM, an Ed25519 public key.

    Raises:
        SettingsError: it isn't such a key.
    """
    try:
        public = load_pem_public_key(key.read_bytes())
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"expected an Ed25519 public key in {key}, can't read one") from error
    if not isinstance(public, Ed25519PublicKey):
        raise SettingsError(f"expected an Ed25519 public key in {key}, got another kind")

    def vouch(digest: str, signature: bytes | None) -> None:
        if signature is None:
            raise GuardError(f"expected a signed guard, {path} has no {SIGNATURE}")
        try:
            public.verify(signature, _message(digest))
        except InvalidSignature as error:
            raise GuardError(f"the signature of {path} is not that of {key}") from error

    return vouch


def _message(digest: str) -> bytes:
    return _PURPOSE + bytes.fromhex(digest)
