"""The front over HTTP/2 when a stream is gone before its answer, and when there is a fault of our own."""

from __future__ import annotations

from unittest.mock import patch

from h2.errors import ErrorCodes

from llmproxy.web.body import Body, Full
from llmproxy.web.h2.downstream import StreamDownstream
from tests.front import FrontCase
from tests.h2client import Answer, H2Client
from tests.unit.test_front import EVENTS
from tests.unit.test_h2 import STREAM, Case, chunk


class LostTests(Case):
    """Streams that the library closed before it has said so."""

    def lose(self, client: H2Client, stream: int) -> None:
        client.channel._machine.reset_stream(stream, ErrorCodes.STREAM_CLOSED)

    def gone(self, client: H2Client) -> None:
        """The backend is let go, and the connection goes on."""
        self.assertTrue(self.far().closed)
        self.assertEqual(self.backend("coder").admission.in_flight, 0)
        self.assertEqual(client.channel.streams, {})
        self.assertEqual(client.answer(client.get(b"/healthz")).status, 200)

    def test_before_the_head_of_its_answer(self) -> None:
        """There is nobody to send a head to."""
        self.warm("coder")
        client = self.h2()
        stream = client.get(b"/coder/x")
        self.lose(client, stream)
        self.far().send(EVENTS)
        self.gone(client)

    def test_in_the_middle_of_its_answer(self) -> None:
        """Nor to send the rest to."""
        self.warm("coder")
        client = self.h2()
        stream = client.get(b"/coder/x")
        self.far().send(EVENTS + chunk(b"data: 1\n\n"))
        self.assertEqual(client.answer(stream).body, b"data: 1\n\n")
        self.lose(client, stream)
        self.far().send(chunk(b"data: 2\n\n"))
        self.gone(client)

    def test_while_it_waits_for_room(self) -> None:
        """When there is room again the other streams have it."""
        self.warm("coder")
        client = self.h2(reads=False)
        client.machine.update_settings({4: 200_000})
        client.flush()
        streams = []
        for _ in range(2):
            streams.append(client.ask(b"POST", b"/v1/chat/completions", STREAM))
            self.far().send(EVENTS + chunk(b"z" * 60_000))
        one, two = self.servers.requests[-2:]
        self.assertEqual([client.answer(stream).held for stream in streams], [60_000, 5535])
        third = client.ask(b"POST", b"/v1/chat/completions", STREAM)
        self.far().send(EVENTS + chunk(b"z" * 20_000))
        self.lose(client, streams[1])
        client.open_window(100_000)
        self.assertEqual((one.closed, two.closed, self.far().closed), (False, True, False))
        self.assertEqual(client.answer(third).held, 20_000)


class GoneTests(Case):
    """News of a backend for a client that has gone."""

    def test_what_is_still_written_goes_nowhere(self) -> None:
        """It raises nothing, whatever it is: a head, the rest, an end or a break."""
        self.warm("coder")
        client = self.h2()
        stream = client.get(b"/coder/x")
        self.far().send(EVENTS + chunk(b"data: 1\n\n"))
        self.assertEqual(client.answer(stream).body, b"data: 1\n\n")
        request = client.channel.streams[stream].request
        down = StreamDownstream(request)
        client.cancel(stream)
        self.assertIsNone(request.channel)
        down.data([b"more"])
        down.end()
        down.break_off()
        self.assertEqual(down.sent, 4)
        self.assertEqual(client.answer(stream).body, b"data: 1\n\n")
        self.assertEqual(client.answer(client.get(b"/healthz")).status, 200)


class FaultTests(FrontCase):
    """Faults of our own, which are logged."""

    def test_a_fault_in_the_library_ends_its_connection_alone(self) -> None:
        """Its requests are given up, and whoever else is connected sees nothing of it."""
        self.warm("coder")
        client, other = H2Client(self.site), H2Client(self.site)
        client.get(b"/coder/x")
        with patch.object(client.channel._machine, "receive_data", side_effect=RuntimeError("a fault")):
            client.channel.dataReceived(b"x")
        self.assertTrue(client.transport.aborted)
        self.assertEqual(self.log.failures, ["a fault"])
        self.assertTrue(self.far().closed)
        self.assertEqual(self.backend("coder").admission.in_flight, 0)
        client.channel.dataReceived(b"more")
        self.assertEqual(other.answer(other.get(b"/healthz")).status, 200)

    def test_no_room_for_a_body(self) -> None:
        """507, on its own stream alone; a full disk is logged, a bound that was set is not."""
        client = H2Client(self.site)
        no_space = OSError(28, "No space left")
        for fault, logged in ((Full("More than may be."), []), (no_space, ["[Errno 28] No space left"])):
            stream = client.machine.get_next_available_stream_id()
            client.answers[stream] = Answer()
            client.machine.send_headers(stream, client.head(b"POST", b"/v1/chat/completions"))
            client.flush()
            with patch.object(Body, "write", side_effect=fault):
                client.machine.send_data(stream, b"x" * 100)
                answer = client.answer(stream)
            self.assertEqual((answer.status, answer.ended), (507, True))
            self.assertEqual(self.log.failures, logged)
        self.assertEqual(client.answer(client.get(b"/healthz")).status, 200)
