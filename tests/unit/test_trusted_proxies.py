"""The front behind proxies and under names: whose requests they are, and what strangers' pages do not get."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.address import IPv4Address, UNIXAddress

from llmproxy.web.auth import Authenticator
from tests.front import FrontCase
from tests.unit.test_front import KEY, OK, Client, ClientTransport

TOLD = b"X-Forwarded-For: 6.6.6.6, 192.0.2.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: llm.example\r\n"


class Peers(FrontCase):
    """A proxy whose clients have addresses."""

    def setUp(self) -> None:
        super().setUp()
        self.site.believe(("10.0.0.0/8", "unix"), ())
        self.warm("coder")

    def from_(self, address: Any) -> Client:
        transport = ClientTransport(
            peerAddress=IPv4Address("TCP", address, 5000) if isinstance(address, str) else address
        )
        client = Client(self.site, transport)
        self.addCleanup(client.leave)
        return client

    def handed(self, index: int = -1) -> dict[bytes, bytes]:
        head = self.far(index).received.rpartition(b"GET /x HTTP/1.1\r\n")[2]
        return dict(line.split(b": ", 1) for line in head.split(b"\r\n\r\n")[0].split(b"\r\n"))


class TrustedProxyTests(Peers):
    """X-Forwarded-For and its like."""

    def test_what_others_say_of_themselves_is_replaced(self) -> None:
        """From an address that is not trusted nothing is believed, and nothing of it passed on."""
        self.from_("192.0.2.1").get(b"/coder/x", KEY + TOLD + b"Forwarded: for=6.6.6.6\r\n")
        handed = self.handed()
        self.assertEqual(handed[b"X-Forwarded-For"], b"192.0.2.1")
        self.assertEqual(handed[b"X-Forwarded-Proto"], b"http")
        self.assertEqual(handed[b"X-Forwarded-Host"], b"h")
        self.assertNotIn(b"Forwarded", handed)

    def test_a_trusted_proxys_word_is_passed_on(self) -> None:
        """The client's address, its scheme and the name that it asked for, one value each."""
        client = self.from_("10.0.0.1").get(b"/coder/x", KEY + TOLD)
        handed = self.handed()
        self.assertEqual(handed[b"X-Forwarded-For"], b"192.0.2.7")
        self.assertEqual(handed[b"X-Forwarded-Proto"], b"https")
        self.assertEqual(handed[b"X-Forwarded-Host"], b"llm.example")
        self.far().send(OK)
        self.assertEqual(client.answer()[0], 200)
        self.assertEqual(self.log.entries[-1].client, "192.0.2.7")

    def test_each_request_of_a_shared_connection_has_its_own_client(self) -> None:
        """A reverse proxy sends those of many clients over one connection, the same ones again, too."""
        client = self.from_(UNIXAddress(None))
        for address in (b"192.0.2.1", b"192.0.2.2", b"192.0.2.2", b"192.0.2.1"):
            client.get(b"/coder/x", KEY + b"X-Forwarded-For: %b\r\n" % address)
            self.assertEqual(self.handed()[b"X-Forwarded-For"], address)
            self.far().send(OK)
            self.assertEqual(self.log.entries[-1].client.encode(), address)
        client.get(b"/coder/x", KEY)
        self.assertEqual(self.handed()[b"X-Forwarded-For"], b"unknown")

    def test_a_reload_counts_for_connections_that_are_open(self) -> None:
        """Who is not trusted any more is not believed from the next request on."""
        client = self.from_("10.0.0.1").get(b"/coder/x", KEY + TOLD)
        self.far().send(OK)
        self.site.believe((), ())
        client.get(b"/coder/x", KEY + TOLD)
        self.assertEqual(self.handed()[b"X-Forwarded-For"], b"10.0.0.1")


class HostTests(Peers):
    """DNS rebinding."""

    def ask(self, path: bytes, host: bytes, fields: bytes = b"", peer: str = "192.0.2.1") -> tuple[int, Any]:
        client = self.from_(peer).send(b"GET %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (path, host, fields))
        status, _, body = client.answer()
        return status, body

    def test_the_dashboard_is_not_for_names_of_strangers(self) -> None:
        """403 that says what to do, where no key is shown; with one, under whatever name."""
        for path in (b"/ui/", b"/api/backends", b"/ui/api/backends", b"/ui/static/app.css"):
            status, body = self.ask(path, b"evil.example:8000")
            self.assertEqual(status, 403, path)
            error = json.loads(body)["error"]
            self.assertEqual(error["code"], "not_allowed")
            self.assertIn("'evil.example' to allowed_hosts", error["hint"])
        admin = b"Authorization: Bearer admin\r\n"
        self.assertEqual(self.ask(b"/api/backends", b"evil.example", admin)[0], 200)
        self.assertEqual(self.ask(b"/ui/", b"127.0.0.1:8000")[0], 401)
        self.assertEqual(self.ask(b"/ui/", b"llm.local")[0], 401)
        self.assertEqual(self.ask(b"/ui/", b"evil.example")[0], 403)

    def test_models_with_a_key_are_served_under_every_name(self) -> None:
        """There a page would have to know it; and what tells nothing is for everybody."""
        self.assertEqual(self.ask(b"/v1/models", b"evil.example", KEY)[0], 200)
        self.assertEqual(self.ask(b"/v1/models", b"evil.example")[0], 401)
        self.assertEqual(self.ask(b"/healthz", b"evil.example")[0], 200)

    def test_without_keys_nothing_is_for_names_of_strangers(self) -> None:
        """Models included, and whatever a page puts into its requests proves nothing."""
        self.reload(keys=())
        self.site.authenticator = Authenticator(())
        for path in (b"/v1/models", b"/coder/x", b"/api/backends", b"/ui/", b"/nothing"):
            for fields in (b"", KEY):
                self.assertEqual(self.ask(path, b"evil.example", fields)[0], 403, path)
        self.assertEqual(self.ask(b"/healthz", b"evil.example")[0], 200)
        self.assertEqual(self.ask(b"/v1/models", b"localhost:8000")[0], 200)
        self.assertEqual(self.ask(b"/api/backends", b"[::1]:8000")[0], 200)

    def test_a_listed_name_is_taken(self) -> None:
        """As it is written in llmproxy.yaml, or below a star."""
        self.site.believe((), ("llm.example", "*.wild.example"))
        for host in (b"LLM.example:8443", b"a.wild.example"):
            self.assertEqual(self.ask(b"/ui/", host)[0], 401)

    def test_behind_a_trusted_proxy_the_browsers_name_counts(self) -> None:
        """The proxy may ask by another; what others claim changes nothing."""
        told = b"X-Forwarded-Host: evil.example\r\n"
        self.assertEqual(self.ask(b"/ui/", b"127.0.0.1", told, "10.0.0.1")[0], 403)
        self.assertEqual(self.ask(b"/ui/", b"127.0.0.1", told)[0], 401)
        fine = b"X-Forwarded-Host: localhost\r\n"
        self.assertEqual(self.ask(b"/ui/", b"evil.example", fine)[0], 403)
        self.assertEqual(self.ask(b"/ui/", b"evil.example", fine, "10.0.0.1")[0], 401)
