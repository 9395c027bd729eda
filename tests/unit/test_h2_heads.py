"""Heads of HTTP/2: what is no request, and what is made of the others for HTTP/1.1; floods; and arriving."""

from __future__ import annotations

from typing import Any

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from llmproxy.config.model import Limits
from llmproxy.http.headers import Fields, request_head, response_head
from llmproxy.listening.arriving import HANDSHAKE, Reception
from llmproxy.web.channel import ProxyChannel
from llmproxy.web.h2.connection import H2Connection
from llmproxy.web.h2.floods import Bucket
from llmproxy.web.h2.heads import Malformed, RequestHead, answer_fields, read_request
from tests.front import FrontCase
from tests.unit.test_front import KEY, ClientTransport, TLSTransport

USUAL = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"h:1"), (b":path", b"/a?b")]


def test_a_request_is_read() -> None:
    """Its host comes first, its length by itself, and what is for HTTP/2 alone not at all."""
    head = read_request(
        [*USUAL, (b"content-length", b"7"), (b"host", b"h:1"), (b"te", b"Trailers"), (b"x", b"")]
    )
    assert head == RequestHead(
        b"POST", b"/a?b", [(b"host", b"h:1"), (b"te", b"Trailers"), (b"x", b"")], 7, False
    )
    alone = read_request([(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b"host", b"x")])
    assert (alone.fields, alone.length) == ([(b"host", b"x")], None)
    assert read_request([(b":method", b"OPTIONS"), (b":scheme", b"http"), (b":path", b"*")]).target == b"*"
    assert read_request([*USUAL, (b"content-length", b"7"), (b"content-length", b"7")]).length == 7


@pytest.mark.parametrize(
    "headers",
    [
        USUAL[1:],
        [USUAL[0], *USUAL[2:]],
        USUAL[:3],
        [*USUAL, USUAL[0]],
        [*USUAL, (b":status", b"200")],
        [*USUAL, (b":protocol", b"websocket")],
        [*USUAL, (b":odd", b"1")],
        [*USUAL[:3], (b"x", b"1"), USUAL[3]],
        [*USUAL[:3], (b":path", b"")],
        [*USUAL[:3], (b":path", b"*")],
        [*USUAL[:3], (b":path", b"x")],
        [*USUAL[:3], (b":path", b"http://h/x")],
        [*USUAL[:3], (b":path", b"/a b")],
        [*USUAL[:3], (b":path", b"/a HTTP/1.1\r\nx: y")],
        [(b":method", b"PO ST"), *USUAL[1:]],
        [(b":method", b""), *USUAL[1:]],
        [(b":method", b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET"), *USUAL[1:]],
        [*USUAL[:1], (b":scheme", b"gopher"), *USUAL[2:]],
        [*USUAL, (b"host", b"other")],
        [*USUAL, (b"host", b"h:1"), (b"host", b"h:1")],
        [*USUAL, (b"content-length", b"1"), (b"content-length", b"2")],
        [*USUAL, (b"content-length", b"+1")],
        [*USUAL, (b"content-length", b"1_0")],
        [*USUAL, (b"content-length", b"")],
        [*USUAL, (b"content-length", b"-1")],
        [*USUAL, (b"connection", b"close")],
        [*USUAL, (b"transfer-encoding", b"chunked")],
        [*USUAL, (b"upgrade", b"websocket")],
        [*USUAL, (b"keep-alive", b"1")],
        [*USUAL, (b"proxy-connection", b"1")],
        [*USUAL, (b"te", b"gzip")],
        [*USUAL, (b"X-Upper", b"1")],
        [*USUAL, (b"", b"1")],
        [*USUAL, (b"a b", b"1")],
        [*USUAL, (b"a:", b"1")],
        [*USUAL, (b"x\r\ny", b"1")],
        [*USUAL, (b"x", b"1\r\ny: 2")],
        [*USUAL, (b"x", b"1\n")],
        [*USUAL, (b"x", b"\0")],
        [*USUAL, (b"x", b" 1")],
        [*USUAL, (b"x", b"1\t")],
    ],
)
def test_what_is_no_request(headers: list[tuple[bytes, bytes]]) -> None:
    """It is malformed, and goes no further."""
    with pytest.raises(Malformed):
        read_request(headers)


def test_connect_is_known_for_what_it_is() -> None:
    """With a path or without, so that it can be told how to go about it."""
    assert read_request([(b":method", b"CONNECT"), (b":authority", b"h:443")]).connects
    websocket = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *USUAL[1:]]
    assert read_request(websocket).connects


class _Seen:
    """What llhttp makes of a request."""

    def __init__(self, data: bytes) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.target = b""
        self.requests = 0
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_message_complete(self) -> None:
        self.requests += 1


BYTES = st.one_of(
    st.binary(max_size=12), st.sampled_from((b"\r\n", b"a: b", b"x y", b"chunked", b"/p", b"\t", b"\xff"))
)
NAMES = st.one_of(
    st.from_regex(rb"[a-z-]{1,8}", fullmatch=True),
    st.sampled_from((b":path", b":method", b"host", b"content-length", b"te", b"cookie", b":authority")),
    BYTES,
)


@given(st.permutations(USUAL), st.lists(st.tuples(NAMES, BYTES), max_size=6))
def test_whatever_is_taken_means_the_same_to_the_next_server(
    usual: list[tuple[bytes, bytes]], more: list[tuple[bytes, bytes]]
) -> None:
    """One request, with the same target and the same fields, and nothing beside them."""
    try:
        head = read_request([*usual, *more])
    except Malformed:
        return
    fields = Fields(head.fields)
    sent = request_head(
        b"GET",
        head.target,
        fields,
        client=b"192.0.2.1",
        scheme=b"https",
        request_id=b"id",
        length=None,
    )
    seen = _Seen(sent)
    assert (seen.requests, seen.target) == (1, head.target)
    own = (b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-request-id")
    kept = [(name, value) for name, value in seen.fields if name.lower() not in own]
    dropped = {
        b"te",
        b"trailer",
        b"expect",
        b"forwarded",
        b"authorization",
        b"x-api-key",
        b"proxy-authorization",
    }
    expected = [(name, value) for name, value in head.fields if name.replace(b"_", b"-") not in dropped]
    assert [(name, value) for name, value in kept if name in dict(expected)] == [
        (name, value) for name, value in expected if name in dict(kept)
    ]
    assert {name for name, _ in kept} <= {name for name, _ in head.fields}


def test_an_answer_has_nothing_of_http_1() -> None:
    """Names are in lower case, and what is about a connection is left out."""
    fields = Fields([(b"Content-Type", b"text/plain"), (b"Connection", b"x"), (b"X-Odd", b"1"), (b"X", b"2")])
    head = response_head(200, b"OK: fine", fields, b"X-Own: a: b\r\n", chunked=True, close=True)
    assert answer_fields(head) == [
        (b":status", b"200"),
        (b"content-type", b"text/plain"),
        (b"x-odd", b"1"),
        (b"x-own", b"a: b"),
    ]


def test_a_bucket_fills_up_with_time() -> None:
    """So much at once, and so much a second; a clock that is set back gives nothing."""
    bucket = Bucket(3, 2)
    assert [bucket.take(0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(1) for _ in range(3)] == [True, True, False]
    assert not bucket.take(0.5)
    assert [bucket.take(100) for _ in range(4)] == [True, True, True, False]


class ArrivingTests(FrontCase):
    """Connections that have not said yet what they are."""

    def arrive(self, transport: Any = None) -> Any:
        self.reception = getattr(self, "reception", None) or Reception(self.site)
        arriving: Any = self.reception.buildProtocol(None)
        arriving.makeConnection(transport or TLSTransport())
        return arriving

    def test_a_handshake_has_its_time(self) -> None:
        """Then it is over; until then it is no connection of the site's."""
        arriving = self.arrive()
        self.assertEqual(self.site.channels, set())
        self.clock.advance(HANDSHAKE)
        self.assertTrue(arriving.transport.aborted)
        arriving.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.site.channels, set())

    def test_there_are_not_too_many_of_them(self) -> None:
        """As many as there may be connections."""
        self.site.limits = Limits(max_connections=2)
        first, second, third = self.arrive(), self.arrive(), self.arrive()
        self.assertTrue(third.transport.aborted)
        third.connectionLost(Failure(ConnectionDone()))
        first.connectionLost(Failure(ConnectionDone()))
        fourth = self.arrive()
        self.assertFalse(getattr(fourth.transport, "aborted", False))
        for each in (second, fourth):
            each.connectionLost(Failure(ConnectionDone()))

    def test_what_was_agreed_on_is_spoken(self) -> None:
        """HTTP/2, or HTTP/1.1 where nothing else was said; both have the connection from then on."""
        for protocol, kind in ((b"h2", H2Connection), (b"http/1.1", ProxyChannel), (None, ProxyChannel)):
            transport = TLSTransport()
            transport.negotiatedProtocol = protocol  # type: ignore[attr-defined]
            arriving = self.arrive(transport)
            arriving.handshakeCompleted()
            (channel,) = self.site.channels
            self.assertIsInstance(channel, kind)
            self.assertTrue(channel.secure)
            self.clock.advance(HANDSHAKE)
            self.assertFalse(getattr(transport, "aborted", False))
            arriving.connectionLost(Failure(ConnectionDone()))
            self.assertEqual(self.site.channels, set())

    def test_without_tls_the_first_bytes_tell(self) -> None:
        """Behind a load balancer the address is known by then."""
        arriving = self.arrive(ClientTransport())
        arriving.dataReceived(b"GET /v1/models HTTP/1.1\r\nHost: h\r\n" + KEY + b"\r\n")
        self.assertTrue(bytes(arriving.transport.value()).startswith(b"HTTP/1.1 200"))
        arriving.dataReceived(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
        self.assertEqual(bytes(arriving.transport.value()).count(b"HTTP/1.1 200"), 2)
        arriving.connectionLost(Failure(ConnectionDone()))

    def tearDown(self) -> None:
        self.assertEqual(self.site.channels, set())
