"""What is sent and what is answered: the same bytes for every peer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

__all__ = ["CHAT", "KEY", "MODEL", "SMALL_ANSWER", "STREAM_HEAD", "event", "length_of", "request", "stamps"]

CHAT = "/v1/chat/completions"
MODEL = "bench"

KEY = "sk-bench-0123456789abcdef0123456789abcdef0123456789abcdef"
"""Sent to every peer; llmproxy alone asks for it."""

_HEADERS = (
    # What the openai package sends, less its seven further X-Stainless lines.
    "Accept-Encoding: gzip, deflate",
    "Connection: keep-alive",
    "Accept: application/json",
    "Content-Type: application/json",
    "User-Agent: OpenAI/Python 2.8.1",
    "X-Stainless-Lang: python",
    "X-Stainless-Async: false",
    f"Authorization: Bearer {KEY}",
)

_QUESTION = (
    "Which of the two is larger, and why? Answer in one short sentence, and do not repeat the question."
)

SMALL_BODY = json.dumps(
    {
        "id": "chatcmpl-0123456789abcdef0123456789abcdef",
        "object": "chat.completion",
        "created": 1700000000,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "The second one, as it has one digit more."},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 37, "total_tokens": 47, "completion_tokens": 10},
    },
    separators=(",", ":"),
).encode()

SMALL_ANSWER = (
    b"HTTP/1.1 200 OK\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-length: %d\r\ncontent-type: application/json\r\n\r\n%b" % (len(SMALL_BODY), SMALL_BODY)
)

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)

# As vLLM writes an event of a chat completion, with the time in it.
_EVENT = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"bench","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,'
    b'"finish_reason":null}],"t":%.7f}\n\n'
)

stamps = re.compile(rb'"t":([0-9.]+)}')
"""Finds the times in a stream."""

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


def event(now: float) -> bytes:
    """One token, in a chunk of its own.

    :param now: when it is written, by ``CLOCK_MONOTONIC``, one clock for all processes of a machine.
    """
    data = _EVENT % now
    return b"%x\r\n%b\r\n" % (len(data), data)


def length_of(head: bytes, end: int) -> int | None:
    """The ``Content-Length`` in the first ``end`` bytes; None when there is none."""
    found = _LENGTH.search(head, 0, end)
    return None if found is None else int(found[1])


def request(
    port: int,
    path: str = CHAT,
    *,
    model: str = MODEL,
    stream: bool = False,
    headers: Sequence[str] = _HEADERS,
) -> bytes:
    """A chat completion's request: about 300 bytes of head and 300 of body.

    :param path: path and query, at the peer.
    """
    body = json.dumps(
        {
            "messages": [
                {"role": "system", "content": "You are a helpful assistant who answers briefly."},
                {"role": "user", "content": _QUESTION},
            ],
            "model": model,
            "max_tokens": 64,
            "stream": stream,
            "temperature": 0.7,
        }
    ).encode()
    return head(port, path, len(body), headers) + body


def head(port: int, path: str, length: int, headers: Sequence[str] = _HEADERS) -> bytes:
    """The head of a request with ``length`` bytes of body."""
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", *headers, f"Content-Length: {length}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
