"""Whose request it is behind proxies, trusted and others."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config.environment import read_environment
from llmproxy.config.file import read_file
from llmproxy.errors import ConfigError, Refusal
from llmproxy.http.forwarded import Origin, TrustedProxies
from llmproxy.http.headers import Fields
from llmproxy.http.hosts import Hosts

PROXIES = TrustedProxies(("127.0.0.1", "10.0.0.0/8", "fd00::/8"))
PEER = Origin("127.0.0.1", b"127.0.0.1", secure=False)


def origin(*fields: tuple[bytes, bytes]) -> Origin:
    return PROXIES.origin(Fields(list(fields)), PEER)


@pytest.mark.parametrize(
    ("told", "client"),
    [
        (b"192.0.2.7", "192.0.2.7"),
        (b"192.0.2.7, 10.1.2.3", "192.0.2.7"),
        # What a client wrote itself stands left of its own address.
        (b"127.0.0.1, 198.51.100.9, 192.0.2.7, 10.0.0.1", "192.0.2.7"),
        (b"10.9.9.9, 10.0.0.1", "10.9.9.9"),
        (b"192.0.2.7:5123", "192.0.2.7"),
        (b"2001:DB8::1", "2001:db8::1"),
        (b"[2001:db8::1]:443", "2001:db8::1"),
        (b"::ffff:192.0.2.7", "192.0.2.7"),
        (b"192.0.2.7, unknown", "127.0.0.1"),
        (b"192.0.2.7, unknown, 10.0.0.1", "10.0.0.1"),
        (b"", "127.0.0.1"),
        (b",,", "127.0.0.1"),
        (b"192.0.2.7\xff", "127.0.0.1"),
    ],
)
def test_the_client_is_the_right_most_address_that_is_not_trusted(told: bytes, client: str) -> None:
    """What stands left of it was written by whoever that is; what is no address ends the search."""
    found = origin((b"X-Forwarded-For", told))
    assert (found.client, found.forwarded_for) == (client, client.encode())


def test_several_fields_are_one_list() -> None:
    """As RFC 9110 section 5.3 has it."""
    assert origin((b"X-Forwarded-For", b"192.0.2.7"), (b"x-forwarded-for", b"10.0.0.1")).client == "192.0.2.7"


def test_scheme_and_host_are_those_that_belong_to_the_client() -> None:
    """Of lists that were added to, those beside its address; of a single one, that of the nearest proxy."""
    both = origin(
        (b"X-Forwarded-For", b"192.0.2.7, 10.0.0.1"),
        (b"X-Forwarded-Proto", b"https, http"),
        (b"X-Forwarded-Host", b"llm.example, inner"),
    )
    assert (both.secure, both.host) == (True, b"llm.example")
    one = origin((b"X-Forwarded-For", b"192.0.2.7, 10.0.0.1"), (b"X-Forwarded-Proto", b"HTTPS"))
    assert (one.secure, one.host) == (True, None)
    alone = origin((b"X-Forwarded-Proto", b"https"), (b"X-Forwarded-Host", b"llm.example:8443"))
    assert (alone.client, alone.secure, alone.host) == ("127.0.0.1", True, b"llm.example:8443")


@pytest.mark.parametrize("host", [b"a b", b"a/b", b"u@h", b"h\r\nX: y", b"", b"h:http", b"[::1", b'"'])
def test_what_is_no_host_is_not_believed(host: bytes) -> None:
    """It would be put into a header field of the request to the backend."""
    assert origin((b"X-Forwarded-For", b"192.0.2.7"), (b"X-Forwarded-Host", host)).host is None


@pytest.mark.parametrize(
    ("told", "client", "secure", "host"),
    [
        (b"for=192.0.2.7", "192.0.2.7", False, None),
        (b'For="[2001:db8::1]:4711";proto=https;host="llm.example"', "2001:db8::1", True, b"llm.example"),
        (b"for=192.0.2.7;proto=https, for=10.0.0.1;proto=http", "192.0.2.7", True, None),
        (b'for=1.1.1.1, for="_hidden"', "127.0.0.1", False, None),
        (b'for=192.0.2.7;by="a,b;c\\"d"', "192.0.2.7", False, None),
        (b"for=192.0.2.7;;=", "127.0.0.1", False, None),
        (b'for="192.0.2.7', "127.0.0.1", False, None),
    ],
)
def test_the_standard_form_is_understood(told: bytes, client: str, secure: bool, host: bytes | None) -> None:
    """``Forwarded`` of RFC 7239, quotes and all."""
    found = origin((b"Forwarded", told))
    assert (found.client, found.secure, found.host) == (client, secure, host)


def test_a_made_up_forwarded_beside_x_forwarded_for_counts_nothing() -> None:
    """Proxies that write the one pass on what their client has made up of the other."""
    found = origin((b"Forwarded", b"for=6.6.6.6;proto=https"), (b"X-Forwarded-For", b"192.0.2.7"))
    assert (found.client, found.secure) == ("192.0.2.7", False)


def test_who_is_trusted() -> None:
    """Addresses, networks of both versions however they are written, and Unix sockets where that is said."""
    assert not TrustedProxies()
    assert not TrustedProxies().trust("127.0.0.1")
    assert not TrustedProxies().trust(None)
    for address in ("127.0.0.1", "10.200.0.1", "::ffff:10.0.0.1", "fd12::1", "fd12::1%eth0"):
        assert PROXIES.trust(address), address
    for other in ("127.0.0.2", "11.0.0.1", "::1", "fe80::1", "-", "", None):
        assert not PROXIES.trust(other), other
    assert TrustedProxies(("unix",)).trust(None)
    assert TrustedProxies(("unix",))
    assert not TrustedProxies(("unix",)).trust("127.0.0.1")


NOISE = st.one_of(st.binary(max_size=60), st.text(' ,;="\\[]:.0127_abfor%', max_size=60).map(str.encode))


@given(NOISE, NOISE, NOISE, st.ip_addresses())
def test_nothing_that_a_client_writes_changes_who_it_is(a: bytes, b: bytes, c: bytes, real: object) -> None:
    """A trusted proxy that adds the address it sees to whatever it gets tells the truth, and what is told is
    an address in either case."""
    address = ip_address(str(real))
    whole = a + b", " + str(address).encode()
    found = origin((b"X-Forwarded-For", whole), (b"Forwarded", b), (b"X-Forwarded-Host", c))
    ip_address(found.client)
    if not PROXIES.trust(str(address)):
        mapped = getattr(address, "ipv4_mapped", None)
        assert found.client == str(mapped or address).partition("%")[0]


@given(NOISE)
def test_any_forwarded_is_survived(told: bytes) -> None:
    """Whatever it is, somebody is named by an address."""
    ip_address(origin((b"Forwarded", told)).client)


@pytest.mark.parametrize(
    "host",
    [
        b"localhost",
        b"LocalHost:8000",
        b"a.localhost",
        b"127.0.0.1:8000",
        b"192.168.1.20",
        b"[::1]:8000",
        b"[fe80::1%25eth0]:8000",
        b"llm.local",
        b"mybox:8000",
        b"host.docker.internal",
        b"llm.example.com:8443",
        b"llm.example.com.",
        b"x.wild.example",
        b"",
        None,
    ],
)
def test_names_that_are_ones_own(host: bytes | None) -> None:
    """Addresses, names that no stranger can own, and those that the operator lists."""
    assert Hosts(("llm.example.com", "*.wild.example")).take(host)


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"evil.example:8000",
        b"127.0.0.1.nip.io",
        b"localhost.evil.example",
        b"evillocal.example",
        b"wild.example",
        b"x.llm.example.com",
        b"1.2.3.4.5",
        b"a b",
        b"\xff",
        b"evil.example#.local",
        b"user@localhost",
    ],
)
def test_names_that_a_stranger_can_own(host: bytes) -> None:
    """Everything else, and whatever is no name at all."""
    with pytest.raises(Refusal) as refused:
        Hosts(("llm.example.com", "*.wild.example")).require(host)
    assert refused.value.status == 403
    assert "allowed_hosts" in str(refused.value.hint)


def test_every_name_can_be_allowed() -> None:
    """By a star."""
    assert Hosts(("*",)).take(b"evil.example")


@pytest.mark.parametrize(
    "text",
    [
        "trusted_proxies: [10.0.0.0/33]",
        "trusted_proxies: [nginx]",
        "trusted_proxies: 127.0.0.1",
        "trusted_proxies: [':::1']",
        "allowed_hosts: ['llm.example:8000']",
        "allowed_hosts: ['https://llm.example']",
        "allowed_hosts: ['a*.example']",
    ],
)
def test_settings_that_are_not_allowed_are_told(text: str) -> None:
    """In one line that says what is."""
    with pytest.raises(ConfigError, match="a list of") as told:
        read_file(text, "llmproxy.yaml", {})
    assert "\n" not in str(told.value)


def test_the_environment_has_lists_with_commas() -> None:
    """And says what is allowed, too."""
    top = read_environment(
        {"LLMPROXY_TRUSTED_PROXIES": "10.0.0.0/8, ::1", "LLMPROXY_ALLOWED_HOSTS": "a.example"}
    ).top
    assert top["trusted_proxies"].value == ("10.0.0.0/8", "::1")
    assert top["allowed_hosts"].value == ("a.example",)
    with pytest.raises(ConfigError, match="LLMPROXY_TRUSTED_PROXIES"):
        read_environment({"LLMPROXY_TRUSTED_PROXIES": "nginx"})


def test_settings_as_they_are_written() -> None:
    """Networks with host bits set are meant as networks, and names have no case."""
    top = read_file("{trusted_proxies: [10.1.2.3/8, '::1', unix], allowed_hosts: [LLM.Example]}", "f", {}).top
    assert top["trusted_proxies"].value == ("10.1.2.3/8", "::1", "unix")
    assert top["allowed_hosts"].value == ("llm.example",)
