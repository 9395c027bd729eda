"""Another backend answers while the one that was asked for is cold, where client or operator agree."""

from __future__ import annotations

import json
from typing import Any

from attrs import evolve

from llmproxy.config.model import BackendSpec
from tests.front import CHAT, CODER, FrontCase
from tests.unit.test_front import EVENTS, KEY, OK, Client

WITH_FALLBACK = (evolve(CODER, fallback=("gone", "chat")), CHAT)
COMPLETIONS = b"/v1/chat/completions"
BODY = {"model": "coder3b", "n": 1}
ANY = b"X-LLMProxy-Fallback: any-ready\r\n"


class FallbackTests(FrontCase):
    """A request for coder, whose fallback is chat."""

    def build(self, specs: Any = WITH_FALLBACK, **settings: Any) -> None:
        super().build(specs, **settings)

    def ask(self, headers: bytes = KEY, path: bytes = COMPLETIONS, body: Any = BODY) -> Client:
        return self.client().post(path, body, headers)

    def answered_by_chat(self, client: Client) -> None:
        self.assertEqual(json.loads(self.body()), {"model": "sitechat", "n": 1})
        self.assertNotIn(b"fallback", self.far().received.lower())
        self.far().send(OK)
        status, fields, _ = client.answer()
        labels = (fields.get("x-llmproxy-backend"), fields.get("x-llmproxy-fallback-for"))
        self.assertEqual((status, labels), (200, ("chat", "coder")))

    def test_a_ready_one_answers_for_a_cold_one(self) -> None:
        """It is told, and the cold one is started; once that is ready it answers itself."""
        self.warm("chat")
        self.answered_by_chat(self.ask())
        self.assertEqual(self.backend("coder").state, "starting")
        self.answered_by_chat(self.ask())
        self.assertEqual(self.backend("coder").admission.waiting, 1)
        self.ready()
        self.assertEqual(self.backend("coder").admission.in_flight, 0)
        client = self.ask()
        self.assertEqual(json.loads(self.body()), BODY)
        self.far().send(OK)
        _, fields, _ = client.answer()
        self.assertEqual(fields["x-llmproxy-backend"], "coder")
        self.assertNotIn("x-llmproxy-fallback-for", fields)
        self.assertEqual(self.log.entries[-1].route, "coder")

    def test_it_works_by_route(self) -> None:
        """The model in the body is replaced there, too; other paths are none that another could answer."""
        self.warm("chat")
        self.answered_by_chat(self.ask(path=b"/coder" + COMPLETIONS))
        self.client().get(b"/coder/v1/models")
        self.assertEqual(len(self.servers.requests), 1)
        self.assertEqual(self.backend("coder").admission.waiting, 2)

    def test_what_is_no_json_cannot_name_another_model(self) -> None:
        """It is passed on as it is, and labelled."""
        self.warm("chat")
        client = self.ask(path=b"/coder" + COMPLETIONS, body=b"{")
        self.assertEqual(self.body(), b"{")
        self.far().send(OK)
        self.assertEqual(client.answer()[1]["x-llmproxy-fallback-for"], "coder")

    def test_without_consent_nobody_else_answers(self) -> None:
        """The client may refuse what is configured; without that it waits."""
        self.warm("chat")
        self.ask(KEY + b"X-LLMProxy-Fallback: none\r\n")
        self.assertEqual(self.backend("coder").admission.waiting, 1)
        self.build((CODER, CHAT))
        self.warm("chat")
        self.ask()
        self.assertEqual(self.backend("coder").admission.waiting, 1)
        self.assertEqual(self.servers.requests, [])

    def test_the_client_may_name_others(self) -> None:
        """Routes, in order, or any that is ready."""
        self.build((CODER, CHAT))
        self.warm("chat")
        for named in (b"chat", b"CODER, Chat", b"any-ready", b"coder,any-ready"):
            self.answered_by_chat(self.ask(KEY + b"X-LLMProxy-Fallback: %b\r\n" % named))

    def test_nobody_is_ready(self) -> None:
        """Then it is as without a fallback."""
        client = self.ask(KEY + ANY)
        self.assertEqual(self.backend("coder").admission.waiting, 1)
        self.ready()
        self.far().send(OK)
        self.assertNotIn("x-llmproxy-fallback-for", client.answer()[1])
        self.assertEqual(self.backend("chat").state, "absent")

    def test_a_key_is_kept_to_its_routes(self) -> None:
        """Neither what is configured nor what it names leads it elsewhere."""
        self.build((CODER, evolve(CHAT, fallback=("coder",))))
        self.warm("coder")
        limited = b"x-api-key: limited\r\n"
        self.ask(limited, body={"model": "sitechat"})
        self.ask(limited + ANY, body={"model": "sitechat"})
        self.assertEqual(self.servers.requests, [])
        for named in (b"coder", b"nowhere"):
            headers = limited + b"X-LLMProxy-Fallback: %b\r\n" % named
            status, error, _ = self.ask(headers, body={"model": "sitechat"}).error()
            self.assertEqual((status, error["param"]), (400, "X-LLMProxy-Fallback"))
            self.assertIn("use chat, any-ready or none", error["message"])

    def test_any_ready_is_of_the_same_kind(self) -> None:
        """Of the same engine, shown to everybody, and with a name to be asked by."""
        others = (
            evolve(CHAT, hidden=True),
            BackendSpec(route="tool", container="t", engine="generic", models=("t",)),
            BackendSpec(route="mute", container="m"),
        )
        self.build((CODER, *others))
        self.warm("tool")
        self.ask(KEY + ANY)
        self.assertEqual(self.servers.requests, [])
        # By its name a hidden one may answer.
        self.build((CODER, *others))
        self.warm("chat")
        self.ask(KEY + ANY)
        self.assertEqual(self.servers.requests, [])
        self.answered_by_chat(self.ask(KEY + b"X-LLMProxy-Fallback: mute, chat\r\n"))

    def test_who_wants_no_start(self) -> None:
        """Gets the other one's answer, and nothing is started; nor for a key that may not."""
        self.warm("chat")
        self.answered_by_chat(self.ask(KEY + b"X-LLMProxy-No-Start: 1\r\n"))
        self.answered_by_chat(self.ask(b"x-api-key: meek\r\n"))
        self.assertEqual(self.backend("coder").state, "absent")

    def test_the_other_one_must_have_room(self) -> None:
        """Whoever would have to wait there waits for the one that was asked for."""
        self.build((evolve(CODER, fallback=("chat",)), evolve(CHAT, max_in_flight=1)))
        self.warm("chat")
        self.ask()
        self.ask()
        self.assertEqual(self.backend("chat").admission.waiting, 0)
        self.assertEqual(self.backend("coder").admission.waiting, 2)

    def test_the_start_goes_on_without_the_client(self) -> None:
        """And is by the rights of its key."""
        self.warm("chat")
        client = self.ask(b"x-api-key: kind\r\n")
        client.leave()
        self.assertEqual(
            (self.backend("coder").state, self.backend("coder").admission.may_evict), ("starting", False)
        )

    def test_a_start_that_fails_is_no_matter_of_the_others(self) -> None:
        """They answer on."""
        self.warm("chat")
        self.answered_by_chat(self.ask())
        self.world.exit("coder", 1)
        self.clock.advance(1)
        self.assertEqual(self.backend("coder").state, "failed")
        self.answered_by_chat(self.ask())
        self.clock.advance(400)
        self.answered_by_chat(self.ask())
        self.assertEqual(self.backend("coder").state, "starting")

    def test_errors_are_labelled(self) -> None:
        """Those of the one that answers, before and within its answer."""
        self.warm("chat")
        client = self.ask()
        self.far().send(EVENTS)
        self.assertIn(b"X-LLMProxy-Fallback-For: coder\r\n", client.take())
        client = self.ask()
        self.far().close()
        status, error, fields = client.error()
        self.assertEqual(
            (status, error["backend"], fields["x-llmproxy-fallback-for"]), (502, "chat", "coder")
        )

    def test_a_backend_does_not_label(self) -> None:
        """Only the proxy says who answered for whom."""
        self.warm("coder")
        client = self.ask()
        self.far().send(b"HTTP/1.1 200 OK\r\nX-LLMProxy-Fallback-For: x\r\nContent-Length: 0\r\n\r\n")
        self.assertNotIn("x-llmproxy-fallback-for", client.answer()[1])

    def test_forms_name_the_other_model(self) -> None:
        """As JSON does."""
        self.warm("chat")
        form = b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n--B--\r\n'
        kind = KEY + b"Content-Type: multipart/form-data; boundary=B\r\n"
        self.ask(kind, b"/v1/audio/transcriptions", form % b"coder3b")
        self.assertTrue(self.far().received.endswith(form % b"sitechat"))

    def test_a_reload_takes_it_away(self) -> None:
        """And ends nothing."""
        self.warm("chat")
        self.answered_by_chat(self.ask())
        self.reload(backends={"coder": CODER, "chat": CHAT})
        self.ask()
        self.assertEqual(self.backend("coder").admission.waiting, 2)
        self.assertEqual(self.started(), 2)
