"""What only looks wakes nothing and keeps nothing awake."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config.model import Probes
from llmproxy.http.monitoring import LARGEST_CHECK, is_health_check
from llmproxy.runtimes.interface import Facts
from tests.front import FrontCase
from tests.unit.test_front import KEY, OK, Client

HELLO = "Hey how's it going?"


def chat(content: Any, tokens: Any = 16, role: str = "user", **more: Any) -> dict[str, Any]:
    return {
        "model": "coder3b",
        "messages": [{"role": role, "content": content}],
        "max_tokens": tokens,
        **more,
    }


CHECKS = [
    *(chat(HELLO, tokens) for tokens in (1, 5, 10, 16)),
    chat("What's 1 + 1?", stream=True),
    chat("test from litellm", 10),
    chat([{"type": "text", "text": HELLO}]),
    {"model": "m", "messages": [{"role": "user", "content": HELLO}], "max_completion_tokens": 16},
    {"model": "m", "prompt": "test from litellm", "max_tokens": 16},
    {"model": "m", "input": ["test from litellm"]},
    {"model": "m", "input": "test from litellm", "max_output_tokens": 16},
    {"model": "m", "query": "test from litellm", "documents": ["my sample text"]},
]

OTHERS = [
    chat(HELLO, 17),
    chat(HELLO, None),
    chat(HELLO, True),
    chat(HELLO, role="system"),
    chat("What's 1 + 2?"),
    chat([{"type": "text", "text": HELLO}, {"type": "image_url", "image_url": {}}]),
    chat(HELLO, user="x" * LARGEST_CHECK),
    {"messages": [], "max_tokens": 1},
    {"messages": ["x"], "max_tokens": 1},
    {"messages": HELLO, "max_tokens": 1},
    {"messages": [{"role": "user", "content": HELLO}] * 2, "max_tokens": 1},
    {"messages": [{"role": "user", "content": HELLO}]},
    {"prompt": "hello"},
    {"prompt": "test from litellm", "input": "other"},
    {"input": ["test from litellm", "x"]},
    {},
]


@pytest.mark.parametrize("asked", CHECKS, ids=str)
def test_health_checks_are_known(asked: dict[str, Any]) -> None:
    """As LiteLLM 1.110 and older versions send them."""
    assert is_health_check(json.dumps(asked).encode())


@pytest.mark.parametrize("asked", OTHERS, ids=lambda asked: str(asked)[:60])
def test_other_requests_are_none(asked: dict[str, Any]) -> None:
    """However small they are."""
    assert not is_health_check(json.dumps(asked).encode())


@given(st.binary(max_size=40) | st.sampled_from([b'{"a":NaN}', b"[" * 2000, b'{"a":' * 300]))
def test_nothing_else_happens(body: bytes) -> None:
    """What is no JSON is no health check."""
    assert not is_health_check(body)


class MonitoringTests(FrontCase):
    """The same, by what it does."""

    def refused(self, client: Client) -> None:
        status, error, _ = client.error()
        self.assertEqual((status, error["code"], error["state"]), (503, "not_running", "absent"))
        self.assertEqual(self.started(), 0)

    def served(self, client: Client) -> None:
        self.far().send(OK)
        self.assertEqual(client.answer()[0], 200)

    def test_who_only_looks_is_told_when_it_will_be_ready(self) -> None:
        """As far as that is known, while it is on its way; else nothing would come of trying again."""
        _, _, headers = self.client().get(b"/coder/health").error()
        self.assertNotIn("retry-after", headers)
        self.backend("coder").demand()
        status, error, headers = self.client().get(b"/coder/health").error()
        self.assertEqual((status, error["state"]), (503, "starting"))
        self.assertGreaterEqual(int(headers["retry-after"]), 1)

    def test_the_root_of_a_route_wakes_nothing(self) -> None:
        """GET and HEAD: 503 not_running, or the backend's own answer; it is no use of it."""
        self.refused(self.client().get(b"/coder/"))
        self.refused(self.client().get(b"/coder/?x=y"))
        status, _, body = self.client().send(b"HEAD /coder/ HTTP/1.1\r\nHost: h\r\n" + KEY + b"\r\n").answer()
        self.assertEqual((status, body, self.started()), (503, b"", 0))
        self.warm("coder")
        self.clock.advance(100)
        self.served(self.client().get(b"/coder/"))
        self.assertEqual(self.backend("coder").idle_in, 500)
        self.backend("coder").stop_wanted("test", force=True)
        self.clock.advance(0)
        self.client().post(b"/coder/", b"")
        self.assertEqual(self.started(), 2)

    def test_monitors_wake_nothing_by_what_they_call_themselves(self) -> None:
        """Part of their User-Agent, in whatever case; others are served."""
        self.reload(probes=Probes(user_agents=("kube-probe", "Uptime-Kuma")))
        for agent in (b"kube-probe/1.31", b"UPTIME-kuma/1.2 (x)"):
            headers = KEY + b"User-Agent: %b\r\n" % agent
            self.refused(self.client().get(b"/coder/v1/models", headers))
            self.refused(self.client().post(b"/v1/completions", {"model": "coder3b"}, headers))
        self.warm("chat")
        self.clock.advance(100)
        client = self.client().post(b"/v1/completions", {"model": "gpt-4"}, headers)
        self.assertEqual(json.loads(self.body()), {"model": "sitechat"})
        self.served(client)
        self.assertEqual(self.backend("chat").idle_in, 500)
        client = self.client().post(b"/v1/completions", {"model": "gpt-4"}, KEY + b"User-Agent: curl/8\r\n")
        self.served(client)
        self.assertEqual(self.backend("chat").idle_in, 600)

    def test_a_reload_tells_monitors_on_open_connections(self) -> None:
        """What a connection's fields mean is read again."""
        client, headers = self.client(), KEY + b"User-Agent: kube-probe\r\n"
        self.warm("coder")
        self.served(client.get(b"/coder/x", headers))
        self.reload(probes=Probes(user_agents=("kube-probe",)))
        self.clock.advance(10)
        self.served(client.get(b"/coder/x", headers))
        self.assertEqual(self.backend("coder").idle_in, 590)

    def test_paths_may_be_those_of_monitors(self) -> None:
        """Exactly, or by their beginning."""
        self.reload(probes=Probes(paths=("/v1/models", "/status/*")))
        for path in (b"/coder/v1/models", b"/coder/v1/models?x", b"/coder/status/a", b"/coder/status/"):
            self.refused(self.client().get(path))
        self.client().get(b"/coder/v1/models/x")
        self.assertEqual(self.started(), 1)

    def test_health_completions_are_served_unless_they_are_refused(self) -> None:
        """By the model's name and by the route; a ready backend answers them, and they are no use of it."""
        check = chat(HELLO, 1)
        self.reload(probes=Probes(health_completions="refuse"))
        self.refused(self.client().post(b"/v1/chat/completions", check))
        self.refused(self.client().post(b"/coder/v1/chat/completions", check))
        self.warm("coder")
        self.clock.advance(100)
        self.served(self.client().post(b"/v1/chat/completions", check))
        self.assertEqual(self.backend("coder").idle_in, 500)
        self.served(self.client().post(b"/v1/chat/completions", chat("Hello", 1)))
        self.assertEqual(self.backend("coder").idle_in, 600)
        self.reload(probes=Probes())
        self.client().post(b"/v1/chat/completions", {**check, "model": "sitechat"})
        self.assertEqual(self.backend("chat").state, "starting")

    def test_a_key_is_required_all_the_same(self) -> None:
        """Monitors are clients."""
        self.assertEqual(self.client().get(b"/coder/", b"").error()[0], 401)


class ListTests(FrontCase):
    """``/v1/models``."""

    def entry(self, key: bytes = KEY, model: str = "coder3b") -> dict[str, Any]:
        listed = json.loads(self.client().get(b"/v1/models", key).answer()[2])["data"]
        found: dict[str, Any] = next(one["meta"]["llmproxy"] for one in listed if one["id"] == model)
        return found

    def test_the_context_is_told_when_it_is_known(self) -> None:
        """From a model's own list, once a client has asked for that; each model has its own."""
        self.assertEqual(self.entry(), {"route": "coder", "state": "absent"})
        self.warm("coder")
        client = self.client().get(b"/coder/v1/models")
        listed = {"data": [{"id": "other", "max_model_len": 1}, {"id": "coder3b", "max_model_len": 8192}]}
        body = json.dumps(listed).encode()
        self.far().send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        self.assertEqual(client.answer()[2], body)
        self.assertEqual(self.entry(), {"route": "coder", "state": "ready", "context_length": 8192})
        alias = json.loads(self.client().get(b"/v1/models/gpt-4").answer()[2])
        self.assertNotIn("context_length", alias["meta"]["llmproxy"])

    def test_the_context_is_read_from_the_flags(self) -> None:
        """And forgotten when another container has none."""
        self.world.set_facts(
            "coder", Facts(args=("vllm", "serve", "m", "--max-model-len", "8k"), fingerprint="1")
        )
        self.world.change("coder")
        self.assertEqual(self.entry()["context_length"], 8000)
        self.world.set_facts("coder", Facts(args=("vllm", "serve", "m"), fingerprint="2"))
        self.world.change("coder")
        self.assertNotIn("context_length", self.entry())

    def test_what_is_no_list_teaches_nothing(self) -> None:
        """It is relayed like any other answer."""
        self.warm("coder")
        head = b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n"
        good = b'{"data":[{"id":"x","max_model_len":5}]}'
        for status, body in (
            (b"200 OK", b"{}"),
            (b"200 OK", b'{"data":[1]}'),
            (b"200 OK", b'{"data":[{"id":"x","max_model_len":"5"}]}'),
            (b"200 OK", b" " * 300_000 + good),
            (b"404 Not Found", good),
            (b"200 OK\r\nContent-Encoding: gzip", good),
        ):
            client = self.client().get(b"/coder/v1/models")
            self.far().send(head % (status, len(body)) + body)
            self.assertEqual(client.answer()[2], body)
            self.assertNotIn("context_length", self.entry())
        client = self.client().get(b"/coder/v1/models")
        self.far().send(head % (b"200 OK", len(good)) + good)
        self.assertEqual(self.entry()["context_length"], 5)
        self.assertEqual(client.answer()[0], 200)
