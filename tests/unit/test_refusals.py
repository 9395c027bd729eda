"""Refusals as they go over the wire: in the words of the API that was asked, and spelt as answers are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmproxy.errors import (
    Refusal,
    backend_start_failed,
    backend_unavailable,
    body_too_large,
    does_not_fit,
    hold_timeout,
    invalid_api_key,
    invalid_request,
    model_not_found,
    not_allowed,
    not_running,
    queue_full,
    shutting_down,
)
from llmproxy.http.dialects import error_body
from tests.front import FrontCase
from tests.unit.test_front import KEY, OK, Client

FIELDS = {"message", "type", "param", "code", "backend", "state", "hint", "retry_after"}


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (invalid_request("no"), "invalid_request_error"),
        (Refusal(405, "invalid_request", "POST", kind="invalid_request_error"), "invalid_request_error"),
        (invalid_api_key(), "authentication_error"),
        (not_allowed("no"), "permission_error"),
        (model_not_found("x", ["y"]), "not_found_error"),
        (body_too_large(1), "request_too_large"),
        (queue_full(3, 1), "rate_limit_error"),
        (backend_unavailable("gone"), "api_error"),
        (backend_start_failed("It broke.", hint=None, retry_after=5), "api_error"),
        (not_running("absent"), "api_error"),
        (shutting_down(), "overloaded_error"),
        (does_not_fit("a", "too much", retry_after=None), "overloaded_error"),
        (hold_timeout(3, 1), "overloaded_error"),
    ],
)
def test_anthropics_types(refusal: Refusal, kind: str) -> None:
    """The body is Anthropic's, its type follows the status, and nothing of ours is missing."""
    told = json.loads(error_body("anthropic", refusal))
    assert (set(told), told["type"]) == ({"type", "error"}, "error")
    assert (set(told["error"]), told["error"]["type"]) == (FIELDS, kind)
    assert told["error"]["code"] == refusal.code
    for dialect in ("openai", "responses"):
        told = json.loads(error_body(dialect, refusal))
        assert (set(told), told["error"]["type"]) == ({"error"}, refusal.kind)


class RefusalTests(FrontCase):
    """What a client reads."""

    def told(self, client: Client) -> tuple[int, dict[str, Any]]:
        status, _, body = client.answer()
        return status, json.loads(body)

    def test_the_path_tells_whose_words(self) -> None:
        """Anthropic's on its paths, with a route and without; OpenAI's on all others."""
        for path in (
            b"/v1/messages",
            b"/v1/messages/count_tokens",
            b"/v1/messages?beta=true",
            b"/v1/messages/no",
        ):
            status, told = self.told(self.client().post(path, {"model": "none"}))
            self.assertEqual(
                (status, told["type"], told["error"]["type"]), (404, "error", "not_found_error"), path
            )
        for path in (b"/v1/messages", b"/coder/v1/messages", b"/coder/v1/messages/count_tokens"):
            status, told = self.told(self.client().post(path, {}, b"x-api-key: wrong\r\n"))
            self.assertEqual(
                (status, told["type"], told["error"]["type"]), (401, "error", "authentication_error")
            )
        for path in (b"/v1/chat/completions", b"/v1/responses", b"/v1/messages2", b"/coder/x?/v1/messages"):
            status, told = self.told(self.client().post(path, {}, b"x-api-key: wrong\r\n"))
            self.assertEqual((status, set(told)), (401, {"error"}), path)

    def test_a_start_that_fails_is_told_in_its_words(self) -> None:
        """Also to who has waited for it."""
        client = self.client().post(b"/v1/messages", {"model": "coder3b"})
        self.world.exit("coder", 3)
        status, told = self.told(client)
        self.assertEqual((status, told["type"]), (503, "error"))
        self.assertEqual(
            (told["error"]["type"], told["error"]["code"]), ("api_error", "backend_start_failed")
        )

    def test_a_body_that_is_too_large_is_told_in_its_words(self) -> None:
        """Though it is refused before it has come."""
        head = b"POST /coder/v1/messages HTTP/1.1\r\nHost: h\r\n%bContent-Length: 100001\r\n\r\n" % KEY
        status, told = self.told(self.client().send(head))
        self.assertEqual((status, told["type"], told["error"]["type"]), (413, "error", "request_too_large"))
        chat = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\n%bContent-Length: 100001\r\n\r\n" % KEY
        self.assertEqual(set(self.told(self.client().send(chat))[1]), {"error"})

    def test_fields_are_spelt_as_answers_have_them(self) -> None:
        """Whoever reads them as text finds them in both."""
        self.warm("coder", "chat")
        answers = [self.client().post(b"/coder/v1/x", {})]
        self.far().send(OK)
        answers += [
            self.client().get(b"/nope"),
            self.client().get(b"/v1/models"),
            self.client().send(b"\r\nx\r\n"),
        ]
        for client in answers:
            head = client.take().partition(b"\r\n\r\n")[0]
            for name in (b"X-LLMProxy-Backend: ", b"X-LLMProxy-Cold-Start: ", b"X-Request-ID: "):
                self.assertIn(b"\r\n" + name, head)
