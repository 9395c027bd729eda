"""What is written into a stream beside its content is read by each API's own client as it is meant."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.errors import backend_start_failed, hold_timeout
from llmproxy.http.dialects import Dialect, answer_event, dialect_of, error_event, heartbeat

FIELDS = {"state": "starting", "phase": "loading weights", "elapsed": 31, "eta": 12}
COMMENT = b': llmproxy {"state":"starting","phase":"loading weights","elapsed":31,"eta":12}\n'
FAILED = backend_start_failed("It broke.", hint="Mend it.", retry_after=5).about("coder", "failed")


def read(stream: bytes) -> list[tuple[str, Any]]:
    """The events, as the HTML standard reads them."""
    events = []
    for block in stream.decode().split("\n\n")[:-1]:
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        fields = dict(line.split(": ", 1) for line in lines)
        if fields:
            events.append((fields.get("event", "message"), json.loads(fields["data"])))
    assert stream.endswith(b"\n\n")
    return events


@pytest.mark.parametrize(
    ("target", "dialect"),
    [
        (b"/v1/messages", "anthropic"),
        (b"/v1/messages?beta=true", "anthropic"),
        (b"/v1/messages/", "anthropic"),
        (b"/v1/messages/count_tokens", "anthropic"),
        (b"/v1/messages-of-mine", "openai"),
        (b"/v1/responses", "responses"),
        (b"/v1/chat/completions", "openai"),
        (b"/v1/completions?x=/v1/messages", "openai"),
        (b"/generate", "openai"),
    ],
)
def test_the_path_tells_the_api(target: bytes, dialect: Dialect) -> None:
    """Whatever its query says."""
    assert dialect_of(target) == dialect


def test_heartbeats() -> None:
    """A comment for everybody; with a ping for those who count on pings."""
    for dialect in ("openai", "responses"):
        assert heartbeat(dialect, FIELDS) == COMMENT + b"\n"
    beat = heartbeat("anthropic", FIELDS)
    assert beat == COMMENT + b'event: ping\ndata: {"type": "ping"}\n\n'
    assert read(beat) == [("ping", {"type": "ping"})]


def test_an_error_is_an_event_of_its_api() -> None:
    """With all that a refusal says."""
    ((kind, told),) = read(error_event("openai", FAILED))
    assert kind == "message"
    assert told["error"]["code"] == "backend_start_failed"
    ((kind, told),) = read(error_event("responses", FAILED))
    assert kind == "error"
    assert {name: told[name] for name in ("type", "code", "message", "param", "sequence_number")} == {
        "type": "error",
        "code": "backend_start_failed",
        "message": "It broke.",
        "param": None,
        "sequence_number": 0,
    }
    assert told["error"]["hint"] == "Mend it."
    ((kind, told),) = read(error_event("anthropic", FAILED))
    assert (kind, told["type"], told["error"]["type"]) == ("error", "error", "api_error")
    assert (told["error"]["message"], told["error"]["retry_after"]) == ("It broke.", 5)
    ((_, told),) = read(error_event("anthropic", hold_timeout(3, 1)))
    assert told["error"]["type"] == "overloaded_error"


def test_an_engines_own_error_is_told_as_it_is() -> None:
    """In the words of the API that was asked, with its message."""
    vllm = (
        b'{"error": {"message": "too long", "type": "BadRequestError", "param": "input_tokens", "code": 400}}'
    )
    assert answer_event("openai", 400, vllm) == b"data: " + vllm + b"\n\n"
    assert answer_event("openai", 400, b'{"error": {"code": 1}}') == b'data: {"error": {"code": 1}}\n\n'
    ((_, told),) = read(answer_event("responses", 400, vllm) or b"")
    assert (told["type"], told["code"], told["message"], told["param"]) == (
        "error",
        "400",
        "too long",
        "input_tokens",
    )
    ((_, told),) = read(answer_event("anthropic", 400, vllm) or b"")
    assert (told["type"], told["error"]["type"], told["error"]["message"]) == (
        "error",
        "invalid_request_error",
        "too long",
    )
    for status, kind in ((404, "not_found_error"), (429, "rate_limit_error"), (422, "invalid_request_error")):
        ((_, told),) = read(answer_event("anthropic", status, vllm) or b"")
        assert told["error"]["type"] == kind
    own = b'{"type": "error", "error": {"type": "not_found_error", "message": "no"}}'
    assert answer_event("anthropic", 404, own) == b"event: error\ndata: " + own + b"\n\n"
    ((_, told),) = read(answer_event("anthropic", 500, b'{"error": "broken"}') or b"")
    assert told["error"] == {"message": "broken", "type": "api_error"}


def test_other_answers() -> None:
    """A whole answer is one event; what is no JSON, or says nothing, is for the caller to tell."""
    assert answer_event("openai", 200, b'{"choices": []}') == b'data: {"choices": []}\n\n'
    ((_, told),) = read(answer_event("openai", 404, b'{"detail": "Not Found"}') or b"")
    assert told["error"]["message"] == "Not Found"
    for answer in (b"<html>", b"[1]", b"{}", b'{"error": 3}', b'{"error": null}', b"\xff", b"[" * 100_000):
        assert answer_event("anthropic", 500, answer) is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["error", "message", "type", "code"]), inner)
    ),
)


@given(st.sampled_from(["openai", "responses", "anthropic"]), st.sampled_from([200, 400, 503]), VALUES)
def test_any_answer(dialect: Dialect, status: int, answer: Any) -> None:
    """Whatever an engine answers, it is one event that can be read, or nothing."""
    event = answer_event(dialect, status, json.dumps(answer).encode())
    if event is not None:
        assert len(read(event)) == 1
