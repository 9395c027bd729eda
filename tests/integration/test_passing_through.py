"""Section 4 of the contract: what leaves the proxy is what came, whatever either side does."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import time
from collections.abc import Iterator

import pytest

from tests.integration.proxy import ADMIN, BACKEND_KEY, KEY, Proxy, chat, content, demo, head, running
from tests.integration.world import until

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def shared(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy for the whole module, with a backend that is ready."""
    with running(
        kind,
        tmp_path_factory.mktemp("shared"),
        {"a": demo(), "other": demo()},
        limits={"max_body": "24MiB"},
    ) as proxy:
        assert proxy.chat("a").status == 200
        yield proxy


@pytest.fixture
def proxy(shared: Proxy) -> Iterator[Proxy]:
    """That proxy; after the test it must still be the same one and answer."""
    starts = shared.world.starts("a")
    yield shared
    assert shared.process is not None
    assert shared.process.poll() is None
    answer = shared.chat("a", words="still there")
    assert answer.status == 200
    assert "still there" in answer.json["choices"][0]["message"]["content"]
    assert shared.world.starts("a") == starts
    assert "Traceback" not in shared.log()


# -- bytes are not altered ------------------------------------------------------------------------


def test_target_and_headers(proxy: Proxy) -> None:
    """Path, query and headers arrive as they were written; hop-by-hop ones and the client's key do not."""
    target = "/echo/a%2Fb//c/%7e/../x;p=1?q=%20+&b=/%2F&empty="
    fields = ["x-LOWER: 1", "X-Second:  two words ", "x-lower: 3", 'Cookie: a=b; c="d"', "TE: trailers"]
    dropped = ["Connection: keep-alive, X-Private", "X-Private: 1", "Keep-Alive: timeout=5", "X-API-Key: k"]
    with proxy.wire() as wire:
        wire.send(head("GET", "/a" + target, *fields, *dropped))
        echo = wire.answer().json
    assert echo["method"] == "GET"
    assert echo["target"] == target
    received = [tuple(each) for each in echo["headers"]]
    kept = [field for field in received if field[0].lower() in ("x-lower", "x-second", "cookie")]
    assert kept == [("x-LOWER", "1"), ("X-Second", "two words"), ("x-lower", "3"), ("Cookie", 'a=b; c="d"')]
    names = {name.lower(): value for name, value in received}
    assert not {"te", "keep-alive", "x-private", "x-api-key"} & set(names)
    assert names["x-forwarded-for"] == "127.0.0.1"
    assert names["x-forwarded-proto"] == "http"
    assert names["x-forwarded-host"] == "proxy.test"
    assert names["authorization"] == f"Bearer {BACKEND_KEY}"
    assert KEY not in json.dumps(echo)


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
def test_methods(proxy: Proxy, method: str) -> None:
    """Any method passes, with and without a body."""
    assert proxy.ask(method, "/a/echo/x").json["method"] == method
    body = os.urandom(1000)
    echo = proxy.ask(method, "/A/echo/x", body).json
    assert (echo["method"], echo["length"]) == (method, 1000)
    assert echo["sha256"] == hashlib.sha256(body).hexdigest()


def test_head(proxy: Proxy) -> None:
    """HEAD has the head of the answer and no body, and the connection goes on."""
    with proxy.wire() as wire:
        wire.send(head("HEAD", "/a/big?bytes=1234"))
        found = wire.answer(bodiless=True)
        assert (found.status, found.header("content-length")) == (200, "1234")
        wire.send(head("HEAD", "/healthz"))
        assert wire.answer(bodiless=True).status == 200
        wire.send(head("GET", "/a/echo"))
        assert wire.answer().json["target"] == "/echo"


def test_upload(proxy: Proxy) -> None:
    """20 MiB arrive intact, with a length and in chunks."""
    body = os.urandom(20 * MIB)
    expected = {"length": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    assert proxy.ask("POST", "/a/upload", body).json == expected
    with proxy.wire() as wire:
        wire.send(head("POST", "/a/upload", "Transfer-Encoding: chunked"))
        view = memoryview(body)
        for start in range(0, len(body), 700_001):
            piece = bytes(view[start : start + 700_001])
            wire.send(b"%X;name=value\r\n%b\r\n" % (len(piece), piece))
        wire.send(b"0\r\nX-Trailer: 1\r\n\r\n")
        assert wire.answer().json == expected


@pytest.mark.parametrize("chunked", ["", "&chunked=1"])
def test_download(proxy: Proxy, chunked: str) -> None:
    """64 MiB arrive intact, with a length and in chunks."""
    total, length = hashlib.sha256(), 0
    connection, response = proxy.open("GET", f"/a/big?bytes={64 * MIB}{chunked}")
    while block := response.read(MIB):
        total.update(block)
        length += len(block)
    connection.close()
    assert length == 64 * MIB
    assert total.hexdigest() == hashlib.sha256(bytes(range(256)) * (64 * MIB // 256)).hexdigest()


def test_each_token_leaves_as_it_comes(proxy: Proxy) -> None:
    """The first token of a slow stream is there long before the last; the stream is what the backend said."""
    body = json.dumps(chat("a-model", stream=True, demo_token_delay=0.03)).encode()
    with proxy.wire() as wire:
        began = time.monotonic()
        wire.post("/a/v1/chat/completions", body, "Content-Type: application/json")
        first = wire.through(b'"content":"You"')
        early = time.monotonic() - began
        assert b"X-Accel-Buffering: no" in first
        wire.pending = first + wire.pending
        answer = wire.answer()
        assert early < (time.monotonic() - began) / 2
    assert content(answer.body).startswith("You said: Hello there")
    assert answer.body.endswith(b"data: [DONE]\n\n")


# -- either side may be slow, or leave ------------------------------------------------------------


def test_slow_reader(proxy: Proxy) -> None:
    """A client that does not read stops the backend; the proxy's memory stays bounded."""
    before = proxy.resident()
    with proxy.wire(receive_buffer=64 * 1024) as wire:
        wire.send(head("GET", f"/a/big?bytes={512 * MIB}", "X-Request-ID: slow-reader"))
        wire.exactly(MIB)
        time.sleep(1)
        wire.exactly(MIB)
        time.sleep(0.5)
        assert proxy.resident() - before < 16 * MIB
    log = proxy.access("slow-reader")
    assert log["outcome"] == "client_gone"
    assert int(log["sent"]) < 32 * MIB


def test_client_leaves_mid_stream(proxy: Proxy) -> None:
    """A client that leaves in mid-stream ends the generation at once."""
    before = proxy.stats("a")["aborted"]
    with proxy.streaming("a") as wire:
        assert proxy.stats("a")["running"] == 1
        wire.socket.close()
        until(lambda: proxy.stats("a")["aborted"] == before + 1, 3)
    assert proxy.backend("a")["in_flight"] == 0


def test_client_leaves_before_the_head(proxy: Proxy) -> None:
    """A client that leaves before its answer began ends the request at the backend, too."""
    before = proxy.stats("a")["aborted"]
    with proxy.wire() as wire:
        wire.post("/a/v1/chat/completions", json.dumps(chat("a-model")).encode(), "X-Demo-Fault: hang")
        until(lambda: proxy.stats("a")["running"] == 1)
    until(lambda: proxy.stats("a")["aborted"] == before + 1, 3)


def test_backend_dies_before_the_head(proxy: Proxy) -> None:
    """A backend that closes instead of answering is 502 backend_unavailable."""
    answer = proxy.chat("a", demo_fault="die-before-head", headers={"X-Request-ID": "no-head"})
    assert (answer.status, answer.error["code"]) == (502, "backend_unavailable")
    assert answer.error["backend"] == "a"
    assert proxy.access("no-head")["outcome"] == "backend_died"


def test_stale_connection(proxy: Proxy) -> None:
    """A request on a kept connection that the backend has closed meanwhile is answered all the same."""
    assert proxy.chat("a").status == 200
    time.sleep(0.1)
    for pause in (4.9, 0.2):  # the demo server closes idle connections after 5 s, as uvicorn does
        time.sleep(pause)
        assert proxy.chat("a").status == 200


@pytest.mark.parametrize("fault", ["die-mid-stream=3", "close-mid-body=3"])
def test_backend_dies_in_a_stream(proxy: Proxy, fault: str) -> None:
    """A stream that breaks ends with an error event and without an end of message."""
    body = json.dumps(chat("a-model", stream=True)).encode()
    with proxy.wire() as wire:
        wire.post("/a/v1/chat/completions", body, f"X-Demo-Fault: {fault}", f"X-Request-ID: stream-{fault}")
        wire.through(b"\r\n\r\n")
        seen = wire.rest()
    assert b'"content":"You"' in seen
    assert b"0\r\n\r\n" not in seen
    assert b"[DONE]" not in seen
    events = [line for line in seen.split(b"\n") if line.startswith(b'data: {"error"')]
    assert len(events) == 1
    error = json.loads(events[0].removeprefix(b"data: "))["error"]
    assert (error["code"], error["backend"]) == ("backend_died", "a")
    assert proxy.access(f"stream-{fault}")["outcome"] == "backend_died"


def test_backend_dies_in_a_body(proxy: Proxy) -> None:
    """A whole answer that breaks off stays shorter than announced."""
    connection, response = proxy.open(
        "POST",
        "/a/v1/chat/completions",
        chat("a-model", demo_fault="close-mid-body"),
        {"X-Request-ID": "short"},
    )
    assert response.status == 200
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        response.read()
    connection.close()
    assert proxy.access("short")["outcome"] == "backend_died"


def test_engine_breaks_a_stream_off(proxy: Proxy) -> None:
    """A stream with the engine's own error event is passed on as it is, and counted as broken."""
    answer = proxy.chat(
        "a", stream=True, demo_fault="error-event=2", headers={"X-Request-ID": "engine-error"}
    )
    assert answer.status == 200
    assert b"EngineCore encountered an issue" in answer.body
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert b"backend_died" not in answer.body
    assert proxy.access("engine-error")["outcome"] == "backend_died"


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_status_of_the_backend(proxy: Proxy, status: int) -> None:
    """The backend's own errors are passed on."""
    answer = proxy.chat("a", demo_fault=str(status))
    assert answer.status == status
    assert answer.error["message"] == "This fault was asked for."


# -- what the front refuses -----------------------------------------------------------------------


def test_body_too_large(proxy: Proxy) -> None:
    """A body over max_body is 413: by its announcement at once, in chunks when it has come to be."""
    with proxy.wire() as wire:
        wire.send(head("POST", "/a/upload", f"Content-Length: {25 * MIB}", "Expect: 100-continue"))
        answer = wire.answer()
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")
        assert wire.rest() == b""
    with proxy.wire() as wire:
        wire.send(head("POST", "/a/upload", "Transfer-Encoding: chunked"))
        piece = b"100000\r\n" + bytes(MIB) + b"\r\n"
        for _ in range(25):
            wire.send(piece)
        answer = wire.answer()
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"", None),
        (b"\xff\xfe", None),
        (b"[]", None),
        (b'"a"', None),
        (b"null", None),
        (b"{}", "model"),
        (b'{"model": 3}', "model"),
        (b'{"model": ["a"]}', "model"),
        (b'{"model": null}', "model"),
        (b'{"model": ""}', "model"),
        (b"[" * 100_000, None),
    ],
)
def test_bad_json(proxy: Proxy, body: bytes, param: str | None) -> None:
    """What is no JSON object with a model's name is 400 invalid_request."""
    answer = proxy.ask("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    assert (answer.status, answer.error["code"]) == (400, "invalid_request")
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["param"] == param


def test_unknown_names(proxy: Proxy) -> None:
    """An unknown model is 404 model_not_found, an unknown route 404 route_not_found with the routes."""
    answer = proxy.ask("POST", "/v1/chat/completions", chat("no-such-model"))
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert answer.error["param"] == "model"
    answer = proxy.ask("GET", "/nobody/v1/models")
    assert (answer.status, answer.error["code"]) == (404, "route_not_found")
    assert "/a" in answer.error["message"]
    assert "/other" in answer.error["message"]
    assert proxy.state("other") == "absent"


def test_wrong_keys(proxy: Proxy) -> None:
    """No key or a wrong one is 401, a client's key where an administrator's is needed 403."""
    for key in (None, "", "wrong", KEY + "x", KEY[:-1]):
        for path in ("/a/v1/models", "/v1/models", "/api/backends", "/nobody/x", "/a/health"):
            answer = proxy.ask("GET", path, key=key)
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
            assert b"/other" not in answer.body
    for path in ("/api/backends", "/a/sleep", "/a/docs", "/a/%73leep", "/a//x/../sleep"):
        answer = proxy.ask("POST" if "sleep" in path else "GET", path)
        assert (answer.status, answer.error["code"]) == (403, "not_allowed"), path
    assert proxy.ask("GET", "/v1/models", headers={"x-api-key": KEY}, key=None).status == 200
    assert (
        proxy.ask("GET", "/healthz", key=None).status == proxy.ask("GET", "/readyz", key=None).status == 200
    )
    assert proxy.ask("GET", "/api/backends", key=ADMIN).status == 200


def test_what_wakes_nothing(proxy: Proxy) -> None:
    """Lists, redirects, passive and control paths wake no backend."""
    assert proxy.ask("GET", "/other").status == 308
    assert proxy.ask("GET", "/other?x=1").header("Location") == "/other/?x=1"
    for path in ("health", "ping", "metrics", "load", "version"):
        answer = proxy.ask("GET", f"/other/{path}")
        assert (answer.status, answer.error["code"]) == (503, "not_running")
        assert answer.error["state"] == "absent"
    assert proxy.ask("POST", "/other/sleep", key=ADMIN).status == 503
    names = [model["id"] for model in proxy.ask("GET", "/v1/models").json["data"]]
    assert names == ["a-model", "other-model"]
    assert proxy.ask("GET", "/v1/models/other-model").json["id"] == "other-model"
    assert proxy.ask("GET", "/a/health").status == 200
    assert proxy.ask("GET", "/a/version").json == {"version": "0.32.0+demo"}
    assert proxy.state("other") == "absent"
    assert proxy.world.starts("other") == 0


MALFORMED = {
    "no version": b"GET /\r\n\r\n",
    "nonsense": b"nonsense\r\n\r\n",
    "bytes": b"\x00\xff\x16\x03\x01\r\n\r\n",
    "a version to come": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
    "space in a name": b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    "negative length": b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    "length that is no number": b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1x\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "length and chunks": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "unknown coding": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    "bad chunk": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "long line": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "long field": b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 100_000 + b"\r\n\r\n",
    "many fields": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-Many: 1\r\n" * 20_000 + b"\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + os.urandom(190),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed(proxy: Proxy, what: str) -> None:
    """A request that is not HTTP is answered with 400 and the end of the connection; a head that is too large
    with 431 (RFC 6585 section 5)."""
    with proxy.wire() as wire:
        wire.send(MALFORMED[what])
        wire.socket.settimeout(4)
        if what == "TLS":
            return  # it holds no line that could be refused
        answer = wire.answer()
        assert answer.status == (431 if what.startswith(("long", "many")) else 400)
        assert answer.error["code"] == "invalid_request"
        assert wire.rest() == b""


@pytest.mark.parametrize(
    "target",
    [
        "a/echo",
        "*",
        "http://proxy.test/a/echo",
        "http://elsewhere.test/a/echo",
        "//a/echo",
        "/%61/echo",
        "/a/../a/echo",
    ],
)
def test_targets(proxy: Proxy, target: str) -> None:
    """Odd request targets get an answer: absolute ones are ours where they name the host that Host does."""
    with proxy.wire() as wire:
        wire.send(head("GET", target))
        answer = wire.answer()
        if target.startswith("http://proxy.test"):
            assert answer.json["target"] == "/echo"
        elif target.startswith("/%61"):
            assert answer.status == 200
        else:
            assert answer.status in (400, 404)
            assert answer.error["code"]


# -- the odd parts of HTTP ------------------------------------------------------------------------


def test_http_1_0(proxy: Proxy) -> None:
    """An HTTP/1.0 client gets no chunks, and the end of the connection as the end of the answer."""
    with proxy.wire() as wire:
        wire.send(head("GET", "/a/big?bytes=300000&chunked=1", version="1.0"))
        answer = wire.rest()
    first, _, body = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in first.lower()
    assert len(body) == 300_000
    body = json.dumps(chat("a-model", stream=True)).encode()
    with proxy.wire() as wire:
        wire.send(
            head("POST", "/a/v1/chat/completions", f"Content-Length: {len(body)}", version="1.0") + body
        )
        assert wire.rest().endswith(b"data: [DONE]\n\n")


def test_pipelining(proxy: Proxy) -> None:
    """Requests sent without waiting are answered in their order."""
    slow = json.dumps(chat("a-model", "slow one")).encode()
    with proxy.wire() as wire:
        wire.send(
            head("GET", "/a/echo/1")
            + head(
                "POST",
                "/a/v1/chat/completions",
                f"Content-Length: {len(slow)}",
                "X-Demo-Fault: slow-head=0.3",
            )
            + slow
            + head("GET", "/healthz")
            + head("GET", "/a/big?bytes=100000&chunked=1")
            + head("GET", "/a/echo/5")
        )
        assert wire.answer().json["target"] == "/echo/1"
        assert "slow one" in wire.answer().json["choices"][0]["message"]["content"]
        assert wire.answer().json == {"status": "ok"}
        assert len(wire.answer().body) == 100_000
        assert wire.answer().json["target"] == "/echo/5"


def test_expect(proxy: Proxy) -> None:
    """Expect: 100-continue is answered before the body is sent."""
    with proxy.wire() as wire:
        wire.send(head("POST", "/a/upload", "Content-Length: 5", "Expect: 100-continue"))
        assert wire.through(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        wire.send(b"hello")
        assert wire.answer().json["sha256"] == hashlib.sha256(b"hello").hexdigest()


def test_options(proxy: Proxy) -> None:
    """OPTIONS without a route is answered by the proxy, under a route by the backend."""
    answer = proxy.ask("OPTIONS", "/v1/chat/completions")
    assert (answer.status, answer.header("Allow")) == (204, "POST, OPTIONS")
    assert proxy.ask("OPTIONS", "/a/echo").json["method"] == "OPTIONS"
    with proxy.wire() as wire:
        wire.send(head("OPTIONS", "*"))
        answer = wire.answer()
        assert answer.status == 204
        assert answer.header("X-Request-ID")


def test_websocket(proxy: Proxy) -> None:
    """A WebSocket passes as a tunnel, both ways, until the client closes it."""
    nonce = base64.b64encode(os.urandom(16)).decode()
    fields = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {nonce}",
    ]
    accept = hashlib.sha1(nonce.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False)
    with proxy.wire() as wire:
        early = b"\x81\x85abcdearly"  # a frame sent together with the head
        wire.send(
            head("GET", "/a/ws", *fields, "Sec-WebSocket-Protocol: chat, other", "X-Request-ID: ws") + early
        )
        answer = wire.answer()
        assert answer.status == 101
        assert answer.header("Sec-WebSocket-Accept") == base64.b64encode(accept.digest()).decode()
        assert answer.header("Sec-WebSocket-Protocol") == "chat"
        assert answer.header("X-LLMProxy-Backend") == "a"
        assert wire.exactly(len(early)) == early
        for size in (1, 1000, 300_000):
            frame = os.urandom(size)
            wire.send(frame)
            assert wire.exactly(size) == frame
        assert proxy.backend("a")["in_flight"] == 1
    until(lambda: proxy.backend("a")["in_flight"] == 0, 2)
    assert proxy.access("ws")["status"] == "101"


def test_multipart_model(proxy: Proxy) -> None:
    """Audio requests name their model in a form."""
    form = (
        b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\na-model\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n\x00\xff\r\n--x--\r\n'
    )
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = proxy.ask("POST", "/v1/audio/transcriptions", form, kind)
    assert answer.header("X-LLMProxy-Backend") == "a"
    assert answer.json["text"] == "I am a-model and heard 2 bytes of sound."


def test_followed_requests_share_connections(proxy: Proxy) -> None:
    """A hundred requests one after another on one connection are all answered."""
    with proxy.wire() as wire:
        for number in range(100):
            wire.send(head("GET", f"/a/echo/{number}"))
            assert wire.answer().json["target"] == f"/echo/{number}"
