"""Requests and answers that two programs could take for different ones, through the whole front."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import h11
import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.backend.probe import INTERVAL
from llmproxy.config.model import BackendSpec, Config, Key, Limits
from llmproxy.fleet.fleet import Fleet
from llmproxy.web.auth import Authenticator
from llmproxy.web.resources import RootResource
from llmproxy.web.site import ProxySite
from tests.fakes import FakeController, FakeRuntime
from tests.inmemory import Far, Servers
from tests.unit.http_cases import (
    ANSWERED,
    CL,
    HIDDEN,
    KEY,
    REFUSED,
    SECOND,
    SERVED,
    TE,
    TOO_LARGE,
    ZERO,
    get,
)
from tests.unit.test_channel import Sent, requests
from tests.unit.test_front import ADMIN, EVENTS, OK, Client, Log


class Front:
    """A proxy with a backend that is ready."""

    def __init__(self, **spec: Any) -> None:
        self.clock, self.servers, self.log = Clock(), Servers(), Log()
        keys = (Key("root", "admin", admin=True), Key("me", "client"))
        config = Config(
            backends={"coder": BackendSpec(route="coder", container="c", models=("coder3b",), **spec)},
            keys=keys,
            backend_key="own",
            limits=Limits(max_body=10_000),
        )
        runtime = FakeRuntime(FakeController())
        self.fleet = Fleet(self.clock, self.servers.connect, {"docker": runtime}, config)
        self.fleet.start()
        root = RootResource(self.fleet)
        self.site = ProxySite(root, self.clock, Authenticator(keys), config.limits, self.log)
        self.fleet.backends["coder"].demand()
        self.servers.mode = "healthy"
        self.clock.advance(INTERVAL)
        assert self.fleet.backends["coder"].state == "ready"

    def client(self) -> Client:
        return Client(self.site)

    @property
    def seen(self) -> list[bytes]:
        """What went out on each connection to the backend."""
        return [far.received for far in self.servers.requests]


class Reader:
    """What a server that is no part of this reads in the bytes that it gets: uvicorn's parser."""

    def __init__(self, data: bytes) -> None:
        self.found: list[tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]] = []
        self.parser = httptools.HttpRequestParser(self)
        with contextlib.suppress(httptools.HttpParserUpgrade):
            self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.target, self.fields, self.body = b"", [], b""  # type: ignore[var-annotated]

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.found.append((self.parser.get_method(), self.target, self.fields, self.body))


def read(data: bytes) -> tuple[bytes, bytes, dict[bytes, list[bytes]], bytes]:
    """The one request in these bytes."""
    ((method, target, fields, body),) = Reader(data).found
    named: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        named.setdefault(name.lower(), []).append(value)
    return method, target, named, body


def h11_reads(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Method, target and body of the one request in these bytes.

    :raises h11.RemoteProtocolError: it reads none.
    """
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    request, body = server.next_event(), b""
    if not isinstance(request, h11.Request):
        raise h11.RemoteProtocolError("it has not come as a whole")
    while isinstance(event := server.next_event(), h11.Data):
        body += event.data
    if not isinstance(event, h11.EndOfMessage):
        raise h11.RemoteProtocolError("it has not come as a whole")
    assert server.trailing_data[0] == b""
    return request.method, request.target, body


# -- what must not come in ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_ambiguous_does_not_come_in(name: str) -> None:
    """400 once, nothing to the backend, nothing behind it, and the end; in one piece and byte by byte."""
    wire = REFUSED[name] + HIDDEN + SECOND
    for size in (len(wire), 1):
        front = Front()
        client = front.client()
        for at in range(0, len(wire), size):
            client.send(wire[at : at + size])
        status, error, fields = client.error()
        assert (status, error["code"], fields["connection"]) == (400, "invalid_request", "close")
        assert front.seen == []
        assert client.transport.disconnecting
        assert front.log.failures == []
        client.leave()


# -- what comes in, and as what -------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVED)
def test_what_comes_in_is_one_request(name: str) -> None:
    """The backend gets exactly one well-formed request, framed by us, its connection nobody else's; what is
    behind it is the client's next."""
    wire, target, body = SERVED[name]
    for size in (len(wire + SECOND), 1):
        front = Front()
        client = front.client()
        for at in range(0, len(wire + SECOND), size):
            client.send((wire + SECOND)[at : at + size])
        (sent,) = front.seen
        method, seen_target, fields, seen_body = read(sent)
        assert (seen_target, seen_body) == (target, body)
        assert h11_reads(sent) == (method, target, body)
        assert method == wire.lstrip().split(b" ")[0]
        assert b"transfer-encoding" not in fields
        assert fields.get(b"content-length", []) == ([b"%d" % len(body)] if body or b"POST" in wire else [])
        assert len(fields[b"host"]) == 1
        # To whoever reads underscores as dashes, these are the proxy's own, too.
        names = [name.replace(b"_", b"-") for name in fields]
        assert len(names) == len(set(names))
        assert b"x-api-key" not in names
        assert fields[b"authorization"] == [b"Bearer own"]
        assert len(fields[b"x-forwarded-for"]) == len(fields[b"x-request-id"]) == 1
        assert b"x-evil" not in fields
        for name_of_hop in (b"connection", b"upgrade", b"te", b"trailer", b"keep-alive", b"expect"):
            assert name_of_hop not in fields
        front.servers.requests[0].send(OK if method != b"HEAD" else OK.removesuffix(b"ok"))
        assert client.take().count(b"HTTP/1.1 200 OK") == 1
        following = front.seen[-1].removeprefix(sent if len(front.seen) == 1 else b"")
        assert read(following)[1] == b"/second"
        front.servers.requests[-1].send(OK)
        assert client.take().count(b"HTTP/1.1 200 OK") == 1
        assert front.log.failures == []
        client.leave()


def test_what_comes_in_is_what_h11_reads() -> None:
    """Where h11 reads a client's bytes at all, it reads the request that the backend gets; and the table has
    cases of both kinds enough."""
    agreed = 0
    for name, (wire, target, body) in SERVED.items():
        try:
            method, asked, read_body = h11_reads(wire.lstrip())
        except h11.RemoteProtocolError:
            continue
        agreed += 1
        assert asked.endswith(target), name
        assert read_body == body, name
        assert wire.lstrip().startswith(method), name
    assert agreed > 0.8 * len(SERVED)
    assert len(REFUSED) + len(TOO_LARGE) > 200
    assert len(SERVED) > 75


# -- what is guarded ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    (
        b"sleep /sleep ./sleep x/../sleep %73leep %2e/sleep x/%2e%2e/sleep x/..//sleep sleep/ sleep?x "
        b"sleep/x %2fsleep x%2f..%2fsleep sleep// sleep%2f x\\..\\sleep \\sleep sleep;x sleep;x/y "
        b"x/..;/sleep "
        b"update_weights_from_tensor collective%5frpc docs/oauth2-redirect"
    ).split(),
)
def test_no_spelling_reaches_a_control(path: bytes) -> None:
    """403 in origin form and in absolute form; an administrator's reaches it."""
    for start in (b"/coder/", b"http://h/coder/", b"/%63oder/", b"/CODER/"):
        front = Front()
        status, error, _ = front.client().post(start + path, b"").error()
        assert (status, error["code"]) == (403, "not_allowed")
        assert front.seen == []
        front.client().post(start + path, b"", ADMIN)
        assert len(front.seen) == 1


@pytest.mark.parametrize("name", ANSWERED)
def test_what_is_answered_here(name: str) -> None:
    """The backend sees nothing of it."""
    wire, status = ANSWERED[name]
    for size in (len(wire), 1):
        front = Front()
        client = front.client()
        for at in range(0, len(wire), size):
            client.send(wire[at : at + size])
        assert client.answer()[0] == status
        assert front.seen == []
        assert front.log.failures == []
        client.leave()


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_is_too_large_does_not_come_in(name: str) -> None:
    """Its status once, nothing to the backend, nothing behind it, and the end."""
    wire, status = TOO_LARGE[name]
    for size in (20_000, 700):
        front = Front()
        client = front.client()
        for at in range(0, len(wire), size):
            client.send(wire[at : at + size])
        client.send(HIDDEN + SECOND)
        assert client.answer()[0] == status
        assert front.seen == []
        assert client.transport.disconnecting
        assert front.log.failures == []
        client.leave()


# -- what we write --------------------------------------------------------------------------------------

NASTY = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"x\r\nX-Evil: 1", b"%0d%0aX-Evil:%201", b"\xc0\x8d\xc0\x8a", b"x\nX-Evil: 1", b'"\\\xff']
    ),
)


@settings(max_examples=200)
@given(
    NASTY,
    st.sampled_from(
        [
            "id",
            "target",
            "route",
            "host",
            "forwarded",
            "model",
            "upgrade",
            "method",
            "fallback",
            "wait",
            "origin",
        ]
    ),
)
def test_nothing_is_injected(value: bytes, where: str) -> None:
    """No value of a client's becomes a line of a head, to the client or to the backend."""
    front = Front()
    client = front.client()
    line = {
        "target": b"GET /coder/x?" + value,
        "route": b"GET /coder?" + value,
        "method": value + b" /coder/x",
    }.get(where, b"GET /coder/x")
    fields = {
        "id": b"X-Request-ID: %b\r\n",
        "host": b"Host: %b\r\n",
        "forwarded": b"X-Forwarded-For: %b\r\n",
        "upgrade": b"Connection: Upgrade\r\nUpgrade: %b\r\n",
        "fallback": b"X-LLMProxy-Fallback: %b\r\n",
        "wait": b"X-LLMProxy-Max-Wait: %b\r\n",
        "origin": b"Origin: %b\r\n",
    }.get(where, b"")
    if where != "host":
        fields = b"Host: h\r\n" + fields
    if where == "model":
        client.post(b"/v1/completions", {"model": value.decode("latin-1")})
    else:
        client.send(line + b" HTTP/1.1\r\n" + KEY + (fields % value if b"%" in fields else fields) + b"\r\n")
    # A value with a line end in it is two lines that the client has said itself.
    said = b"\n" in value or b"\r" in value
    for sent in front.seen if not said else ():
        names = [name.lower() for name, _ in Reader(sent).found[0][2]]
        assert b"x-evil" not in names
        assert names.count(b"x-forwarded-for") == names.count(b"authorization") == 1
    head = client.take().partition(b"\r\n\r\n")[0]
    assert b"\nX-Evil" not in head
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)|\x00", head)
    assert front.log.failures == []
    client.leave()


def test_a_plain_request_would_be_served() -> None:
    """The requests of the test before are those that are served where nothing is nasty in them."""
    front = Front()
    client = front.client()
    client.send(b"GET /coder/x?y HTTP/1.1\r\n" + KEY + b"Host: h\r\nX-Request-ID: mine\r\n\r\n")
    ((_, target, fields, _),) = Reader(front.seen[0]).found
    assert target == b"/x?y"
    assert (b"X-Request-ID", b"mine") in fields
    client.leave()


@settings(max_examples=200)
@given(requests())
def test_what_is_accepted_is_what_h11_reads(sent: Sent) -> None:
    """The backend gets the request that h11 reads in the client's bytes, where it reads one."""
    wire = sent.wire.replace(b" /", b" /coder/", 1).replace(b"elsewhere:81/", b"elsewhere:81/coder/", 1)
    head, _, rest = wire.lstrip().partition(b"\r\n")
    host = b"" if b"\r\nHost:" in wire.partition(b"\r\n\r\n")[0] else b"Host: elsewhere:81\r\n"
    wire = head + b"\r\n" + host + KEY + rest
    other = h11.Connection(h11.SERVER)
    other.receive_data(wire)
    body = b""
    try:
        request = other.next_event()
        while isinstance(event := other.next_event(), h11.Data):
            body += event.data
    except h11.RemoteProtocolError:
        return
    assert isinstance(request, h11.Request)
    assert isinstance(event, h11.EndOfMessage)
    front = Front()
    client = front.client().send(wire)
    method, target, fields, seen = read(front.seen[0])
    assert method == request.method
    assert request.target.endswith(b"/coder" + target)
    assert seen == body
    for name, value in request.headers:
        if name.startswith((b"x-a", b"x-b", b"accept", b"cookie", b"!")):
            assert value in fields[name]
    client.leave()


# -- answers --------------------------------------------------------------------------------------------

EVIL = b"HTTP/1.1 200 OK\r\nX-Evil: 1\r\nContent-Length: 4\r\n\r\nevil"
_OK = b"HTTP/1.1 200 OK\r\n"

# The backend's bytes; whether it closes then; the status and the body that its client gets; and whether that
# client may go on with its connection.
ANSWERS: dict[str, tuple[bytes, bool, int, bytes, bool]] = {
    "both lengths": (_OK + CL + b"4\r\n" + TE + b"chunked\r\n\r\n" + ZERO + EVIL, False, 502, b"", True),
    "two lengths": (_OK + CL + b"2\r\n" + CL + b"60\r\n\r\nok" + EVIL, False, 502, b"", True),
    "signed length": (_OK + CL + b"+2\r\n\r\nok" + EVIL, False, 502, b"", True),
    "too long a length": (_OK + CL + b"18446744073709551618\r\n\r\nok" + EVIL, False, 502, b"", True),
    "more than the length": (_OK + CL + b"2\r\n\r\nok" + EVIL, False, 200, b"ok", True),
    "more than the chunks": (_OK + TE + b"chunked\r\n\r\n2\r\nok\r\n" + ZERO + EVIL, False, 200, b"ok", True),
    "an answer in a trailer": (
        _OK + TE + b"chunked\r\n\r\n2\r\nok\r\n0\r\nX-Evil: 1\r\nContent-Type: x\r\n\r\n",
        False,
        200,
        b"ok",
        True,
    ),
    "bad chunk": (_OK + TE + b"chunked\r\n\r\n2\r\nok\r\nzz\r\n" + EVIL, False, 200, b"ok", False),
    "bad chunk first": (_OK + TE + b"chunked\r\n\r\nzz\r\n" + EVIL, False, 200, b"", False),
    "early close": (_OK + CL + b"4\r\n\r\nok", True, 200, b"ok", False),
    "early close in chunks": (_OK + TE + b"chunked\r\n\r\n4\r\nok", True, 200, b"ok", False),
    "close before the last chunk": (_OK + TE + b"chunked\r\n\r\n2\r\nok\r\n", True, 200, b"ok", False),
    "close in the head": (_OK + b"Content-", True, 502, b"", True),
    "until close": (_OK + b"\r\nok", True, 200, b"ok", True),
    "until close, an answer": (_OK + b"\r\n" + EVIL, True, 200, EVIL, True),
    "HTTP/1.0 until close": (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nok", True, 200, b"ok", True),
    "close, and more": (_OK + b"Connection: close\r\n" + CL + b"2\r\n\r\nok" + EVIL, False, 200, b"ok", True),
    "204 with a body": (b"HTTP/1.1 204 No\r\n" + CL + b"76\r\n\r\n" + EVIL, False, 204, b"", True),
    "304 with a body": (b"HTTP/1.1 304 No\r\n" + TE + b"chunked\r\n\r\n" + EVIL, False, 304, b"", True),
    "interim with a body": (b"HTTP/1.1 103 E\r\n" + CL + b"4\r\n\r\nevil" + OK, False, 502, b"", True),
    "interims": (b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 102 P\r\nX-Evil: 1\r\n\r\n" + OK, False, 200, b"ok", True),
    "interims for ever": (b"HTTP/1.1 102 P\r\n\r\n" * 20_000, False, 502, b"", True),
    "101 unasked": (
        b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + EVIL,
        False,
        502,
        b"",
        True,
    ),
    "101 behind an answer": (
        OK + b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + EVIL,
        False,
        200,
        b"ok",
        True,
    ),
    "101 to nothing": (b"HTTP/1.1 101 S\r\n\r\n" + EVIL, False, 502, b"", True),
    "control in the reason": (
        b"HTTP/1.1 200 O\x00K\x1b[2J\r\n" + CL + b"2\r\n\r\nok",
        False,
        200,
        b"ok",
        True,
    ),
    "no status": (b"HTTP/1.1 000 OK\r\n" + CL + b"2\r\n\r\nok", False, 502, b"", True),
    "bare CR in the reason": (b"HTTP/1.1 200 O\rX-Evil: 1\r\n" + CL + b"2\r\n\r\nok", False, 502, b"", True),
    "bare LF in a value": (_OK + b"X: y\nX-Evil: 1\r\n" + CL + b"2\r\n\r\nok", False, 502, b"", True),
    "folding": (_OK + b"X: y\r\n X-Evil: 1\r\n" + CL + b"2\r\n\r\nok", False, 502, b"", True),
    "length named hop-by-hop": (
        _OK + b"Connection: content-length\r\n" + CL + b"2\r\n\r\nok",
        False,
        200,
        b"ok",
        True,
    ),
    "ours": (
        _OK + b"X-LLMProxy-Backend: evil\r\nX-Request-ID: evil\r\n" + CL + b"2\r\n\r\nok",
        False,
        200,
        b"ok",
        True,
    ),
    "another coding": (_OK + TE + b"gzip, chunked\r\n\r\n2\r\nok\r\n" + ZERO, False, 502, b"", True),
    "no HTTP": (b"SSH-2.0-evil\r\n", False, 502, b"", True),
}


def _one_answer(data: bytes, *, method: bytes = b"GET") -> tuple[int, bytes, bool]:
    """What h11 reads as a client in these bytes: status, body, and whether it came to its end."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    head = client.next_event()
    assert isinstance(head, h11.Response), head
    names = [name for name, _ in head.headers]
    assert names.count(b"x-request-id") == names.count(b"x-llmproxy-backend") == 1
    assert b"x-evil" not in names
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert client.trailing_data[0] == b""
    return head.status_code, body, isinstance(event, h11.EndOfMessage)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_reaches_its_client_and_no_other(name: str) -> None:
    """Its client gets one well-formed answer or a broken one; the next requests, of this client and of
    another, get their own; and bytes that come late reach nobody."""
    wire, closes, status, body, goes_on = ANSWERS[name]
    for size in (len(wire), 7):
        front = Front()
        client, other = front.client().get(b"/coder/first"), front.client()
        (far,) = front.servers.requests
        for at in range(0, len(wire), size):
            far.send(wire[at : at + size])
        if closes:
            far.close()
        seen, told, complete = _one_answer(client.take())
        assert seen == status
        assert complete is goes_on
        if status != 502:
            assert told == body
        assert client.transport.disconnecting is not goes_on
        for each in (client, other) if goes_on else (other,):
            far.send(EVIL)
            each.get(b"/coder/second")
            following: Far = front.servers.requests[-1]
            assert following is not far
            assert following.received.startswith(b"GET /second ")
            following.send(OK)
            assert _one_answer(each.take()) == (200, b"ok", True)
        assert front.fleet.in_flight() == 0
        assert front.log.failures == []
        client.leave()
        other.leave()


class ReuseTests(SynchronousTestCase):
    """A connection to a backend is used again only when nothing more can come on it."""

    def test_only_after_a_whole_answer(self) -> None:
        """The second request goes out on the first one's connection after these, and on a new one after all
        others."""
        trailer = b"2\r\nok\r\n0\r\nX: y\r\n\r\n"
        for wire, reused in (
            (OK, True),
            (_OK + TE + b"chunked\r\n\r\n2\r\nok\r\n" + ZERO, True),
            (_OK + TE + b"chunked\r\n\r\n" + trailer, True),
            (b"HTTP/1.1 204 No\r\n\r\n", True),
            (b"HTTP/1.1 100 C\r\n\r\n" + OK, True),
            (OK + b"x", False),
            (_OK + b"Connection: close\r\n" + CL + b"2\r\n\r\nok", False),
            (b"HTTP/1.0 200 OK\r\n" + CL + b"2\r\n\r\nok", False),
            (b"HTTP/1.1 204 No\r\n" + CL + b"2\r\n\r\n", False),
            (b"HTTP/1.1 304 No\r\n" + CL + b"2\r\n\r\n", False),
        ):
            front = Front()
            client = front.client().get(b"/coder/first")
            front.servers.requests[0].send(wire)
            client.get(b"/coder/second")
            self.assertEqual(len(front.servers.requests), 1 if reused else 2, wire)
            client.leave()

    def test_an_answer_to_head_brings_none_to_the_next(self) -> None:
        """A body that should not be there, or a length that is true of GET only, is nobody's answer."""
        for wire in (_OK + CL + b"4\r\n\r\nevil", _OK + TE + b"chunked\r\n\r\n" + EVIL, _OK + b"\r\n" + EVIL):
            front = Front()
            client = front.client().send(get(b"HEAD /coder/first HTTP/1.1"))
            front.servers.requests[0].send(wire)
            front.servers.requests[0].send(EVIL)
            self.assertEqual(_one_answer(client.take(), method=b"HEAD"), (200, b"", True))
            client.get(b"/coder/second")
            self.assertEqual(len(front.servers.requests), 2)
            front.servers.requests[1].send(OK)
            self.assertEqual(_one_answer(client.take()), (200, b"ok", True))
            client.leave()

    def test_a_switch_to_nothing_makes_no_tunnel(self) -> None:
        """What a client has sent behind its handshake does not go out on a connection that others get."""
        front = Front()
        client = front.client()
        client.send(get(b"GET /coder/ws HTTP/1.1", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"))
        client.send(SECOND.replace(b"second", b"poison"))
        front.servers.requests[0].send(b"HTTP/1.1 101 Switching\r\n\r\n")
        self.assertEqual(client.take().count(b"HTTP/1.1 502 "), 1)
        self.assertTrue(front.servers.requests[0].closed)
        self.assertNotIn(b"poison", front.servers.requests[0].received)
        self.assertEqual(read(front.seen[1])[1], b"/poison")
        client.leave()

    def test_a_tunnel_is_nobody_elses(self) -> None:
        """After it the connection is closed, whichever side ends it, and the next request has another."""
        for backend_ends in (True, False):
            front = Front()
            client, other = front.client(), front.client()
            client.send(get(b"GET /coder/ws HTTP/1.1", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"))
            (far,) = front.servers.requests
            far.send(b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + EVIL)
            self.assertTrue(client.take().endswith(EVIL))
            if backend_ends:
                far.close()
                client.send(SECOND)
            else:
                client.leave()
            self.assertTrue(far.closed)
            other.get(b"/coder/second")
            self.assertEqual(len(front.servers.requests), 2)
            front.servers.requests[1].send(OK)
            self.assertEqual(_one_answer(other.take()), (200, b"ok", True))
            other.leave()
            client.leave()

    def test_events_of_a_broken_stream_are_its_own(self) -> None:
        """A stream that breaks ends with our error event, and its connection serves nobody again."""
        front = Front()
        client, other = front.client().post(b"/coder/x", {"stream": True}), front.client()
        front.servers.requests[0].send(EVENTS + b"9\r\ndata: 1\n\n\r\nzz\r\n" + EVIL)
        status, body, complete = _one_answer(client.take())
        self.assertEqual((status, complete), (200, False))
        self.assertEqual(json.loads(body.split(b"data: ")[2])["error"]["code"], "backend_died")
        self.assertNotIn(b"evil", body)
        other.get(b"/coder/second")
        self.assertEqual(len(front.servers.requests), 2)
        client.leave()
        other.leave()
