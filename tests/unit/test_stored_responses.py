"""Responses that a backend has stored are asked of that backend, and start none."""

from __future__ import annotations

from llmproxy.http.paths import is_stored
from tests.front import FrontCase
from tests.unit.test_front import KEY, OK, Client

ONE = b"/v1/responses/resp_1"
LIMITED = b"x-api-key: limited\r\n"


def test_what_is_stored() -> None:
    """To look at a response, to delete and to cancel it: whatever else is sent may make another."""
    for method, path in (
        (b"GET", "/v1/responses/resp_1"),
        (b"DELETE", "/v1/responses/resp_1"),
        (b"GET", "/v1/responses/resp_1/input_items"),
        (b"POST", "/v1/responses/resp_1/cancel"),
        (b"GET", "//v1/./responses/resp%5f1"),
    ):
        assert is_stored(method, path), (method, path)
    for method, path in (
        (b"POST", "/v1/responses"),
        (b"GET", "/v1/responses"),
        (b"POST", "/v1/responses/compact"),
        (b"GET", "/x/v1/responses/resp_1"),
        (b"POST", "/v1/chat/completions/resp_1/cancel"),
    ):
        assert not is_stored(method, path), (method, path)


class StoredTests(FrontCase):
    """Two models, none of which runs at first."""

    def ask(self, method: bytes, path: bytes, key: bytes = KEY) -> Client:
        return self.client().send(b"%b %b HTTP/1.1\r\nHost: h\r\n%b\r\n" % (method, path, key))

    def test_without_a_route(self) -> None:
        """404 that tells where it is to be asked for, of the routes that the key may use."""
        self.warm("coder", "chat")
        for method, path in (
            (b"GET", ONE),
            (b"DELETE", ONE),
            (b"POST", ONE + b"/cancel"),
            (b"GET", ONE + b"?a=1"),
        ):
            status, error, _ = self.ask(method, path).error()
            self.assertEqual((status, error["code"]), (404, "route_not_found"))
            self.assertIn("/<route>/v1/responses/<id>", error["message"])
            self.assertIn("/chat, /coder", error["hint"])
        self.assertNotIn("coder", self.ask(b"GET", ONE, LIMITED).error()[1]["hint"])
        self.assertEqual(self.ask(b"GET", ONE, b"").error()[0], 401)
        self.assertEqual(self.servers.requests, [])

    def test_with_a_route(self) -> None:
        """From the backend when it is ready; it is used by that."""
        self.warm("coder")
        self.clock.advance(100)
        client = self.ask(b"GET", b"/coder" + ONE)
        self.assertTrue(self.far().received.startswith(b"GET /v1/responses/resp_1 HTTP/1.1\r\n"))
        self.assertTrue(self.backend("coder").gate.busy)
        self.far().send(OK)
        self.assertEqual(client.answer()[0], 200)

    def test_it_starts_nothing(self) -> None:
        """What is not ready has it no more: 503, and no other one is asked."""
        self.warm("chat")
        started = self.started()
        for method, path in ((b"GET", ONE), (b"DELETE", ONE), (b"POST", ONE + b"/cancel")):
            client = self.ask(method, b"/coder" + path, KEY + b"X-LLMProxy-Fallback: any-ready\r\n")
            status, error, _ = client.error()
            self.assertEqual((status, error["code"], error["state"]), (503, "not_running", "absent"))
            self.assertIn("lost", error["hint"])
        self.assertEqual((self.started(), self.servers.requests), (started, []))
