"""What is read of an answer on its way: tokens, and whether it broke off."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.http.metering import (
    LARGEST_DOCUMENT,
    LONGEST_USAGE,
    NO_TOKENS,
    DocumentMeter,
    EventMeter,
    Tokens,
)

CHAT = {"prompt_tokens": 7, "total_tokens": 12, "completion_tokens": 5, "prompt_tokens_details": None}
RESPONSE = {
    "input_tokens": 36,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 87,
    "total_tokens": 123,
}

TOKEN = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
ROLE = b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
SAYS = b'data: {"choices":[{"delta":{"content":"\\"usage\\": {\\"completion_tokens\\": 99}"}}]}\n\n'
NONE_YET = b'data: {"choices":[],"usage":null}\n\n'
ERROR = b'data: {"error":{"message":"x"}}\n\n'
BEAT = b': llmproxy {"state":"starting"}\n\n'
PING = b'event: ping\ndata: {"type":"ping"}\n\n'


def usage_event(usage: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"


def document(pieces: list[bytes]) -> Tokens:
    meter = DocumentMeter()
    meter.feed(pieces)
    return meter.tokens()


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        ({"choices": [], "usage": CHAT}, Tokens(7, 5)),
        ({"output": [], "usage": RESPONSE, "user": None}, Tokens(36, 87)),
        ({"data": [], "usage": {"prompt_tokens": 3, "total_tokens": 3}}, Tokens(3, None)),
        ({"content": [], "usage": {"input_tokens": 1, "output_tokens": 2}}, Tokens(1, 2)),
        ({"usage": None}, NO_TOKENS),
        ({"usage": {"prompt_tokens": True, "completion_tokens": -1}}, NO_TOKENS),
        ({"usage": {"prompt_tokens": "7", "completion_tokens": 1.5}}, NO_TOKENS),
        ({"usage": {"prompt_tokens": 2**60, "completion_tokens": 1}}, Tokens(None, 1)),
        ({"text": '"usage": {"prompt_tokens": 1}'}, NO_TOKENS),
        ([], NO_TOKENS),
    ],
)
def test_a_document(answer: Any, tokens: Tokens) -> None:
    """In the words of each API, written with spaces or without; a text that talks of it does not count."""
    assert document([json.dumps(answer).encode()]) == tokens
    assert document([json.dumps(answer, separators=(",", ":")).encode()]) == tokens


@pytest.mark.parametrize(
    "answer", [b"", b'{"usage":{', b'{"usage":{"a":' + b"[" * 5000, b'\xff"usage":{\xff}']
)
def test_what_is_no_document(answer: bytes) -> None:
    """It tells nothing."""
    assert document([answer]) == NO_TOKENS


def test_of_a_large_document_the_end_is_read() -> None:
    """Embeddings have their usage behind the numbers."""
    pieces = [b'{"data":[' + b"1," * LARGEST_DOCUMENT] * 3 + [b"1],", b'"usage":' + json.dumps(CHAT).encode()]
    meter = DocumentMeter()
    for piece in pieces:
        meter.feed([piece])
    assert meter.tokens() == Tokens(7, 5)


LINES = [TOKEN, ROLE, SAYS, NONE_YET, BEAT, PING, DONE, usage_event(CHAT), usage_event(RESPONSE), b"\n"]


def stream(pieces: list[bytes]) -> EventMeter:
    meter = EventMeter()
    for piece in pieces:
        meter.feed([piece])
    return meter


@given(st.lists(st.sampled_from([*LINES, ERROR]), max_size=8), st.data())
def test_however_a_stream_is_split(lines: list[bytes], data: st.DataObject) -> None:
    """Events, errors and tokens are the same."""
    whole = b"".join(lines)
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=6).map(sorted))
    meter = stream([whole[a:b] for a, b in pairwise([0, *cuts, len(whole)])])
    assert meter.events == sum(line.count(b"data:") for line in lines)
    assert meter.found is (ERROR in lines)
    told = [line for line in lines if line in LINES[7:9]]
    if told:
        expected = Tokens(7, 5) if told[-1] == LINES[7] else Tokens(36, 87)
        assert meter.tokens() == expected
    else:
        assert meter.tokens().estimated is bool(meter.events)


def test_a_stream_without_usage_is_counted() -> None:
    """One event for a token, less the one of the role and the end; marked as an estimate."""
    assert stream([ROLE, *[TOKEN] * 5, DONE]).tokens() == Tokens(None, 5, estimated=True)
    assert stream([ROLE]).tokens() == Tokens(None, 1, estimated=True)
    assert stream([]).tokens() == NO_TOKENS
    assert stream([BEAT]).tokens() == NO_TOKENS


def test_the_first_event_may_tell_of_the_prompt() -> None:
    """Anthropic's streams begin with it, and the last event tells of the answer."""
    start = b'event: message_start\ndata: {"message":{"usage":{"input_tokens":9,"output_tokens":1}}}\n\n'
    delta = b'event: message_delta\ndata: {"usage":{"output_tokens":4}}\n\n'
    assert stream([start, TOKEN * 60, delta]).tokens() == Tokens(9, 4)


def test_usage_in_every_event() -> None:
    """The last one counts."""
    grown = [usage_event({"prompt_tokens": 7, "completion_tokens": n}) for n in range(1, 9)]
    assert stream([*grown, DONE]).tokens() == Tokens(7, 8)


def test_a_usage_that_is_cut_off() -> None:
    """A stream that ends within it is counted by its events."""
    cut = usage_event(CHAT)[:40]
    assert stream([ROLE, TOKEN, cut]).tokens() == Tokens(None, 1, estimated=True)
    endless = b'data: {"usage":{"x":"' + b"y" * LONGEST_USAGE * 2
    assert stream([TOKEN, endless]).tokens().estimated


@pytest.mark.parametrize("usage", [usage_event(CHAT), usage_event(CHAT).replace(b": ", b":")])
def test_usage_is_found_across_a_split(usage: bytes) -> None:
    """Wherever the bytes are cut."""
    for split in range(len(usage)):
        assert stream([TOKEN, usage[:split], usage[split:], DONE]).tokens() == Tokens(7, 5)


@pytest.mark.parametrize("split", range(len(ERROR)))
def test_an_error_event_is_found_across_a_split(split: int) -> None:
    """Wherever the bytes are cut."""
    assert stream([TOKEN, ERROR[:split], ERROR[split:], DONE]).found
    assert not stream([TOKEN.replace(b'"a"', b'"error"')]).found


@pytest.mark.parametrize(
    ("stream", "settled"),
    [
        (ROLE + TOKEN, False),
        (TOKEN + ERROR, True),
        (TOKEN + ERROR[:-1], False),
        (TOKEN + ERROR[:20], False),
        (TOKEN + DONE, True),
        (TOKEN + DONE[:-1], False),
        (TOKEN + DONE[:-2], False),
        (TOKEN + DONE.replace(b" ", b""), True),
        (TOKEN + DONE + b"\n", True),
        (DONE, True),
        (TOKEN[:-2] + DONE, False),
        (TOKEN + b'data: {"t":"data: [DONE]', False),
        (TOKEN + b'data: {"t":"data: [DONE]\n\n', False),
        (TOKEN + DONE[:-2] + b" or so\n\n", False),
        (TOKEN + DONE[:-2] + b"\r\n", False),
        (TOKEN + DONE.replace(b"\n", b"\r\n"), True),
        (TOKEN + b'event: error\ndata: {"type":"error"}\r\n\r\n', True),
        (SAYS, False),
        (b"", False),
    ],
)
def test_a_stream_has_told_how_it_ends(stream: bytes, settled: bool) -> None:
    """By a whole error event or ``[DONE]``, however its bytes are split."""
    for size in (1, 7, 1000):
        meter = EventMeter()
        meter.feed(stream[at : at + size] for at in range(0, len(stream), size))
        assert meter.settled is settled
