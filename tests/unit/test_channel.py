"""A client's connection: the same requests however their bytes come, in bounded memory, and then the end."""

from __future__ import annotations

import re
from typing import Any
from unittest import mock

from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from llmproxy.config.model import Limits
from llmproxy.web.auth import Authenticator
from llmproxy.web.body import IN_MEMORY
from llmproxy.web.channel import EAGER, LINGER
from llmproxy.web.patience import LOOK
from llmproxy.web.request import ProxyRequest
from llmproxy.web.site import ProxySite
from tests.unit.test_front import ClientTransport, Log

LARGEST_HEAD, MOST_FIELDS, IDLE = Limits().max_head, Limits().max_fields, Limits().idle_timeout

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Transport(ClientTransport):
    """A plain socket, which can be half-closed."""

    half_closed = False
    aborted = False

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    @property
    def closing(self) -> bool:
        """Nothing more is served on it."""
        return self.half_closed or self.disconnecting


class Recorder(Resource):
    """Writes down what is asked, and answers with how many were asked before: at once, or when it is told."""

    isLeaf = True

    def __init__(self, *, later: bool = False) -> None:
        super().__init__()
        self.later = later
        self.seen: list[tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]] = []
        self.open: list[ProxyRequest] = []
        self.gone: list[ProxyRequest] = []

    def render(self, request: Any) -> int:
        self.seen.append((request.method, request.uri, request.fields.raw, request.body.whole()))
        request.notifyFinish().addErrback(lambda _: self.gone.append(request))
        self.open.append(request)
        if not self.later:
            self.answer()
        return NOT_DONE_YET

    def answer(self) -> None:
        """Answer the oldest."""
        self.open.pop(0).answer(200, b"number %d" % len(self.seen), [])


@define(eq=False)
class World:
    """A site with a recorder for its tree, and one connection to it."""

    later: bool = False
    limits: Limits = field(factory=lambda: Limits(max_body=2_000_000))
    clock: Clock = field(factory=Clock)
    log: Log = field(factory=Log)
    tree: Recorder = field(init=False)
    site: ProxySite = field(init=False)
    transport: Transport = field(init=False)
    channel: Any = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.tree = Recorder(later=self.later)
        self.site = ProxySite(self.tree, self.clock, Authenticator(()), self.limits, self.log)
        self.channel, self.transport = self.connect()

    def connect(self) -> tuple[Any, Transport]:
        transport = Transport()
        channel: Any = self.site.buildProtocol(None)
        channel.makeConnection(transport)
        return channel, transport

    def send(self, *pieces: bytes) -> World:
        for piece in pieces:
            self.channel.dataReceived(piece)
        return self

    def take(self) -> bytes:
        data = bytes(self.transport.value())
        self.transport.clear()
        return data

    def close(self) -> None:
        """The client is gone; nothing may be left."""
        self.channel.connectionLost(Failure(ConnectionDone()))
        assert self.site.channels == set()
        assert self.clock.getDelayedCalls() == []
        assert self.log.failures == []


# -- the same requests however their bytes come ---------------------------------------------------------


@define
class Sent:
    """A request: its bytes, what shall be seen of it, and whether it is the last of its connection."""

    wire: bytes
    seen: tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]
    last: bool
    expects: bool


NAMES = st.sampled_from([b"X-A", b"x-b", b"Accept", b"COOKIE", b"X-LLMProxy-Backend", b"!#$%&'*+-.^_`|~"])
VALUES = st.sampled_from([b"", b"1", b"a b", b"a\tb", b"caf\xc3\xa9", b'"q, \\" q"', b"x" * 300, b"a: b"])
BODIES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"GET /evil HTTP/1.1\r\n\r\n", b"0\r\n\r\n", b"\r\n", b"x" * 5000]),
)


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    """Any request that shall be served."""
    method = draw(st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"M-SEARCH"]))
    path = draw(st.sampled_from([b"/", b"/a%2Fb//c?x=%20y&z", b"/" + b"p" * 200, b"/r/a;b=c/../d?e=/f://g"]))
    target = draw(st.sampled_from([b"", b"http://elsewhere:81"])) + path
    modern = draw(st.sampled_from([True, True, True, False]))
    fields = draw(st.lists(st.tuples(NAMES, VALUES), max_size=4))
    if modern or draw(st.booleans()):
        fields.insert(draw(st.integers(0, len(fields))), (b"Host", b"elsewhere:81"))
    connection = draw(st.sampled_from([b"", b"", b"", b"close", b"keep-alive", b"websocket", b"h2c"]))
    if connection in (b"websocket", b"h2c"):
        more = draw(st.sampled_from([b"", b", HTTP2-Settings", b", close"]))
        fields += [(b"Connection", b"Upgrade" + more), (b"Upgrade", connection)]
    elif connection:
        fields.append((b"Connection", connection))
    framing = draw(st.sampled_from(["none", "length", "chunked"] if modern else ["none", "length"]))
    body = b"" if framing == "none" else draw(BODIES)
    expects = modern and framing != "none" and draw(st.booleans())
    if expects:
        fields.append((b"Expect", b"100-continue"))
    sent = body
    if framing == "length":
        fields.append((draw(st.sampled_from([b"Content-Length", b"content-length"])), b"%d" % len(body)))
    elif framing == "chunked":
        fields.append((b"Transfer-Encoding", draw(st.sampled_from([b"chunked", b"Chunked"]))))
        sent = b""
        for piece in _cut(body, draw(st.lists(st.integers(0, 50), max_size=3))):
            extension = draw(st.sampled_from([b"", b";a", b";a=b", b';a="q";c']))
            sent += b"%b%b\r\n%b\r\n" % (
                draw(st.sampled_from([b"%x", b"%X", b"00%x"])) % len(piece),
                extension,
                piece,
            )
        trailer = draw(st.sampled_from([b"", b"X-T: 1\r\n", b"Host: evil\r\nX-B: 2\r\n", b"X-E:\r\n"]))
        sent += b"0\r\n" + trailer + b"\r\n"
    space = draw(st.sampled_from([b" ", b"", b" \t ", b"  "]))
    # llhttp takes a tab behind a coding for part of its name, which is as well.
    after = draw(st.sampled_from([b"", b" "] if framing == "chunked" else [b"", b" ", b"\t "]))
    lines = b"".join(b"%b:%b%b%b\r\n" % (name, space, value, after) for name, value in fields)
    blank = draw(st.sampled_from([b"", b"", b"\r\n"]))
    head = b"%b%b %b HTTP/1.%d\r\n%b\r\n" % (blank, method, target, modern, lines)
    last = not modern or any(name == b"Connection" and b"close" in value for name, value in fields)
    # A request tells its length, and not in which words it was told.
    told = [field for field in fields if field[0].lower() != b"content-length"]
    return Sent(head + sent, (method, path, told, body), last, expects)


def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [piece for a, b in zip([0, *places], [*places, len(data)], strict=True) if (piece := data[a:b])]


def plain(answers: bytes) -> bytes:
    """Answers without what differs by chance or by when their requests came."""
    return re.sub(rb"X-Request-ID: \w+", b"X-Request-ID: -", answers, flags=re.I).replace(CONTINUE, b"")


def _served(sent: list[Sent]) -> list[Sent]:
    """Those up to the last one of the connection."""
    for place, one in enumerate(sent):
        if one.last:
            return sent[: place + 1]
    return sent


def _play(pieces: list[bytes], *, later: bool) -> tuple[World, bytes]:
    world = World(later)
    world.send(*pieces)
    while later and world.tree.open:
        world.tree.answer()
    return world, world.take()


@settings(max_examples=300)
@given(
    st.lists(requests(), min_size=1, max_size=4),
    st.lists(st.integers(0, 20000), max_size=12),
    st.booleans(),
)
def test_any_split_of_the_bytes_gives_the_same_requests(
    sent: list[Sent], cuts: list[int], later: bool
) -> None:
    """Whatever pieces they come in, and however late they are answered."""
    served = _served(sent)
    wire = b"".join(one.wire for one in sent)
    whole, answers = _play([wire], later=False)
    split, others = _play(_cut(wire, cuts), later=later)
    assert split.tree.seen == whole.tree.seen == [one.seen for one in served]
    assert plain(others) == plain(answers)
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == len(served)
    assert others.count(CONTINUE) <= sum(one.expects for one in sent)
    for world in (whole, split):
        assert world.transport.closing == served[-1].last
        world.close()


@settings(max_examples=20)
@given(requests(), requests())
def test_byte_by_byte(first: Sent, second: Sent) -> None:
    """Every place is a place to be split at."""
    served = _served([first, second])
    world, _ = _play([bytes([byte]) for byte in first.wire[-600:] and first.wire + second.wire], later=False)
    assert world.tree.seen == [one.seen for one in served]
    world.close()


@settings(max_examples=100)
@given(st.lists(requests(), min_size=1, max_size=3), st.lists(st.integers(0, 20000), max_size=6))
def test_an_error_behind_whole_requests_is_told_after_their_answers(
    sent: list[Sent], cuts: list[int]
) -> None:
    """They are answered in order, then comes one 400, then the end; behind the last one nothing comes."""
    served = _served(sent)
    wire = b"".join(one.wire for one in sent) + b"NO SUCH\r\n\r\nGET / HTTP/1.1\r\n\r\n"
    world, answers = _play(_cut(wire, cuts), later=True)
    assert [one.seen for one in served] == world.tree.seen
    statuses = re.findall(rb"HTTP/1\.1 (\d+) ", answers.replace(CONTINUE, b""))
    assert statuses == [b"200"] * len(served) + [b"400"] * (not served[-1].last)
    assert world.transport.closing
    world.close()


# -- no bytes make it fail ------------------------------------------------------------------------------

PARTS = st.sampled_from(
    (
        b"GET |POST |PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n|CONNECT a:1|/|*| HTTP/1.1|HTTP/1.0|;|-1|3\r\nabc\r\n|"
        b"\r\n|\n|\r|\r\n\r\n|:| |\t|\x00|\xff|\x16\x03\x01|X: |Host: h|Content-Length: 3|ffffffffffffffff|"
        b"Transfer-Encoding: chunked|Connection: Upgrade\r\nUpgrade: h2c|Expect: 100-continue|0\r\n\r\n"
    ).split(b"|")
)


def _unharmed(pieces: list[bytes]) -> None:
    world = World(limits=Limits(max_body=100))
    world.send(*pieces)
    answers = world.take().replace(CONTINUE, b"")
    statuses = re.findall(rb"HTTP/1\.1 (\d+) ", answers)
    assert len(statuses) in (len(world.tree.seen), len(world.tree.seen) + 1) or b"400" in statuses
    assert b"500" not in statuses
    world.send(b"more", b"\r\n\r\n")
    world.clock.advance(LINGER)
    world.close()


@settings(max_examples=300)
@given(st.lists(PARTS, max_size=25), st.lists(st.integers(0, 500), max_size=4))
def test_no_pieces_of_http_make_it_fail(parts: list[bytes], cuts: list[int]) -> None:
    """Whatever is said, nothing is raised and nothing is a fault of ours."""
    _unharmed(_cut(b"".join(parts), cuts))


@given(st.binary(max_size=300), st.lists(st.integers(0, 400), max_size=4))
def test_no_bytes_make_it_fail(data: bytes, cuts: list[int]) -> None:
    """The same for any bytes."""
    _unharmed(_cut(data, cuts))


@settings(max_examples=300)
@given(
    st.lists(requests(), min_size=1, max_size=2),
    st.lists(
        st.tuples(st.integers(0, 20000), st.binary(max_size=2), st.integers(0, 3)), min_size=1, max_size=4
    ),
    st.lists(st.integers(0, 20000), max_size=4),
)
def test_no_damage_makes_it_fail(
    sent: list[Sent], damage: list[tuple[int, bytes, int]], cuts: list[int]
) -> None:
    """Valid requests with some bytes put in, taken out or changed."""
    wire = b"".join(one.wire for one in sent)
    for place, put, taken in damage:
        at = place % (len(wire) + 1)
        wire = wire[:at] + put + wire[at + taken :]
    _unharmed(_cut(wire, cuts))


# -- bounds ---------------------------------------------------------------------------------------------

CHUNKED = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
H2C = CHUNKED[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
LINE = b"GET / HTTP/1.1\r\nHost: h\r\n"

ENDLESS = {
    "header value": (LINE + b"A: ", b"x" * 1000, 431),
    "header name": (LINE, b"x" * 1000, 431),
    "fields": (LINE, b"A: b\r\n" * 100, 431),
    "request line": (b"GET /", b"x" * 1000, 431),
    "space in the request line": (b"GET ", b" " * 1000, 431),
    "empty lines before it": (b"", b"\r\n" * 500, 431),
    "white space before a value": (LINE + b"A:", b" " * 1000, 431),
    "chunk extension": (CHUNKED + b"3;", b"x" * 1000, 431),
    "chunk extension's value": (CHUNKED + b'3;a="', b"x" * 1000, 431),
    "chunk size": (CHUNKED, b"0" * 1000, 431),
    "trailer": (CHUNKED + b"3\r\nabc\r\n0\r\n", b"A: b\r\n" * 100, 431),
    "trailer's value": (CHUNKED + b"3\r\nabc\r\n0\r\nA: ", b"x" * 1000, 431),
    "trailer of a large body": (CHUNKED + b"80000\r\n" + b"x" * 0x80000 + b"\r\n0\r\nA: ", b"x" * 1000, 431),
    "trailer asking for HTTP/2": (
        H2C + b"0\r\nA: ",
        b"x" * 1000,
        431,
    ),
    "body": (CHUNKED, b"800\r\n" + b"x" * 2048 + b"\r\n", 413),
    "body asking for HTTP/2": (
        H2C,
        b"800\r\n" + b"x" * 2048 + b"\r\n",
        413,
    ),
}


class BoundsTests(SynchronousTestCase):
    """What a client cannot do."""

    def refused(self, world: World, status: int, name: str) -> None:
        answers = world.take()
        self.assertEqual(re.findall(rb"HTTP/1\.1 (\d+)", answers), [b"%d" % status], name)
        self.assertIn(b"\r\nConnection: close\r\n", answers)
        self.assertTrue(world.transport.half_closed, name)
        world.send(LINE + b"\r\n", b"x" * 100_000)
        self.assertEqual((world.take(), world.tree.seen), (b"", []), name)
        self.assertEqual([entry.outcome for entry in world.log.entries], ["refused"])
        world.clock.advance(LINGER)
        self.assertTrue(world.transport.aborted, name)
        world.close()

    def test_nothing_grows_for_ever(self) -> None:
        """Each is refused, once, after not much more than may be, and its connection ends."""
        for name, (begin, more, status) in ENDLESS.items():
            for splitting in (len(begin) + len(more), 700):
                world = World(limits=Limits(max_body=600_000))
                sent = 0
                for at in range(0, len(begin), splitting):
                    world.send(begin[at : at + splitting])
                while not world.transport.half_closed:
                    world.send(more)
                    sent += len(more)
                    self.assertLess(sent, 700_000 if status == 413 else LARGEST_HEAD + 2 * len(more), name)
                self.refused(world, status, name)

    def test_a_head_may_be_as_large_as_is_said(self) -> None:
        """Up to LARGEST_HEAD and MOST_FIELDS, alone or in one piece with others; one more is 431."""
        line = b"GET / HTTP/1.1\r\nHost: h\r\nA: %b\r\n\r\n"
        fits, large = line % (b"x" * (LARGEST_HEAD - 50)), line % (b"x" * LARGEST_HEAD)
        world = World().send(LINE + b"\r\n" + fits + fits)
        self.assertEqual(len(world.tree.seen), 3)
        world.send(fits[:20000], fits[20000:])
        self.assertEqual(len(world.tree.seen), 4)
        world.send(LINE + b"\r\n" + large + LINE + b"\r\n")
        self.assertEqual(len(world.tree.seen), 5)
        self.assertIn(b"HTTP/1.1 431 ", world.take())
        world.close()
        for count, served in ((MOST_FIELDS, 1), (MOST_FIELDS + 1, 0)):
            world = World().send(LINE + b"A: b\r\n" * (count - 1) + b"\r\n")
            self.assertEqual(len(world.tree.seen), served)
            world.close()

    def test_a_body_may_be_as_large_as_is_said(self) -> None:
        """Up to the limit itself, told or in chunks, the first or one that is known; one more is 413."""
        for extra, status in ((0, 200), (1, 413)):
            for head in (LINE + b"Content-Length: %d\r\n\r\n" % (1000 + extra), CHUNKED):
                body = b"x" * (1000 + extra)
                told = head is not CHUNKED
                first = LINE + b"Content-Length: 1\r\n\r\nx"
                for before in ((), (first,)):
                    world = World(limits=Limits(max_body=1000)).send(*before)
                    world.send(head + (body if told else b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)))
                    self.assertIn(b"HTTP/1.1 %d " % status, world.take())
                    self.assertEqual(len(world.tree.seen), len(before) + (not extra))
                    world.close()

    def test_another_host_or_target_is_looked_at_anew(self) -> None:
        """Also on a connection that has asked for the same target, or of the same host, before."""
        world = World()
        for target, host, status in (
            (b"/a", b"h", 200),
            (b"/a", b"bad host", 400),
        ):
            world.send(b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (target, host))
            self.assertIn(b"HTTP/1.1 %d " % status, world.take())
        world.close()
        world = World().send(
            *(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % each for each in (b"/a", b"/b", b"/a"))
        )
        self.assertEqual([seen[1] for seen in world.tree.seen], [b"/a", b"/b", b"/a"])
        world.close()

    def test_what_an_upload_says_of_itself_does_not_add_up(self) -> None:
        """Many chunks with short extensions are no endless extension."""
        world = World().send(CHUNKED, *[b"1;a=b\r\nx\r\n"] * 20_000, b"0\r\n\r\n")
        self.assertEqual(world.tree.seen[0][3], b"x" * 20_000)
        world.close()

    def test_chunk_sizes_are_no_tricks(self) -> None:
        """Only hexadecimal digits of a number that fits, ended by CRLF."""
        for size in (
            b"-1",
            b"+1",
            b"0x1",
            b" 1",
            b"1 ",
            b"1\t",
            b"1_0",
            b"g",
            b"",
            b"1\n",
            b"1\r",
            b"f" * 17,
            b"1,1",
        ):
            world = World().send(CHUNKED + size + b"\r\nx\r\n0\r\n\r\n")
            self.refused(world, 400, repr(size))
        for size in (b"7fffffffffffffff", b"ffffffffffffffff"):
            world = World(limits=Limits(max_body=100)).send(CHUNKED + size + b"\r\n", b"x" * 101)
            self.refused(world, 413, repr(size))

    def test_a_chunk_ends_where_it_says(self) -> None:
        """More or fewer bytes than its size are no chunk."""
        for data in (b"2\r\nabc\r\n", b"2\r\nab\n", b"2\r\nab0\r\n\r\n", b"2\r\nab\r0\r\n\r\n"):
            self.refused(World().send(CHUNKED + data), 400, repr(data))

    def test_large_bodies_are_no_memory(self) -> None:
        """Beyond IN_MEMORY they are in a file, which is closed in every end."""
        for end in ("answered", "gone", "refused", "gone before"):
            world = World(later=True, limits=Limits(max_body=2 * IN_MEMORY))
            world.send(CHUNKED, b"%x\r\n" % (IN_MEMORY + 1), b"x" * (IN_MEMORY + 1))
            file = world.channel.reader.coming.body._file
            self.assertFalse(file.closed)
            if end == "refused":
                world.send(b"nonsense")
            elif end != "gone before":
                world.send(b"\r\n0\r\n\r\n")
            if end == "answered":
                world.tree.answer()
            world.close()
            self.assertTrue(file.closed, end)

    def test_a_body_in_small_pieces_takes_no_more_than_it_has(self) -> None:
        """A piece is no object that is kept: a chunk of two bytes would be thirty times as much."""
        world = World(later=True).send(CHUNKED, *[b"2\r\nab\r\n" * 1000] * 100)
        body = world.channel.reader.coming.body
        self.assertEqual((body.size, len(body._data)), (200_000, 200_000))
        self.assertIsInstance(body._data, bytearray)
        world.send(b"0\r\n\r\n")
        self.assertEqual(world.tree.seen[0][3], b"ab" * 100_000)
        world.close()

    def test_bodies_share_memory_and_disk(self) -> None:
        """Beyond ``body_memory`` a small one is put into a file; beyond ``body_disk`` it is 507; what is over
        is given back."""
        world = World(later=True, limits=Limits(body_memory=1000, body_disk=1000))
        room, others = world.site.room, [world.connect()[0] for _ in range(3)]
        world.send(CHUNKED, b"258\r\n" + b"x" * 600)
        self.assertEqual((room.memory, room.disk), (600, 0))
        others[0].dataReceived(CHUNKED + b"258\r\n" + b"y" * 300)
        others[0].dataReceived(b"y" * 300 + b"\r\n0\r\n\r\n")
        self.assertEqual((room.memory, room.disk), (600, 600))
        self.assertEqual(world.tree.seen[-1][3], b"y" * 600)
        others[1].dataReceived(CHUNKED + b"258\r\n" + b"z" * 600)
        self.assertIn(b"HTTP/1.1 507 ", others[1].transport.value())
        self.assertIn(b"limits.body_disk", others[1].transport.value())
        self.assertEqual((room.memory, room.disk), (600, 600))
        others[0].connectionLost(Failure(ConnectionDone()))
        self.assertEqual((room.memory, room.disk), (600, 0))
        others[2].dataReceived(CHUNKED + b"258\r\n" + b"z" * 600)
        others[1].connectionLost(Failure(ConnectionDone()))
        others[2].connectionLost(Failure(ConnectionDone()))
        world.send(b"\r\n0\r\n\r\n")
        world.tree.open[-1].answer(200, b"", [])
        self.assertEqual((room.memory, room.disk), (0, 0))
        world.close()

    def test_a_long_target_is_refused(self) -> None:
        """414 beyond ``max_target``."""
        for size, status in ((100, b"200"), (101, b"414")):
            world = World(limits=Limits(max_target=100))
            world.send(LINE.replace(b"/", b"/" + b"x" * (size - 1), 1) + b"\r\n")
            self.assertIn(b"HTTP/1.1 %b " % status, world.take())
            world.close()

    def test_heads_may_be_bounded_otherwise(self) -> None:
        """By ``max_head`` and ``max_fields``; another reading of the configuration counts at once."""
        world = World(limits=Limits(max_head=1000, max_fields=3))
        world.send(LINE + b"A: b\r\nB: c\r\n\r\n")
        self.assertIn(b"HTTP/1.1 200 ", world.take())
        world.site.bound(Limits(max_head=1000, max_fields=2))
        world.send(LINE + b"A: b\r\nB: c\r\nD: e\r\n\r\n")
        self.assertIn(b"more than 1000 bytes or 2 fields", world.take())
        world.close()
        world = World(limits=Limits(max_head=1000)).send(LINE + b"A: " + b"b" * 1000)
        self.assertIn(b"HTTP/1.1 431 ", world.take())
        world.close()


# -- time -----------------------------------------------------------------------------------------------


class IdleTests(SynchronousTestCase):
    """Who may keep a connection, and for how long."""

    def look(self, world: World, seconds: float) -> None:
        world.clock.pump([LOOK] * int(seconds / LOOK))

    def test_an_idle_connection_is_closed(self) -> None:
        """After IDLE seconds, at the next look; the same after an answer, and empty lines are nothing."""
        for before in (b"", LINE + b"\r\n", LINE + b"\r\n\r\n"):
            world = World().send(before)
            self.look(world, IDLE)
            self.assertFalse(world.transport.disconnecting)
            self.look(world, 2 * LOOK)
            self.assertTrue(world.transport.disconnecting)
            world.close()

    def test_a_held_or_answered_request_keeps_its_connection(self) -> None:
        """It is not the client's turn; once it is, IDLE counts from the end of the answer."""
        world = World(later=True).send(LINE + b"\r\n")
        self.look(world, 10 * IDLE)
        self.assertFalse(world.transport.disconnecting)
        world.tree.answer()
        self.look(world, IDLE)
        self.assertFalse(world.transport.disconnecting)
        self.look(world, 2 * LOOK)
        self.assertTrue(world.transport.disconnecting)
        world.close()

    def test_who_does_not_take_the_last_answer_is_let_go(self) -> None:
        """A connection that is being ended and does not end is aborted, whatever was answered on it."""
        for later in (False, True):
            world = World(later=later).send(LINE + b"Connection: close\r\n\r\n")
            if later:
                world.channel.loseConnection()
            self.assertTrue(world.transport.disconnecting)
            self.look(world, IDLE + 2 * LOOK)
            self.assertTrue(world.transport.aborted)
            world.close()

    def test_a_connection_kept_for_nothing_is_closed_at_the_end(self) -> None:
        """close_if_idle ends it at once when nothing is on it, and after the answer otherwise."""
        world = World(later=True)
        world.channel.close_if_idle()
        self.assertTrue(world.transport.disconnecting)
        world.close()
        for before, after in ((LINE + b"\r\n", b""), (CHUNKED + b"3\r\na", b"bc\r\n0\r\n\r\n")):
            world = World(later=True).send(before)
            world.channel.close_if_idle()
            self.assertFalse(world.transport.disconnecting)
            world.send(after)
            world.tree.answer()
            self.assertTrue(world.transport.disconnecting)
            self.assertIn(b"HTTP/1.1 200 OK", world.take())
            world.close()

    def test_nothing_is_served_behind_the_end(self) -> None:
        """What was pipelined behind the last answer, or comes while it leaves, makes no request."""
        for later in (False, True):
            world = World(later=True).send((LINE + b"\r\n") * 3)
            world.channel.close_if_idle()
            if later:
                world.tree.answer()
                world.send(LINE + b"\r\n")
            else:
                world.tree.later = False
                world.tree.answer()
            world.send(b"NO SUCH\r\n\r\n")
            self.assertEqual(len(world.tree.seen), 1)
            self.assertEqual(world.take().count(b"HTTP/1.1 "), 1)
            world.close()


# -- flow control and the connection's end --------------------------------------------------------------


class FlowTests(SynchronousTestCase):
    """Reading and writing at the client's pace."""

    def test_reading_goes_on_while_a_request_is_held(self) -> None:
        """Up to EAGER bytes, so that a hang-up is noticed; then it waits for the answer, and goes on."""
        world = World(later=True).send(LINE + b"\r\n")
        world.send(b"x" * EAGER)
        self.assertEqual(world.transport.producerState, "producing")
        world.send(b"x")
        self.assertEqual(world.transport.producerState, "paused")
        world.tree.answer()
        self.assertEqual(world.transport.producerState, "producing")
        world.close()

    def test_what_waited_is_served(self) -> None:
        """The requests that came early are answered in order, each after the one before."""
        world = World(later=True).send(LINE + b"\r\n", *[LINE + b"A: " + b"x" * 5000 + b"\r\n\r\n"] * 5)
        self.assertEqual((len(world.tree.seen), world.transport.producerState), (1, "paused"))
        for count in range(1, 7):
            self.assertEqual(len(world.tree.seen), count)
            world.tree.answer()
        self.assertEqual(world.transport.producerState, "producing")
        self.assertEqual(world.take().count(b"HTTP/1.1 200 OK"), 6)
        world.close()

    def test_a_hang_up_is_told(self) -> None:
        """To the request that is being answered."""
        world = World(later=True).send(LINE + b"\r\n")
        world.close()
        self.assertEqual(len(world.tree.gone), 1)
        self.assertEqual([entry.outcome for entry in world.log.entries], ["client_gone"])

    def test_a_client_that_takes_nothing_is_not_read(self) -> None:
        """Between requests; while one is answered it is, since it may hang up."""
        world = World(later=True)
        world.channel.pauseProducing()
        self.assertEqual(world.transport.producerState, "paused")
        world.channel.resumeProducing()
        self.assertEqual(world.transport.producerState, "producing")
        world.send(LINE + b"\r\n")
        world.channel.pauseProducing()
        self.assertEqual(world.transport.producerState, "producing")
        world.tree.answer()
        self.assertEqual(world.transport.producerState, "paused")
        world.channel.resumeProducing()
        self.assertEqual(world.transport.producerState, "producing")
        world.close()

    def test_whoever_answers_is_paused_and_resumed(self) -> None:
        """Also when the connection was full before it began."""
        world = World(later=True).send(LINE + b"\r\n")
        producer = mock.Mock()
        world.channel.pauseProducing()
        world.channel.registerProducer(producer, True)
        producer.pauseProducing.assert_called_once_with()
        world.channel.resumeProducing()
        producer.resumeProducing.assert_called_once_with()
        world.channel.unregisterProducer()
        world.channel.pauseProducing()
        producer.pauseProducing.assert_called_once_with()
        world.close()

    def test_a_request_waits_for_the_fleet(self) -> None:
        """What comes before the fleet knows what runs is served then, in order."""
        world = World()
        world.site.ready = Deferred()
        world.send(LINE + b"\r\n", b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9999999\r\n\r\n")
        self.assertEqual(world.take(), b"")
        world.site.fleet_started()
        answers = world.take()
        self.assertEqual(re.findall(rb"HTTP/1\.1 (\d+)", answers), [b"200", b"413"])
        world.close()

    def test_a_refusal_is_told_in_its_own_words(self) -> None:
        """Though it is found while another one is being answered."""
        world = World()
        world.site.ready = Deferred()
        world.send(LINE.replace(b"/", b"*", 1) + b"\r\n")
        world.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9999999\r\n\r\n")
        world.site.fleet_started()
        answers = world.take()
        self.assertEqual(re.findall(rb"HTTP/1\.1 (\d+)", answers), [b"400", b"413"])
        self.assertIn(b"body_too_large", answers)
        world.close()

    def test_the_client_is_told_that_it_was_the_last(self) -> None:
        """Every answer after which the connection ends says so (RFC 9112 section 9.6)."""
        for fields in (b"Connection: close\r\n", b""):
            world = World(later=True).send(LINE + fields + b"\r\n")
            world.channel.close_if_idle()
            world.tree.answer()
            self.assertIn(b"\r\nConnection: close\r\n", world.take())
            world.close()

    def test_continue_is_said_once_and_only_where_it_is_waited_for(self) -> None:
        """Not to HTTP/1.0, nor when the body has begun, nor when there is none, nor before one's turn."""
        expecting = b"POST / HTTP/1.%d\r\nHost: h\r\nExpect: 100-Continue\r\nContent-Length: %d\r\n\r\n"
        for wire, said in (
            (expecting % (1, 3), 1),
            (expecting % (1, 3) + b"a", 0),
            (expecting % (0, 3), 0),
            (expecting % (1, 0), 0),
            (expecting % (1, 9_999_999), 0),
        ):
            world = World(later=True).send(wire)
            self.assertEqual(world.take().count(CONTINUE), said, wire)
            world.close()
        world = World(later=True).send(LINE + b"\r\n" + expecting % (1, 3))
        self.assertEqual(world.take(), b"")
        world.tree.answer()
        self.assertTrue(world.take().endswith(CONTINUE))
        world.send(b"a").send(b"bc")
        world.tree.answer()
        self.assertNotIn(CONTINUE, world.take())
        world.close()
