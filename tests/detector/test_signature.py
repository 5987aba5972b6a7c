import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from reluguard.detector.artifact import GuardArtifact, read_guard
from reluguard.detector.errors import GuardError, SettingsError
from reluguard.detector.shelf.shelf import current, promote
from reluguard.detector.signature import sign, vouched


@pytest.fixture
def artifact(tiny_guard: Path, tmp_path: Path) -> GuardArtifact:
    shutil.copytree(tiny_guard, tmp_path / "guard")
    return read_guard(tmp_path / "guard")


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a new pair of keys as PEM files: private, public."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def verify(artifact: GuardArtifact, key: Path) -> None:
    """Read a guard that must be signed."""
    read_guard(artifact.path, vouch=vouched(artifact.path, key))


def test_a_signed_guard_verifies(artifact: GuardArtifact, tmp_path: Path) -> None:
    """The signature is the owner's, and survives reading the guard again."""
    private, public = keys(tmp_path, "ours")
    sign(artifact, private)
    verify(read_guard(artifact.path), public)


def test_promotion_signs_the_version(artifact: GuardArtifact, tmp_path: Path) -> None:
    """With a key the version on the shelf is signed, the guard itself is not touched."""
    private, public = keys(tmp_path, "ours")
    promote(tmp_path / "shelf", artifact.path, who="ann", why="first", key=private)
    live = current(tmp_path / "shelf")
    assert live is not None
    verify(live, public)
    assert not (artifact.path / "manifest.sig").exists()


def test_no_other_signature_counts(artifact: GuardArtifact, tmp_path: Path) -> None:
    """Without a signature, with a stranger's, or with a changed one, a guard is refused."""
    _, public = keys(tmp_path, "ours")
    stranger, _ = keys(tmp_path, "theirs")
    with pytest.raises(GuardError, match="expected a signed guard"):
        verify(artifact, public)
    sign(artifact, stranger)
    with pytest.raises(GuardError, match="is not that of"):
        verify(artifact, public)
    (artifact.path / "manifest.sig").write_bytes(b"\0" * 100)
    with pytest.raises(GuardError, match="is not that of"):
        verify(artifact, public)


def test_a_signature_is_of_one_guard(artifact: GuardArtifact, tmp_path: Path) -> None:
    """Moved to a guard with another manifest it vouches for nothing."""
    private, public = keys(tmp_path, "ours")
    sign(artifact, private)
    manifest = artifact.path / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    with pytest.raises(GuardError, match="is not that of"):
        verify(artifact, public)


def test_the_signature_comes_before_anything_large(artifact: GuardArtifact, tmp_path: Path) -> None:
    """Of a guard that nobody signed not even the arrays are looked at."""
    _, public = keys(tmp_path, "ours")
    (artifact.path / "head.npz").write_bytes(b"no arrays, but who would know")
    with pytest.raises(GuardError, match="expected a signed guard"):
        verify(artifact, public)


def test_keys_of_another_kind_are_refused(artifact: GuardArtifact, tmp_path: Path) -> None:
    """What is no Ed25519 key is named as what is wrong."""
    private, public = keys(tmp_path, "ours")
    other = tmp_path / "other.pem"
    key = generate_private_key(SECP256R1())
    other.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for path, message in ((other, "got another kind"), (public, "can't read one")):
        with pytest.raises(SettingsError, match=f"an Ed25519 private key in .*{message}"):
            sign(artifact, path)
    with pytest.raises(SettingsError, match=r"an Ed25519 public key in .*can't read one"):
        verify(artifact, private)
