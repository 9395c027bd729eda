"""How long clients are waited for, and how many of one are served: the limits of time and number."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import Limits
from llmproxy.http.forwarded import TrustedProxies
from llmproxy.web.channel import LINGER
from llmproxy.web.crowd import party
from llmproxy.web.patience import LOOK, TURNED_AWAY, seconds_between_looks
from llmproxy.web.site import SPARE
from tests.front import CODER, FrontCase
from tests.unit.test_channel import CHUNKED, LINE, Transport, World
from tests.unit.test_front import EVENTS, KEY

NEVER = Limits(head_timeout=0, body_timeout=0, idle_timeout=0, write_timeout=0)


class Socket(Transport):
    """One whose client takes what the test says; what it has not taken is where Twisted has it."""

    dataBuffer = b""
    offset = 0

    def choke(self, size: int = 1000) -> None:
        """It holds that much, from now on."""
        self.dataBuffer, self.offset = bytes(size), 0

    def take(self, count: int) -> None:
        """Its client takes some of it."""
        self.offset += count


def look(world: World, seconds: float) -> None:
    """Time passes, look by look."""
    world.clock.pump([LOOK] * int(seconds / LOOK))


def socket(world: World, address: Any = None) -> tuple[Any, Socket]:
    """Another connection."""
    transport = Socket(peerAddress=address or IPv4Address("TCP", "192.0.2.1", 1))
    channel: Any = world.site.buildProtocol(None)
    channel.makeConnection(transport)
    return channel, transport


def gone(*channels: Any) -> None:
    """Their clients have left."""
    for channel in channels:
        channel.connectionLost(Failure(ConnectionDone()))


class SlowRequestTests(SynchronousTestCase):
    """A request has its time to come."""

    def refused(self, world: World, what: bytes) -> None:
        answers = world.take()
        self.assertEqual(answers.count(b"HTTP/1.1 "), 1)
        self.assertTrue(answers.startswith(b"HTTP/1.1 408 Request Timeout\r\n"), answers)
        self.assertIn(b"\r\nConnection: close\r\n", answers)
        self.assertIn(b"limits.%b_timeout" % what, answers)
        self.assertEqual(world.tree.seen, [])
        world.clock.advance(LINGER)
        self.assertTrue(world.transport.aborted)
        world.close()

    def test_a_head_of_a_byte_a_second_is_no_request(self) -> None:
        """408 when ``head_timeout`` is over, however steadily its bytes come."""
        world = World(limits=Limits(head_timeout=30)).send(LINE)
        for seconds in range(60):
            world.send(b":\r\nX" if seconds % 2 else b"X")
            world.clock.advance(1)
            if world.transport.half_closed:
                self.assertGreater(seconds, 30)
                break
        self.refused(world, b"head")

    def test_a_head_behind_an_answer_has_its_whole_time(self) -> None:
        """What came of it while the request before was being answered does not count."""
        world = World(later=True, limits=Limits(head_timeout=30)).send(LINE + b"\r\n" + LINE)
        look(world, 300)
        world.tree.answer()
        look(world, 30)
        self.assertFalse(world.transport.half_closed)
        world.send(b"\r\n")
        self.assertEqual(len(world.tree.seen), 2)
        world.tree.answer()
        world.close()

    def test_a_body_that_stops_is_refused(self) -> None:
        """408 after ``body_timeout``, and what had come is given back."""
        world = World(limits=Limits(body_timeout=60)).send(CHUNKED, b"3\r\na")
        look(world, 60)
        self.assertFalse(world.transport.half_closed)
        look(world, 2 * LOOK)
        self.assertEqual(world.site.room.memory, 0)
        self.refused(world, b"body")

    def test_a_slow_body_has_time_for_what_it_brings(self) -> None:
        """One second more for each ``min_body_rate`` bytes: above that rate it may take for ever."""
        for rate, served in ((600, True), (400, False)):
            world = World(limits=Limits(body_timeout=20, min_body_rate=500)).send(CHUNKED)
            for _ in range(200):
                world.send(b"%x\r\n%b\r\n" % (rate, b"x" * rate))
                world.clock.advance(1)
            self.assertIs(world.transport.half_closed, not served)
            if served:
                world.send(b"0\r\n\r\n")
                self.assertEqual(len(world.tree.seen[0][3]), 200 * rate)
                world.close()
            else:
                gone(world.channel)

    def test_without_a_rate_a_body_has_its_time_in_all(self) -> None:
        """``min_body_rate: 0``."""
        world = World(limits=Limits(body_timeout=20, min_body_rate=0))
        world.send(CHUNKED, b"8000\r\n" + b"x" * 0x7000)
        look(world, 20 + 2 * LOOK)
        self.refused(world, b"body")

    def test_zero_is_no_limit(self) -> None:
        """Of any of the times."""
        for before in (b"", LINE, CHUNKED):
            world = World(limits=NEVER).send(before)
            look(world, 3600)
            self.assertFalse(world.transport.closing)
            world.close()

    def test_a_short_limit_is_looked_after_more_often(self) -> None:
        """A quarter of the shortest one is the time between two looks."""
        self.assertEqual(seconds_between_looks(Limits()), LOOK)
        self.assertEqual(seconds_between_looks(NEVER), LOOK)
        self.assertEqual(seconds_between_looks(Limits(head_timeout=2)), 0.5)
        world = World(limits=Limits(head_timeout=2)).send(LINE)
        world.clock.pump([0.1] * 19)
        self.assertFalse(world.transport.half_closed)
        world.clock.pump([0.1] * 12)
        self.refused(world, b"head")

    def test_a_clock_that_jumps_cuts_nobody(self) -> None:
        """A machine that slept for a day has waited for nobody."""
        world = World().send(LINE)
        world.clock.advance(86400)
        self.assertFalse(world.transport.closing)
        world.send(b"\r\n")
        self.assertEqual(len(world.tree.seen), 1)
        world.close()

    @given(st.floats(0.2, 100), st.floats(0, 5))
    def test_no_limit_cuts_short_or_is_much_too_long(self, limit: float, into: float) -> None:
        """Whenever a head begins between two looks, it has its time, and at most two looks more."""
        limits = Limits(head_timeout=limit, idle_timeout=0)
        world = World(limits=limits)
        world.clock.advance(min(into, seconds_between_looks(limits)))
        world.send(LINE)
        between = seconds_between_looks(limits)
        lived = 0.0
        while not world.transport.half_closed:
            world.clock.advance(between / 8)
            lived += between / 8
        self.assertGreater(lived, limit - 1e-6)
        self.assertLess(lived, limit + 2 * between + between / 8 + 1e-6)
        gone(world.channel)


class SlowReaderTests(SynchronousTestCase):
    """A client has to take what it asked for."""

    def test_who_takes_nothing_is_cut(self) -> None:
        """After ``write_timeout``, and the log says why; its request hears that the client has gone."""
        world = World(later=True, limits=Limits(write_timeout=60))
        channel, transport = socket(world)
        channel.dataReceived(LINE + b"\r\n")
        look(world, 600)
        self.assertFalse(transport.aborted)
        transport.choke()
        look(world, 60)
        self.assertFalse(transport.aborted)
        look(world, 2 * LOOK)
        self.assertTrue(transport.aborted)
        gone(channel)
        (entry,) = world.log.entries
        self.assertEqual((entry.outcome, entry.error), ("client_gone", "write_timeout"))
        world.close()

    def test_who_takes_a_little_goes_on(self) -> None:
        """However slowly, and however much comes behind it."""
        world = World(later=True, limits=Limits(write_timeout=60))
        channel, transport = socket(world)
        channel.dataReceived(LINE + b"\r\n")
        transport.choke(1000)
        for taken in range(20):
            look(world, 55)
            if taken % 2:
                transport.take(1)
            else:
                transport.choke(2000 + taken)
        self.assertFalse(transport.aborted)
        gone(channel)
        world.close()

    def test_time_in_which_nothing_waits_does_not_count(self) -> None:
        """Who had taken all is not late with what comes an hour later."""
        world = World(later=True, limits=Limits(write_timeout=60))
        channel, transport = socket(world)
        channel.dataReceived(LINE + b"\r\n")
        transport.choke(10)
        look(world, 30)
        transport.choke(0)
        look(world, 3600)
        transport.choke(10)
        look(world, 50)
        self.assertFalse(transport.aborted)
        gone(channel)
        world.close()

    def test_the_last_answer_is_waited_for_in_any_case(self) -> None:
        """Without ``write_timeout`` one that is being ended goes by ``idle_timeout``, or a minute."""
        for limits in (NEVER, Limits(write_timeout=0, idle_timeout=60)):
            world = World(limits=limits)
            channel, transport = socket(world)
            channel.loseConnection()
            transport.choke()
            look(world, 60)
            self.assertFalse(transport.aborted)
            look(world, 2 * LOOK)
            self.assertTrue(transport.aborted)
            gone(channel)
            world.close()


class TunnelTests(FrontCase):
    """A WebSocket is not read, and so only bytes tell whether it is in use."""

    def tunnel(self, **limits: Any) -> Any:
        self.build([CODER])
        self.site.bound(Limits(**limits))
        self.warm("coder")
        client = self.client().get(b"/coder/ws", KEY + b"Connection: Upgrade\r\nUpgrade: websocket\r\n")
        self.far().send(b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        return client

    def test_it_may_be_silent_for_ever(self) -> None:
        """Unless ``tunnel_idle`` says otherwise."""
        client = self.tunnel()
        self.clock.pump([LOOK] * 1000)
        self.assertFalse(client.transport.disconnecting)

    def test_a_silent_one_is_ended(self) -> None:
        """After ``tunnel_idle`` without a byte either way; the connection to the backend as well."""
        client = self.tunnel(tunnel_idle=60)
        for turn in range(20):
            self.clock.pump([LOOK] * 11)
            if turn % 2:
                client.send(b"x")
            else:
                self.far().send(b"y")
        self.assertFalse(client.transport.disconnecting)
        self.clock.pump([LOOK] * 14)
        self.assertTrue(client.transport.aborted)
        client.leave()
        self.assertTrue(self.far().closed)
        self.assertEqual(self.log.entries[-1].error, "tunnel_idle")

    def test_a_stream_is_no_tunnel(self) -> None:
        """An answer that is long in coming is waited for."""
        self.build([CODER])
        self.site.bound(Limits(tunnel_idle=1, head_timeout=1, body_timeout=1, idle_timeout=1))
        self.warm("coder")
        client = self.client().post(b"/coder/x", {"stream": True})
        self.far().send(EVENTS)
        self.clock.pump([1.0] * 1000)
        self.assertFalse(client.transport.disconnecting)


class NumberTests(SynchronousTestCase):
    """How many connections are served."""

    def turned_away(self, channel: Any, transport: Socket) -> bytes:
        self.assertEqual(transport.value(), b"")
        channel.dataReceived(LINE + b"\r\n")
        answer: bytes = transport.value()
        self.assertIn(b"\r\nRetry-After: 5\r\n", answer)
        self.assertIn(b"too_many_connections", answer)
        self.assertTrue(transport.half_closed)
        return answer

    def test_past_max_connections_they_are_told_so(self) -> None:
        """503 to what they ask for, and nothing before; when others have gone there is room again."""
        world = World(limits=Limits(max_connections=2))
        second, _ = socket(world)
        third, transport = socket(world)
        self.assertIn(b"HTTP/1.1 503 ", self.turned_away(third, transport))
        self.assertEqual(world.tree.seen, [])
        gone(third, second)
        fourth, transport = socket(world)
        fourth.dataReceived(LINE + b"\r\n")
        self.assertIn(b"HTTP/1.1 200 ", transport.value())
        gone(fourth)
        world.close()

    def test_a_flood_is_cut(self) -> None:
        """Beyond SPARE they are closed at once, and those that ask for nothing after a moment."""
        world = World(limits=Limits(max_connections=1))
        more = [socket(world) for _ in range(SPARE + 10)]
        self.assertEqual([transport.aborted for _, transport in more], [False] * SPARE + [True] * 10)
        look(world, TURNED_AWAY + 2 * LOOK)
        self.assertTrue(all(transport.aborted for _, transport in more))
        gone(*[channel for channel, _ in more])
        self.assertFalse(world.transport.aborted)
        again, transport = socket(world)
        self.assertFalse(transport.aborted)
        gone(again)
        world.close()

    def test_one_client_has_its_share(self) -> None:
        """429 beyond ``max_connections_per_address``; others are served, and so is it when some have gone."""
        world = World(limits=Limits(max_connections_per_address=2))
        mine = [socket(world)[0] for _ in range(2)]
        third, transport = socket(world)
        self.assertIn(b"HTTP/1.1 429 ", self.turned_away(third, transport))
        other, transport = socket(world, IPv4Address("TCP", "192.0.2.2", 1))
        other.dataReceived(LINE + b"\r\n")
        self.assertIn(b"HTTP/1.1 200 ", transport.value())
        gone(third, mine.pop())
        fourth, transport = socket(world)
        fourth.dataReceived(LINE + b"\r\n")
        self.assertIn(b"HTTP/1.1 200 ", transport.value())
        gone(fourth, other, *mine)
        self.assertEqual(world.site.crowd._counts, {"192.168.1.1": 1})
        world.close()

    def test_who_speaks_for_many_is_not_counted(self) -> None:
        """This machine, a Unix socket, a trusted proxy; nor anybody with a limit of 0."""
        trusted = IPv4Address("TCP", "192.0.2.9", 1)
        for address in (IPv4Address("TCP", "127.0.0.1", 1), UNIXAddress(b""), trusted):
            world = World(limits=Limits(max_connections_per_address=1))
            world.site.trusted = TrustedProxies(["192.0.2.9"])
            channels = [socket(world, address)[0] for _ in range(5)]
            self.assertEqual([one.turned_away for one in channels], [None] * 5)
            gone(*channels)
            world.close()
        world = World(limits=Limits(max_connections_per_address=0))
        channels = [socket(world)[0] for _ in range(5)]
        self.assertEqual([one.turned_away for one in channels], [None] * 5)
        gone(*channels)
        world.close()

    def test_an_ipv6_client_is_a_network(self) -> None:
        """It may have any address of its 64 bits, with or without an interface's name."""
        world = World(limits=Limits(max_connections_per_address=2))
        addresses = ("2001:db8::1", "2001:db8::2", "2001:db8::ffff:3%eth0", "2001:db8:0:1::1")
        found = [socket(world, IPv6Address("TCP", host, 1))[0] for host in addresses]
        self.assertEqual([one.turned_away is not None for one in found], [False, False, True, False])
        gone(*found)
        world.close()

    def test_whom_addresses_are_counted_for(self) -> None:
        """IPv4 within IPv6 is that client; loopback is nobody; what is no address is itself."""
        for host, whose in (
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("127.9.9.9", None),
            ("::1", None),
            ("::ffff:127.0.0.1", None),
            (None, None),
            ("2001:db8::5:6:7:8", "2001:db8::/64"),
            ("fe80::1%eth0", "fe80::/64"),
            ("strange", "strange"),
        ):
            self.assertEqual(party(host), whose, host)
