"""``/api/keys``, and what keys may do: limits, former secrets, wrong ones, and how they are shown."""

from __future__ import annotations

import json
import tempfile
from base64 import b64encode
from typing import Any

from attrs import evolve
from twisted.internet.address import IPv4Address

from llmproxy.config.model import Former, Key, digest_of
from llmproxy.keys.guard import FREE
from llmproxy.keys.store import KeyFile
from llmproxy.web.accesslog import AccessLog
from tests.front import CODER, KEYS, FrontCase
from tests.openapi import described
from tests.unit.test_front import OK, Client, ClientTransport

ADMIN = b"Authorization: Bearer admin\r\n"
START = 1_769_860_800.0
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def bearer(secret: str) -> bytes:
    return b"Authorization: Bearer %b\r\n" % secret.encode()


class KeyCase(FrontCase):
    """A proxy that gives out keys."""

    def setUp(self) -> None:
        super().setUp()
        self.clock.advance(START)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.site.key_file = KeyFile(folder.name)
        self.site.use_keys(KEYS, ())
        self.warm("coder", "chat")

    def ask(self, method: bytes, path: bytes, body: Any = None, status: int = 200) -> dict[str, Any]:
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        head = b"%b %b HTTP/1.1\r\nHost: h\r\n%bContent-Length: %d\r\n\r\n" % (method, path, ADMIN, len(data))
        client = self.client().send(head + data)
        found, headers, answer = client.answer()
        self.assertEqual(found, status, answer)
        described().hold(method.decode(), path.decode(), found, headers, answer)
        return dict(json.loads(answer))

    def use(self, headers: bytes, model: str = "coder3b", **fields: Any) -> Client:
        return self.client().post(b"/v1/completions", {"model": model, **fields}, headers)

    def served(self, headers: bytes, model: str = "coder3b") -> dict[str, str]:
        client = self.use(headers, model)
        self.far().send(OK)
        status, fields, body = client.answer()
        self.assertEqual(status, 200, body)
        return fields

    def refused(self, headers: bytes, **fields: Any) -> tuple[int, str]:
        status, error, _ = self.use(headers, **fields).error()
        return status, error["code"]


class GivenKeysTests(KeyCase):
    """Keys that are given out."""

    def test_a_key_that_is_given_out(self) -> None:
        """It works at once, with its rights, and after a restart."""
        asked = {
            "name": "page",
            "routes": ["Chat"],
            "may_evict": False,
            "requests_per_minute": 9,
            "expires": "2h",
        }
        told = self.ask(b"POST", b"/api/keys", asked, 201)
        secret = told.pop("secret")
        self.assertEqual(told["routes"], ["chat"])
        self.assertAlmostEqual(told["expires"], START + 7200, places=1)
        self.assertEqual(told["source"], "/api/keys")
        self.served(bearer(secret), "sitechat")
        self.assertEqual(self.refused(bearer(secret)), (404, "model_not_found"))
        assert self.site.key_file is not None
        self.site.use_keys(KEYS, KeyFile(self.site.key_file.folder).read())
        self.served(bearer(secret), "sitechat")
        self.clock.advance(7300)
        self.assertEqual(self.refused(bearer(secret), model="sitechat"), (401, "invalid_api_key"))

    def test_all_keys_are_listed(self) -> None:
        """Those of the configuration as well, none with its secret."""
        self.ask(b"POST", b"/api/keys", {"name": "new", "tokens_per_minute": 100}, 201)
        keys = self.ask(b"GET", b"/api/keys")["keys"]
        self.assertEqual([key["name"] for key in keys], ["root", "me", "site", "meek", "kind", "new"])
        self.assertEqual((keys[-1]["left"], keys[0]["left"]), ({"tokens": 100}, {}))
        self.assertNotIn("secret", str(keys))

    def test_a_new_secret(self) -> None:
        """The old one goes on for a while, also on a connection that is open."""
        old = self.ask(b"POST", b"/api/keys", {"name": "new"}, 201)["secret"]
        told = self.ask(b"POST", b"/api/keys/new/rotate?overlap=1m")
        self.assertAlmostEqual(told["former_until"], START + 60, places=1)
        client = self.use(bearer(old))
        self.far().send(OK)
        client.take()
        self.served(bearer(told["secret"]))
        self.clock.advance(61)
        client.post(b"/v1/completions", {"model": "coder3b"}, bearer(old))
        self.assertEqual(client.error()[0], 401)
        self.served(bearer(told["secret"]))

    def test_a_key_that_is_revoked(self) -> None:
        """It is refused from then on, also on a connection that is open."""
        secret = self.ask(b"POST", b"/api/keys", {"name": "new"}, 201)["secret"]
        client = self.use(bearer(secret))
        self.far().send(OK)
        client.take()
        self.assertEqual(self.ask(b"DELETE", b"/api/keys/new")["name"], "new")
        client.post(b"/v1/completions", {"model": "coder3b"}, bearer(secret))
        self.assertEqual(client.error()[0], 401)
        self.ask(b"DELETE", b"/api/keys/new", status=404)

    def test_what_is_not_allowed(self) -> None:
        """It is named."""
        for asked, param in (
            ({}, "name"),
            ({"name": "a/b"}, "name"),
            ({"name": "a", "secret": "x"}, None),
            ({"name": "a", "streams": 0}, None),
            ({"name": "a", "expires": "soon"}, "expires"),
            ({"name": "a", "expires": True}, "expires"),
            ({"name": "a", "expires": "99999d"}, "expires"),
            (b"[", None),
        ):
            error = self.ask(b"POST", b"/api/keys", asked, 400)["error"]
            self.assertEqual(error["param"], param)
        self.ask(b"POST", b"/api/keys/new/rotate", status=404)
        self.ask(b"POST", b"/api/keys", {"name": "Root"}, 409)
        self.ask(b"DELETE", b"/api/keys/root", status=409)
        self.ask(b"POST", b"/api/keys/me/rotate", status=409)
        self.ask(b"POST", b"/api/keys", {"name": "new"}, 201)
        for overlap in (b"x", b"99999d"):
            self.ask(b"POST", b"/api/keys/new/rotate?overlap=" + overlap, status=400)

    def test_somebody_stays_administrator(self) -> None:
        """The last one is not taken away."""
        secret = self.ask(b"POST", b"/api/keys", {"name": "boss", "admin": True}, 201)["secret"]
        self.site.use_keys([evolve(key, admin=False) for key in KEYS])
        head = b"DELETE /api/keys/boss HTTP/1.1\r\nHost: h\r\n%b\r\n" % bearer(secret)
        self.assertEqual(self.client().send(head).answer()[0], 409)

    def test_a_proxy_without_keys_gives_none_out(self) -> None:
        """It would be open to everybody all the same; keys from before are kept for later."""
        self.site.use_keys((), (Key("given", "x"),))
        self.served(b"")
        self.ask(b"POST", b"/api/keys", {"name": "new"}, 409)
        self.site.use_keys(KEYS)
        self.served(bearer("x"))

    def test_a_key_that_cannot_be_kept_is_not_given_out(self) -> None:
        """503, and nothing has changed."""
        assert self.site.key_file is not None
        self.site.key_file.folder = "/proc/nowhere"
        self.ask(b"POST", b"/api/keys", {"name": "new"}, 503)
        self.assertEqual(self.site.given, ())

    def test_a_configured_key_counts_more_than_a_given_one(self) -> None:
        """Whoever has the name in the configuration."""
        self.site.use_keys((*KEYS, Key("twin", "configured")), (Key("twin", "given"),))
        self.served(bearer("configured"))
        self.assertEqual(self.refused(bearer("given"))[0], 401)


class ShownKeysTests(KeyCase):
    """How a key is shown, and what becomes of wrong ones."""

    def test_the_ways_to_show_a_key(self) -> None:
        """Bearer, x-api-key, and the password of Basic."""
        for headers in (
            b"authorization: bearer client\r\n",
            b"X-API-Key: client\r\n",
            b"Authorization: Basic %b\r\n" % b64encode(b"anybody:client"),
            b"Authorization: basic %b\r\n" % b64encode(b":client"),
        ):
            self.served(headers)
            self.assertNotIn(b"client", self.far().received)

    def test_what_is_no_key(self) -> None:
        """401, whatever it is; saying nothing is no guess."""
        for headers in (
            b"",
            b"Authorization: Basic !!!\r\n",
            b"Authorization: Basic %b\r\n" % b64encode(b"client"),
            b"Authorization: Digest client\r\n",
            b"Authorization: Bearer\r\n",
        ) * FREE:
            self.assertEqual(self.refused(headers), (401, "invalid_api_key"))

    def test_wrong_keys_make_wait(self) -> None:
        """After some; who has shown a right one goes on."""
        self.served(bearer("client"))
        for _ in range(FREE):
            self.assertEqual(self.refused(bearer("wrong"))[0], 401)
        status, error, headers = self.use(bearer("wrong")).error()
        self.assertEqual((status, error["code"], headers["retry-after"]), (429, "rate_limited", "1"))
        self.assertEqual(self.client().get(b"/api/backends", bearer("limited")).answer()[0], 429)
        self.served(bearer("client"))
        self.clock.advance(1.1)
        self.assertEqual(self.refused(bearer("wrong"))[0], 401)
        self.assertEqual(self.use(bearer("wrong")).error()[2]["retry-after"], "2")
        self.clock.advance(2.1)
        self.served(bearer("meek"))

    def test_programs_of_this_machine_do_not_wait(self) -> None:
        """However often they fail: a client with an old key there keeps nobody else out."""
        for _ in range(FREE * 2):
            transport = ClientTransport(peerAddress=IPv4Address("TCP", "127.0.0.1", 9))
            client = Client(self.site, transport)
            self.addCleanup(client.leave)
            client.post(b"/v1/completions", {"model": "coder3b"}, bearer("wrong"))
            self.assertEqual(client.answer()[0], 401)

    def test_a_former_secret(self) -> None:
        """It is good until its day."""
        old = Key("me", "new", former=(Former(digest_of("old"), START + 100),))
        self.site.use_keys([old])
        self.served(bearer("old"))
        self.served(bearer("new"))
        self.clock.advance(101)
        self.assertEqual(self.refused(bearer("old"))[0], 401)

    def test_a_former_secret_of_a_key_that_has_ended(self) -> None:
        """It has ended with it."""
        self.site.use_keys(
            [Key("me", "new", expires=START - 1, former=(Former(digest_of("old"), START + 100),))]
        )
        self.assertEqual(self.refused(bearer("old"))[0], 401)


class LimitedKeysTests(KeyCase):
    """Requests, tokens and streams."""

    def limited(self, **limits: Any) -> bytes:
        self.site.use_keys([*KEYS, Key("busy", "busy", **limits)])
        return bearer("busy")

    def test_requests(self) -> None:
        """What is left is told as OpenAI does; after the time that is told there is room."""
        busy = self.limited(requests_per_minute=2)
        self.assertEqual(self.served(busy)["x-ratelimit-remaining-requests"], "1")
        fields = self.served(busy)
        self.assertEqual(
            (fields["x-ratelimit-limit-requests"], fields["x-ratelimit-remaining-requests"]), ("2", "0")
        )
        status, error, headers = self.use(busy).error()
        self.assertEqual((status, error["code"], error["type"]), (429, "rate_limited", "rate_limit_error"))
        self.served(bearer("client"))
        self.clock.advance(int(headers["retry-after"]))
        self.served(busy)

    def test_what_wakes_nothing_does_not_count(self) -> None:
        """Nor what is refused for another reason."""
        busy = self.limited(requests_per_minute=1)
        self.client().get(b"/v1/models", busy)
        self.client().get(b"/coder/ping", busy)
        self.far().send(OK)
        self.assertEqual(self.refused(busy, model="nope")[0], 404)
        self.served(busy)

    def test_a_reload_gives_nothing_back(self) -> None:
        """The limit is that of the minute, whoever reads the configuration meanwhile."""
        busy = self.limited(requests_per_minute=1)
        self.served(busy)
        busy = self.limited(requests_per_minute=1, priority=3)
        self.assertEqual(self.refused(busy)[0], 429)

    def test_tokens(self) -> None:
        """As soon as it is known what a request took."""
        busy = self.limited(tokens_per_minute=60)
        self.site.access_log = AccessLog(self.clock, self.site.limiter.observe)
        body = b'{"usage":{"prompt_tokens":50,"completion_tokens":20}}'
        client = self.use(busy)
        self.far().send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        self.assertEqual(client.answer()[1]["x-ratelimit-remaining-tokens"], "60")
        self.site.access_log.flush()
        status, _, headers = self.use(busy).error()
        self.assertEqual((status, headers["retry-after"]), (429, "11"))
        self.clock.advance(11)
        self.served(busy)

    def test_a_form_that_asks_for_a_stream_is_one(self) -> None:
        """A transcription's, too."""
        busy = self.limited(streams=1)
        form = b"".join(
            b'--B\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % field
            for field in ((b"model", b"coder3b"), (b"stream", b"true"))
        )
        kind = busy + b"Content-Type: multipart/form-data; boundary=B\r\n"
        self.client().post(b"/v1/audio/transcriptions", form + b"--B--\r\n", kind)
        self.assertEqual(self.refused(busy, stream=True), (429, "rate_limited"))

    def test_a_stream_that_the_operator_forces_is_one(self) -> None:
        """Whatever the client asked for."""
        busy = self.limited(streams=1)
        self.reload(
            backends={**self.config.backends, "coder": evolve(CODER, request_overrides={"stream": True})}
        )
        self.limited(streams=1)
        self.use(busy)
        self.assertEqual(self.refused(busy), (429, "rate_limited"))

    def test_streams(self) -> None:
        """However they end: by themselves, by their client, or refused after a hold."""
        busy = self.limited(streams=1)
        client = self.use(busy, stream=True)
        self.assertEqual(self.refused(busy, stream=True), (429, "rate_limited"))
        self.served(busy)
        self.far(0).send(SSE + b"0\r\n\r\n")
        client.take()
        gone = self.use(busy, stream=True)
        self.assertEqual(self.refused(busy, stream=True)[0], 429)
        gone.leave()
        self.use(busy, stream=True)
        self.assertEqual(self.refused(busy, stream=True)[0], 429)
