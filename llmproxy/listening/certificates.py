"""A server's certificate and its key, read from their files: what is wrong with them is told in one line."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from attrs import field, frozen
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from OpenSSL import SSL

from llmproxy.errors import ConfigError
from llmproxy.listening.endpoints import TlsEndpoint

__all__ = ["Loaded", "load", "offered", "signature"]

_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: those with forward secrecy that HTTP/2 allows (RFC 9113, appendix A).  TLS 1.3 has no other."""


@frozen
class Loaded:
    """What is served.

    :ivar context: OpenSSL's.
    :ivar expires: POSIX seconds; of the certificate, or of one of the chain if that ends earlier.
    :ivar names: what the certificate is for.
    :ivar exposed: everybody on this machine may read the key.
    """

    context: SSL.Context = field(repr=False)
    expires: float
    names: Sequence[str]
    exposed: bool


def signature(endpoint: TlsEndpoint) -> tuple[object, ...]:
    """Something that changes when one of the files does, be it by another target of a link."""
    return tuple(_stamp(path) for path in _paths(endpoint))


def _paths(endpoint: TlsEndpoint) -> list[str]:
    paths = [endpoint.private_key, endpoint.certificate, endpoint.chain]
    return [path for path in paths if path is not None]


def _stamp(path: str) -> object:
    try:
        found = os.stat(path)
    except OSError as cause:
        return cause.errno
    return found.st_mtime_ns, found.st_ino, found.st_dev, found.st_size


def load(endpoint: TlsEndpoint) -> Loaded:
    """Read them.

    :raises llmproxy.errors.ConfigError: one is missing, cannot be read or is not what it should be; or they
        do not belong together.
    """
    chain = _certificates(endpoint, endpoint.certificate)
    if endpoint.chain is not None:
        chain += _certificates(endpoint, endpoint.chain)
    key = _key(endpoint)
    certificate = chain[0]
    if certificate.public_key() != key.public_key():
        raise _wrong(
            endpoint,
            f"the certificate {endpoint.certificate} is not of the key {endpoint.private_key}"
            + ("; the server's own must be the first in its file" if len(chain) > 1 else ""),
        )
    try:
        context = _context(certificate, chain[1:], key, offered(endpoint))
    except (SSL.Error, ValueError, TypeError) as cause:
        raise _wrong(endpoint, f"OpenSSL does not take {endpoint.certificate} ({_words(cause)})") from None
    return Loaded(
        context,
        min(one.not_valid_after_utc.timestamp() for one in chain),
        _names(certificate),
        _exposed(endpoint.private_key),
    )


def _wrong(endpoint: TlsEndpoint, what: str) -> ConfigError:
    return ConfigError(f"listen: {endpoint.description!r}: {what}")


def _read(endpoint: TlsEndpoint, path: str, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as cause:
        hint = ""
        if isinstance(cause, PermissionError):
            hint = f"; llmproxy runs as user {os.getuid()}, group {os.getgid()}"
        raise _wrong(endpoint, f"cannot read the {what} {path}: {cause.strerror}{hint}") from None


def _certificates(endpoint: TlsEndpoint, path: str) -> list[x509.Certificate]:
    data = _read(endpoint, path, "certificate")
    try:
        return list(x509.load_pem_x509_certificates(data))
    except ValueError:
        raise _wrong(endpoint, f"{path} has no certificate in PEM form") from None


def _key(endpoint: TlsEndpoint) -> PrivateKeyTypes:
    path = endpoint.private_key
    data = _read(endpoint, path, "private key")
    try:
        return serialization.load_pem_private_key(data, password=None)
    except TypeError:
        raise _wrong(
            endpoint,
            f"the private key {path} has a passphrase, for which nobody can be asked; take it off:"
            f" openssl pkey -in {path} -out FILE",
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise _wrong(endpoint, f"{path} has no private key in PEM form") from None


def offered(endpoint: TlsEndpoint) -> list[bytes]:
    """What may be spoken on it (ALPN), the best first: HTTP/2 where it is installed."""
    http2 = endpoint.http2 and find_spec("h2") is not None
    return [b"h2", b"http/1.1"] if http2 else [b"http/1.1"]


def _choose(ours: Sequence[bytes], theirs: Sequence[bytes]) -> Any:
    """The protocol of a connection; with a client that names none of ours it is HTTP/1.1, as without ALPN."""
    return next((protocol for protocol in ours if protocol in theirs), SSL.NO_OVERLAPPING_PROTOCOLS)


def _context(
    certificate: x509.Certificate,
    chain: Sequence[x509.Certificate],
    key: PrivateKeyTypes,
    protocols: Sequence[bytes],
) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(
        SSL.OP_NO_COMPRESSION
        | SSL.OP_NO_RENEGOTIATION
        | SSL.OP_CIPHER_SERVER_PREFERENCE
        # The key of tickets would be kept for as long as the certificate is, and with it every session.
        | SSL.OP_NO_TICKET
    )
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # An idle connection then keeps no buffers.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_cipher_list(_CIPHERS)
    context.use_certificate(certificate)
    for one in chain:
        context.add_extra_chain_cert(one)
    # It is of a kind that pyOpenSSL's annotations leave out.
    context.use_privatekey(key)  # type: ignore[arg-type]
    context.check_privatekey()
    context.set_alpn_select_callback(lambda _, theirs: _choose(protocols, theirs))
    return context


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        told = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return [str(name.value) for name in told]
    except (x509.ExtensionNotFound, ValueError):
        return [certificate.subject.rfc4514_string()]


def _exposed(path: str) -> bool:
    try:
        return bool(os.stat(path).st_mode & stat.S_IROTH)
    except OSError:
        return False


def _words(cause: Exception) -> str:
    """OpenSSL's errors are lists of library, function and reason."""
    errors = cause.args[0] if cause.args and isinstance(cause.args[0], list) else []
    return "; ".join(str(error[-1]) for error in errors) or str(cause)
