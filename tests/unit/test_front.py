"""The front over a backend in memory: a client's bytes in, the client's bytes out."""

from __future__ import annotations

import errno
import gc
import json
import socket
import struct
from typing import Any
from unittest import mock

import httptools
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from zope.interface import implementer

from llmproxy.backend.probe import INTERVAL
from llmproxy.config.model import BackendSpec, Config, Key, Limits
from llmproxy.errors import Refusal
from llmproxy.fleet.fleet import Fleet
from llmproxy.web import exchange
from llmproxy.web.accesslog import AccessLog, Entry
from llmproxy.web.auth import Authenticator
from llmproxy.web.body import Body
from llmproxy.web.request import SLOW_FOLLOWER
from llmproxy.web.resources import RootResource
from llmproxy.web.site import ProxySite
from tests.fakes import FakeController, FakeRuntime
from tests.inmemory import Far, Servers

KEY = b"Authorization: Bearer client\r\n"
ADMIN = b"Authorization: Bearer admin\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class ClientTransport(StringTransport):
    """The proxy's end of a client's connection."""

    def abortConnection(self) -> None:
        self.disconnecting = True
        self.aborted = True

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing to set."""

    def unregisterProducer(self) -> None:
        """May come twice, as to a socket's own."""
        self.producer = None


@implementer(ISSLTransport)
class TLSTransport(ClientTransport):
    """A TLS transport hands what it has not itself on to the socket below."""

    half_closed = False

    def getPeerCertificate(self) -> None:
        """There is none."""

    def getTcpNoDelay(self) -> bool:
        return False

    def getTcpKeepAlive(self) -> bool:
        return False

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Nothing to set."""

    def loseWriteConnection(self) -> None:
        self.half_closed = True


class Log(AccessLog):
    """Keeps the entries."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.failures: list[str] = []

    def write(self, entry: Entry) -> None:
        self.entries.append(entry)

    def flush(self) -> None:
        """Nothing waits."""

    def failure(self, what: str, reason: Failure) -> None:
        self.failures.append(str(reason.value))


class Client:
    """One connection to the front."""

    def __init__(self, site: ProxySite, transport: ClientTransport | None = None) -> None:
        self.transport = transport or ClientTransport()
        self.channel: Any = site.buildProtocol(None)
        self.channel.makeConnection(self.transport)
        self.gone = False

    def send(self, data: bytes) -> Client:
        self.channel.dataReceived(data)
        return self

    def get(self, path: bytes, headers: bytes = KEY) -> Client:
        return self.send(b"GET %b HTTP/1.1\r\nHost: h\r\n%b\r\n" % (path, headers))

    def post(self, path: bytes, body: Any, headers: bytes = KEY) -> Client:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = b"POST %b HTTP/1.1\r\nHost: h\r\n%bContent-Length: %d\r\n\r\n" % (path, headers, len(data))
        return self.send(head + data)

    def leave(self) -> None:
        if self.gone:
            return
        self.gone = True
        self.channel.connectionLost(Failure(ConnectionDone()))

    def take(self) -> bytes:
        data = bytes(self.transport.value())
        self.transport.clear()
        return data

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        head, _, body = self.take().partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines[1:])
        return int(lines[0].split()[1]), {k.lower(): v for k, v in fields.items()}, body

    def error(self) -> tuple[int, dict[str, Any], dict[str, str]]:
        status, headers, body = self.answer()
        return status, json.loads(body)["error"], headers


class FrontTests(SynchronousTestCase):
    """What a client sees."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.world = FakeController()
        self.servers = Servers()
        self.log = Log()
        self.build()

    def build(self, **spec: Any) -> None:
        """A proxy with two routes, an administrator's key and a client's."""
        keys = (
            Key("root", "admin", admin=True),
            Key("me", "client"),
            Key("site", "limited", routes=("chat",)),
            Key("meek", "meek", may_start=False),
        )
        config = Config(
            backends={
                "coder": BackendSpec(route="coder", container="c", models=("coder3b",), **spec),
                "chat": BackendSpec(route="chat", container="d", models=("sitechat",), aliases=("gpt-4",)),
            },
            keys=keys,
            backend_key="own",
            limits=Limits(max_body=1000),
        )
        self.fleet = Fleet(self.clock, self.servers.connect, {"docker": FakeRuntime(self.world)}, config)
        self.fleet.start()
        root = RootResource(self.fleet)
        self.site = ProxySite(root, self.clock, Authenticator(keys), config.limits, self.log)

    def client(self) -> Client:
        client = Client(self.site)
        self.addCleanup(client.leave)
        return client

    def ready(self) -> None:
        self.servers.mode = "healthy"
        self.clock.advance(INTERVAL)

    def warm(self, route: str = "coder") -> None:
        self.fleet.backends[route].demand()
        self.ready()

    def far(self, index: int = -1) -> Far:
        return self.servers.requests[index]

    # -- keys and routes ----------------------------------------------------------------------------

    def test_a_key_is_required(self) -> None:
        """Without one, or with a wrong one, 401 invalid_api_key and WWW-Authenticate."""
        for headers in (b"", b"Authorization: Bearer nope\r\n", b"Authorization: Basic Y2xpZW50\r\n"):
            for path in (b"/coder/v1/models", b"/v1/models", b"/nowhere", b"/api/backends"):
                status, error, fields = self.client().get(path, headers).error()
                self.assertEqual((status, error["code"]), (401, "invalid_api_key"))
                self.assertIn("bearer", fields["www-authenticate"].lower())
        self.assertEqual(self.world.count("ensure_started"), 0)

    def test_a_connection_does_not_outlive_its_key(self) -> None:
        """The same request on it is refused once the key has expired, is gone, or is another one's."""
        keys = (Key("me", "client"), Key("guest", "brief", expires=100.0))
        self.site.authenticator = Authenticator(keys)
        guest, me = self.client(), self.client()
        brief = b"x-api-key: brief\r\n"
        for _ in range(2):
            self.assertEqual(guest.get(b"/v1/models", brief).answer()[0], 200)
            self.assertEqual(me.get(b"/v1/models").answer()[0], 200)
        self.assertEqual(guest.get(b"/v1/models", b"x-api-key: other\r\n").error()[0], 401)
        self.clock.advance(100)
        self.assertEqual(guest.get(b"/v1/models", brief).error()[0], 401)
        self.assertEqual(me.get(b"/v1/models").answer()[0], 200)
        self.site.authenticator = Authenticator(keys[1:])
        self.assertEqual(me.get(b"/v1/models").error()[0], 401)

    def test_x_api_key_is_a_key(self) -> None:
        """Anthropic's header is taken too."""
        self.assertEqual(self.client().get(b"/v1/models", b"x-api-key: client\r\n").answer()[0], 200)

    def test_healthz_needs_no_key(self) -> None:
        """It is 200 while the reactor turns, and every answer has its request id."""
        status, fields, _ = self.client().get(b"/healthz", b"X-Request-ID: mine\r\n").answer()
        self.assertEqual((status, fields["x-request-id"]), (200, "mine"))

    def test_a_clients_request_id_is_none_of_ours(self) -> None:
        """Nobody can name a request as another one will be named."""
        own = self.client().get(b"/healthz").answer()[1]["x-request-id"]
        told = (
            self.client().get(b"/healthz", b"X-Request-ID: %b\r\n" % own.encode()).answer()[1]["x-request-id"]
        )
        self.assertNotEqual(told, own)

    def test_what_is_no_request_is_logged_as_it_was_answered(self) -> None:
        """With the time, and with the id that the client was given."""
        self.clock.advance(7)
        _, _, fields = self.client().send(b"NONSENSE\r\n\r\n").error()
        entry = self.log.entries[-1]
        self.assertEqual((entry.request_id, entry.at), (fields["x-request-id"], 7))
        self.clock.advance(3)

    def test_readyz_tells_why_not(self) -> None:
        """503 with the reason while the runtime does not answer."""
        self.assertEqual(self.client().get(b"/readyz", b"").answer()[0], 200)
        self.world.go_away("no engine here")
        status, _, body = self.client().get(b"/readyz", b"").answer()
        self.assertEqual(status, 503)
        self.assertIn(b"no engine here", body)

    def test_an_unknown_route_lists_what_the_key_may_use(self) -> None:
        """404 route_not_found names the routes of this key and no others."""
        status, error, _ = self.client().get(b"/nope/v1/models", b"x-api-key: limited\r\n").error()
        self.assertEqual((status, error["code"]), (404, "route_not_found"))
        self.assertIn("/chat", error["message"])
        self.assertNotIn("/coder", error["message"])

    def test_a_key_is_kept_to_its_routes(self) -> None:
        """403 on another route, 404 for a model of another route."""
        headers = b"x-api-key: limited\r\n"
        status, error, _ = self.client().get(b"/coder/v1/models", headers).error()
        self.assertEqual((status, error["code"]), (403, "not_allowed"))
        status, error, _ = self.client().post(b"/v1/completions", {"model": "coder3b"}, headers).error()
        self.assertEqual((status, error["code"]), (404, "model_not_found"))

    def test_a_key_may_be_kept_from_starting(self) -> None:
        """403 when it is not ready, served when it is."""
        headers = b"x-api-key: meek\r\n"
        self.assertEqual(self.client().get(b"/coder/v1/models", headers).error()[0], 403)
        self.assertEqual(self.world.count("ensure_started"), 0)
        self.warm()
        client = self.client().get(b"/coder/v1/models", headers)
        self.far().send(OK)
        self.assertEqual(client.answer()[0], 200)

    def test_a_bare_route_redirects(self) -> None:
        """308 to the route with a slash, query kept; nothing is woken."""
        status, fields, _ = self.client().get(b"/coder?a=b").answer()
        self.assertEqual((status, fields["location"]), (308, "/coder/?a=b"))
        self.assertEqual(self.world.count("ensure_started"), 0)

    def test_route_names_have_no_case(self) -> None:
        """/CODER is /coder."""
        self.warm()
        self.client().get(b"/CODER/x")
        self.assertTrue(self.far().received.startswith(b"GET /x HTTP/1.1\r\n"))

    # -- passing on ---------------------------------------------------------------------------------

    def test_bytes_are_passed_on_as_they_are(self) -> None:
        """Target, header case and order stay; hop-by-hop fields and the client's key go, ours come."""
        self.warm()
        self.client().get(
            b"/coder/a%2Fb//c?x=%20y&z",
            KEY + b"X-oDD: 1\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 2\r\nTE: trailers\r\nAccept: */*\r\n",
        )
        head = self.far().received
        self.assertTrue(
            head.startswith(b"GET /a%2Fb//c?x=%20y&z HTTP/1.1\r\nHost: h\r\nX-oDD: 1\r\nAccept: */*\r\n")
        )
        self.assertNotIn(b"X-Hop", head)
        self.assertNotIn(b"client", head)
        for line in (b"Authorization: Bearer own", b"X-Forwarded-Proto: http", b"X-Forwarded-Host: h"):
            self.assertIn(b"\r\n" + line + b"\r\n", head)

    def test_passthrough_keeps_the_clients_key(self) -> None:
        """auth: passthrough sends the client's own Authorization and none of ours."""
        self.build(auth="passthrough")
        self.warm()
        self.client().get(b"/coder/x")
        self.assertIn(b"Authorization: Bearer client\r\n", self.far().received)
        self.assertNotIn(b"own", self.far().received)

    def test_an_answer_comes_back_whole(self) -> None:
        """Status, fields in their case, body; with the names of backend and request."""
        self.warm()
        client = self.client().get(b"/coder/x")
        self.far().send(
            b"HTTP/1.1 418 Short and Stout\r\nX-oDD: 1\r\nContent-Length: 2\r\nConnection: x\r\n\r\nok"
        )
        data = client.take()
        self.assertTrue(data.startswith(b"HTTP/1.1 418 Short and Stout\r\nX-oDD: 1\r\nContent-Length: 2\r\n"))
        self.assertIn(b"X-LLMProxy-Backend: coder\r\n", data)
        self.assertIn(b"X-LLMProxy-Cold-Start: 0.000\r\n", data)
        self.assertTrue(data.endswith(b"\r\n\r\nok"))
        self.assertEqual(self.log.entries[-1].outcome, "ok")
        self.assertEqual(self.log.entries[-1].sent, 2)

    def test_chunks_leave_as_they_arrive(self) -> None:
        """Each event is written at once, and event streams are marked for proxies in front."""
        self.warm()
        client = self.client().post(b"/coder/v1/chat/completions", {"stream": True})
        self.far().send(EVENTS + b"6\r\ndata: \r\n")
        self.assertIn(b"X-Accel-Buffering: no\r\n", client.transport.value())
        self.assertTrue(client.take().endswith(b"\r\n\r\n6\r\ndata: \r\n"))
        self.far().send(b"3\r\n1\n\n\r\n")
        self.assertEqual(client.take(), b"3\r\n1\n\n\r\n")
        self.far().send(b"0\r\n\r\n")
        self.assertEqual(client.take(), b"0\r\n\r\n")

    def test_the_head_of_a_stream_does_not_wait_for_its_first_bytes(self) -> None:
        """vLLM answers before its first token, which may be long in coming; the client sees that it has."""
        self.warm()
        client = self.client().post(b"/coder/v1/chat/completions", {"stream": True})
        self.far().send(EVENTS)
        self.assertTrue(client.take().endswith(b"\r\n\r\n"))
        self.far().send(b"3\r\n1\n\n\r\n")
        self.assertEqual(client.take(), b"3\r\n1\n\n\r\n")

    def test_a_request_without_host_gets_one(self) -> None:
        """HTTP/1.0 clients need not send Host, and what we send is HTTP/1.1, where many servers insist."""
        self.warm()
        self.client().send(b"GET /coder/x HTTP/1.0\r\n" + KEY + b"\r\n")
        self.assertIn(b"\r\nHost: 127.0.0.1:9001\r\n", self.far().received)

    def test_204_has_no_length(self) -> None:
        """There is no Content-Length where no body can be, whatever the backend says."""
        self.warm()
        client = self.client().get(b"/coder/x")
        self.far().send(b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n")
        self.assertNotIn("content-length", client.answer()[1])
        client = self.client().send(b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n")
        self.assertNotIn("content-length", client.answer()[1])

    def test_http_1_0_clients_get_no_chunks(self) -> None:
        """The body is delimited by the end of the connection."""
        self.warm()
        client = self.client().send(b"GET /coder/x HTTP/1.0\r\n" + KEY + b"\r\n")
        self.far().send(EVENTS + b"5\r\nhello\r\n0\r\n\r\n")
        status, fields, body = client.answer()
        self.assertEqual((status, body), (200, b"hello"))
        self.assertNotIn("transfer-encoding", fields)
        self.assertTrue(client.transport.disconnecting)

    def test_an_answer_to_an_http_1_0_client_that_breaks_off(self) -> None:
        """The connection is reset: a plain end of it would make the answer look complete."""
        self.warm()
        client = self.client().send(b"GET /coder/x HTTP/1.0\r\n" + KEY + b"\r\n")
        self.far().send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        with mock.patch.object(client.transport, "getHandle", create=True) as handle:
            handle.return_value = mock.Mock(spec=socket.socket)
            self.far().close()
        self.assertEqual(client.answer()[2], b"hello")
        self.assertTrue(client.transport.aborted)
        ((level, option, value),) = (each.args for each in handle.return_value.setsockopt.call_args_list)
        self.assertEqual((level, option), (socket.SOL_SOCKET, socket.SO_LINGER))
        self.assertEqual(value, struct.pack("ii", 1, 0))

    def test_a_resource_of_twisteds_own(self) -> None:
        """It finds the fields, the length and the body of a request where Twisted Web has them."""
        found: list[Any] = []

        class Own(Resource):
            isLeaf = True

            def render_POST(self, request: Any) -> bytes:
                headers = request.requestHeaders
                found.append((request.getHeader(b"x-a"), headers.getRawHeaders(b"x-a")))
                found.append((headers.getRawHeaders(b"content-length"), request.content.read()))
                return b"done"

        self.site.resource = Own()
        client = self.client().post(b"/x", b"body", KEY + b"X-A: 1\r\nx-a: 2\r\n")
        self.assertEqual(found, [(b"2", [b"1", b"2"]), ([b"4"], b"body")])
        self.assertEqual((client.answer()[0], self.log.failures), (200, []))

    def test_a_fault_before_anything_answers(self) -> None:
        """500 without its text, which the log has; the connection goes on."""
        client = self.client()
        for fault in (RuntimeError("a fault"), Refusal(418, "error", "A teapot.")):
            with mock.patch("llmproxy.web.request.getChildForRequest", side_effect=fault):
                status, error, _ = client.get(b"/v1/models").error()
            self.assertEqual(status, 418 if isinstance(fault, Refusal) else 500)
            self.assertNotIn("a fault", error["message"])
        self.assertEqual(self.log.failures, ["a fault"])
        self.assertEqual(client.get(b"/v1/models").answer()[0], 200)

    def test_pipelined_requests_are_answered_in_order(self) -> None:
        """The second goes on when the first has been answered."""
        self.warm()
        client = self.client()
        client.send(
            b"GET /coder/1 HTTP/1.1\r\nHost: h\r\n%b\r\nGET /coder/2 HTTP/1.1\r\nHost: h\r\n%b\r\n"
            % (KEY, KEY)
        )
        self.assertEqual(len(self.servers.requests), 1)
        self.far().send(OK)
        self.assertIn(b"GET /2 HTTP/1.1", self.far().received)
        self.far().send(OK)
        self.assertEqual(client.take().count(b"HTTP/1.1 200 OK"), 2)

    def test_a_head_request_has_no_body_back(self) -> None:
        """Its length is told and nothing follows."""
        self.warm()
        client = self.client().send(b"HEAD /coder/x HTTP/1.1\r\nHost: h\r\n" + KEY + b"\r\n")
        self.far().send(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
        status, fields, body = client.answer()
        self.assertEqual((status, fields["content-length"], body), (200, "500", b""))

    def test_a_chunked_upload_arrives_with_its_length(self) -> None:
        """The body is the same, its framing ours."""
        self.warm()
        client = self.client()
        client.send(
            b"POST /coder/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n" + KEY + b"\r\n3\r\nabc\r\n"
        )
        client.send(b"2\r\nde\r\n0\r\n\r\n")
        self.assertTrue(self.far().received.endswith(b"Content-Length: 5\r\n\r\nabcde"))

    def test_a_slow_client_slows_the_backend(self) -> None:
        """When the client's connection is full the backend's is not read, until it has room again."""
        self.warm()
        client = self.client().post(b"/coder/x", {})
        self.far().send(EVENTS + b"2\r\nab\r\n")
        client.channel.pauseProducing()
        self.assertEqual(self.far().transport.producerState, "paused")
        client.channel.resumeProducing()
        self.assertEqual(self.far().transport.producerState, "producing")

    def test_a_client_that_leaves_closes_the_upstream_request(self) -> None:
        """At once, so that vLLM aborts it; and its place is free."""
        self.warm()
        client = self.client().post(b"/coder/x", {})
        self.far().send(EVENTS)
        client.leave()
        self.assertTrue(self.far().closed)
        self.assertEqual(self.fleet.backends["coder"].admission.in_flight, 0)
        self.assertEqual(self.log.entries[-1].outcome, "client_gone")

    def test_a_websocket_is_a_tunnel(self) -> None:
        """The handshake is passed on, then bytes go both ways until one side closes."""
        self.warm()
        client = self.client().get(b"/coder/ws", KEY + b"Connection: Upgrade\r\nUpgrade: websocket\r\n")
        self.assertIn(b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", self.far().received)
        self.far().send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi"
        )
        data = client.take()
        self.assertTrue(data.startswith(b"HTTP/1.1 101 Switching Protocols\r\n"))
        self.assertTrue(data.endswith(b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi"))
        client.send(b"\x81\x02yo")
        self.assertTrue(self.far().received.endswith(b"\x81\x02yo"))
        self.assertEqual(self.fleet.backends["coder"].admission.in_flight, 1)
        self.far().close()
        self.assertTrue(client.transport.disconnecting)
        self.assertEqual(self.fleet.backends["coder"].admission.in_flight, 0)

    def test_a_slow_websocket_slows_the_backend(self) -> None:
        """A tunnel has back-pressure towards the backend, too."""
        self.warm()
        client = self.client().get(b"/coder/ws", KEY + b"Connection: Upgrade\r\nUpgrade: websocket\r\n")
        self.far().send(b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi")
        client.channel.pauseProducing()
        self.assertEqual(self.far().transport.producerState, "paused")
        client.channel.resumeProducing()
        self.assertEqual(self.far().transport.producerState, "producing")

    def test_a_client_that_spoke_too_early_is_read_again(self) -> None:
        """Twisted stops to read while more than 16 KiB wait for the answer; the tunnel must go on."""
        self.warm()
        client = self.client().get(b"/coder/ws", KEY + b"Connection: Upgrade\r\nUpgrade: websocket\r\n")
        client.send(b"x" * 20000)
        self.assertEqual(client.transport.producerState, "paused")
        self.far().send(b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        self.assertTrue(self.far().received.endswith(b"x" * 20000))
        self.assertEqual(client.transport.producerState, "producing")

    def test_what_switches_protocols(self) -> None:
        """Any protocol but another HTTP or TLS; no request with a body or of HTTP/1.0."""
        self.warm()
        switch = KEY + b"Connection: Upgrade\r\nUpgrade: %b\r\n"
        self.client().get(b"/coder/x", switch % b"my-own/2")
        self.assertIn(b"\r\nUpgrade: my-own/2\r\n", self.far().received)
        for other in (b"h2c", b"HTTP/2.0", b"websocket, h2c", b"TLS/1.2"):
            self.client().get(b"/coder/x", switch % other)
            self.assertNotIn(b"Upgrade", self.far().received)
        self.client().post(b"/coder/x", b"body", switch % b"websocket")
        self.assertNotIn(b"Upgrade", self.far().received)
        self.client().send(b"GET /coder/x HTTP/1.0\r\n" + switch % b"websocket" + b"\r\n")
        self.assertNotIn(b"Upgrade", self.far().received)

    def test_a_switch_that_nobody_asked_for_is_a_bad_gateway(self) -> None:
        """Otherwise the client's next request, its key included, would go to the backend as it is."""
        self.warm()
        client = self.client().get(b"/coder/x")
        far = self.far()
        far.send(b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhi")
        self.assertEqual(client.error()[0], 502)
        client.get(b"/coder/2")
        self.assertNotIn(b"client", far.received)
        self.assertTrue(far.closed)

    # -- breakage -----------------------------------------------------------------------------------

    def test_a_reused_connection_that_dies_is_retried_once(self) -> None:
        """The same request goes out on a new connection, body included."""
        self.warm()
        client = self.client()
        client.get(b"/coder/1")
        self.far().send(OK)
        client.take()
        client.post(b"/coder/2", b"body")
        self.far().close()
        self.assertEqual(len(self.servers.requests), 2)
        self.assertTrue(self.far().received.endswith(b"\r\n\r\nbody"))
        self.far().close()
        status, error, _ = client.error()
        self.assertEqual((status, error["code"], error["backend"]), (502, "backend_unavailable", "coder"))
        self.assertEqual(len(self.servers.requests), 2)

    def test_a_stream_that_dies_gets_an_error_event_and_no_clean_end(self) -> None:
        """The client sees an error event, no last chunk, and the end of the connection."""
        self.warm()
        client = self.client().post(b"/coder/v1/completions", {"stream": True})
        self.far().send(EVENTS + b"8\r\ndata: 1\n\r\n")
        client.take()
        self.far().close()
        data = client.take()
        self.assertIn(b'data: {"error": {"message": ', data)
        self.assertIn(b'"code": "backend_died"', data)
        self.assertNotIn(b"\r\n0\r\n", data)
        self.assertTrue(client.transport.disconnecting)
        client.leave()
        self.assertEqual(self.log.entries[-1].outcome, "backend_died")

    def test_a_backend_to_which_no_connection_can_be_made_for_want_of_a_descriptor(self) -> None:
        """It is said so, and its health is not doubted."""
        self.warm()
        self.servers.mode = "lacking"
        client = self.client().post(b"/coder/v1/completions", {})
        status, error, _ = client.error()
        self.assertEqual((status, error["code"]), (502, "backend_unavailable"))
        self.assertIn("no file descriptor is left for a connection to it", error["message"])
        self.servers.mode = "healthy"
        client.post(b"/coder/v1/completions", {})
        self.far().send(OK)
        self.assertEqual(client.answer()[0], 200)

    def test_a_stream_that_has_said_that_it_broke_says_so_once(self) -> None:
        """After an error event of the backend's own, or after [DONE], none is added: the end is not clean."""
        for last in (b'data: {"error": {"code": 500}}\n\n', b"data: [DONE]\n\n"):
            with self.subTest(last=last):
                self.warm()
                client = self.client().post(b"/coder/v1/completions", {"stream": True})
                said = b"data: 1\n\n" + last
                self.far().send(EVENTS + b"%x\r\n%b\r\n" % (len(said), said))
                self.far().close()
                data = client.take()
                self.assertTrue(data.endswith(said + b"\r\n"), data)
                self.assertTrue(client.transport.disconnecting)
                client.leave()
                self.assertEqual(self.log.entries[-1].outcome, "backend_died")

    def test_an_answer_that_dies_has_no_clean_end(self) -> None:
        """Fewer bytes than announced, then the end of the connection; nothing is added."""
        self.warm()
        client = self.client().get(b"/coder/x")
        self.far().send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        self.far().close()
        self.assertTrue(client.take().endswith(b"half"))
        self.assertTrue(client.transport.disconnecting)

    def test_a_stream_that_the_engine_broke_off_is_counted_as_broken(self) -> None:
        """vLLM's error event before [DONE] is passed on and is no success; its health is asked for."""
        self.warm()
        probes = self.servers.probes
        self.client().post(b"/coder/v1/completions", {"stream": True})
        event = b'data: {"error": {"message": "EngineCore"}}\n\ndata: [DONE]\n\n'
        self.far().send(EVENTS + b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event))
        self.assertEqual(self.log.entries[-1].outcome, "backend_died")
        self.assertEqual(self.servers.probes, probes + 1)

    def test_nonsense_from_the_backend_is_a_bad_gateway(self) -> None:
        """An answer that is no HTTP is 502."""
        self.warm()
        client = self.client().get(b"/coder/x")
        self.far().send(b"SSH-2.0-OpenSSH\r\n")
        self.assertEqual(client.error()[0], 502)

    def test_a_fault_of_our_own_is_answered(self) -> None:
        """500, logged, and nothing is left in flight."""

        def broken(*_: object, **__: object) -> bytes:
            raise ValueError("a fault")

        self.warm()
        self.patch(exchange, "request_head", broken)
        self.assertEqual(self.client().get(b"/coder/x").error()[0], 500)
        self.assertEqual((self.fleet.in_flight(), self.log.failures), (0, ["a fault"]))

    def test_a_request_leaves_no_cycles(self) -> None:
        """What it made is freed as soon as it is over; the collector of cycles has nothing to do."""
        self.warm()
        client = self.client()

        def exchange() -> None:
            client.post(b"/coder/v1/completions", {"stream": True})
            self.far().send(EVENTS + b"6\r\ndata: \r\n0\r\n\r\n")
            client.get(b"/coder/x")
            self.far().send(OK)
            client.post(b"/v1/completions", {"model": "coder3b"})
            self.far().send(OK)
            client.get(b"/nowhere")

        exchange()
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        exchange()
        self.assertEqual(gc.collect(), 0)

    def test_the_end_of_a_connection_leaves_no_parser(self) -> None:
        """Neither of the client's nor of the backend's, to which their parsers refer."""

        def parsers() -> int:
            kinds = (httptools.HttpRequestParser, httptools.HttpResponseParser)
            return sum(isinstance(each, kinds) for each in gc.get_objects())

        self.warm()
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        before = parsers()
        client = self.client()
        client.get(b"/coder/x")
        self.far().send(OK)
        self.assertEqual(parsers(), before + 2)
        client.leave()
        self.far().close()
        self.assertEqual(parsers(), before)

    # -- cold ---------------------------------------------------------------------------------------

    def test_a_cold_request_is_held_and_handed_over(self) -> None:
        """It waits for health, then gets its answer with the seconds that it waited."""
        client = self.client().post(b"/v1/chat/completions", {"model": "coder3b"})
        self.clock.advance(2)
        self.assertEqual(client.take(), b"")
        self.ready()
        self.far().send(OK)
        status, fields, body = client.answer()
        self.assertEqual((status, body), (200, b"ok"))
        self.assertGreaterEqual(float(fields["x-llmproxy-cold-start"]), 2)
        self.assertEqual(self.log.entries[-1].state, "absent")

    def test_a_held_stream_gets_heartbeats(self) -> None:
        """After heartbeat_after come the head and a comment, then one every heartbeat_every, then the
        answer's events without its head."""
        client = self.client().post(b"/v1/chat/completions", {"model": "coder3b", "stream": True})
        self.clock.advance(7.9)
        self.assertEqual(client.take(), b"")
        self.clock.advance(0.1)
        first = client.take()
        self.assertTrue(first.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream"))
        self.assertIn(b': llmproxy {"state":"starting","phase":"starting","elapsed":8,"eta":null}', first)
        self.clock.advance(10)
        self.assertIn(b'"elapsed":18', client.take())
        self.ready()
        self.far().send(EVENTS + b"6\r\ndata: \r\n0\r\n\r\n")
        self.assertEqual(client.take(), b"6\r\ndata: \r\n0\r\n\r\n")

    def test_an_early_failure_of_a_stream_is_a_true_503(self) -> None:
        """Before the first heartbeat a failed start is a status; after it, one error event."""
        early = self.client().post(b"/v1/chat/completions", {"model": "coder3b", "stream": True})
        self.world.exit("coder", 1)
        self.assertEqual(early.error()[:2][0], 503)
        self.clock.advance(5)
        late = self.client().post(b"/v1/chat/completions", {"model": "coder3b", "stream": True})
        self.clock.advance(9)
        late.take()
        self.world.exit("coder", 1)
        data = late.take()
        self.assertIn(b'data: {"error": {"message": ', data)
        self.assertIn(b"backend_start_failed", data)
        self.assertTrue(data.endswith(b"0\r\n\r\n"))

    def test_an_error_after_heartbeats_is_an_event(self) -> None:
        """The engine's own 400 reaches a client whose stream has begun as one event."""
        client = self.client().post(b"/v1/chat/completions", {"model": "coder3b", "stream": True})
        self.clock.advance(8)
        client.take()
        self.ready()
        self.far().send(b'HTTP/1.1 400 Bad Request\r\nContent-Length: 22\r\n\r\n{"error": {"code": 1}}')
        data = client.take()
        self.assertIn(b'data: {"error": {"code": 1}}\n\n', data)
        self.assertTrue(data.endswith(b"0\r\n\r\n"))

    def test_max_wait_bounds_a_hold(self) -> None:
        """504 hold_timeout, and the start goes on."""
        self.build(max_wait=20.0)
        client = self.client().get(b"/coder/x")
        self.clock.advance(20)
        status, error, _ = client.error()
        self.assertEqual((status, error["code"]), (504, "hold_timeout"))
        self.assertEqual(self.fleet.backends["coder"].state, "starting")

    def test_a_waiter_that_hangs_up_frees_its_place(self) -> None:
        """At once."""
        client = self.client().get(b"/coder/x")
        self.assertEqual(self.fleet.backends["coder"].admission.waiting, 1)
        client.leave()
        self.assertEqual(self.fleet.backends["coder"].admission.waiting, 0)
        self.assertEqual((self.log.entries[-1].outcome, self.site.held), ("client_gone", 0))

    def test_passive_paths_never_wake(self) -> None:
        """503 not_running with the state; from the backend when it is ready."""
        for path in (b"health", b"ping", b"metrics", b"load", b"version", b"%68ealth", b"./health"):
            status, error, _ = self.client().get(b"/coder/" + path).error()
            self.assertEqual((status, error["code"], error["state"]), (503, "not_running", "absent"))
        self.assertEqual(self.world.count("ensure_started"), 0)
        self.warm()
        client = self.client().get(b"/coder/metrics")
        self.far().send(OK)
        self.assertEqual(client.answer()[0], 200)

    def test_the_engines_controls_are_for_administrators(self) -> None:
        """403 for a client's key in whatever spelling; passed on for an administrator's; nothing is woken."""
        for path in (b"sleep", b"wake_up", b"collective_rpc", b"%73leep", b"/sleep", b"x/../sleep", b"docs"):
            status, error, _ = self.client().post(b"/coder/" + path, b"").error()
            self.assertEqual((status, error["code"]), (403, "not_allowed"), path)
        self.assertEqual(self.client().post(b"/coder/sleep", b"", ADMIN).error()[0], 503)
        self.assertEqual(self.world.count("ensure_started"), 0)
        self.warm()
        self.client().post(b"/coder/sleep", b"", ADMIN)
        self.assertTrue(self.far().received.startswith(b"POST /sleep HTTP/1.1"))

    def test_a_fragment_does_not_hide_a_control(self) -> None:
        """400: uvicorn cuts /sleep#x to /sleep, and a request target has no fragment."""
        self.warm()
        self.assertEqual(self.client().post(b"/coder/sleep#x", b"").error()[0], 400)
        self.assertEqual(self.servers.requests, [])

    # -- /v1 ----------------------------------------------------------------------------------------

    def test_models_are_listed_and_none_is_woken(self) -> None:
        """All models of all routes that the key may use, with their state."""
        _, _, body = self.client().get(b"/v1/models").answer()
        listed = json.loads(body)
        self.assertEqual(listed["object"], "list")
        self.assertEqual([model["id"] for model in listed["data"]], ["coder3b", "sitechat", "gpt-4"])
        self.assertEqual(listed["data"][0]["meta"]["llmproxy"], {"route": "coder", "state": "absent"})
        _, _, body = self.client().get(b"/v1/models", b"x-api-key: limited\r\n").answer()
        self.assertEqual([model["id"] for model in json.loads(body)["data"]], ["sitechat", "gpt-4"])
        self.assertEqual(json.loads(self.client().get(b"/v1/models/sitechat").answer()[2])["id"], "sitechat")
        self.assertEqual(self.client().get(b"/v1/models/nope").error()[1]["code"], "model_not_found")
        self.assertEqual(self.world.count("ensure_started"), 0)

    def test_bad_bodies(self) -> None:
        """Malformed JSON, JSON that is no object, no model and a model that is no string are 400."""
        for body in (
            b"",
            b"{",
            b"[]",
            b'"x"',
            b"{}",
            b'{"model": 5}',
            b'{"model": ""}',
            b"\xff\xfe",
            b"[" * 900,
        ):
            status, error, _ = self.client().post(b"/v1/chat/completions", body).error()
            self.assertEqual((status, error["code"]), (400, "invalid_request"), body)
        status, error, _ = self.client().post(b"/v1/chat/completions", {"model": "n\ud800"}).error()
        self.assertEqual((status, error["code"]), (404, "model_not_found"))
        self.assertEqual(self.world.count("ensure_started"), 0)

    def test_the_body_is_passed_on_byte_for_byte(self) -> None:
        """A model by its own name alters nothing, not even spaces."""
        self.warm()
        self.client().post(b"/v1/completions", b'{ "model" :"coder3b" , "x":1.0 }')
        self.assertTrue(self.far().received.endswith(b'\r\n\r\n{ "model" :"coder3b" , "x":1.0 }'))

    def test_an_alias_becomes_the_engines_own_name(self) -> None:
        """The backend gets a model that it serves; the rest of the body is as it was."""
        self.warm("chat")
        for name in ("gpt-4", "chat"):
            client = self.client().post(b"/v1/completions", {"model": name, "n": 1})
            received = self.far().received.rpartition(b"\r\n\r\n")[2]
            self.assertEqual(json.loads(received), {"model": "sitechat", "n": 1})
            self.far().send(OK)
            client.take()

    def test_multipart_forms_name_their_model(self) -> None:
        """/v1/audio/... is routed by the form's model field, the body untouched."""
        self.warm()
        form = (
            b'--B\r\nContent-Disposition: form-data; name="file"; filename="model"\r\n\r\nx\r\n'
            b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\ncoder3b\r\n--B--\r\n'
        )
        kind = b"Content-Type: multipart/form-data; boundary=B\r\n"
        self.client().post(b"/v1/audio/transcriptions", form, KEY + kind)
        self.assertTrue(self.far().received.endswith(form))
        status, error, _ = self.client().post(b"/v1/audio/transcriptions", b"--B--", KEY + kind).error()
        self.assertEqual((status, error["param"]), (400, "model"))

    def test_dots_do_not_lead_out_of_the_api(self) -> None:
        """/v1/audio/../../sleep is no inference path, in whatever spelling."""
        self.warm()
        form = b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\ncoder3b\r\n--B--\r\n'
        kind = b"Content-Type: multipart/form-data; boundary=B\r\n"
        for path in (b"../../sleep", b"%2e%2e/%2E./sleep", b"x%2f..%2f..%2f../sleep"):
            self.assertEqual(self.client().post(b"/v1/audio/" + path, form, KEY + kind).error()[0], 400)
        inside = self.client().post(b"/v1/audio/../sleep", form, KEY + kind)
        self.assertEqual(inside.error()[0], 404)
        self.assertEqual(self.servers.requests, [])

    # -- limits and malformed requests --------------------------------------------------------------

    def test_bodies_are_bounded(self) -> None:
        """413 before the body is read when it is announced, and as soon as it is seen when it is not."""
        client = self.client()
        client.send(
            b"POST /coder/x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1001\r\n"
            + KEY
            + b"\r\n"
        )
        status, error, fields = client.error()
        self.assertEqual((status, error["code"], fields["connection"]), (413, "body_too_large", "close"))
        client = self.client()
        client.send(b"POST /coder/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n" + KEY + b"\r\n")
        client.send(b"400\r\n" + b"x" * 1024 + b"\r\n")
        self.assertEqual(client.error()[0], 413)
        self.clock.advance(3)

    def test_a_body_that_cannot_be_kept_is_refused(self) -> None:
        """A full disk is answered with 507 and logged, and the connection ends."""

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "no space left")

        self.patch(Body, "write", full)
        status, error, fields = self.client().post(b"/coder/x", b"body").error()
        self.assertEqual((status, error["code"], fields["connection"]), (507, "error", "close"))
        self.assertEqual(len(self.log.failures), 1)
        self.clock.advance(3)

    def test_a_body_that_grows_too_large_is_refused_once(self) -> None:
        """What comes with it, the end of the body included, makes no request and no second answer."""
        self.warm()
        client = self.client()
        client.send(
            b"POST /coder/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n" + KEY + b"\r\n"
            b"400\r\n" + b"x" * 1024 + b"\r\n3\r\nabc\r\n0\r\n\r\n"
        )
        self.assertEqual(client.take().count(b"HTTP/1.1 "), 1)
        self.assertEqual((self.servers.requests, len(self.log.entries)), ([], 1))
        self.clock.advance(3)

    def test_expect_100_continue(self) -> None:
        """The client is told to go on."""
        client = self.client()
        client.send(
            b"POST /coder/x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n"
            + KEY
            + b"\r\n"
        )
        self.assertEqual(client.take(), b"HTTP/1.1 100 Continue\r\n\r\n")

    def test_malformed_requests(self) -> None:
        """Each is 400 invalid_request in OpenAI's shape, and the end of its connection."""
        for data in (
            b"NONSENSE\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: h\r\nBad Name: x\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            b"GET / HTTP/2.0\r\n\r\n",
            b"GET /\r\n\r\n",
        ):
            client = self.client().send(data)
            status, error, fields = client.error()
            self.assertEqual((status, error["code"], fields["connection"]), (400, "invalid_request", "close"))
            client.send(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
            self.assertEqual(client.take(), b"")
            client.leave()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_refused_tls_connection_is_not_half_closed(self) -> None:
        """The socket below a TLS session is not shut down under it."""
        transport = TLSTransport()
        client = Client(self.site, transport).send(b"NONSENSE\r\n\r\n")
        self.assertEqual(client.error()[0], 400)
        self.assertEqual((transport.half_closed, transport.disconnecting), (False, True))
        client.leave()

    def test_absolute_form_is_the_same_request(self) -> None:
        """Where it names the same host as Host does; another one, or a user, is refused."""
        for target, status in (
            (b"http://h/healthz", 200),
            (b"HTTPS://H:443/healthz", 200),
            (b"http://elsewhere/healthz", 400),
            (b"http://me@h/healthz", 400),
            (b"ftp://h/healthz", 400),
        ):
            self.assertEqual(self.client().get(target).answer()[0], status, target)

    def test_connect_is_refused(self) -> None:
        """It is no tunnel for anything."""
        client = self.client().send(b"CONNECT a:1 HTTP/1.1\r\nHost: h\r\n" + KEY + b"\r\n")
        self.assertEqual(client.error()[0], 400)

    # -- administration -----------------------------------------------------------------------------

    def test_the_admin_api_needs_an_administrator(self) -> None:
        """403 for a client's key."""
        self.assertEqual(self.client().get(b"/api/backends").error()[0], 403)

    def test_backends_are_shown_started_and_stopped(self) -> None:
        """202 with the backend at once; with wait=1 when it is done."""
        _, _, body = self.client().get(b"/api/backends/coder", ADMIN).answer()
        self.assertEqual(json.loads(body)["state"], "absent")
        client = self.client().post(b"/api/backends/coder/start", b"", ADMIN)
        status, _, body = client.answer()
        self.assertEqual((status, json.loads(body)["state"]), (202, "starting"))
        waiting = self.client().post(b"/api/backends/coder/start?wait=1", b"", ADMIN)
        self.assertEqual(waiting.take(), b"")
        self.ready()
        status, _, body = waiting.answer()
        self.assertEqual((status, json.loads(body)["state"]), (200, "ready"))
        client = self.client().post(b"/api/backends/coder/stop?wait=1", b"", ADMIN)
        self.clock.advance(0)
        self.assertEqual(json.loads(client.answer()[2])["state"], "absent")
        self.assertEqual(self.client().post(b"/api/backends/nope/stop", b"", ADMIN).error()[0], 404)
        self.assertEqual(self.client().get(b"/api/backends/coder/stop", ADMIN).error()[0], 405)

    def test_a_restart_is_waited_for(self) -> None:
        """With wait=1 it answers when the new run is ready, not when the old one has gone."""
        self.warm()
        self.servers.mode = "refuse"
        client = self.client().post(b"/api/backends/coder/restart?wait=1", b"", ADMIN)
        self.clock.advance(0)
        self.clock.advance(0)
        self.assertEqual(client.take(), b"")
        self.assertEqual(self.fleet.backends["coder"].state, "starting")
        self.ready()
        self.clock.advance(0)
        self.assertEqual(json.loads(client.answer()[2])["state"], "ready")
        self.assertEqual(self.world.count("ensure_started"), 2)

    def test_who_does_not_wait_for_a_start_is_gone(self) -> None:
        """The access log says so, and the start goes on."""
        client = self.client().post(b"/api/backends/coder/start?wait=1", b"", ADMIN)
        client.leave()
        self.assertEqual(self.log.entries[-1].outcome, "client_gone")
        self.assertEqual(self.fleet.backends["coder"].state, "starting")

    def test_a_failed_start_that_is_waited_for_is_told(self) -> None:
        """With wait=1 a start that fails answers with its cause, as a request is answered."""
        client = self.client().post(b"/api/backends/coder/start?wait=1", b"", ADMIN)
        self.world.exit("coder", 3)
        self.clock.advance(0)
        status, error, _ = client.error()
        self.assertEqual((status, error["code"], error["state"]), (503, "backend_start_failed", "failed"))
        self.assertIn("exit status 3", error["message"])

    def test_a_start_while_it_ends_is_not_lost(self) -> None:
        """Start and restart wait for the end of the old run, and with wait=1 answer for the new one."""
        for verb in (b"start", b"restart"):
            self.build()
            self.world.hold_stops = True
            self.warm()
            self.client().post(b"/api/backends/coder/stop", b"", ADMIN)
            waiting = self.client().post(b"/api/backends/coder/%b?wait=1" % verb, b"", ADMIN)
            self.assertEqual(waiting.take(), b"")
            self.world.finish_stop("coder")
            self.assertEqual(waiting.take(), b"")
            self.clock.pump([0, INTERVAL, 0, 0])
            self.assertEqual(json.loads(waiting.answer()[2])["state"], "ready")
            self.fleet.backends["coder"].stop_wanted("test", force=True)
            self.world.finish_stop("coder")

    def test_who_follows_and_does_not_read_is_let_go(self) -> None:
        """What waits for it is counted in both of Twisted's buffers."""
        events = self.client().get(b"/api/events", ADMIN)
        events.transport.dataBuffer, events.transport.offset = b"x" * 1000, 900  # type: ignore[attr-defined]
        events.transport._tempDataLen = SLOW_FOLLOWER - 100  # type: ignore[attr-defined]
        self.fleet.backends["coder"].demand()
        self.assertFalse(events.transport.disconnecting)
        events.transport._tempDataLen += 1  # type: ignore[attr-defined]
        self.ready()
        self.assertTrue(events.transport.disconnecting)

    def test_logs_are_shown_without_secrets(self) -> None:
        """The tail that was asked for, the keys in it replaced."""
        self.fleet.backends["coder"].demand()
        self.world.print_line("coder", "one")
        self.world.print_line("coder", "Bearer own")
        _, fields, body = self.client().get(b"/api/backends/coder/logs?tail=1", ADMIN).answer()
        self.assertEqual(fields["content-type"], "text/plain; charset=utf-8")
        self.assertEqual(body.strip(), b"Bearer ***")

    def test_logs_and_events_are_followed(self) -> None:
        """What comes is streamed until the client leaves."""
        self.fleet.backends["coder"].demand()
        logs = self.client().get(b"/api/backends/coder/logs?follow=1", ADMIN)
        events = self.client().get(b"/api/events", ADMIN)
        self.world.print_line("coder", "hello")
        self.assertIn(b"hello\n", logs.take())
        events.take()
        self.ready()
        self.assertIn(b'"to": "ready"', events.take())
        logs.leave()
        events.leave()
        self.world.print_line("coder", "more")
        self.assertEqual(logs.take() + events.take(), b"")

    # -- the end ------------------------------------------------------------------------------------

    def test_the_end_refuses_what_comes(self) -> None:
        """Who waits and who comes gets 503 shutting_down with Retry-After, and the connection ends."""
        waiting = self.client().get(b"/coder/x")
        idle = self.client().get(b"/healthz")
        self.fleet.refuse_new()
        self.site.close_idle()
        self.assertTrue(idle.transport.disconnecting)
        status, error, fields = waiting.error()
        self.assertEqual((status, error["code"]), (503, "shutting_down"))
        self.assertIn("retry-after", fields)
        self.assertTrue(waiting.transport.disconnecting)
