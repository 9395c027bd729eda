"""TLS endpoints: what is said of them, their files, renewals, and the handshake."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.endpoints import _parse, quoteStringArgument
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs

from llmproxy.errors import ConfigError
from llmproxy.listening.certificates import load
from llmproxy.listening.endpoints import TlsEndpoint, parse, read_tls, with_backlog
from llmproxy.listening.listen import check
from llmproxy.listening.serving import AGAIN, LOOK, SOON, Certificates
from tests.certificates import Pair, authority, issue

NOW = 1_800_000_000.0
DAY = 86400.0


# -- descriptions -----------------------------------------------------------------------------------


def test_an_endpoint_is_read() -> None:
    """With names as Twisted has them, or without for the first three."""
    found = read_tls("ssl:8443:privateKey=/k:certKey=/c:interface=127.0.0.1")
    assert found is not None
    assert (found.port, found.private_key, found.certificate) == (8443, "/k", "/c")
    assert (found.interface, found.http2, found.proxied, found.chain) == ("127.0.0.1", True, False, None)
    both = read_tls(r"haproxy:ssl:8443:/a\:b.pem:interface=\:\::http2=no:backlog=5")
    assert both is not None
    assert (both.private_key, both.certificate) == ("/a:b.pem", "/a:b.pem")
    assert (both.interface, both.http2, both.proxied, both.backlog) == ("::", False, True, 5)
    assert read_tls("tcp:8000") is None
    assert read_tls("haproxy:tcp:8000") is None


@pytest.mark.parametrize(
    ("description", "told"),
    [
        ("ssl:8443", "it needs privateKey=FILE"),
        ("ssl:privateKey=k", "port is ''"),
        ("ssl:70000:privateKey=k", "from 0 to 65535"),
        ("ssl:8443:privateKey=k:cert=c", "it knows no cert"),
        ("ssl:8443:privateKey=k:sslmethod=TLSv1_METHOD", "TLS 1.2 and 1.3 are served"),
        ("ssl:8443:k:c:TLSv1_METHOD", "'TLSv1_METHOD' needs a name"),
        ("ssl:8443:privateKey=k:http2=maybe", "must be yes or no"),
        ("ssl:8443:privateKey=k:backlog=0", "from 1"),
        ("ssl:8443:privateKey=k\\", "ends with a backslash"),
        ("nonsense:1", "is no endpoint"),
        ("tcp:x", "is no endpoint"),
    ],
)
def test_what_is_not_understood_is_told(description: str, told: str) -> None:
    """In one line, before anything is bound."""
    with pytest.raises(ConfigError) as wrong:
        check(None, description)
    assert told in str(wrong.value)
    assert repr(description) in str(wrong.value)
    assert "\n" not in str(wrong.value)


WORDS = st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=12)


@given(
    st.lists(WORDS, min_size=1, max_size=5), st.dictionaries(st.text("abc", min_size=1), WORDS, max_size=3)
)
def test_descriptions_are_read_as_twisted_reads_them(plain: list[str], named: dict[str, str]) -> None:
    """Colons, backslashes and equals signs in paths included."""
    words = [quoteStringArgument(word).replace("=", "\\=") for word in plain]
    words += [f"{name}={quoteStringArgument(value)}" for name, value in named.items()]
    description = ":".join(words)
    assert parse(description) == _parse(description) == (plain, named)


def test_room_for_those_who_wait_to_be_accepted() -> None:
    """Unless the description says how much."""
    assert with_backlog("tcp:8000") == "tcp:8000:backlog=1024"
    assert with_backlog("tcp:8000:backlog=7") == "tcp:8000:backlog=7"
    assert with_backlog("systemd:domain=INET:index=0") == "systemd:domain=INET:index=0"


# -- files ------------------------------------------------------------------------------------------


def endpoint(key: Path, certificate: Path, chain: Path | None = None) -> TlsEndpoint:
    return TlsEndpoint("ssl:8443", 8443, str(key), str(certificate), None if chain is None else str(chain))


def problem(tls: TlsEndpoint) -> str:
    with pytest.raises(ConfigError) as wrong:
        load(tls)
    told = str(wrong.value)
    assert "\n" not in told
    assert told.startswith("listen: 'ssl:8443': ")
    return told


def test_what_is_wrong_with_files_is_told(tmp_path: Path) -> None:
    """Which file it is, and what to do about it; no line has anything of a key in it."""
    pair, other = issue(), issue("other")
    key, certificate = pair.write(tmp_path)
    other_key, _ = other.write(tmp_path, "other")
    missing = tmp_path / "missing.pem"
    assert f"cannot read the private key {missing}: No such file" in problem(endpoint(missing, certificate))
    assert f"cannot read the certificate {missing}: No such file" in problem(endpoint(key, missing))
    assert "Is a directory" in problem(endpoint(tmp_path, certificate))
    assert f"{key} has no certificate in PEM form" in problem(endpoint(key, key))
    assert f"{certificate} has no private key in PEM form" in problem(endpoint(certificate, certificate))
    assert f"{certificate} is not of the key {other_key}" in problem(endpoint(other_key, certificate))
    locked = tmp_path / "locked.key"
    locked.write_bytes(pair.locked(b"secret"))
    told = problem(endpoint(locked, certificate))
    assert "has a passphrase" in told
    assert "openssl pkey" in told
    empty = tmp_path / "empty.pem"
    empty.touch()
    assert "has no certificate" in problem(endpoint(key, empty))
    assert "has no certificate" in problem(endpoint(key, certificate, empty))
    wrong_order = tmp_path / "order.pem"
    wrong_order.write_bytes(other.pem + pair.pem)
    assert "must be the first in its file" in problem(endpoint(key, wrong_order))


def test_a_key_that_openssl_does_not_take(tmp_path: Path) -> None:
    """One that is too short is refused before anybody is served with it, with OpenSSL's own words."""
    pair = issue()
    short = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "short")])
    weak = (
        x509.CertificateBuilder(name, name, short.public_key(), 1)
        .not_valid_before(pair.certificate.not_valid_before_utc)
        .not_valid_after(pair.certificate.not_valid_after_utc)
        .sign(short, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = short.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    both = tmp_path / "weak.pem"
    both.write_bytes(weak.public_bytes(pem) + secret)
    told = problem(endpoint(both, both))
    assert f"OpenSSL does not take {both} (" in told
    assert "key too small" in told


def test_a_key_without_rights_names_who_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is somebody else who may read it; a missing one is no matter of rights."""
    key, certificate = issue().write(tmp_path)

    def refuse(path: str, *_: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("builtins.open", refuse)
    told = problem(endpoint(key, certificate))
    assert f"Permission denied; llmproxy runs as user {os.getuid()}, group {os.getgid()}" in told
    monkeypatch.undo()
    assert "llmproxy runs as" not in problem(endpoint(tmp_path / "none", certificate))


def test_a_certificate_with_no_names_of_hosts(tmp_path: Path) -> None:
    """It is told by its subject."""
    key, certificate = issue("old.example", names=()).write(tmp_path)
    assert load(endpoint(key, certificate)).names == ["CN=old.example"]


@pytest.mark.parametrize(
    ("offers", "spoken"),
    [
        ([b"h2", b"http/1.1"], b"h2"),
        ([b"http/1.1", b"h2"], b"h2"),
        ([b"http/1.1"], b"http/1.1"),
        ([b"imap"], b""),
        ([], b""),
    ],
)
def test_what_is_spoken(tmp_path: Path, offers: list[bytes], spoken: bytes) -> None:
    """The best that both know; a client that names nothing of ours speaks HTTP/1.1, as one without ALPN."""
    by = authority()
    made = Handshake(load(endpoint(*issue(by=by).write(tmp_path))).context, by)
    if offers:
        made.client.set_alpn_protos(offers)
    made.run()
    assert made.client.get_alpn_proto_negotiated() == spoken
    assert made.server.get_alpn_proto_negotiated() == spoken


def test_key_and_chain_may_be_in_one_file(tmp_path: Path) -> None:
    """As HAProxy wants it; what ends first of a chain counts."""
    by = authority()
    middle = issue("middle", names=(), by=by, ca=True, days=3, now=NOW)
    leaf = issue(by=middle, days=80, now=NOW)
    both = tmp_path / "both.pem"
    both.write_bytes(leaf.pem + middle.pem + leaf.key_pem)
    loaded = load(endpoint(both, both))
    assert loaded.expires == NOW + 3 * DAY
    assert loaded.names == ["localhost"]


# -- the handshake ----------------------------------------------------------------------------------


class Handshake:
    """A client in memory."""

    def __init__(self, context: SSL.Context, trusted: Pair, **versions: int) -> None:
        self.server = SSL.Connection(context, None)
        self.server.set_accept_state()
        mine = SSL.Context(SSL.TLS_CLIENT_METHOD)
        if "most" in versions:
            mine.set_max_proto_version(versions["most"])
        store = mine.get_cert_store()
        assert store is not None
        store.add_cert(X509.from_cryptography(trusted.certificate))
        mine.set_verify(SSL.VERIFY_PEER)
        self.client = SSL.Connection(mine, None)
        self.client.set_connect_state()

    def run(self) -> Handshake:
        done = 0
        for _ in range(10):
            for here, there in ((self.client, self.server), (self.server, self.client)):
                try:
                    here.do_handshake()
                    done += 1
                except SSL.WantReadError:
                    pass
                with suppress(SSL.WantReadError):
                    there.bio_write(here.bio_read(65536))
        assert done >= 2
        return self

    def shown(self) -> str:
        certificate = self.client.get_peer_certificate(as_cryptography=True)
        assert certificate is not None
        return certificate.subject.rfc4514_string()


def test_a_chain_is_sent(tmp_path: Path) -> None:
    """Clients know the root alone; whether it is in certKey's file or in one of its own."""
    by = authority()
    middle = issue("middle", names=(), by=by, ca=True)
    leaf = issue(by=middle)
    key, certificate = leaf.write(tmp_path, chain=[middle])
    Handshake(load(endpoint(key, certificate)).context, by).run()
    key, certificate = leaf.write(tmp_path, "alone")
    chain = tmp_path / "chain.pem"
    chain.write_bytes(middle.pem)
    Handshake(load(endpoint(key, certificate, chain)).context, by).run()
    with pytest.raises(SSL.Error):
        Handshake(load(endpoint(key, certificate)).context, by).run()


def test_versions_and_ciphers(tmp_path: Path) -> None:
    """TLS 1.3, and 1.2 with forward secrecy; nothing older."""
    pair = issue(names=("localhost",))
    context = load(endpoint(*pair.write(tmp_path))).context
    done = Handshake(context, pair).run()
    assert done.client.get_protocol_version_name() == "TLSv1.3"
    older = Handshake(context, pair, most=SSL.TLS1_2_VERSION).run()
    assert older.client.get_protocol_version_name() == "TLSv1.2"
    assert str(older.client.get_cipher_name()).startswith("ECDHE-")
    with pytest.raises(SSL.Error):
        Handshake(context, pair, most=SSL.TLS1_1_VERSION).run()


# -- renewals ---------------------------------------------------------------------------------------


def told(events: Any, level: LogLevel) -> list[str]:
    return [event["log_format"].format(**event) for event in events if event["log_level"] is level]


def test_a_renewed_certificate_is_served(tmp_path: Path) -> None:
    """To new connections, within a minute of its coming by another target of a link; old ones go on."""
    clock = Clock()
    for name, days in (("old", 90), ("new", 95)):
        folder = tmp_path / name
        folder.mkdir()
        issue(name, days=days).write(folder)
    live = tmp_path / "live"
    live.symlink_to("old")
    certificates = Certificates(clock)
    served = certificates.serve(endpoint(live / "tls.key", live / "tls.pem"))
    before = served.loaded.context
    clock.advance(LOOK)
    assert served.loaded.context is before
    (tmp_path / "next").symlink_to("new")
    (tmp_path / "next").rename(live)
    with capturedLogs() as events:
        clock.advance(LOOK)
    assert served.loaded.context is not before
    assert "new certificate" in told(events, LogLevel.info)[0]
    certificates.close()
    assert clock.getDelayedCalls() == []


def test_a_renewal_that_is_wrong_keeps_what_is_served(tmp_path: Path) -> None:
    """It is logged once; one that is complete later is taken, though its first half was seen."""
    clock = Clock()
    key, certificate = issue("old").write(tmp_path)
    certificates = Certificates(clock)
    served = certificates.serve(endpoint(key, certificate))
    before = served.loaded
    new = issue("new")
    certificate.write_bytes(new.pem + b"\n")
    with capturedLogs() as events:
        certificates.look()
        certificates.look()
    (line,) = told(events, LogLevel.error)
    assert "the certificate that was served before stays" in line
    assert "is not of the key" in line
    with capturedLogs() as events:
        certificates.look(asked=True)
    assert told(events, LogLevel.error) == [line]
    assert served.loaded is before
    key.write_bytes(new.key_pem + b"\n")
    certificates.look()
    assert served.loaded is not before
    key.unlink()
    with capturedLogs() as events:
        clock.advance(LOOK)
    assert "No such file" in told(events, LogLevel.error)[0]
    assert served.loaded is not before
    certificates.close()


def test_an_end_that_is_near_is_told_once_a_day(tmp_path: Path) -> None:
    """From 14 days before it on, and after it, until there is another one; the metric counts down."""
    clock = Clock()
    clock.advance(NOW)
    key, certificate = issue(days=15, now=NOW).write(tmp_path)
    certificates = Certificates(clock)

    def lines(seconds: float) -> list[str]:
        with capturedLogs() as events:
            for _ in range(int(seconds / (10 * LOOK))):
                clock.advance(10 * LOOK)
        return told(events, LogLevel.warn)

    served = certificates.serve(endpoint(key, certificate))
    (family,) = certificates.collect()
    assert family.values == [(("8443",), 15 * DAY)]
    assert lines(15 * DAY - SOON - 10 * LOOK) == []
    first = lines(AGAIN - 20 * LOOK)
    assert len(first) == 1
    assert "ends in 14.0 days" in first[0]
    assert len(lines(3 * DAY)) == 3
    late = lines(12 * DAY)
    assert len(late) == 12
    assert "HAS EXPIRED" in late[-1]
    (family,) = certificates.collect()
    assert family.values[0][1] < 0  # type: ignore[operator]
    renewed = issue(days=400, now=NOW)
    renewed.write(tmp_path)
    assert lines(2 * DAY) == []
    assert served.loaded.expires == NOW + 400 * DAY
    certificates.close()


def test_a_key_that_everybody_may_read_is_told(tmp_path: Path) -> None:
    """It is served all the same: many containers have no other way."""
    key, certificate = issue().write(tmp_path)
    key.chmod(0o644)
    with capturedLogs() as events:
        certificates = Certificates(Clock())
        certificates.serve(endpoint(key, certificate))
    assert any("chmod o-r" in line for line in told(events, LogLevel.warn))
    certificates.close()


def test_metrics_tell_of_no_certificate_where_there_is_none() -> None:
    """Not even the family."""
    assert list(Certificates(Clock()).collect()) == []
