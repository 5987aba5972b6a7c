"""A certificate authority that lives for one exercise."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["Authority", "replace_file"]


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file by rename, as whoever rotates it should."""
    aside = path.with_name(f".{path.name}.new")
    aside.write_bytes(data)
    aside.rename(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """Issues certificates for 127.0.0.1."""

    folder: Path
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def made(cls, folder: Path) -> "Authority":
        """Make a key and a certificate that signs itself."""
        folder.mkdir(parents=True, exist_ok=True)
        authority = cls(folder=folder, key=ec.generate_private_key(ec.SECP256R1()))
        own = authority._signed("ca", authority.key.public_key(), is_ca=True)
        authority.path.write_bytes(_pem(own))
        return authority

    @property
    def path(self) -> Path:
        """Where its certificate lies."""
        return self.folder / "ca.pem"

    def issue(self, name: str) -> tuple[Path, Path, int]:
        """Write a certificate and its key, each by rename; return their paths and the serial."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._signed(name, key.public_key(), is_ca=False)
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        replace_file(paths[0], _pem(certificate))
        replace_file(paths[1], secret)
        return *paths, certificate.serial_number

    def _signed(
        self, name: str, public: ec.EllipticCurvePublicKey, *, is_ca: bool
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")]))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA256())
        )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
