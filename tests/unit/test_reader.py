"""From a client's bytes to its requests: bounds to the byte, what is known again, times, and the end."""

from __future__ import annotations

import re
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import Limits
from llmproxy.web.body import Body
from llmproxy.web.patience import LOOK
from tests.unit.test_channel import CHUNKED, CONTINUE, LINE, World

POST = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b"

FULL = OSError(28, "No space left on device")


def statuses(answers: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1\.1 (\d+)", answers)


class BoundsTests(SynchronousTestCase):
    """What is no body may have ``max_head`` bytes, and not one more."""

    def bounded(self, before: tuple[bytes, ...], begin: bytes) -> None:
        for more, refused in ((0, []), (1, [b"431"])):
            world = World(limits=Limits(max_head=1000)).send(*before)
            world.take()
            world.send(begin, b"x" * (1000 - len(begin) + more))
            self.assertEqual(statuses(world.take()), refused)
            world.close()

    def test_a_head_that_is_coming(self) -> None:
        """The first one and the one behind a request, whatever that one had."""
        chunked = (CHUNKED, b"1\r\na\r\n", b"0\r\nA: b\r\n\r\n")
        for before in ((), (LINE + b"\r\n",), (POST % (1, b"a"),), chunked):
            self.bounded(before, LINE + b"A: ")

    def test_what_stands_between_the_bytes_of_a_body(self) -> None:
        """It is counted from the end of the head, and then from the last byte of the body."""
        self.bounded((CHUNKED,), b"1;")
        self.bounded((CHUNKED, b"1\r\na"), b"\r\n1;")

    def test_a_whole_head_is_measured_by_what_it_says(self) -> None:
        """By its target and fields, so that one in a larger piece may have just as much as it may."""
        for more, status in ((0, b"200"), (1, b"431")):
            # "/", "Host", "h", "A", and four bytes for each of the two fields.
            world = World(limits=Limits(max_head=1000))
            world.send(LINE + b"A: " + b"x" * (1000 - 15 + more) + b"\r\n\r\n")
            self.assertEqual(statuses(world.take()), [status])
            world.close()

    def test_a_head_that_has_no_more_bytes_than_it_may_is_served(self) -> None:
        """However few bytes it leaves between a name and a value."""
        wire = LINE + b"A:b\r\n" * 50 + b"\r\n"
        for less, status in ((0, b"200"), (1, b"431")):
            world = World(limits=Limits(max_head=len(wire) - less)).send(wire)
            self.assertEqual(statuses(world.take()), [status])
            world.close()


class KnownTests(SynchronousTestCase):
    """What was read before is not read again, and comes to the same."""

    def test_a_known_request_may_have_as_large_a_body_as_any(self) -> None:
        """Up to ``max_body``."""
        world = World(limits=Limits(max_body=10)).send(POST % (1, b"a"), POST % (10, b"x" * 10))
        self.assertEqual([seen[3] for seen in world.tree.seen], [b"a", b"x" * 10])
        world.close()

    def test_a_known_request_may_come_in_pieces_or_with_another(self) -> None:
        """Its body is as long as it says, whatever else is in the piece."""
        world = World().send(POST % (1, b"a"), POST % (2, b"b"), b"c", POST % (1, b"d") + POST % (1, b"e"))
        self.assertEqual([seen[3] for seen in world.tree.seen], [b"a", b"bc", b"d", b"e"])
        world.close()

    def test_what_waits_is_not_taken_for_what_came(self) -> None:
        """A request is known by itself, and not by one before it that has not been answered."""
        world = World()
        reader = world.channel.reader
        for target in (b"/a", b"/b", b"/b"):
            reader.feed((POST % (0, b"")).replace(b"/a", target))
        self.assertEqual([request.uri for request in reader.requests], [b"/a", b"/b", b"/b"])
        world.close()

    def test_a_request_to_switch_is_one_each_time(self) -> None:
        """Though it says the same as the one before."""
        world = World(later=True)
        upgrades = []
        for _ in range(3):
            world.send(LINE + b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n")
            upgrades.append(world.tree.open[0].upgrades)
            world.tree.answer()
        self.assertEqual(upgrades, [True, True, True])
        world.close()

    def test_a_known_request_behind_the_end_is_not_served(self) -> None:
        """Nothing is, once the last answer has been given."""
        world = World(later=True).send(POST % (1, b"a"))
        world.channel.close_if_idle()
        world.tree.answer()
        world.send(POST % (1, b"b"))
        self.assertEqual(len(world.tree.seen), 1)
        world.close()

    def test_the_same_fields_are_the_same_object(self) -> None:
        """Which is how others tell that they have seen them."""
        world = World()
        reader = world.channel.reader
        for wire in (LINE + b"\r\n", LINE + b"\r\n", LINE + b"A: b\r\n\r\n"):
            reader.feed(wire)
        first, second, third = (request.fields for request in reader.requests)
        self.assertIs(first, second)
        self.assertNotEqual(first, third)
        world.close()

    def test_a_length_is_of_one_request(self) -> None:
        """The next one that tells none has none."""
        world = World()
        reader = world.channel.reader
        reader.feed(POST % (3, b"abc"))
        reader.feed(LINE + b"\r\n")
        self.assertEqual([request.length for request in reader.requests], [3, None])
        world.close()


class RoomTests(SynchronousTestCase):
    """A disk that is full."""

    def test_a_body_that_cannot_be_kept_is_refused(self) -> None:
        """507, once, nothing is served, and the cause is logged once; of a known request, too."""
        for before in ((), (POST % (1, b"a"),)):
            world = World().send(*before)
            world.take()
            with mock.patch.object(Body, "write", side_effect=FULL):
                world.send(POST % (2, b"bc"))
            self.assertEqual(statuses(world.take()), [b"507"])
            self.assertEqual(len(world.tree.seen), len(before))
            self.assertEqual(world.log.failures, [str(FULL)])
            world.log.failures.clear()
            world.close()


class StateTests(SynchronousTestCase):
    """What is told of how far a request has come."""

    def test_when_a_request_is_being_read(self) -> None:
        """From its first byte to its last, and not once it is refused."""
        world = World()
        reader = world.channel.reader
        told = [reader.reading]
        for piece in (b"\r\n", b"P", (POST % (2, b"a"))[1:], b"b", b"G", b"\x00"):
            reader.feed(piece)
            told.append(reader.reading)
        self.assertEqual(told, [False, False, True, True, False, True, False])
        world.close()

    def test_nothing_is_read_behind_a_refusal(self) -> None:
        """The refusal stays what it was."""
        world = World()
        reader = world.channel.reader
        reader.feed(b"\x00")
        refusal = reader.refusal
        reader.feed(LINE + b"\r\n")
        self.assertIsNotNone(refusal)
        self.assertIs(reader.refusal, refusal)
        self.assertEqual(list(reader.requests), [])
        world.close()

    def test_nothing_is_served_behind_http_1_0(self) -> None:
        """Also where its client would keep the connection."""
        world = World().send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + LINE + b"\r\n")
        self.assertEqual(len(world.tree.seen), 1)
        self.assertEqual(statuses(world.take()), [b"200"])
        world.close()

    def test_no_body_is_asked_for_that_does_not_come(self) -> None:
        """Nor after the answer to a request that expected to be asked, and had none."""
        world = World(later=True).send(LINE + b"Expect: 100-continue\r\nContent-Length: 0\r\n\r\n")
        world.tree.answer()
        self.assertNotIn(CONTINUE, world.take())
        world.close()

    def test_a_request_that_is_dropped_is_forgotten(self) -> None:
        """Its body takes no room, and the connection's end has nobody to tell."""
        world = World().send(POST % (2, b"a"))
        reader = world.channel.reader
        self.assertEqual(world.site.room.memory, 1)
        reader.drop()
        reader.drop()
        self.assertIsNone(reader.coming)
        self.assertEqual((world.site.room.memory, reader.close()), (0, []))
        world.close()

    def test_the_end_names_each_request_once(self) -> None:
        """Those that came and the one that was coming, in order; then nothing is kept."""
        world = World()
        reader = world.channel.reader
        reader.feed(LINE + b"\r\n" + POST % (2, b"a"))
        self.assertEqual([request.uri for request in reader.close()], [b"/", b"/a"])
        self.assertEqual((list(reader.requests), reader.coming, reader.close()), ([], None, []))
        world.close()


class TimeTests(SynchronousTestCase):
    """From when a client's time counts."""

    def pass_(self, world: World, seconds: float) -> None:
        world.clock.pump([LOOK] * int(seconds / LOOK))

    def test_a_head_has_its_time_from_its_first_byte(self) -> None:
        """And not from when the connection was made."""
        world = World()
        self.pass_(world, 40)
        world.send(LINE)
        self.pass_(world, 25)
        self.assertEqual(world.take(), b"")
        self.pass_(world, 20)
        self.assertEqual(statuses(world.take()), [b"408"])
        world.channel.transport.abortConnection()
        world.clock.advance(LOOK)
        world.close()

    def test_a_body_has_its_time_from_the_end_of_the_head(self) -> None:
        """And not from when that began."""
        world = World().send(POST[:10])
        self.pass_(world, 25)
        world.send((POST % (2, b""))[10:])
        self.pass_(world, 55)
        self.assertEqual(world.take(), b"")
        self.pass_(world, 20)
        self.assertEqual(statuses(world.take()), [b"408"])
        world.clock.advance(LOOK)
        world.close()
