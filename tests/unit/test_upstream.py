"""The connection to a backend: framing, reuse, and nothing of one answer in another."""

from __future__ import annotations

from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.relay.pool import KEEP_IDLE, ConnectionPool
from llmproxy.relay.upstream import (
    Broken,
    ResponseHead,
    UpstreamConnection,
)
from llmproxy.runtimes.interface import Address
from tests.inmemory import Far, FarTransport, Servers


@define(eq=False)
class Answer:
    """A handler that writes down what it hears."""

    heads: list[ResponseHead] = field(factory=list)
    body: bytes = b""
    ends: int = 0
    broken: list[Broken] = field(factory=list)

    def response_head(self, head: ResponseHead) -> None:
        self.heads.append(head)

    def response_data(self, pieces: list[bytes]) -> None:
        self.body += b"".join(pieces)

    def response_end(self) -> None:
        self.ends += 1

    def response_broken(self, broken: Broken) -> None:
        self.broken.append(broken)


def connected() -> tuple[UpstreamConnection, Far, list[UpstreamConnection]]:
    """A connection, its far end, and where it is put when it may be used again."""
    protocol = UpstreamConnection()
    transport = FarTransport(lambda far, data: None)
    far = transport.far = Far(protocol, transport)
    protocol.makeConnection(transport)
    idle: list[UpstreamConnection] = []
    protocol.on_idle = idle.append
    return protocol, far, idle


def ask(protocol: UpstreamConnection, *, head_request: bool = False) -> Answer:
    answer = Answer()
    protocol.send(b"GET / HTTP/1.1\r\n\r\n", b"", answer, head_request=head_request)
    return answer


def in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [piece for a, b in zip([0, *places], [*places, len(data)], strict=True) if (piece := data[a:b])]


def chunked(pieces: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"


@given(
    st.lists(st.binary(max_size=40), max_size=5),
    st.sampled_from(["length", "chunked"]),
    st.lists(st.integers(0, 5000), max_size=12),
    st.lists(st.integers(0, 5000), max_size=12),
)
def test_any_split_of_the_bytes_gives_the_same_messages(
    pieces: list[bytes], framing: str, cuts: list[int], more_cuts: list[int]
) -> None:
    """Two answers one after the other are the same in however many pieces their bytes come."""
    body = b"".join(pieces)
    if framing == "length":
        wire = b"HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    else:
        wire = b"HTTP/1.1 200 OK\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(pieces)
    protocol, far, idle = connected()
    for split in (cuts, more_cuts):
        answer = ask(protocol)
        for piece in in_pieces(wire, split):
            far.send(piece)
        assert answer.ends == 1
        assert not answer.broken
        assert answer.body == body
        (head,) = answer.heads
        assert (head.status, head.reason) == (200, b"OK")
        assert (b"X-A", b"b") in head.fields.raw
    assert idle == [protocol, protocol]
    assert protocol.used


@given(st.binary(max_size=300), st.lists(st.integers(0, 400), max_size=6))
def test_no_bytes_make_it_fail(data: bytes, cuts: list[int]) -> None:
    """Whatever a backend sends, there is one outcome at most, and it is kept only after a whole message."""
    protocol, far, idle = connected()
    answer = ask(protocol)
    for piece in in_pieces(data, cuts):
        far.send(piece)
    far.close()
    assert answer.ends + len(answer.broken) == 1
    assert not idle or answer.ends == 1


# name, the bytes of the answer, the body that may be told, complete?
CASES = [
    ("both lengths", b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nHELLO", b"", False),
    ("two lengths", b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", b"", False),
    ("signed length", b"Content-Length: +5\r\n\r\nhello", b"", False),
    ("length no number", b"Content-Length: five\r\n\r\nhello", b"", False),
    ("bad chunk size", b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n", b"", False),
    ("chunk too long", b"Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n", b"hel", False),
    ("early close", b"Content-Length: 9\r\n\r\nhello", b"hello", False),
    ("early close in chunks", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", b"hello", False),
    ("space before colon", b"Content-Length : 5\r\n\r\nhello", b"", False),
    ("bytes beyond the end", b"Content-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\n\r\n", b"hello", True),
    ("garbage beyond the end", b"Content-Length: 5\r\n\r\nhello\x00\x01", b"hello", True),
    ("trailers", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n", b"hello", True),
    ("until close", b"Content-Type: text/plain\r\n\r\nhello", b"hello", True),
    ("no number that fits", b"Content-Length: 18446744073709551617\r\n\r\nhello", b"", False),
    ("lengths in a list", b"Content-Length: 5, 5\r\n\r\nhello", b"", False),
    ("empty length", b"Content-Length:\r\n\r\nhello", b"", False),
    ("another coding", b"Transfer-Encoding: gzip\r\n\r\nhello", b"", False),
    ("two codings", b"Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"", False),
    ("chunked twice", b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n5\r\nhello\r\n0\r\n\r\n", b"", False),
    ("bare LF", b"X: y\nContent-Length: 5\r\n\r\nhello", b"", False),
    ("bare CR", b"X: y\rContent-Length: 5\r\n\r\nhello", b"", False),
    ("folding", b"X: y\r\n z\r\nContent-Length: 5\r\n\r\nhello", b"", False),
    ("NUL", b"X: \x00\r\nContent-Length: 5\r\n\r\nhello", b"", False),
    ("endless head", b"X: " + b"y" * 300_000, b"", False),
    ("endless fields", b"X: y\r\n" * 50_000, b"", False),
    (
        "endless trailer",
        b"Transfer-Encoding: chunked\r\n\r\n1\r\nh\r\n0\r\n" + b"X: y\r\n" * 50_000,
        b"h",
        False,
    ),
    (
        "close, and more",
        b"Connection: close\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\n",
        b"hello",
        True,
    ),
]

# The whole answer, the status that may be told, complete, and kept for the next request?
WHOLE = [
    (b"HTTP/1.1 204 No\r\n\r\n", 204, True, True),
    (b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n", 204, True, False),
    (b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n", 204, True, False),
    (b"HTTP/1.1 304 No\r\nETag: x\r\n\r\n", 304, True, True),
    (b"HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\nhello", 304, True, False),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", 200, True, False),
    (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", 200, True, True),
    (b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\n", 200, False, False),
    (b"HTTP/1.1 200 OK\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 0\r\n\r\n", 200, True, True),
    (b"HTTP/1.1 100 C\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 204 No\r\n\r\n", None, False, False),
    (b"HTTP/1.1 100 C\r\n\r\n" * 20_000, None, False, False),
    (b"HTTP/1.1 101 S\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", None, False, False),
    (b"HTTP/1.1 101 S\r\nUpgrade: x\r\n\r\n", None, False, False),
    (b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n", None, False, False),
    (b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n", None, False, False),
    (b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n", None, False, False),
    (b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n", None, False, False),
    (b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n", None, False, False),
    (b"HTTP/3.7 200 OK\r\nContent-Length: 0\r\n\r\n", None, False, False),
    (b"200 OK\r\nContent-Length: 0\r\n\r\n", None, False, False),
]


class FramingTests(SynchronousTestCase):
    """What a broken or hostile backend can do to one exchange, and to no other."""

    def test_hostile_answers(self) -> None:
        """Each is complete only when it is, tells no byte that is not its own, and ends the connection
        unless it was a whole message with nothing behind it."""
        for name, wire, body, complete in CASES:
            protocol, far, idle = connected()
            answer = ask(protocol)
            far.send(b"HTTP/1.1 200 OK\r\n" + wire)
            far.close()
            self.assertEqual((answer.ends, len(answer.broken)), (1, 0) if complete else (0, 1), name)
            self.assertEqual(answer.body, body, name)
            self.assertEqual(bool(idle), name == "trailers", name)

    def test_which_answers_leave_a_connection_that_can_be_used(self) -> None:
        """Whole ones, behind which nothing can follow; what is none is told as broken, and all at once or in
        pieces is the same."""
        for wire, status, complete, kept in WHOLE:
            for size in (len(wire), 50):
                protocol, far, idle = connected()
                answer = ask(protocol)
                for at in range(0, len(wire), size):
                    far.send(wire[at : at + size])
                self.assertEqual(
                    [head.status for head in answer.heads], [] if status is None else [status], wire
                )
                self.assertEqual(answer.ends, int(complete), wire)
                self.assertEqual(len(answer.broken), int(status is None), wire)
                self.assertEqual(bool(idle), kept, wire)
                self.assertEqual(protocol.closed, not kept and bool(answer.ends or answer.broken), wire)
                self.assertEqual(answer.body, b"")

    def test_sizes_that_come_alone_do_not_add_up(self) -> None:
        """A backend that writes a chunk's size and its data apart may stream for ever."""
        protocol, far, _ = connected()
        answer = ask(protocol)
        far.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(60_000):
            far.send(b"001\r\n")
            far.send(b"x\r\n")
        far.send(b"0\r\n\r\n")
        self.assertEqual((answer.ends, len(answer.body)), (1, 60_000))

    def test_a_lost_connection_does_not_end_an_answer_without_length(self) -> None:
        """Only a clean close is the end of an answer that has no other."""
        protocol, far, _ = connected()
        answer = ask(protocol)
        far.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        far.close(ConnectionLost())
        self.assertEqual((answer.ends, len(answer.broken)), (0, 1))

    def test_an_answer_that_never_began_may_be_tried_again(self) -> None:
        """Broken before its first byte is told as untouched."""
        protocol, far, _ = connected()
        answer = ask(protocol)
        far.close()
        self.assertTrue(answer.broken[0].untouched)

    def test_an_idle_connection_that_speaks_is_dropped(self) -> None:
        """Bytes that nobody asked for end the connection."""
        protocol, far, idle = connected()
        ask(protocol)
        far.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        self.assertEqual(idle, [protocol])
        far.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        self.assertTrue(protocol.closed)

    def test_connection_close_is_honoured(self) -> None:
        """A backend that says close is not asked again."""
        protocol, far, idle = connected()
        answer = ask(protocol)
        far.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
        self.assertEqual((answer.ends, idle), (1, []))

    def test_interim_answers_are_skipped(self) -> None:
        """100 Continue, 103 Early Hints and what has no name yet are not the answer."""
        protocol, far, _ = connected()
        answer = ask(protocol)
        far.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        far.send(b"HTTP/1.1 199 Soon\r\nX: y\r\n\r\n")
        far.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        self.assertEqual([head.status for head in answer.heads], [204])
        self.assertEqual(answer.heads[0].fields.raw, [])
        self.assertEqual(answer.ends, 1)

    def test_an_answer_to_head_has_no_body(self) -> None:
        """Its Content-Length announces nothing that comes."""
        protocol, far, idle = connected()
        answer = ask(protocol, head_request=True)
        far.send(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
        self.assertEqual((answer.ends, answer.heads[0].length, idle), (1, 500, []))

    def test_a_switch_of_protocols_is_a_tunnel(self) -> None:
        """After 101 every byte is the tunnel's, also those that came with the head."""
        protocol, far, idle = connected()
        answer = ask(protocol)
        far.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nfirst")
        far.send(b" second")
        protocol.write_tunnel(b"to the backend")
        self.assertTrue(answer.heads[0].upgraded)
        self.assertEqual(answer.body, b"first second")
        self.assertTrue(far.received.endswith(b"to the backend"))
        far.close()
        self.assertEqual((answer.ends, idle), (1, []))


class PoolTests(SynchronousTestCase):
    """Which connections are kept, and for how long."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.servers = Servers(mode="healthy")
        self.pool = ConnectionPool(self.clock, self.servers.connect(Address("h", 1, "url")))

    def exchange(self) -> UpstreamConnection:
        connection = self.pool.kept() or self.successResultOf(self.pool.connect())
        ask(connection)
        self.servers.requests[-1].send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        return connection

    def test_a_kept_connection_is_used_again(self) -> None:
        """The next request goes out on it."""
        self.assertIs(self.exchange(), self.exchange())

    def test_a_new_connection_is_none_of_the_kept_ones(self) -> None:
        """A retry does not trust another kept connection."""
        first = self.exchange()
        self.assertIsNot(self.successResultOf(self.pool.connect()), first)

    def test_idle_connections_are_given_up_before_vllm_does(self) -> None:
        """After KEEP_IDLE seconds, which is less than uvicorn's five, it is closed."""
        self.assertLess(KEEP_IDLE, 5)
        connection = self.exchange()
        self.clock.advance(KEEP_IDLE - 0.1)
        self.assertFalse(connection.closed)
        self.clock.advance(0.1)
        self.assertTrue(connection.closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_connection_that_the_backend_closed_is_not_handed_out(self) -> None:
        """It is forgotten when it closes."""
        first = self.exchange()
        self.servers.requests[-1].close()
        self.assertIsNot(self.exchange(), first)

    def test_closing_leaves_nothing(self) -> None:
        """Idle connections are closed, those in use are closed when they come back, no timer stays."""
        kept = self.exchange()
        used = self.successResultOf(self.pool.connect())
        ask(used)
        self.pool.close()
        self.assertTrue(kept.closed)
        self.servers.requests[-1].send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        self.assertTrue(used.closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])
