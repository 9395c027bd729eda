"""What is recognised is what the parser would have read."""

from __future__ import annotations

import re
from typing import Any
from unittest import mock

import httptools
from attrs import define, field
from hypothesis import event, given, settings
from hypothesis import strategies as st

from llmproxy.http.headers import Fields
from llmproxy.http.known import KnownHead
from llmproxy.relay.upstream import UpstreamConnection
from llmproxy.web.reader import RequestReader
from tests.unit.test_channel import World, plain, requests
from tests.unit.test_upstream import Answer, ask, connected

TIME = b"Mon, 01 Jan 2024 00:00:00 GMT"
LATER = b"Tue, 02 Jan 2024 23:59:59 GMT"


@define
class Parsed:
    """What llhttp finds in an answer."""

    fields: list[tuple[bytes, bytes]] = field(factory=list)
    body: bytes = b""
    ends: int = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value.rstrip(b" \t")))

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.ends += 1


def parse(data: bytes) -> Parsed | None:
    """None: llhttp takes offence."""
    found = Parsed()
    try:
        httptools.HttpResponseParser(found).feed_data(data)
    except httptools.HttpParserError:
        return None
    return found


NAMES = st.sampled_from([b"Server", b"x-a", b"Vary", b"Content-Type", b"Age", b"Last-Modified"])
VALUES = st.sampled_from([b"uvicorn", b"", b"a: b", b"5", b"text/plain", TIME, b"content-length: 3"])


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Fields with a length and perhaps a date among them, and the head that has them."""
    fields = draw(st.lists(st.tuples(NAMES, VALUES), max_size=3, unique_by=lambda one: one[0]))
    fields.append((draw(st.sampled_from([b"Content-Length", b"content-length"])), b"3"))
    if draw(st.booleans()):
        fields.append((draw(st.sampled_from([b"Date", b"date"])), draw(st.sampled_from([TIME, b"today"]))))
    fields = draw(st.permutations(fields))
    space = draw(st.sampled_from([b" ", b"", b"\t "]))
    lines = b"".join(b"%b:%b%b\r\n" % (name, space, value) for name, value in fields)
    return list(fields), b"HTTP/1.1 200 OK\r\n%b\r\n" % lines


@given(answers(), st.integers(0, 99_999), st.sampled_from([TIME, LATER]))
def test_another_length_and_another_time_are_known(
    answer: tuple[list[tuple[bytes, bytes]], bytes], length: int, time: bytes
) -> None:
    """A head that differs in these alone is recognised, with its own values in its fields."""
    fields, head = answer
    known = KnownHead.learn(head, Fields(fields))
    assert known is not None
    dated = {name.lower(): value for name, value in fields}.get(b"date") == TIME
    changed = re.sub(rb"(?i)(\ncontent-length:\s*)3", rb"\g<1>%d" % length, head)
    if dated:
        changed = re.sub(rb"(?i)(\ndate:\s*)" + TIME, rb"\g<1>" + time, changed)
    found = known.match(changed + b"body")
    assert found is not None
    assert (found.size, found.length) == (len(changed), length)
    parsed = parse(changed)
    assert parsed is not None
    assert found.fields.raw == parsed.fields
    # And the next one after it.
    again = known.match(head)
    assert again is not None
    assert again.fields.raw == fields


@settings(max_examples=500)
@given(answers(), st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3)), min_size=1, max_size=2))
def test_nothing_is_recognised_that_would_be_read_otherwise(
    answer: tuple[list[tuple[bytes, bytes]], bytes], damage: list[tuple[int, bytes]]
) -> None:
    """Whatever is changed in a head: it is either like it to the parser, too, or not recognised."""
    fields, head = answer
    known = KnownHead.learn(head, Fields(fields))
    assert known is not None
    other = head
    for place, bytes_ in damage:
        place %= len(other) + 1
        other = other[:place] + bytes_ + other[place + len(bytes_) :]
    found = known.match(other)
    event("recognised" if found else "not recognised")
    if found is None:
        return
    body = b"x" * min(found.length, 5000)
    parsed = parse(other[: found.size] + body)
    assert parsed is not None
    assert parsed.fields == found.fields.raw
    if found.length <= 5000:
        assert (parsed.body, parsed.ends) == (body, 1)


def test_what_cannot_be_told_by_its_bytes_is_not_learned() -> None:
    """No length, two of one name, or a coding: the parser's business."""
    for lines in (
        b"A: b\r\n",
        b"Content-Length: 3\r\nA: b\r\na: c\r\n",
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 123456789012\r\n",
    ):
        head = b"HTTP/1.1 200 OK\r\n%b\r\n" % lines
        raw = [(name, value) for name, _, value in (line.partition(b": ") for line in lines.splitlines())]
        assert KnownHead.learn(head, Fields(raw)) is None


def test_numbers_are_digits() -> None:
    """A sign, a space, a letter or too many digits are for the parser."""
    head = b"POST / HTTP/1.1\r\nContent-Length: %b\r\nA: b\r\n\r\n"
    known = KnownHead.learn(head % b"3", Fields([(b"A", b"b")]))
    assert known is not None
    for number in (b"", b"+3", b"-3", b"3 ", b" 3", b"0x3", b"3_0", b"\xb2", b"1" * 12, b"3\r\nA: c"):
        assert known.match(head % number) is None, number
    assert known.match(b"") is None
    assert known.match(head[:-4] % b"3") is None


@settings(max_examples=300)
@given(requests(), st.lists(requests(), max_size=2), st.data())
def test_a_request_is_the_same_whether_it_is_recognised_or_parsed(
    first: Any, others: list[Any], data: st.DataObject
) -> None:
    """What comes on a connection is served alike, byte for byte, with nothing known of what came before."""
    wires = [first.wire]
    for one in (first, *others, first):
        wire = one.wire
        if data.draw(st.booleans()):
            place = data.draw(st.integers(0, len(wire)))
            wire = wire[:place] + data.draw(st.binary(max_size=2)) + wire[place:]
        wires.append(wire)
    quick, slow = World(), World()
    quick.send(*wires)
    with mock.patch.object(RequestReader, "_learn"):
        slow.send(*wires)
    assert quick.tree.seen == slow.tree.seen
    assert plain(quick.take()) == plain(slow.take())
    assert quick.transport.closing == slow.transport.closing
    for world in (quick, slow):
        world.channel.connectionLost(mock.Mock())
        for call in world.clock.getDelayedCalls():
            call.cancel()


def test_a_client_that_says_the_same_again_is_not_parsed_again() -> None:
    """But for the length of its body; what is larger than allowed is refused as ever."""
    world = World()
    head = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\nX-A: b\r\n\r\n%b"
    world.send(head % (1, b"1"))
    with mock.patch.object(RequestReader, "_parse", side_effect=AssertionError):
        world.send(head % (2, b"22"), head % (10, b"x" * 10))
    assert [(one[0], one[3]) for one in world.tree.seen] == [
        (b"POST", b"1"),
        (b"POST", b"22"),
        (b"POST", b"x" * 10),
    ]
    world.take()
    world.send(head % (world.limits.max_body + 1, b""))
    assert b"HTTP/1.1 413 " in world.take()


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.sampled_from([TIME, LATER])), min_size=1),
    st.binary(max_size=3),
)
def test_an_answer_is_the_same_whether_it_is_recognised_or_parsed(
    sent: list[tuple[bool, int, bytes]], behind: bytes
) -> None:
    """Also when bytes follow the last one, which end the connection."""

    def play() -> list[Answer]:
        protocol, far, idle = connected()
        heard = []
        for number, (head_request, length, time) in enumerate(sent):
            if protocol.closed:
                break
            heard.append(ask(protocol, head_request=head_request))
            body = b"" if head_request else b"x" * length
            end = behind if number == len(sent) - 1 else b""
            far.send(
                b"HTTP/1.1 200 OK\r\nDate: %b\r\nContent-Length: %d\r\n\r\n%b" % (time, length, body + end)
            )
            assert (len(idle) == number + 1) is not protocol.closed
        return heard

    quick = play()
    with mock.patch.object(UpstreamConnection, "_learn"):
        slow = play()
    assert [(one.heads, one.body, one.ends, one.broken) for one in quick] == [
        (one.heads, one.body, one.ends, one.broken) for one in slow
    ]
    assert [one.heads[0].fields.raw for one in quick] == [one.heads[0].fields.raw for one in slow]


def test_a_server_that_says_the_same_again_is_not_parsed_again() -> None:
    """But for the length of its answer, and the time."""
    protocol, far, _ = connected()
    answer = b"HTTP/1.1 200 OK\r\ndate: %b\r\ncontent-length: %d\r\n\r\n%b"
    ask(protocol)
    far.send(answer % (TIME, 1, b"a"))
    with mock.patch.object(protocol, "_parser", mock.Mock(side_effect=AssertionError)):
        heard = ask(protocol)
        far.send(answer % (LATER, 2, b"bc"))
    assert (heard.body, heard.ends) == (b"bc", 1)
    assert heard.heads[0].fields == {b"date": LATER, b"content-length": b"2"}


def wire(length: int, body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, length, body)


def test_what_is_told_of_a_known_answer_is_what_the_parser_says() -> None:
    """All of its head; and the connection may be used again."""
    protocol, far, idle = connected()
    heads = []
    for _ in range(2):
        answer = ask(protocol)
        far.send(wire(1, b"a"))
        heads += answer.heads
    assert heads[0] == heads[1]
    assert len(idle) == 2


def test_an_answer_that_is_not_like_the_one_before_is_parsed() -> None:
    """By its status, as it has not come as a whole, or as something follows it."""
    for pieces, body, again in (
        ([wire(1, b"b", b"404 Not Found")], b"b", True),
        ([wire(2, b"b"), b"c"], b"bc", True),
        ([wire(0, b"")], b"", True),
        ([wire(1, b"b") + b"more"], b"b", False),
    ):
        protocol, far, idle = connected()
        ask(protocol)
        far.send(wire(1, b"a"))
        answer = ask(protocol)
        for piece in pieces:
            assert answer.ends == 0
            far.send(piece)
        assert (answer.body, answer.ends, answer.broken) == (body, 1, [])
        assert (len(idle) == 2, protocol.closed) == (again, not again)


def test_only_an_answer_that_came_in_one_piece_is_learned() -> None:
    """What looks like the end of the one before is none, and no HTTP."""
    protocol, far, _ = connected()
    ask(protocol)
    start, end = wire(1, b"a")[:11], wire(1, b"a")[11:]
    far.send(start)
    far.send(end)
    answer = ask(protocol)
    far.send(end)
    assert (answer.ends, len(answer.broken)) == (0, 1)
