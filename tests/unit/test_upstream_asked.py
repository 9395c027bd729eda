"""One request to a backend: how it is sent, and what is told of its answer."""

from __future__ import annotations

import io
import tempfile
from typing import IO
from unittest import mock

from attrs import define
from twisted.internet.error import ConnectionLost
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.relay.upstream import (
    LARGEST_HEAD,
    SMALL_BODY,
    UPSTREAM,
    Broken,
    ResponseHead,
    UpstreamConnection,
)
from tests.inmemory import Far, FarTransport
from tests.unit.test_upstream import Answer, ask, connected

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@define(eq=False)
class GivesUp(Answer):
    """A handler that gives the connection up at its head, or at the first bytes."""

    connection: UpstreamConnection | None = None
    at_head: bool = True

    def response_head(self, head: ResponseHead) -> None:
        super().response_head(head)
        if self.at_head:
            self._give_up()

    def response_data(self, pieces: list[bytes]) -> None:
        super().response_data(pieces)
        self._give_up()

    def _give_up(self) -> None:
        assert self.connection is not None
        self.connection.abort()


class SendingTests(SynchronousTestCase):
    """What goes to the backend, and what it means for the connection."""

    def post(
        self, body: bytes | IO[bytes]
    ) -> tuple[UpstreamConnection, Far, list[UpstreamConnection], Answer]:
        protocol, far, idle = connected()
        answer = Answer()
        protocol.send(b"HEAD\r\n\r\n", body, answer)
        return protocol, far, idle, answer

    def test_a_body_of_any_size_follows_its_head(self) -> None:
        """In one piece with it up to a bound, and beside it beyond; the answer to it is like any other."""
        for size in (0, 1, SMALL_BODY, SMALL_BODY + 1, 3 * SMALL_BODY):
            protocol, far, idle, answer = self.post(b"x" * size)
            self.assertEqual(far.received, b"HEAD\r\n\r\n" + b"x" * size)
            far.send(OK)
            self.assertEqual((answer.ends, idle), (1, [protocol]), size)

    def test_small_bodies_are_copied_and_large_ones_are_not(self) -> None:
        """One write each, up to and including the bound."""
        for size, sequences in ((SMALL_BODY, 0), (SMALL_BODY + 1, 1)):
            protocol, far, _ = connected()
            with mock.patch.object(far.transport, "writeSequence", wraps=far.transport.writeSequence) as told:
                protocol.send(b"", b"x" * size, Answer())
            self.assertEqual(told.call_count, sequences)

    def test_a_body_in_a_file_is_sent_from_its_beginning(self) -> None:
        """Wherever whoever wrote it has left the file; and the connection is free when it has been sent."""
        with tempfile.TemporaryFile() as file:
            file.write(b"from a file")
            protocol, far, idle, answer = self.post(file)
            self.assertEqual(far.received, b"HEAD\r\n\r\n")
            while far.transport.producer is not None:
                far.transport.producer.resumeProducing()
            self.assertEqual(far.received, b"HEAD\r\n\r\nfrom a file")
            far.send(OK)
            self.assertEqual((answer.ends, idle, protocol.used), (1, [protocol], True))

    def test_an_answer_before_the_whole_request_ends_the_connection(self) -> None:
        """What is left of the body would be taken for the next request."""
        protocol, far, idle, answer = self.post(io.BytesIO(b"never read"))
        far.send(OK)
        self.assertEqual((answer.ends, answer.body, idle), (1, b"ok", []))
        self.assertTrue(protocol.closed)
        self.assertTrue(far.transport.aborted)
        self.assertFalse(protocol.used)

    def test_a_large_body_that_waits_for_its_socket_ends_the_connection(self) -> None:
        """The same of one that is no file; of a small one, nothing can wait that the backend has answered."""
        for size, unsent, kept in ((SMALL_BODY + 1, 7, False), (SMALL_BODY + 1, 0, True), (1, 7, True)):
            protocol, far, idle, answer = self.post(b"x" * size)
            far.transport._tempDataLen = unsent  # type: ignore[attr-defined]
            far.send(OK)
            self.assertEqual((answer.ends, bool(idle), protocol.closed), (1, kept, not kept), (size, unsent))

    def test_a_large_body_is_not_remembered(self) -> None:
        """The next request on the same connection is judged by itself."""
        protocol, far, idle, _ = self.post(b"x" * (SMALL_BODY + 1))
        far.send(OK)
        ask(protocol)
        far.transport._tempDataLen = 7  # type: ignore[attr-defined]
        far.send(OK)
        self.assertEqual(idle, [protocol, protocol])

    def test_a_lost_connection_ends_the_sending_of_a_file(self) -> None:
        """It is told once, as a broken answer, and leaves nothing unhandled."""
        _, far, _, answer = self.post(io.BytesIO(b"never read"))
        producer = far.transport.producer
        assert producer is not None
        far.close(ConnectionLost())
        producer.stopProducing()
        self.assertEqual((answer.ends, len(answer.broken)), (0, 1))


class StoryTests(SynchronousTestCase):
    """What whoever sent a request hears, and what can be asked of the connection."""

    def test_what_is_told_of_a_broken_answer(self) -> None:
        """Whether it was closed or lost, before or in the middle, and whether anything had come."""
        lost = ConnectionLost()
        begun = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel"
        for data, reason, words, untouched in (
            (b"", None, "it closed the connection before it answered", True),
            (b"", lost, "the connection was lost before it answered", True),
            (b"HTTP/1.1 20", None, "it closed the connection before it answered", False),
            (b"HTTP/1.1 100 C\r\n\r\n", None, "it closed the connection before it answered", False),
            (begun, None, "it closed the connection in the middle of its answer", False),
            (begun, lost, "the connection was lost in the middle of its answer", False),
        ):
            _, far, answer = self.asked()
            if data:
                far.send(data)
            far.close(reason)
            self.assertEqual(answer.broken, [Broken(words, untouched)])

    def asked(self) -> tuple[UpstreamConnection, Far, Answer]:
        protocol, far, _ = connected()
        return protocol, far, ask(protocol)

    def test_what_is_no_http_is_told_as_such(self) -> None:
        """With what the parser says of it; the connection is given up."""
        protocol, far, answer = self.asked()
        far.send(b"SSH-2.0-OpenSSH_9.6\r\n")
        (broken,) = answer.broken
        self.assertTrue(broken.reason.startswith("its answer is not valid HTTP ("), broken)
        self.assertNotIn("()", broken.reason)
        self.assertNotIn("HttpParser", broken.reason)
        self.assertEqual((broken.untouched, protocol.closed, answer.heads), (False, True, []))

    def test_a_head_may_have_so_many_bytes(self) -> None:
        """All that is no body counts, in however many pieces; a byte more is too large."""
        for more, fits in ((0, True), (1, False)):
            protocol, far, answer = self.asked()
            start = b"HTTP/1.1 200 OK\r\nX: "
            far.send(start)
            far.send(b"y" * (LARGEST_HEAD - len(start) + more))
            self.assertEqual(protocol.closed, not fits)
            self.assertEqual(
                [broken.reason for broken in answer.broken],
                [] if fits else ["its answer is not valid HTTP (its head is too large)"],
            )

    def test_what_came_before_a_body_does_not_count_behind_it(self) -> None:
        """A trailer has the room that a head has; and so has the next answer's head."""
        protocol, far, answer = self.asked()
        most = b"y" * (LARGEST_HEAD - 100)
        far.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: ")
        far.send(most)
        far.send(b"\r\n\r\n1\r\na\r\n0\r\nX: ")
        far.send(most)
        far.send(b"\r\n\r\n")
        self.assertEqual((answer.ends, answer.body), (1, b"a"))
        again = ask(protocol)
        far.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: ")
        far.send(most)
        far.send(b"\r\n\r\n")
        self.assertEqual((again.ends, again.broken), (1, []))

    def test_whoever_gives_up_hears_no_more(self) -> None:
        """Not the body, not the end, and nothing of the connection's end; in the middle of it, too."""
        for at_head, body in ((True, b""), (False, b"ok")):
            protocol, far, idle = connected()
            answer = GivesUp(connection=protocol, at_head=at_head)
            protocol.send(b"", b"", answer)
            far.send(OK)
            self.assertEqual((len(answer.heads), answer.body, answer.ends), (1, body, 0))
            self.assertEqual((answer.broken, idle, protocol.closed), ([], [], True))
            self.assertTrue(far.transport.aborted)

    def test_a_head_is_told_once(self) -> None:
        """However many pieces its body comes in."""
        _, far, answer = self.asked()
        for piece in (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", b"a", b"b", b"cd"):
            far.send(piece)
        self.assertEqual((len(answer.heads), answer.body, answer.ends), (1, b"abcd", 1))

    def test_how_far_an_answer_is(self) -> None:
        """Bare: its head has come alone; complete: as a whole.  A tunnel is never complete."""
        seen: list[tuple[bool, bool]] = []

        class Asks(Answer):
            def response_head(self, head: ResponseHead) -> None:
                seen.append((protocol.bare, protocol.complete))

        for wire in (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no",
            OK,
            b"HTTP/1.1 204 N\r\n\r\n",
            b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
        ):
            protocol, far, _ = connected()
            protocol.send(b"", b"", Asks())
            far.send(wire)
        self.assertEqual(seen, [(True, False), (False, False), (False, True), (False, True), (False, False)])

    def test_what_a_head_tells(self) -> None:
        """Its length, and whether the message says by itself where it ends."""
        for wire, length, delimited in (
            (b"200 OK\r\nContent-Length: 2\r\n\r\n", 2, True),
            (b"200 OK\r\nContent-Length: 0\r\n\r\n", 0, True),
            (b"200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", None, True),
            (b"200 OK\r\n\r\n", None, False),
            (b"204 No\r\n\r\n", None, True),
            (b"304 No\r\n\r\n", None, True),
        ):
            _, far, answer = self.asked()
            far.send(b"HTTP/1.1 " + wire)
            (head,) = answer.heads
            self.assertEqual((head.length, head.delimited, head.upgraded), (length, delimited, False), wire)

    def test_a_trailer_is_no_field(self) -> None:
        """Also when it comes with the head."""
        _, far, answer = self.asked()
        far.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-End: y\r\n\r\n")
        (head,) = answer.heads
        self.assertEqual(
            (head.fields.raw, answer.body, answer.ends), ([(b"Transfer-Encoding", b"chunked")], b"a", 1)
        )

    def test_a_connection_that_is_not_used_again_is_closed_when_the_end_is_told(self) -> None:
        """Whoever asks next, at once, gets another one."""
        closed: list[bool] = []

        class Looks(Answer):
            def response_end(self) -> None:
                closed.append(protocol.closed)

        for more, gone in ((b"", False), (b"Connection: close\r\n", True)):
            protocol, far, _ = connected()
            protocol.send(b"", b"", Looks())
            # A socket's end is told by the reactor, later.
            protocol.transport.abortConnection = lambda: None
            far.send(b"HTTP/1.1 200 OK\r\n" + more + b"Content-Length: 2\r\n\r\nok")
            self.assertIs(closed.pop(), gone)

    def test_a_reason_is_passed_on_unless_it_has_control_characters(self) -> None:
        """Those of an interim answer are not part of it; a bad one is left out."""
        for text, reason in ((b"Not \t\xe4 Found", b"Not \t\xe4 Found"), (b"a\x01b", b""), (b"", b"")):
            _, far, answer = self.asked()
            far.send(b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\nHTTP/1.1 404 " + text + b"\r\n\r\n")
            self.assertEqual([head.reason for head in answer.heads], [reason])

    def test_white_space_behind_a_value_is_none_of_it(self) -> None:
        """RFC 9112 section 5.1."""
        _, far, answer = self.asked()
        far.send(b"HTTP/1.1 204 No\r\nX:  a b \t \r\n\r\n")
        self.assertEqual(answer.heads[0].fields.raw, [(b"X", b"a b")])

    def test_the_end_of_a_connection_is_told_once(self) -> None:
        """Whether it was in use or not; nothing that comes for it then is an error."""
        for in_use in (False, True):
            protocol, far, _ = connected()
            closed: list[UpstreamConnection] = []
            protocol.on_closed = closed.append
            answer = ask(protocol) if in_use else None
            far.close()
            self.assertEqual((closed, protocol.closed), ([protocol], True))
            self.assertEqual(0 if answer is None else len(answer.broken), int(in_use))
            protocol.abort()
            self.assertEqual(closed, [protocol])

    def test_a_lost_tunnel_has_ended(self) -> None:
        """However its connection ended: there is nothing that could be incomplete."""
        protocol, far, answer = self.asked()
        far.send(b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
        self.assertFalse(protocol.complete)
        far.close(ConnectionLost())
        self.assertEqual((answer.ends, answer.broken), (1, []))

    def test_before_there_is_a_socket(self) -> None:
        """A connection that is given up then is closed, and what a tunnel says then goes nowhere."""
        protocol = UpstreamConnection()
        protocol.write_tunnel(b"nowhere")
        protocol.abort()
        self.assertTrue(protocol.closed)

    def test_small_writes_leave_at_once(self) -> None:
        """Nagle's algorithm would hold back a streamed token."""
        protocol = UpstreamConnection()
        transport = FarTransport(lambda far, data: None)
        with mock.patch.object(transport, "setTcpNoDelay") as told:
            protocol.makeConnection(transport)
        told.assert_called_once_with(True)

    def test_connections_are_made_in_silence(self) -> None:
        """Twisted would log each of them."""
        self.assertIsInstance(UPSTREAM.buildProtocol(None), UpstreamConnection)
        self.assertFalse(UPSTREAM.noisy)
