"""What browsers are told of who may read an answer."""

from __future__ import annotations

from llmproxy.config.model import Cors
from tests.front import FrontCase
from tests.unit.test_front import KEY, OK, Client

PAGE = b"Origin: https://chat.example\r\n"
ASKS = (
    b"Access-Control-Request-Method: POST\r\n"
    b"Access-Control-Request-Headers: authorization, x-stainless-os\r\n"
)
ORIGINS = ("https://chat.example", "app://here")
THEIRS = (
    b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\naccess-control-allow-credentials: true\r\n"
    b"Vary: Accept\r\nContent-Length: 2\r\n\r\nok"
)


class CorsTests(FrontCase):
    """With two pages that may."""

    def setUp(self) -> None:
        super().setUp()
        self.reload(cors=Cors(ORIGINS))

    def preflight(self, path: bytes, headers: bytes) -> Client:
        return self.client().send(b"OPTIONS %b HTTP/1.1\r\nHost: h\r\n%b\r\n" % (path, headers))

    def test_a_preflight_needs_no_key_and_wakes_nothing(self) -> None:
        """By route and by model; what the page wants to send is allowed."""
        for path in (
            b"/v1/chat/completions",
            b"/v1/models",
            b"/coder/v1/chat/completions",
            b"/coder/",
            b"/coder",
        ):
            status, fields, body = self.preflight(path, PAGE + ASKS).answer()
            self.assertEqual((status, body), (204, b""))
            self.assertEqual(fields["access-control-allow-origin"], "https://chat.example")
            self.assertEqual(fields["access-control-allow-headers"], "authorization, x-stainless-os")
            self.assertIn("POST", fields["access-control-allow-methods"])
            self.assertEqual(fields["vary"], "Origin")
            self.assertNotIn("access-control-allow-credentials", fields)
        self.assertEqual((self.started(), self.servers.requests), (0, []))

    def test_other_pages_are_refused(self) -> None:
        """403, with no word that a browser would take for a yes."""
        for origin in (
            b"https://evil.example",
            b"https://chat.example.evil",
            b"null",
            b"http://chat.example",
            b"",
        ):
            status, error, fields = self.preflight(b"/v1/models", b"Origin: %b\r\n" % origin + ASKS).error()
            self.assertEqual((status, error["code"]), (403, "not_allowed"))
            self.assertNotIn("access-control-allow-origin", fields)
            self.assertEqual(fields["vary"], "Origin")

    def test_what_is_asked_for_is_not_echoed_blindly(self) -> None:
        """Only names of header fields are."""
        asks = b"Access-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: a b;c\r\n"
        self.assertNotIn("access-control-allow-headers", self.preflight(b"/coder/", PAGE + asks).answer()[1])
        asks = b"Access-Control-Request-Method: GET\r\n"
        self.assertNotIn("access-control-allow-headers", self.preflight(b"/coder/", PAGE + asks).answer()[1])

    def test_answers_say_who_may_read_them(self) -> None:
        """Relayed, the proxy's own, and refusals; the backend's own word is dropped."""
        self.warm("coder")
        client = self.client().get(b"/coder/x", KEY + PAGE)
        self.far().send(THEIRS)
        data = client.take()
        self.assertEqual(data.lower().count(b"access-control-allow-origin"), 1)
        self.assertNotIn(b"credentials", data)
        self.assertIn(b"Vary: Accept\r\n", data)
        self.assertIn(b"Vary: Origin\r\n", data)
        for path, key in ((b"/v1/models", KEY), (b"/v1/models", b""), (b"/nowhere", KEY), (b"/coder", KEY)):
            _, fields, _ = self.client().get(path, key + PAGE).answer()
            self.assertEqual(fields["access-control-allow-origin"], "https://chat.example")
            self.assertIn("X-LLMProxy-Backend", fields["access-control-expose-headers"])
            self.assertIn("Retry-After", fields["access-control-expose-headers"])

    def test_other_pages_and_other_clients_read_nothing_new(self) -> None:
        """They get the same answer, which no cache may give to the pages that may read it."""
        self.warm("coder")
        for headers in (KEY, KEY + b"Origin: https://evil.example\r\n"):
            client = self.client().get(b"/coder/x", headers)
            self.far().send(THEIRS)
            data = client.take()
            self.assertNotIn(b"access-control", data.lower())
            self.assertIn(b"Vary: Origin\r\n", data)

    def test_a_held_stream_says_it_in_its_own_head(self) -> None:
        """Which leaves with the first heartbeat."""
        client = self.client().post(b"/v1/completions", {"model": "coder3b", "stream": True}, KEY + PAGE)
        self.clock.advance(8)
        self.assertIn(b"Access-Control-Allow-Origin: https://chat.example\r\n", client.take())

    def test_origins_have_no_case(self) -> None:
        """A browser writes them in lower case; others may not."""
        _, fields, _ = self.client().get(b"/v1/models", KEY + b"Origin: APP://here\r\n").answer()
        self.assertEqual(fields["access-control-allow-origin"], "APP://here")

    def test_every_page_may_when_the_operator_says_so(self) -> None:
        """And only then."""
        self.reload(cors=Cors(("*",)))
        _, fields, _ = self.preflight(b"/v1/models", b"Origin: null\r\n" + ASKS).answer()
        self.assertEqual(fields["access-control-allow-origin"], "*")
        self.assertNotIn("vary", fields)
        self.warm("coder")
        client = self.client().get(b"/coder/x", KEY)
        self.far().send(THEIRS)
        self.assertEqual(client.take().lower().count(b"access-control-allow-origin"), 1)

    def test_the_admin_api_is_for_no_page(self) -> None:
        """It is as if there were no CORS."""
        self.assertEqual(self.preflight(b"/api/backends", PAGE + ASKS).answer()[0], 401)
        admin = b"Authorization: Bearer admin\r\n"
        self.assertNotIn(
            "access-control-allow-origin", self.client().get(b"/api/backends", admin + PAGE).answer()[1]
        )

    def test_without_it_backends_speak_for_themselves(self) -> None:
        """And a preflight is a request like any other."""
        self.reload(cors=Cors())
        self.assertEqual(self.preflight(b"/v1/models", PAGE + ASKS).answer()[0], 401)
        self.warm("coder")
        client = self.client().get(b"/coder/x", KEY + PAGE)
        self.far().send(THEIRS)
        data = client.take()
        self.assertIn(b"access-control-allow-credentials: true\r\n", data)
        self.assertNotIn(b"Vary: Origin", data)

    def test_options_are_passed_on(self) -> None:
        """What is no preflight goes to the backend of a route; a path of ours says what it takes."""
        self.warm("coder")
        client = self.preflight(b"/coder/x", KEY + PAGE)
        self.assertTrue(self.far().received.startswith(b"OPTIONS /x HTTP/1.1"))
        self.far().send(OK)
        self.assertEqual(client.answer()[0], 200)
        self.assertEqual(self.preflight(b"/v1/completions", KEY).answer()[1]["allow"], "POST, OPTIONS")
