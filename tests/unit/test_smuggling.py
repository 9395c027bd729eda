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
from tests.unit.test_channel import Sent, requests
from tests.unit.test_front import ADMIN, EVENTS, KEY, OK, Client, Log

SECOND = b"GET /coder/second HTTP/1.1\r\nHost: h\r\n" + KEY + b"\r\n"


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


# -- what must not come in ------------------------------------------------------------------------------


def _post(fields: bytes, body: bytes = b"") -> bytes:
    return b"POST /coder/x HTTP/1.1\r\nHost: h\r\n" + KEY + fields + b"\r\n" + body


def _get(line: bytes, fields: bytes = b"") -> bytes:
    return line + b"\r\nHost: h\r\n" + KEY + fields + b"\r\n"


CL, TE = b"Content-Length: ", b"Transfer-Encoding: "
ZERO = b"0\r\n\r\n"
HIDDEN = b"GET /coder/hidden HTTP/1.1\r\n\r\n"

# Each of these is 400, once; the backend sees nothing; nothing behind it is served.
REFUSED: dict[str, bytes] = {
    # both framings
    "CL.TE": _post(CL + b"6\r\n" + TE + b"chunked\r\n", ZERO + b"G"),
    "TE.CL": _post(TE + b"chunked\r\n" + CL + b"3\r\n", b"8\r\nSMUGGLED\r\n" + ZERO),
    "CL.TE, zero": _post(CL + b"0\r\n" + TE + b"chunked\r\n", ZERO),
    "CL.TE, other case": _post(b"cOnTeNt-LeNgTh: 5\r\ntRANSFER-eNCODING: CHUNKED\r\n", ZERO),
    "CL.TE, identity": _post(CL + b"5\r\n" + TE + b"identity\r\n", b"hello"),
    "CL.TE, unknown": _post(CL + b"5\r\n" + TE + b"x\r\n", b"hello"),
    "CL.TE, empty": _post(CL + b"5\r\n" + TE + b"\r\n", b"hello"),
    "TE.CL, empty": _post(TE + b"\r\n" + CL + b"5\r\n", b"hello"),
    "both, asking for HTTP/2": _post(
        b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + CL + b"5\r\n" + TE + b"chunked\r\n", ZERO
    ),
    # codings
    "TE.TE": _post(TE + b"chunked\r\n" + TE + b"x\r\n", ZERO),
    "TE.TE, chunked last": _post(TE + b"x\r\n" + TE + b"chunked\r\n", ZERO),
    "TE.TE, twice": _post(TE + b"chunked\r\n" + TE + b"chunked\r\n", ZERO),
    "TE.TE, identity": _post(TE + b"chunked\r\n" + TE + b"identity\r\n", ZERO),
    "TE list": _post(TE + b"gzip, chunked\r\n", ZERO),
    "TE list, chunked first": _post(TE + b"chunked, gzip\r\n", ZERO),
    "TE list, chunked twice": _post(TE + b"chunked, chunked\r\n", ZERO),
    "TE identity": _post(TE + b"identity\r\n", b"hello"),
    "TE prefixed": _post(TE + b"xchunked\r\n", ZERO),
    "TE suffixed": _post(TE + b"chunkedx\r\n", ZERO),
    "TE vertical tab": _post(TE + b"\x0bchunked\r\n", ZERO),
    "TE form feed": _post(TE + b"\x0cchunked\r\n", ZERO),
    "TE NUL": _post(TE + b"chunked\x00\r\n", ZERO),
    "TE quoted": _post(TE + b'"chunked"\r\n', ZERO),
    "TE with parameter": _post(TE + b"chunked;q=1\r\n", ZERO),
    "TE comma": _post(TE + b",chunked\r\n", ZERO),
    "TE comma behind": _post(TE + b"chunked,\r\n", ZERO),
    "TE empty": _post(TE + b"\r\n"),
    "TE folded": _post(b"Transfer-Encoding:\r\n chunked\r\n", ZERO),
    "TE with space before colon": _post(b"Transfer-Encoding : chunked\r\n", ZERO),
    "TE with tab before colon": _post(b"Transfer-Encoding\t: chunked\r\n", ZERO),
    "TE with leading space": _post(b" Transfer-Encoding: chunked\r\n", ZERO),
    "TE behind bare LF": _post(b"X: y\nTransfer-Encoding: chunked\r\n", ZERO),
    "TE behind bare CR": _post(b"X: y\rTransfer-Encoding: chunked\r\n", ZERO),
    "TE in HTTP/1.0": b"POST /coder/x HTTP/1.0\r\n" + KEY + TE + b"chunked\r\n\r\n" + ZERO,
    # lengths
    "CL.CL": _post(CL + b"5\r\n" + CL + b"6\r\n", b"hello!"),
    "CL.CL, same": _post(CL + b"5\r\n" + CL + b"5\r\n", b"hello"),
    "CL.CL, other case": _post(CL + b"5\r\ncontent-length: 0\r\n", b"hello"),
    "CL list": _post(CL + b"5, 5\r\n", b"hello"),
    "CL list, different": _post(CL + b"5,6\r\n", b"hello!"),
    "CL plus": _post(CL + b"+5\r\n", b"hello"),
    "CL minus": _post(CL + b"-5\r\n", b"hello"),
    "CL minus zero": _post(CL + b"-0\r\n"),
    "CL hexadecimal": _post(CL + b"0x5\r\n", b"hello"),
    "CL hexadecimal digit": _post(CL + b"a\r\n", b"helloworld"),
    "CL underscore": _post(CL + b"1_0\r\n", b"helloworld"),
    "CL decimal": _post(CL + b"5.0\r\n", b"hello"),
    "CL exponent": _post(CL + b"1e1\r\n", b"helloworld"),
    "CL space within": _post(CL + b"1 0\r\n", b"helloworld"),
    "CL empty": _post(CL + b"\r\n"),
    "CL overflows 64 bits": _post(CL + b"18446744073709551621\r\n", b"hello"),
    "CL overflows much": _post(CL + b"9" * 100 + b"\r\n", b"hello"),
    "CL other digits": _post(CL + b"\xd9\xa5" + b"\r\n", b"hello"),
    "CL quoted": _post(CL + b'"5"\r\n', b"hello"),
    "CL folded": _post(b"Content-Length:\r\n 5\r\n", b"hello"),
    "CL with space before colon": _post(b"Content-Length : 5\r\n", b"hello"),
    "CL NUL": _post(CL + b"5\x00\r\n", b"hello"),
    "CL behind bare LF": _post(b"X: y\nContent-Length: 5\r\n", b"hello"),
    "CL behind bare CR": _post(b"X: y\rContent-Length: 5\r\n", b"hello"),
    # chunks
    "chunk size minus": _post(TE + b"chunked\r\n", b"-1\r\nx\r\n" + ZERO),
    "chunk size hexadecimal prefix": _post(TE + b"chunked\r\n", b"0x1\r\nx\r\n" + ZERO),
    "chunk size overflow": _post(TE + b"chunked\r\n", b"10000000000000001\r\nx\r\n" + ZERO),
    "chunk size space": _post(TE + b"chunked\r\n", b"1 \r\nx\r\n" + ZERO),
    "chunk size underscore": _post(TE + b"chunked\r\n", b"0_1\r\nx\r\n" + ZERO),
    "chunk size empty": _post(TE + b"chunked\r\n", b"\r\n" + ZERO),
    "chunk bare LF": _post(TE + b"chunked\r\n", b"1\nx\r\n" + ZERO),
    "chunk bare CR": _post(TE + b"chunked\r\n", b"1\rx\r\n" + ZERO),
    "chunk data bare LF": _post(TE + b"chunked\r\n", b"1\r\nx\n" + ZERO),
    "chunk without end": _post(TE + b"chunked\r\n", b"1\r\nx" + ZERO),
    "chunk extension bare LF": _post(TE + b"chunked\r\n", b"1;a\nx\r\n" + ZERO),
    "chunk extension bare CR": _post(TE + b"chunked\r\n", b"1;a\rx\r\n" + ZERO),
    "chunk longer than said": _post(TE + b"chunked\r\n", b"1\r\nxy\r\n" + ZERO),
    "last chunk bare LF": _post(TE + b"chunked\r\n", b"0\n\n"),
    "trailer with a length": _post(TE + b"chunked\r\n", b"0\r\nContent-Length: 5\r\n\r\n"),
    "trailer bare LF": _post(TE + b"chunked\r\n", b"0\r\nX: y\nZ: z\r\n\r\n"),
    # the request line
    "no version": b"GET /coder/x\r\n" + KEY + b"\r\n",
    "HTTP/0.9": _get(b"GET /coder/x HTTP/0.9"),
    "HTTP/1.2": _get(b"GET /coder/x HTTP/1.2"),
    "HTTP/1.10": _get(b"GET /coder/x HTTP/1.10"),
    "HTTP/2.0": _get(b"GET /coder/x HTTP/2.0"),
    "HTTP/11": _get(b"GET /coder/x HTTP/11"),
    "lower case version": _get(b"GET /coder/x http/1.1"),
    "comma in the version": _get(b"GET /coder/x HTTP/1,1"),
    "space behind the version": _get(b"GET /coder/x HTTP/1.1 "),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "lower case method": _get(b"get /coder/x HTTP/1.1"),
    "unknown method": _get(b"FROB /coder/x HTTP/1.1"),
    "NUL in the method": _get(b"GE\x00T /coder/x HTTP/1.1"),
    "tab behind the method": _get(b"GET\t/coder/x HTTP/1.1"),
    "space before the method": _get(b" GET /coder/x HTTP/1.1"),
    "space in the target": _get(b"GET /coder/x y HTTP/1.1"),
    "tab in the target": _get(b"GET /coder/x\ty HTTP/1.1"),
    "form feed in the target": _get(b"GET /coder/x\x0cy HTTP/1.1"),
    "NUL in the target": _get(b"GET /coder/x\x00y HTTP/1.1"),
    "DEL in the target": _get(b"GET /coder/x\x7fy HTTP/1.1"),
    "no ASCII in the target": _get(b"GET /coder/\xc3\xa4 HTTP/1.1"),
    "bare CR in the target": _get(b"GET /coder/x\ry HTTP/1.1"),
    "bare LF behind the line": b"GET /coder/x HTTP/1.1\n" + KEY + b"\r\n",
    "bare CR behind the line": b"GET /coder/x HTTP/1.1\r" + KEY + b"\r\n",
    "a second line": _get(b"GET /coder/x HTTP/1.1\r\nGET /coder/y HTTP/1.1"),
    "relative target": _get(b"GET coder/x HTTP/1.1"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40,
    # fields
    "two Hosts": _get(b"GET /coder/x HTTP/1.1", b"Host: other\r\n"),
    "two Hosts, same": _get(b"GET /coder/x HTTP/1.1", b"hOST: h\r\n"),
    "no colon": _get(b"GET /coder/x HTTP/1.1", b"nonsense\r\n"),
    "empty name": _get(b"GET /coder/x HTTP/1.1", b": x\r\n"),
    "space in a name": _get(b"GET /coder/x HTTP/1.1", b"X Y: z\r\n"),
    "NUL in a name": _get(b"GET /coder/x HTTP/1.1", b"X\x00Y: z\r\n"),
    "no ASCII in a name": _get(b"GET /coder/x HTTP/1.1", b"X\xffY: z\r\n"),
    "brackets in a name": _get(b"GET /coder/x HTTP/1.1", b"X[Y]: z\r\n"),
    "slash in a name": _get(b"GET /coder/x HTTP/1.1", b"X/Y: z\r\n"),
    "folding": _get(b"GET /coder/x HTTP/1.1", b"X: y\r\n z\r\n"),
    "folding by tab": _get(b"GET /coder/x HTTP/1.1", b"X: y\r\n\tz\r\n"),
    "folded first": b"GET /coder/x HTTP/1.1\r\n X: y\r\n" + KEY + b"\r\n",
    "NUL in a value": _get(b"GET /coder/x HTTP/1.1", b"X: y\x00z\r\n"),
    "DEL in a value": _get(b"GET /coder/x HTTP/1.1", b"X: y\x7fz\r\n"),
    "control in a value": _get(b"GET /coder/x HTTP/1.1", b"X: y\x01z\r\n"),
    "bare CR in a value": _get(b"GET /coder/x HTTP/1.1", b"X: y\rz\r\n"),
    "bare LF in a value": _get(b"GET /coder/x HTTP/1.1", b"X: y\nZ: z\r\n"),
    "CR CR LF": _get(b"GET /coder/x HTTP/1.1", b"X: y\r\r\n"),
    "bare LF at the end": b"GET /coder/x HTTP/1.1\r\n" + KEY + b"\n",
    "bare CR at the end": b"GET /coder/x HTTP/1.1\r\n" + KEY + b"\r",
}


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

# Each is one request to the backend, with this target and body; what is behind it is the next one.
SERVED: dict[str, tuple[bytes, bytes, bytes]] = {
    "length": (_post(CL + b"5\r\n", b"hello"), b"/x", b"hello"),
    "length with zeros": (_post(CL + b"005\r\n", b"hello"), b"/x", b"hello"),
    "length with spaces": (_post(b"Content-Length:   5  \r\n", b"hello"), b"/x", b"hello"),
    "a request as a body": (_post(CL + b"%d\r\n" % len(HIDDEN), HIDDEN), b"/x", HIDDEN),
    "a request in a chunk": (
        _post(TE + b"chunked\r\n", b"%x\r\n%b\r\n" % (len(HIDDEN), HIDDEN) + ZERO),
        b"/x",
        HIDDEN,
    ),
    "a last chunk as a body": (_post(CL + b"5\r\n", ZERO), b"/x", ZERO),
    "chunks": (_post(TE + b"chunked\r\n", b"3\r\nabc\r\n00002;x=y\r\nde\r\n" + ZERO), b"/x", b"abcde"),
    "chunked in capitals": (_post(TE + b"CHUNKED\r\n", b"A\r\nhelloworld\r\n" + ZERO), b"/x", b"helloworld"),
    "trailer": (_post(TE + b"chunked\r\n", b"1\r\nx\r\n0\r\nHost: evil\r\nX-Evil: 1\r\n\r\n"), b"/x", b"x"),
    "trailer that asks to switch": (
        _post(TE + b"chunked\r\n", b"1\r\nx\r\n0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"),
        b"/x",
        b"x",
    ),
    "no chunk": (_post(TE + b"chunked\r\n", ZERO), b"/x", b""),
    "GET with a body": (_get(b"GET /coder/x HTTP/1.1", CL + b"5\r\n") + b"hello", b"/x", b"hello"),
    "HEAD, in no way a GET": (_get(b"HEAD /coder/x HTTP/1.1"), b"/x", b""),
    "length named hop-by-hop": (
        _post(b"Connection: content-length\r\n" + CL + b"5\r\n", b"hello"),
        b"/x",
        b"hello",
    ),
    "coding named hop-by-hop": (
        _post(b"Connection: transfer-encoding\r\n" + TE + b"chunked\r\n", b"1\r\nx\r\n" + ZERO),
        b"/x",
        b"x",
    ),
    "host named hop-by-hop": (_get(b"GET /coder/x HTTP/1.1", b"Connection: host\r\n"), b"/x", b""),
    "key named hop-by-hop": (_get(b"GET /coder/x HTTP/1.1", b"Connection: authorization\r\n"), b"/x", b""),
    "ours named hop-by-hop": (
        _get(b"GET /coder/x HTTP/1.1", b"Connection: x-forwarded-for, x-request-id, x-forwarded-proto\r\n"),
        b"/x",
        b"",
    ),
    "odd connection options": (_get(b"GET /coder/x HTTP/1.1", b"Connection: , ,;,\x80\r\n"), b"/x", b""),
    "websocket with a body": (
        _post(b"Connection: Upgrade\r\nUpgrade: websocket\r\n" + CL + b"5\r\n", b"hello"),
        b"/x",
        b"hello",
    ),
    "h2c with a body": (
        _post(
            b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAE\r\n" + CL + b"5\r\n",
            b"hello",
        ),
        b"/x",
        b"hello",
    ),
    "h2c with chunks": (
        _post(b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + TE + b"chunked\r\n", b"5\r\nhello\r\n" + ZERO),
        b"/x",
        b"hello",
    ),
    "h2c with a request as a body": (
        _post(b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + CL + b"%d\r\n" % len(HIDDEN), HIDDEN),
        b"/x",
        HIDDEN,
    ),
    "h2c": (_get(b"GET /coder/x HTTP/1.1", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"), b"/x", b""),
    "upgrade without the option": (_get(b"GET /coder/x HTTP/1.1", b"Upgrade: websocket\r\n"), b"/x", b""),
    "absolute form": (_get(b"GET http://H/coder/x HTTP/1.1"), b"/x", b""),
    "absolute form with TLS": (_get(b"GET HTTPS://h:443/coder/x HTTP/1.1"), b"/x", b""),
    "absolute form in a query": (_get(b"GET /coder/x?http://evil/ HTTP/1.1"), b"/x?http://evil/", b""),
    "encoded line ends": (_get(b"GET /coder/x%0d%0aX:%20y HTTP/1.1"), b"/x%0d%0aX:%20y", b""),
    "empty segments": (_get(b"GET /coder//x//y HTTP/1.1"), b"//x//y", b""),
    "dots": (_get(b"GET /coder/a/../b/./c HTTP/1.1"), b"/a/../b/./c", b""),
    "encoded slash": (_get(b"GET /coder/a%2fb HTTP/1.1"), b"/a%2fb", b""),
    "backslash": (_get(b"GET /coder/a\\b HTTP/1.1"), b"/a\\b", b""),
    "spaces before the version": (_get(b"GET   /coder/x   HTTP/1.1"), b"/x", b""),
    "empty lines before it": (b"\r\n\r\n" + _get(b"GET /coder/x HTTP/1.1"), b"/x", b""),
    "empty values": (_get(b"GET /coder/x HTTP/1.1", b"X:\r\nY: \r\n"), b"/x", b""),
    "underscores": (_post(b"Content_Length: 99\r\n" + CL + b"5\r\n", b"hello"), b"/x", b"hello"),
    "a name that ends like a length": (_post(b"X-Content-Length: 99\r\n" + CL + b"1\r\n", b"x"), b"/x", b"x"),
}


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
        assert method == wire.lstrip().split(b" ")[0]
        assert b"transfer-encoding" not in fields
        assert fields.get(b"content-length", []) == ([b"%d" % len(body)] if body or b"POST" in wire else [])
        assert len(fields[b"host"]) == 1
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


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (_get(b"GET /coder/x#/../sleep HTTP/1.1"), 400),
        (_get(b"GET /coder/x?a#b HTTP/1.1"), 400),
        (_get(b"GET http://h/coder/sleep#x HTTP/1.1"), 400),
        (_get(b"GET http://evil/coder/x HTTP/1.1"), 400),
        (_get(b"GET http://h:80@evil/coder/x HTTP/1.1"), 400),
        (_get(b"GET http://me@h/coder/x HTTP/1.1"), 400),
        (_get(b"GET http:///coder/x HTTP/1.1"), 400),
        (_get(b"GET ftp://h/coder/x HTTP/1.1"), 400),
        (_get(b"GET ws://h/coder/x HTTP/1.1"), 400),
        (_get(b"GET * HTTP/1.1"), 400),
        (_get(b"OPTIONS * HTTP/1.1"), 204),
        (_get(b"CONNECT coder:80 HTTP/1.1"), 400),
        (_get(b"CONNECT coder:80 HTTP/1.1", CL + b"5\r\n") + b"hello", 400),
        (_get(b"GET http://h HTTP/1.1"), 404),
        (_get(b"GET http://coder/sleep HTTP/1.1"), 400),
        (_get(b"GET http://h/x/sleep HTTP/1.1"), 404),
        (_get(b"GET //coder/x HTTP/1.1"), 404),
        (_get(b"GET /coder%2fsleep HTTP/1.1"), 404),
        (_get(b"GET /x/../coder/y HTTP/1.1"), 400),
        (_get(b"GET /coder%00/y HTTP/1.1"), 400),
        (_get(b"GET /coder HTTP/1.1"), 308),
        (_get(b"GET /coder?x=/y HTTP/1.1"), 308),
    ],
)
def test_what_is_answered_here(wire: bytes, status: int) -> None:
    """The backend sees nothing of it."""
    front = Front()
    client = front.client().send(wire)
    assert client.answer()[0] == status
    assert front.seen == []
    client.leave()


# -- what we write --------------------------------------------------------------------------------------

NASTY = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"x\r\nX-Evil: 1", b"%0d%0aX-Evil:%201", b"\xc0\x8d\xc0\x8a", b"x\nX-Evil: 1", b'"\\\xff']
    ),
)


@settings(max_examples=200)
@given(NASTY, st.sampled_from(["id", "target", "route", "host", "forwarded", "model", "upgrade", "method"]))
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
    }.get(where, b"")
    if where == "model":
        client.post(b"/v1/completions", {"model": value.decode("latin-1")})
    else:
        client.send(line + b" HTTP/1.1\r\n" + KEY + (fields % value if fields else b"") + b"\r\n")
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
    "101 to nothing": (b"HTTP/1.1 101 S\r\n\r\n" + EVIL, False, 502, b"", True),
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
            client = front.client().send(_get(b"HEAD /coder/first HTTP/1.1"))
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
        client.send(_get(b"GET /coder/ws HTTP/1.1", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"))
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
            client.send(_get(b"GET /coder/ws HTTP/1.1", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"))
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
