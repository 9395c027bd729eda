"""The name of the model in answers: the one that the client asked by, and all else as it was."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.http.renaming import LONGEST_EVENT, EventRenamer, renamed
from llmproxy.web.renaming import LARGEST_DOCUMENT
from tests.front import CHAT, CODER, FrontCase
from tests.unit.test_front import KEY, Client

TOKENS = [
    b'data: {"id":"c-1","model":"sitechat","choices":[{"delta":{"content":"a"}}]}\n',
    b'data: {"type":"response.created","response":{"model":"sitechat","output":[]}}\r\n',
    b'data:{"type":"message_start","message":{"role":"assistant","model":"sitechat"}}\r',
    b'data: {"model":"other"}\n',
    b'data: {"choices":[{"delta":{"content":"\\"model\\":\\"sitechat\\""}}]}\n',
    b"event: message_start\n",
    b': llmproxy {"model":"sitechat"}\n',
    b'data: "model"\n',
    b"data: [DONE]\n",
    b'data: {"model":\n',
    'data: {"model":"sitechat","t":"é\ud7ff"}\n'.encode(),
    b"\n",
    b"\r\n",
]


def expected(line: bytes) -> bytes:
    """The same line by a plain replacement, of those that have to be changed."""
    if line in (TOKENS[3], TOKENS[4], TOKENS[6]):
        return line
    return line.replace(b'"model":"sitechat"', b'"model":"gpt-4"')


@given(st.lists(st.sampled_from(TOKENS), max_size=8), st.data(), st.binary(max_size=9))
def test_a_stream_in_any_pieces(lines: list[bytes], data: st.DataObject, rest: bytes) -> None:
    """However it is split, the names are changed and nothing else."""
    rest = rest.replace(b"\n", b"").replace(b"\r", b"")
    stream = b"".join(lines) + rest
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6).map(sorted))
    pieces = [stream[a:b] for a, b in pairwise([0, *cuts, len(stream)])]
    renamer = EventRenamer("sitechat", "gpt-4")
    out = b""
    for piece in pieces:
        out += b"".join(renamer.feed([piece]))
    assert out + b"".join(renamer.end()) == b"".join(map(expected, lines)) + rest


def test_whole_events_leave_at_once() -> None:
    """Nothing of a line that has come to its end is kept."""
    renamer = EventRenamer("sitechat", "gpt-4")
    assert b"".join(renamer.feed([TOKENS[0][:20], TOKENS[0][20:]])) == expected(TOKENS[0])
    assert renamer.end() == []


def test_a_line_without_an_end_is_not_kept_for_ever() -> None:
    """Past a limit it is passed on as it comes, and the next line is looked at again."""
    renamer = EventRenamer("sitechat", "gpt-4")
    long = b'data: {"model":"sitechat","t":"' + b"x" * LONGEST_EVENT
    assert b"".join(renamer.feed([long])) == long
    assert b"".join(renamer.feed([b"yyy"])) == b"yyy"
    assert b"".join(renamer.feed([b'"}\n' + TOKENS[0]])) == b'"}\n' + expected(TOKENS[0])


@pytest.mark.parametrize(
    ("document", "found"),
    [
        (b'{ "model" : "sitechat", "x": 1.0 }', b'{"model":"gpt-4","x":1.0}'),
        (b'{"mod\\u0065l":"site\\u0063hat"}', None),
        (b'{"a":{"model":"sitechat"}}', None),
        (
            b'{"model":"sitechat","input":{"model":"sitechat"}}',
            b'{"model":"gpt-4","input":{"model":"sitechat"}}',
        ),
        (b'{"response":{"model":"sitechat"}}', b'{"response":{"model":"gpt-4"}}'),
        (b'{"message":"model"}', None),
        (b'{"model":"other"}', None),
        (b'{"model":null}', None),
        (b'["model"]', None),
        (b'{"model":"sitechat"', None),
        (b'{"model":"sitechat","t":"\xff"}', None),
        (b'{"model":"sitechat","t":"\\ud800"}', None),
        (b'{"model":"sitechat","t":1.50}', b'{"model":"gpt-4","t":1.50}'),
    ],
)
def test_documents(document: bytes, found: bytes | None) -> None:
    """Its own name and that of the answer within an event; what cannot be read stays as it is."""
    assert renamed(document, "sitechat", "gpt-4") == found


def test_a_name_is_written_as_json_has_it() -> None:
    """Whatever is in it."""
    found = renamed(b'{"model":"sitechat"}', "sitechat", 'a"\\\n')
    assert found is not None
    assert json.loads(found) == {"model": 'a"\\\n'}


def reply(
    body: bytes, kind: bytes = b"application/json", extra: bytes = b"", status: bytes = b"200 OK"
) -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: %b\r\n%bContent-Length: %d\r\n\r\n%b" % (
        status,
        kind,
        extra,
        len(body),
        body,
    )


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWER = b'{"model":"sitechat","n":1.50}'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class RewriteModelTests(FrontCase):
    """``rewrite_model``."""

    def build(self, *_: Any, **settings: Any) -> None:
        super().build((CODER, evolve(CHAT, rewrite_model=True)), **settings)
        self.warm("chat")

    def ask(self, model: str = "gpt-4", **fields: Any) -> Client:
        return self.client().post(b"/v1/chat/completions", {"model": model, **fields})

    def test_an_answer_has_the_name_that_was_asked_for(self) -> None:
        """By an alias and by the route's name, with the length that it then has."""
        for name, body in (
            ("gpt-4", b'{"model":"gpt-4","n":1.50}'),
            ("chat", b'{"model":"chat","n":1.50}'),
            ("sitechat", ANSWER),
        ):
            client = self.ask(name)
            self.far().send(reply(ANSWER, b"application/json; charset=utf-8"))
            status, headers, received = client.answer()
            self.assertEqual((status, received), (200, body))
            self.assertEqual(headers["content-length"], str(len(body)))
            self.assertEqual(headers["x-llmproxy-backend"], "chat")

    def test_it_is_not_rewritten_unless_asked(self) -> None:
        """The default."""
        super().build()
        self.warm("chat")
        client = self.ask()
        self.far().send(reply(ANSWER))
        self.assertEqual(client.answer()[2], ANSWER)

    def test_an_answer_in_chunks(self) -> None:
        """It stays one, in as many as it takes."""
        client = self.ask()
        self.far().send(CHUNKED % b"application/json" + chunk(ANSWER[:9]))
        self.assertEqual(client.take(), b"")
        self.far().send(chunk(ANSWER[9:]) + b"0\r\n\r\n")
        status, headers, body = client.answer()
        self.assertEqual((status, headers["transfer-encoding"]), (200, "chunked"))
        self.assertEqual(body, chunk(b'{"model":"gpt-4","n":1.50}') + b"0\r\n\r\n")

    def test_a_stream_leaves_event_by_event(self) -> None:
        """With the name in each."""
        client = self.ask(stream=True)
        self.far().send(CHUNKED % b"text/event-stream" + chunk(TOKENS[0] + b"\n"))
        head, _, body = client.take().partition(b"\r\n\r\n")
        self.assertIn(b"X-Accel-Buffering: no", head)
        self.assertEqual(body, chunk(expected(TOKENS[0]) + b"\n"))
        self.far().send(chunk(b"data: [DO"))
        self.assertEqual(client.take(), b"")
        self.far().send(chunk(b"NE]\n\n") + b"0\r\n\r\n")
        self.assertEqual(client.take(), chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    def test_a_stream_of_a_known_length(self) -> None:
        """It gets chunks, as its length is another one."""
        client = self.ask(stream=True)
        self.far().send(reply(TOKENS[0] + b"x", b"text/event-stream"))
        _, headers, body = client.answer()
        self.assertNotIn("content-length", headers)
        self.assertEqual(body, chunk(expected(TOKENS[0])) + chunk(b"x") + b"0\r\n\r\n")

    def test_a_held_stream(self) -> None:
        """The head has left with the heartbeat; the events are looked at, and an error is told."""
        for answer, words in (
            (CHUNKED % b"text/event-stream" + chunk(TOKENS[0]) + b"0\r\n\r\n", expected(TOKENS[0])),
            (reply(b'{"error":{"message":"bad"}}', status=b"400 Bad Request"), b'"message": "bad"'),
        ):
            self.build_cold()
            client = self.ask(stream=True)
            self.clock.advance(8)
            self.assertIn(b"200 OK", client.take())
            self.ready()
            self.far().send(answer)
            self.assertIn(words, client.take())

    def build_cold(self) -> None:
        super().build((CODER, evolve(CHAT, rewrite_model=True)))

    def test_what_is_left_alone(self) -> None:
        """Errors, other kinds, what is encoded or a part, and what must not be transformed."""
        for answer in (
            reply(ANSWER, status=b"404 Not Found"),
            reply(ANSWER, b"text/plain"),
            reply(ANSWER, extra=b"Content-Encoding: x\r\n"),
            reply(ANSWER, extra=b"Content-Range: bytes 0-28/99\r\n"),
            reply(ANSWER, extra=b"Cache-Control: private, No-Transform\r\n"),
            reply(b"{"),
            reply(b""),
        ):
            client = self.ask()
            self.far().send(answer)
            self.assertEqual(client.answer()[2], answer.partition(b"\r\n\r\n")[2])

    def test_a_very_large_answer_is_passed_on_as_it_is(self) -> None:
        """Of a length that is told, and of one that is not."""
        large = b'{"model":"sitechat","t":"' + b"x" * LARGEST_DOCUMENT + b'"}'
        client = self.ask()
        self.far().send(reply(large))
        self.assertEqual(client.answer()[2], large)
        client = self.ask()
        self.far().send(CHUNKED % b"application/json" + chunk(large[:99]) + chunk(large[99:]) + b"0\r\n\r\n")
        self.assertEqual(client.answer()[2], chunk(large) + b"0\r\n\r\n")

    def test_a_backend_that_dies_in_a_document(self) -> None:
        """Its client is told by a status."""
        client = self.ask()
        self.far().send(CHUNKED % b"application/json" + chunk(ANSWER[:9]))
        self.far().close()
        status, error, _ = client.error()
        self.assertEqual((status, error["code"]), (502, "backend_unavailable"))

    def test_a_backend_that_dies_in_a_stream(self) -> None:
        """What had come is passed on, and the error after it."""
        client = self.ask(stream=True)
        self.far().send(CHUNKED % b"text/event-stream" + chunk(TOKENS[0] + b"data: {"))
        self.far().close()
        body = client.take().partition(b"\r\n\r\n")[2]
        self.assertTrue(body.startswith(chunk(expected(TOKENS[0])) + chunk(b"data: {")))
        self.assertIn(b"backend_died", body)
        self.assertTrue(client.transport.disconnecting)

    def test_a_client_that_leaves(self) -> None:
        """Ends it, with the document or the stream half there."""
        for kind in (b"application/json", b"text/event-stream"):
            client = self.ask()
            self.far().send(CHUNKED % kind + chunk(ANSWER[:9]))
            client.leave()
            self.assertTrue(self.far().closed)
            self.assertFalse(self.backend("chat").gate.busy)
            self.assertEqual(self.log.entries[-1].outcome, "client_gone")

    def test_a_stand_in_is_named_as_what_it_is(self) -> None:
        """An answer of another model has that model's name."""
        super().build((CODER, evolve(CHAT, rewrite_model=True, fallback=("coder",))))
        self.warm("coder")
        client = self.client().post(b"/v1/completions", {"model": "gpt-4"}, KEY)
        self.far().send(reply(b'{"model":"coder3b"}'))
        self.assertEqual(client.answer()[2], b'{"model":"coder3b"}')
