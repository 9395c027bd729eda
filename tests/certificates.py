"""Certificates for tests, made on the spot."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["Pair", "authority", "issue"]

_KEY = serialization.PrivateFormat.PKCS8
_PEM = serialization.Encoding.PEM


@frozen
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(_PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(_PEM, _KEY, serialization.NoEncryption())

    def locked(self, passphrase: bytes) -> bytes:
        """The key behind a passphrase."""
        return self.key.private_bytes(_PEM, _KEY, serialization.BestAvailableEncryption(passphrase))

    def write(self, folder: Path, name: str = "tls", chain: Sequence[Pair] = ()) -> tuple[Path, Path]:
        """Key and chain as files that only their owner may read."""
        key, certificate = folder / f"{name}.key", folder / f"{name}.pem"
        key.touch(0o600)
        key.write_bytes(self.key_pem)
        certificate.write_bytes(self.pem + b"".join(one.pem for one in chain))
        return key, certificate


def authority(name: str = "tests") -> Pair:
    """One that issues others."""
    return issue(name, names=(), ca=True)


def issue(
    name: str = "localhost",
    *,
    names: Sequence[str] = ("localhost",),
    by: Pair | None = None,
    days: float = 90,
    now: float | None = None,
    ca: bool = False,
) -> Pair:
    """A certificate.

    :param by: who signs it; None: itself.
    :param days: that it is good for.
    :param now: POSIX seconds; None: the wall clock's.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = (
        datetime.datetime.now(datetime.UTC)
        if now is None
        else datetime.datetime.fromtimestamp(now, datetime.UTC)
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if by is None else by.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - datetime.timedelta(days=1))
        .not_valid_after(begin + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if names:
        told = x509.SubjectAlternativeName([x509.DNSName(one) for one in names])
        builder = builder.add_extension(told, critical=False)
    signed = builder.sign(key if by is None else by.key, hashes.SHA256())
    return Pair(signed, key)
