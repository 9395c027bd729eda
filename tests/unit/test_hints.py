"""What a client says of one request: how long it waits, whether it starts something, and keeps it."""

from __future__ import annotations

import contextlib
import json

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config.model import BackendSpec, Probes
from llmproxy.errors import Refusal
from llmproxy.http.headers import Fields, request_head
from llmproxy.web.hints import NO_HINTS, Hints, read_hints
from tests.front import CHAT, CODER, FrontCase
from tests.unit.test_front import EVENTS, KEY, OK, Client

NONE = Probes()
BODY = {"model": "coder3b"}
COMPLETIONS = b"/v1/chat/completions"


def read(**values: str) -> Hints:
    return read_hints(
        Fields(
            [
                (b"X-LLMProxy-" + name.replace("_", "-").encode(), value.encode())
                for name, value in values.items()
            ]
        ),
        NONE,
    )


def test_all_of_it_is_optional() -> None:
    """Without any of these fields nothing is made."""
    assert read_hints(Fields([(b"Host", b"h"), (b"User-Agent", b"curl")]), NONE) is NO_HINTS


def test_what_may_be_said() -> None:
    """Durations as in the configuration, switches, and routes in any case."""
    assert read(max_wait="20").max_wait == 20
    assert read(max_wait="1m", no_start="0") == Hints(max_wait=60.0)
    assert read(no_start="true").no_start
    assert read(keep_alive="30m").keep_alive == 1800
    assert read(keep_alive="0").keep_alive == 0
    assert read(fallback="any-ready").fallback == ("any-ready",)
    assert read(fallback="Chat , coder,chat").fallback == ("chat", "coder")
    assert read(fallback="none").fallback == ()


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("max_wait", "soon", "as in 90s"),
        ("max_wait", "-1", "as in 90s"),
        ("max_wait", "", "as in 90s"),
        ("no_start", "maybe", "1 or 0"),
        ("keep_alive", "nan", "as in 90s"),
        ("fallback", "", "any-ready"),
        ("fallback", "a,,b", "any-ready"),
        ("fallback", "a b", "any-ready"),
    ],
)
def test_what_is_not_understood_is_refused(name: str, value: str, allowed: str) -> None:
    """With 400, the field's name and what is allowed."""
    with pytest.raises(Refusal) as caught:
        read(**{name: value})
    assert (caught.value.status, caught.value.code) == (400, "invalid_request")
    assert (caught.value.param or "").lower() == "x-llmproxy-" + name.replace("_", "-")
    assert allowed in caught.value.message


def test_a_field_that_comes_twice_is_refused() -> None:
    """Nobody knows which one is meant."""
    with pytest.raises(Refusal):
        read_hints(Fields([(b"X-LLMProxy-Max-Wait", b"1"), (b"x-llmproxy-max-wait", b"2")]), NONE)


@given(st.sampled_from(["max_wait", "no_start", "keep_alive", "fallback"]), st.text(max_size=12))
def test_nothing_else_happens(name: str, value: str) -> None:
    """Whatever a client sends is understood or refused."""
    with contextlib.suppress(Refusal):
        read(**{name: value})


def test_none_of_it_reaches_a_backend() -> None:
    """In whatever case it is written."""
    raw = [
        (b"X-LLMPROXY-Max-Wait", b"1"),
        (b"x-llmproxy-no-start", b"1"),
        (b"X-LLMProxy-Keep-Alive", b"1"),
        (b"X-LLMProxy-Fallback", b"none"),
        (b"Accept", b"*/*"),
    ]
    head = request_head(b"GET", b"/", Fields(raw), client=b"c", scheme=b"http", request_id=b"r", length=None)
    assert b"llmproxy" not in head.lower()
    assert b"Accept: */*" in head


class HintTests(FrontCase):
    """The same, by what it does."""

    def ask(self, hint: bytes, key: bytes = KEY) -> Client:
        return self.client().post(COMPLETIONS, BODY, key + (hint and hint + b"\r\n"))

    def learn(self, seconds: float) -> None:
        """One start that took so long."""
        self.backend("coder").demand()
        self.clock.advance(seconds)
        self.ready()
        self.backend("coder").stop_wanted("test", force=True)
        self.clock.advance(0)
        self.assertEqual(self.backend("coder").state, "absent")

    # -- Max-Wait -----------------------------------------------------------------------------------

    def test_a_client_waits_no_longer_than_it_said(self) -> None:
        """503 hold_timeout, and the start goes on."""
        client = self.ask(b"X-LLMProxy-Max-Wait: 20")
        self.clock.advance(19)
        self.assertEqual(client.take(), b"")
        self.clock.advance(1)
        status, error, fields = client.error()
        self.assertEqual((status, error["code"]), (503, "hold_timeout"))
        self.assertIn("X-LLMProxy-Max-Wait", error["message"])
        self.assertIn("retry-after", fields)
        self.assertEqual(self.backend("coder").state, "starting")

    def test_the_shorter_wait_counts(self) -> None:
        """That of the configuration is 504, as for everybody."""
        self.build((evolve(CODER, max_wait=5.0), CHAT))
        client = self.ask(b"X-LLMProxy-Max-Wait: 20")
        self.clock.advance(5)
        self.assertEqual(client.error()[0], 504)
        client = self.ask(b"X-LLMProxy-Max-Wait: 2")
        self.clock.advance(2)
        self.assertEqual(client.error()[0], 503)

    def test_who_would_wait_in_vain_is_told_at_once(self) -> None:
        """When earlier starts took longer; the start begins, and Retry-After says when it is over."""
        self.learn(40)
        before = self.started()
        client = self.ask(b"X-LLMProxy-Max-Wait: 20")
        status, error, fields = client.error()
        self.assertEqual((status, error["code"]), (503, "hold_timeout"))
        self.assertIn(int(fields["retry-after"]), range(39, 43))
        self.assertEqual(self.started(), before + 1)
        # Others who come do not start it again, and one who has the time waits.
        self.ask(b"X-LLMProxy-Max-Wait: 20")
        patient = self.ask(b"X-LLMProxy-Max-Wait: 60")
        self.clock.advance(30)
        late = self.ask(b"X-LLMProxy-Max-Wait: 20")
        self.ready()
        self.far().send(OK)
        self.far(0).send(OK)
        self.assertEqual({patient.answer()[0], late.answer()[0]}, {200})
        self.assertEqual(self.started(), before + 1)
        self.assertEqual(self.fleet.in_flight(), 0)

    def test_who_does_not_wait_at_all(self) -> None:
        """0: an answer now, or a start and 503."""
        self.assertEqual(self.ask(b"X-LLMProxy-Max-Wait: 0").error()[0], 503)
        self.assertEqual(self.backend("coder").state, "starting")
        self.ready()
        client = self.ask(b"X-LLMProxy-Max-Wait: 0")
        self.far().send(OK)
        self.assertEqual(client.answer()[0], 200)

    def test_a_start_that_is_refused_is_told_as_such(self) -> None:
        """A start that cannot be is no matter of time."""
        self.world.refuse_next_start("coder")
        self.ask(b"X-LLMProxy-Max-Wait: 0")
        self.clock.advance(3)
        self.assertEqual(self.ask(b"X-LLMProxy-Max-Wait: 0").error()[1]["code"], "backend_start_failed")

    def test_a_wait_that_is_configured_anew(self) -> None:
        """Who did not wait any more leaves nothing behind."""
        self.ask(b"X-LLMProxy-Max-Wait: 0")
        self.reload(backends={**self.config.backends, "coder": evolve(CODER, container="other")})
        self.clock.advance(1)
        self.ask(b"X-LLMProxy-Max-Wait: 0")
        self.clock.advance(1)
        self.assertEqual(self.backend("coder").state, "starting")

    # -- No-Start -----------------------------------------------------------------------------------

    def test_a_client_may_want_nothing_started(self) -> None:
        """503 not_running when it is not ready, and an answer when it is."""
        status, error, _ = self.ask(b"X-LLMProxy-No-Start: 1").error()
        self.assertEqual((status, error["code"], error["state"]), (503, "not_running", "absent"))
        self.assertEqual(self.started(), 0)
        self.warm("coder")
        client = self.ask(b"X-LLMProxy-No-Start: 1")
        self.far().send(OK)
        self.assertEqual(client.answer()[0], 200)

    def test_nothing_is_started_later_either(self) -> None:
        """Who waits for its turn at a backend that then leaves is sent away."""
        self.build((evolve(CODER, max_in_flight=1), CHAT))
        self.warm("coder")
        first = self.ask(b"")
        for key in (KEY + b"X-LLMProxy-No-Start: 1\r\n", b"x-api-key: meek\r\n"):
            second = self.client().post(COMPLETIONS, BODY, key)
            third = self.client().post(COMPLETIONS, BODY, key)
            self.assertEqual(second.take(), b"")
            third.leave()
            if b"meek" in key:
                self.world.exit("coder", 0)
            else:
                self.far(0).send(OK)
                self.far(-1).send(OK)
                self.assertEqual(second.answer()[0], 200)
                first = self.ask(b"")
        self.assertEqual(first.error()[0], 502)
        status, error, _ = second.error()
        self.assertEqual((status, error["code"]), (503, "not_running"))
        self.clock.advance(1)
        self.assertEqual((self.backend("coder").state, self.started()), ("absent", 1))

    # -- Keep-Alive ---------------------------------------------------------------------------------

    def serve(self, hint: bytes = b"", far: int = -1) -> None:
        client = self.ask(hint)
        self.far(far).send(OK)
        self.assertEqual(client.answer()[0], 200)

    def test_a_client_may_have_it_kept(self) -> None:
        """For as long as it said from the end of its request, up to the limit."""
        for hint, seconds in ((b"30m", 1800), (b"2h", 3600), (b"5s", 5)):
            self.build()
            self.warm("coder")
            self.serve(b"X-LLMProxy-Keep-Alive: " + hint)
            self.assertEqual(self.backend("coder").idle_in, seconds)
            self.clock.advance(seconds - 1)
            self.assertEqual(self.backend("coder").state, "ready")
            self.clock.advance(2)
            self.assertEqual(self.backend("coder").state, "absent")

    def test_a_client_may_free_it(self) -> None:
        """0: at once after its request, but not while others are served."""
        self.warm("coder")
        other = self.ask(b"")
        self.serve(b"X-LLMProxy-Keep-Alive: 0", far=1)
        self.clock.advance(1)
        self.assertEqual(self.backend("coder").state, "ready")
        self.far(0).send(OK)
        self.assertEqual(other.answer()[0], 200)
        self.serve(b"X-LLMProxy-Keep-Alive: 0", far=0)
        self.clock.advance(0)
        self.assertEqual(self.backend("coder").state, "absent")

    def test_a_promise_is_kept(self) -> None:
        """What one client was promised, another does not shorten; a plain request sets the usual time."""
        self.warm("coder")
        self.serve(b"X-LLMProxy-Keep-Alive: 30m")
        self.clock.advance(60)
        self.serve(b"X-LLMProxy-Keep-Alive: 0")
        self.assertEqual(self.backend("coder").idle_in, 1740)
        self.clock.advance(1739)
        self.serve()
        self.assertEqual(self.backend("coder").idle_in, 600)
        self.serve(b"X-LLMProxy-Keep-Alive: 5")
        self.clock.advance(1)
        self.serve()
        self.assertEqual(self.backend("coder").idle_in, 600)

    def test_a_promise_ends_with_the_run(self) -> None:
        """The next one is idle after the usual time."""
        self.warm("coder")
        self.serve(b"X-LLMProxy-Keep-Alive: 30m")
        self.world.exit("coder", 0)
        self.clock.advance(1)
        self.warm("coder")
        self.assertEqual(self.backend("coder").idle_in, 600)

    def test_what_never_idles_is_not_freed(self) -> None:
        """idle: 0 is the operator's word."""
        self.build((evolve(CODER, idle=0.0), CHAT))
        self.warm("coder")
        self.serve(b"X-LLMProxy-Keep-Alive: 0")
        self.clock.advance(10)
        self.assertEqual(self.backend("coder").state, "ready")

    def test_a_client_that_leaves_has_asked_too(self) -> None:
        """The request is over then."""
        self.warm("coder")
        client = self.ask(b"X-LLMProxy-Keep-Alive: 0")
        self.far().send(EVENTS)
        client.leave()
        self.clock.advance(0)
        self.assertEqual(self.backend("coder").state, "absent")

    # -- all of them --------------------------------------------------------------------------------

    def test_bad_values_are_told(self) -> None:
        """400 with what is allowed; the next request on that connection is served."""
        client = self.ask(b"X-LLMProxy-Max-Wait: soon")
        status, error, _ = client.error()
        self.assertEqual(
            (status, error["code"], error["param"]), (400, "invalid_request", "X-LLMProxy-Max-Wait")
        )
        self.assertEqual(client.get(b"/v1/models").answer()[0], 200)
        self.assertEqual(self.log.entries[0].key, "me")

    def test_every_request_has_its_own(self) -> None:
        """On one connection, too."""
        client = self.client()
        for _ in range(2):
            client.post(COMPLETIONS, BODY, KEY + b"X-LLMProxy-No-Start: 1\r\n")
            self.assertEqual(client.error()[0], 503)
        client.post(COMPLETIONS, BODY)
        self.assertEqual(self.started(), 1)
        self.ready()
        self.far().send(OK)
        self.assertEqual(client.answer()[0], 200)

    def test_they_work_by_route(self) -> None:
        """With any method and path."""
        self.assertEqual(self.client().get(b"/coder/x", KEY + b"X-LLMProxy-No-Start: 1\r\n").error()[0], 503)
        self.warm("coder")
        self.client().get(b"/coder/x", KEY + b"X-LLMProxy-No-Start: 1\r\n")
        self.assertNotIn(b"LLMProxy", self.far().received)
        self.assertTrue(self.far().received.startswith(b"GET /x HTTP/1.1"))

    def test_backends_that_are_elsewhere(self) -> None:
        """Nothing of it does harm there."""
        self.build((CODER, BackendSpec(route="far", runtime="url", url="http://x", models=("m",), idle=0.0)))
        hints = KEY + b"X-LLMProxy-Keep-Alive: 0\r\nX-LLMProxy-Max-Wait: 1\r\n"
        client = self.client().post(COMPLETIONS, {"model": "m"}, hints)
        self.clock.advance(1)
        self.assertEqual(client.error()[0], 503)


class RespondAsyncTests(FrontCase):
    """``Prefer: respond-async`` (RFC 7240) to the operator's verbs."""

    def start(self, prefer: bytes) -> Client:
        headers = b"Authorization: Bearer admin\r\n" + prefer
        return self.client().post(b"/api/backends/coder/start?wait=1", b"", headers)

    def test_a_start_need_not_be_waited_for(self) -> None:
        """202 at once, which says that the preference was heard, in whatever form."""
        for prefer in (b"Prefer: respond-async\r\n", b"Prefer: wait=5\r\nPrefer: x, Respond-Async;a=b\r\n"):
            status, fields, body = self.start(prefer).answer()
            self.assertEqual((status, fields["preference-applied"]), (202, "respond-async"))
            self.assertEqual(json.loads(body)["state"], "starting")
        waiting = self.start(b"Prefer: wait=5, respond-asynchronously\r\n")
        self.assertEqual(waiting.take(), b"")
        self.ready()
        self.clock.advance(0)
        status, fields, _ = waiting.answer()
        self.assertEqual((status, fields.get("preference-applied")), (200, None))
