"""One process gives its place to another one: both in memory, with a real line between them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

from attrs import define, evolve, field
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from llmproxy.backend.probe import INTERVAL
from llmproxy.config.model import Config, Key
from llmproxy.errors import UpgradeFailed
from llmproxy.fleet.fleet import Fleet
from llmproxy.fleet.keeping import remember
from llmproxy.relay.upstream import UpstreamConnection
from llmproxy.upgrade import heir
from llmproxy.upgrade.inherited import Inherited
from llmproxy.upgrade.marks import Marks
from llmproxy.upgrade.new import AGREE, SEE, Successor
from llmproxy.upgrade.old import Parts, Upgrader
from llmproxy.web.auth import Authenticator
from llmproxy.web.resources import RootResource
from llmproxy.web.site import ProxySite
from tests.fakes import FakeRuntime
from tests.front import CHAT, CODER, KEYS, FrontCase
from tests.unit.test_front import EVENTS, OK, Client, ClientTransport, Log

STREAM = {"model": "coder3b", "stream": True}


class End(ClientTransport):
    """One end of a connection between the two; what is written here arrives there at once, and the end a
    little later."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.protocol: Any = None
        self.other: End | None = None

    def write(self, data: bytes) -> None:
        if self.other is None:
            super().write(data)
        elif not self.other.disconnecting:
            self.other.protocol.dataReceived(data)

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        self.abortConnection()

    def abortConnection(self) -> None:
        for end in (self, self.other):
            if end is not None and not end.disconnecting:
                end.disconnecting = True
                self.clock.callLater(0, end.protocol.connectionLost, Failure(ConnectionDone()))


class Reactor(Clock):
    """Time, descriptors that a test has looked at, and connections that two of it make with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []
        self._lonely: list[End] = []

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        if reader in self.readers:
            self.readers.remove(reader)

    def addWriter(self, writer: Any) -> None:
        raise AssertionError("there is room for all messages")

    def removeWriter(self, writer: Any) -> None:
        """There is none."""

    def adoptStreamConnection(self, fd: int, family: int, factory: Any) -> End:
        end = End(self)
        end.protocol = factory.buildProtocol(None)
        if not isinstance(end.protocol, UpstreamConnection):
            end.other = self._lonely.pop(0)
            end.other.other = end
        else:
            self._lonely.append(end)
        end.protocol.makeConnection(end)
        if end.other is not None and end.other.value():
            waiting, _ = end.other.value(), end.other.clear()
            end.protocol.dataReceived(waiting)
        return end

    def turn(self) -> None:
        """All that has been said is heard."""
        for _ in range(50):
            for reader in list(self.readers):
                reader.doRead()
            self.advance(0)


@define(eq=False)
class FakeService:
    """Where clients come in."""

    did: list[str] = field(factory=list)
    running: bool = True
    sockets: dict[str, int] = field(factory=dict)
    begun: list[Callable[[], None]] = field(factory=list)
    ending: list[Callable[[], None]] = field(factory=list)
    inherited: Any = None

    def pause(self) -> None:
        self.did.append("pause")

    def resume(self) -> None:
        self.did.append("resume")

    def hand_over(self) -> None:
        self.did.append("hand over")


@define(eq=False)
class FakeBook:
    """What models were used for."""

    did: list[str] = field(factory=list)

    def leave_off(self) -> None:
        self.did.append("leave off")

    def skip(self) -> None:
        self.did.append("skip")


@define(eq=False)
class FakeChild:
    """The process between."""

    ended: Callable[[str], None]
    line: int
    did: list[str] = field(factory=list)
    alive: bool = True

    def kill(self) -> None:
        self.did.append("kill")

    def let_go(self) -> None:
        self.did.append("let go")

    def ends(self, how: str = "status 0") -> None:
        self.alive = False
        self.ended(how)


class UpgradeCase(FrontCase):
    """The old process is the one of every :class:`FrontCase`; the new one looks at the same world."""

    clock: Reactor

    def setUp(self) -> None:
        self.clock = Reactor()
        self.addCleanup(lambda: [reader.close() for reader in list(self.clock.readers)])
        self.log = Log()
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.build()

    def build(self, *specs: Any, **settings: Any) -> None:
        super().build(*(specs or ((CODER, CHAT),)), **settings)
        self.old, self.book, self.stopped = FakeService(), FakeBook(), False
        self.children: list[FakeChild] = []
        state = remember(self.fleet, self.clock, self.folder)
        service: Any = self.old
        book: Any = self.book
        begin: Any = self._begin
        self.former = False
        parts = Parts(
            self.clock, self.fleet, self.site, service, state, book, None, self._stop, lambda: self.former
        )
        self.upgrader = Upgrader(parts, words=("python", "twistd", "llmproxy"), begin=begin)

    def _stop(self) -> None:
        self.stopped = True

    def _begin(
        self, reactor: Any, words: Any, folder: str, line: int, sockets: Any, ended: Callable[[str], None]
    ) -> FakeChild:
        child = FakeChild(ended, os.dup(line))
        self.children.append(child)
        return child

    def come_up(self, config: Config | None = None) -> None:
        """The new process does, and has looked at what runs."""
        self.new_fleet = Fleet(
            self.clock,
            self.servers.connect,
            {"docker": FakeRuntime(self.world), "url": self.fleet._runtimes["url"]},
            config or self.config,
        )
        self.new_log, self.new, self.new_book = Log(), FakeService(), FakeBook()
        root = RootResource(self.new_fleet)
        keys = (config or self.config).keys
        self.new_site = ProxySite(root, self.clock, Authenticator(keys), self.config.limits, self.new_log)
        self.new_site.use_keys(keys)
        self.new_site.key_file = None
        state = self.new_state = remember(self.new_fleet, self.clock, self.folder)
        self.told: list[str] = []
        new: Any = self.new
        book: Any = self.new_book
        self.successor = Successor(
            self.clock,
            self.new_fleet,
            self.new_site,
            new,
            state,
            book,
            Inherited(self.children[-1].line, {}),
            served=lambda: self.told.append("serves"),
            alone=lambda: self.told.append("alone"),
            stop=lambda: self.told.append("stop"),
        )
        if any(backend.state == "ready" for backend in self.fleet.backends.values()):
            # What runs is healthy when it is asked.
            self.servers.mode = "healthy"
        self.new_fleet.start()
        self.clock.advance(INTERVAL)
        self.servers.mode = "sick"
        for tell in self.new.begun:
            tell()

    def upgrade(
        self, config: Config | None = None, between: Callable[[], object] = lambda: None
    ) -> dict[str, Any]:
        """All of it, up to the end of the process between.

        :param between: happens while the new process comes up.
        """
        self.site.use_keys(self.config.keys)
        done = self.upgrader.upgrade()
        self.clock.turn()
        self.come_up(config)
        between()
        self.clock.turn()
        self.clock.advance(SEE)
        self.clock.turn()
        self.clock.advance(0.02)
        return self.finished(done)

    def committed(self) -> Deferred[Any]:
        """The old process has left off and said so; the new one has not heard it yet."""
        done = self.upgrader.upgrade()
        self.clock.turn()
        self.come_up()
        ours = self.upgrader._line
        assert ours is not None
        for _ in range(400):
            if self.fleet.scheduler.frozen:
                break
            self.clock.advance(0.01)
            ours.doRead()
        else:
            self.fail("the old process never left off")
        return done

    def finished(self, done: Deferred[Any]) -> dict[str, Any]:
        """The new one serves, and the process between has ended."""
        self.clock.turn()
        self.clock.advance(AGREE)
        self.clock.turn()
        self.children[-1].ends("signal 15")
        self.clock.turn()
        found: dict[str, Any] = self.successResultOf(done)
        return found

    def new_ready(self) -> None:
        self.servers.mode = "healthy"
        self.clock.advance(INTERVAL)
        self.servers.mode = "sick"
        self.clock.turn()


class UpgradeTests(UpgradeCase):
    """What becomes of whom."""

    def test_the_order_of_it(self) -> None:
        """The old one accepts nobody once the new one decides, and the new one serves before that is left."""
        told = self.upgrade()
        self.assertEqual(self.old.did, ["pause", "hand over"])
        self.assertEqual(self.new.did, ["resume"])
        self.assertEqual((self.book.did, self.new_book.did), (["leave off"], ["skip"]))
        self.assertEqual(self.told, ["serves"])
        self.assertEqual(self.children[0].did, ["let go"])
        self.assertEqual((told["pid"], told["former"]["in_flight"]), (os.getpid(), 0))
        self.clock.advance(0.02)
        self.assertTrue(self.stopped)
        self.assertIn("under way", str(self.failureResultOf(self.upgrader.upgrade(), UpgradeFailed).value))

    def test_who_waits_goes_on_waiting_there(self) -> None:
        """It is started once, answered by the new process, and written down there with all of its time."""
        client = self.client().post(b"/v1/chat/completions", {"model": "coder3b"})
        self.assertEqual(self.started(), 1)
        self.clock.advance(3)
        self.upgrade()
        self.assertEqual(client.take(), b"")
        self.new_ready()
        self.assertEqual(self.started(), 1)
        request = self.far().received
        self.assertIn(b"POST /v1/chat/completions HTTP/1.1\r\n", request)
        self.assertIn(b"Authorization: Bearer own\r\n", request)
        self.assertNotIn(b"handed", request.lower())
        self.far().send(OK)
        status, fields, body = client.answer()
        self.assertEqual((status, body), (200, b"ok"))
        self.assertEqual(fields["x-llmproxy-backend"], "coder")
        self.assertGreater(float(fields["x-llmproxy-cold-start"]), 3)
        self.assertEqual(self.log.entries, [])
        (entry,) = self.new_log.entries
        self.assertEqual((entry.key, entry.outcome, entry.route), ("me", "ok", "coder"))
        self.assertGreater(entry.held, 3)
        self.assertEqual(entry.request_id, fields["x-request-id"])
        self.clock.advance(0.02)
        self.assertTrue(client.transport.disconnecting)

    def test_who_waits_for_room_has_it_made_there(self) -> None:
        """Nothing has begun for it, and the new process starts it; the other one waits for its own turn."""
        self.warm("chat")
        with_room = evolve(self.config, gpus={})
        self.world.hold_starts = True
        client = self.client().post(b"/v1/chat/completions", {"model": "coder3b"})
        self.world.refuse_start("coder", "no such image")
        self.assertEqual(client.error()[0], 503)
        self.backend("coder").reset()
        self.world.hold_starts = False
        self.upgrade(with_room)
        self.assertEqual(self.new_fleet.backends["chat"].state, "ready")
        again = self.client().post(b"/v1/chat/completions", {"model": "coder3b"})
        self.clock.turn()
        self.new_ready()
        self.far().send(OK)
        self.assertEqual(again.answer()[0], 200)

    def test_heartbeats_go_on(self) -> None:
        """Who has heard one hears the next one at once, and what comes then; a failure is an event."""
        self.build((evolve(CODER, heartbeat_after=1.0, heartbeat_every=10.0),))
        client = self.client().post(b"/v1/chat/completions", STREAM)
        self.clock.advance(1)
        self.assertIn(b": llmproxy {", client.take())
        self.upgrade()
        self.clock.advance(0)
        self.assertIn(b": llmproxy {", client.take())
        self.new_ready()
        self.far().send(EVENTS + b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")
        data = client.take()
        self.assertIn(b"data: 1\n\n", data)
        self.assertTrue(data.endswith(b"0\r\n\r\n"))

    def test_a_start_that_fails_there_is_told_here(self) -> None:
        """As an answer, or as an event to whoever has heard heartbeats."""
        self.build((evolve(CODER, heartbeat_after=1.0),))
        plain = self.client().post(b"/v1/chat/completions", {"model": "coder3b"})
        stream = self.client().post(b"/v1/chat/completions", STREAM)
        self.clock.advance(1)
        stream.take()
        self.upgrade()
        self.world.exit("coder", 1)
        self.clock.turn()
        status, error, _ = plain.error()
        self.assertEqual((status, error["code"]), (503, "backend_start_failed"))
        self.assertIn(b'"code": "backend_start_failed"', stream.take())

    def test_who_waits_no_longer_than_it_wants(self) -> None:
        """Time that it has waited here counts there."""
        self.build((evolve(CODER, max_wait=20.0),))
        client = self.client().post(b"/v1/chat/completions", {"model": "coder3b"})
        self.clock.advance(10)
        self.upgrade()
        self.clock.pump([0.1] * int(10 * (19.9 - self.clock.seconds())))
        self.assertEqual(client.take(), b"")
        self.clock.pump([0.1] * 3)
        self.assertEqual(client.error()[1]["code"], "hold_timeout")

    def test_who_leaves_gives_its_place_up_there(self) -> None:
        """And nothing of it is left."""
        client = self.client().post(b"/v1/chat/completions", {"model": "coder3b"})
        self.upgrade()
        self.assertEqual(self.new_fleet.backends["coder"].admission.waiting, 1)
        client.leave()
        self.clock.turn()
        self.assertEqual(self.new_fleet.backends["coder"].admission.waiting, 0)
        self.clock.advance(0.02)
        self.assertTrue(self.stopped)

    def test_what_is_in_flight_goes_on_here(self) -> None:
        """It counts there until it is over, so that its backend is not stopped under it."""
        self.warm("coder")
        client = self.client().post(b"/v1/chat/completions", STREAM)
        far = self.far()
        far.send(EVENTS)
        self.upgrade()
        there = self.new_fleet.backends["coder"]
        self.assertEqual((there.state, there.admission.in_flight), ("ready", 1))
        self.clock.pump([1.0] * 20)
        there.stop_wanted("the operator")
        self.clock.turn()
        self.assertEqual(there.state, "draining")
        far.send(b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")
        self.assertTrue(client.take().endswith(b"0\r\n\r\n"))
        self.clock.advance(0.02)
        self.clock.turn()
        self.assertEqual(there.state, "absent")
        self.assertEqual([entry.outcome for entry in self.log.entries], ["ok"])

    def test_what_ends_as_it_is_given_away_is_told(self) -> None:
        """Or it would count there for as long as the old process has anything else."""
        self.warm("coder")
        brief = self.client().post(b"/v1/chat/completions", {"model": "coder3b"})
        far = self.far()
        slow = self.client()
        slow.channel.dataReceived(b"POST /v1/chat/completions HTTP/1.1\r\n")
        done = self.committed()
        far.send(OK)
        self.assertEqual(brief.answer()[0], 200)
        self.finished(done)
        self.assertFalse(self.stopped)
        self.assertEqual(self.new_fleet.backends["coder"].admission.in_flight, 0)
        slow.leave()

    def test_what_is_wished_as_it_is_given_away_is_done_there(self) -> None:
        """The old process has left off by then, and is still asked on the connections that it has."""
        self.warm("chat")
        done = self.committed()
        self.backend("coder").demand()
        self.backend("chat").stop_wanted("the operator")
        self.finished(done)
        self.assertEqual(self.new_fleet.backends["coder"].state, "starting")
        self.new_ready()
        self.assertEqual(self.new_fleet.backends["chat"].state, "absent")

    def test_what_nothing_tells_of_is_seen_before_it_serves(self) -> None:
        """A process may have been started since it was looked for, and has its place on the GPU."""
        done, look = self.committed(), Deferred[None]()
        there = self.new_fleet.backends["coder"]
        there.spec = evolve(there.spec, runtime="process")
        self.patch(there, "watch", lambda: look)
        self.clock.turn()
        self.assertEqual(self.told, [])
        look.callback(None)
        self.clock.advance(0.01)
        self.clock.turn()
        self.assertEqual(self.told, ["serves"])
        self.finished(done)

    def test_what_cannot_be_seen_is_not_waited_for(self) -> None:
        """Nobody would be served meanwhile."""
        done = self.committed()
        there = self.new_fleet.backends["coder"]
        there.spec = evolve(there.spec, runtime="process")
        self.patch(there, "watch", Deferred[None])
        self.clock.turn()
        self.clock.advance(AGREE)
        self.clock.turn()
        self.assertEqual(self.told, ["serves"])
        self.finished(done)

    def test_no_descriptor_is_left_for_a_connection(self) -> None:
        """It is handed over when one is; the new process is not taken for dead."""
        self.former = True
        self.upgrade()
        bow, lost, troubles = self.upgrader._bow, list[Failure](), [OSError(errno.EMFILE, "none"), None]
        assert bow is not None
        sock = SimpleNamespace(family=socket.AF_INET)
        channel: Any = SimpleNamespace(
            transport=SimpleNamespace(fileno=lambda: 0, socket=sock, connectionLost=lost.append)
        )
        with patch.object(bow._line, "say", Mock(side_effect=troubles)):
            bow._give(channel)
            self.assertEqual(lost, [])
            bow._give(channel)
            self.assertEqual(len(lost), 1)
        with patch.object(bow._line, "say", Mock(side_effect=BrokenPipeError)):
            bow._give(channel)
        self.assertEqual(len(lost), 1, "of a process that is gone nobody gets it")

    def test_no_descriptor_is_left_to_hand_a_request_over(self) -> None:
        """It is tried again, and who leaves meanwhile is forgotten."""
        stays, leaves = (self.client().post(b"/v1/chat/completions", {"model": "coder3b"}) for _ in "12")
        done = self.committed()
        with patch("socket.socketpair", Mock(side_effect=OSError(errno.EMFILE, "none"))):
            self.finished(done)
            leaves.leave()
            self.clock.advance(heir.AGAIN)
            self.assertEqual(stays.take(), b"")
        self.clock.advance(heir.AGAIN)
        self.clock.turn()
        self.assertEqual(self.new_fleet.backends["coder"].admission.waiting, 1)
        self.new_ready()
        self.far().send(OK)
        self.assertEqual(stays.answer()[0], 200)

    def test_no_descriptor_is_left_for_long(self) -> None:
        """Then it is told; as is at once what another try does not help."""
        lines, fails = [errno.EMFILE, errno.EACCES], list[Failure]()
        for number, after in zip(lines, (heir.PATIENCE, 0), strict=True):
            line: Any = SimpleNamespace(say=Mock(side_effect=OSError(number, "no")))
            heir.connect_by(self.clock, line)().addErrback(fails.append)
            for _ in range(int(after / heir.AGAIN)):
                self.assertEqual(fails, [])
                self.clock.advance(heir.AGAIN)
            self.assertEqual(getattr(fails.pop().value, "errno"), number)  # noqa: B009 -- of any exception
            self.clock.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_one_before_it_is_waited_for(self) -> None:
        """What that one hands over goes through this process to the new one, for as long as both have."""
        self.former = True
        self.upgrade()
        self.clock.advance(1)
        self.assertFalse(self.stopped)
        self.former = False
        self.clock.advance(0.02)
        self.assertTrue(self.stopped)

    def test_the_one_before_it_is_not_waited_for_for_ever(self) -> None:
        """It has no longer than this one."""
        self.former = True
        self.upgrade()
        self.clock.pump([1.0] * int(self.config.drain + 1))
        self.assertTrue(self.stopped)

    def test_strays_are_ended_by_who_decides(self) -> None:
        """What is a stray to a process that has given its place away may be what the next one has begun."""
        for last, told in ((False, ["serves", "alone"]), (True, ["serves"])):
            self.build()
            self.upgrade()
            self.new_fleet.scheduler.frozen = last
            assert self.upgrader._line is not None
            self.upgrader._line.close()
            self.clock.turn()
            self.assertEqual(self.told, told)

    def test_strays_are_ended_when_the_next_upgrade_has_failed(self) -> None:
        """The one before has ended while the place was as good as given away; once, and not where it was."""
        for gone, told in ((True, ["serves", "alone"]), (False, ["serves"])):
            self.build()
            self.upgrade()
            self.new_fleet.scheduler.frozen = True
            assert self.upgrader._line is not None
            if gone:
                self.upgrader._line.close()
            self.clock.turn()
            self.assertEqual(self.told, ["serves"])
            self.new_fleet.scheduler.thaw()
            for _ in range(2):
                self.successor.decides_again()
                self.assertEqual(self.told, told)

    def test_who_goes_on_after_a_failed_upgrade_is_told(self) -> None:
        """It decides again by then; where it had not left off there is nothing to tell."""
        frozen: list[bool] = []
        self.upgrader.parts.decides_again = lambda: frozen.append(self.fleet.scheduler.frozen)
        self.upgrader.upgrade().addErrback(lambda _: None)
        os.close(self.children[0].line)
        self.children[0].ends()
        self.assertEqual(frozen, [])
        self.committed().addErrback(lambda _: None)
        self.children[1].ends()
        self.clock.turn()
        self.assertEqual(frozen, [False])

    def test_the_old_one_starts_and_stops_nothing(self) -> None:
        """However long it lasts, and whatever happens to backends."""
        self.warm("coder", "chat")
        client = self.client().post(b"/v1/chat/completions", STREAM)
        self.far().send(EVENTS)
        self.upgrade()
        told = [len(self.world.calls), self.fleet.backends["chat"].state]
        self.new_fleet.scheduler.close()
        for backend in self.new_fleet.backends.values():
            backend.close()
        self.world.exit("chat", 0)
        self.clock.pump([1.0] * 25)
        self.backend("chat").demand()
        self.clock.pump([60.0] * 20)
        self.assertEqual(len(self.world.calls), told[0])
        client.leave()

    def test_what_outlasts_the_drain_limit_is_told(self) -> None:
        """As at the end of the proxy; what was handed over is not bound by it."""
        self.build(drain=10.0)
        self.warm("coder")
        stream = self.client().post(b"/v1/chat/completions", STREAM)
        self.far().send(EVENTS + b"9\r\ndata: 1\n\n\r\n")
        held = self.client()
        self.upgrade(between=lambda: held.post(b"/chat/v1/x", {"model": "sitechat"}))
        self.clock.pump([1.0] * 11)
        self.assertIn(b'"code": "backend_died"', stream.take())
        self.assertEqual(held.take(), b"")
        self.new_ready()
        self.far().send(OK)
        self.assertEqual(held.answer()[0], 200)
        self.clock.advance(0.02)
        self.assertFalse(self.stopped)
        stream.leave()
        held.leave()
        self.clock.advance(0.02)
        self.assertTrue(self.stopped)

    def test_what_comes_on_an_old_connection_is_answered_there(self) -> None:
        """By whoever is asked for: a model, a list, the API; and the connection ends with the answer."""
        clients = [self.client() for _ in range(4)]
        for client in clients:
            self.assertEqual(client.get(b"/v1/models").answer()[0], 200)
        self.upgrade()
        self.log.entries.clear()
        clients[0].get(b"/v1/models")
        clients[1].get(b"/api/backends", b"Authorization: Bearer admin\r\n")
        clients[2].get(b"/v1/models", b"")
        clients[3].get(b"/nowhere/x")
        self.clock.turn()
        answers = [client.answer() for client in clients]
        self.assertEqual([status for status, _, _ in answers], [200, 200, 401, 404])
        self.assertTrue(all(fields["connection"] == "close" for _, fields, _ in answers))
        self.assertTrue(all(client.transport.disconnecting for client in clients))
        self.assertEqual(self.log.entries, [])
        self.assertEqual(len(self.new_log.entries), 4)

    def test_a_client_cannot_say_who_it_is(self) -> None:
        """The field by which requests are handed over means nothing on a client's own connection."""
        self.upgrade()
        told = json.dumps(
            {"client": "1.2.3.4", "for": "1.2.3.4", "secure": True, "arrived": 0, "key": "root"}
        )
        forged = b"X-LLMProxy-Handed: %b\r\n" % told.encode()
        client = Client(self.new_site)
        self.addCleanup(client.leave)
        self.assertEqual(client.get(b"/api/backends", forged).answer()[0], 401)
        old = self.client().get(b"/api/backends", forged)
        self.clock.turn()
        self.assertEqual(old.answer()[0], 401)
        self.assertNotEqual(self.new_log.entries[-1].client, "1.2.3.4")

    def test_a_key_that_is_gone_is_asked_for_again(self) -> None:
        """The new configuration counts for those who waited, too."""
        client = self.client().post(b"/v1/chat/completions", {"model": "coder3b"})
        self.upgrade(evolve(self.config, keys=(Key("root", "admin", admin=True),)))
        self.assertEqual(client.error()[0], 401)

    def test_a_limit_is_not_counted_twice(self) -> None:
        """Who was let in is let in."""
        keys = (*KEYS, Key("few", "few", requests_per_minute=1))
        self.config = evolve(self.config, keys=keys)
        self.site.use_keys(keys)
        auth = b"Authorization: Bearer few\r\n"
        client = self.client().post(b"/v1/chat/completions", {"model": "coder3b"}, auth)
        self.upgrade()
        self.new_site.limiter.admit(keys[-1], self.clock.seconds(), streams=False)
        self.new_ready()
        self.far().send(OK)
        self.assertEqual(client.answer()[0], 200)

    def test_leases_and_wishes_go_on(self) -> None:
        """What the operator has lent and asked for is known there."""
        self.fleet.scheduler.lease("0", 0.25, 600, "a game")
        self.clock.turn()
        self.world.hold_starts = True
        self.world.hold_stops = True
        self.upgrade()
        self.assertEqual([lease.note for lease in self.new_fleet.scheduler.leases], ["a game"])

    def test_what_has_been_stopped_meanwhile_is_not_failed_there(self) -> None:
        """The new process has taken it for one that starts, and has seen its end."""
        self.warm("coder")
        self.site.use_keys(self.config.keys)
        done = self.upgrader.upgrade()
        self.world.hold_stops = True
        self.backend("coder").stop_wanted("idle", force=True)
        self.clock.turn()
        self.servers.mode = "sick"
        self.come_up()
        self.clock.advance(SEE)
        self.clock.turn()
        self.assertEqual(self.old.did, [])
        self.world.exit("coder", 143)
        self.clock.turn()
        self.clock.advance(0.02)
        self.clock.turn()
        self.clock.advance(AGREE)
        self.clock.turn()
        self.children[-1].ends()
        self.successResultOf(done)
        self.assertEqual(self.new_fleet.backends["coder"].state, "absent")
        self.assertIsNone(self.new_fleet.backends["coder"].refusal)

    def test_what_has_changed_there_is_looked_at_again(self) -> None:
        """As if it had just been found; nobody starts it anew."""
        self.warm("coder")
        backend = self.backend("coder")
        backend.look_again("it was woken")
        self.assertEqual(backend.state, "starting")
        client = self.client().get(b"/coder/x")
        self.ready()
        self.far().send(OK)
        self.assertEqual((client.answer()[0], self.started()), (200, 1))


class MarksTests(FrontCase):
    """What the old process still carries, as the new one counts it."""

    @settings(deadline=None)
    @given(st.lists(st.dictionaries(st.sampled_from(["coder", "chat", "gone"]), st.integers(0, 5))))
    def test_it_is_as_it_was_told_last(self, tellings: list[dict[str, int]]) -> None:
        """Whatever was told before; afterwards nothing is left."""
        self.build()
        marks = Marks(self.fleet)
        for told in tellings:
            marks.set(told)
            for name in ("coder", "chat"):
                self.assertEqual(self.backend(name).admission.in_flight, told.get(name, 0))
        marks.set({})
        self.assertEqual(self.fleet.in_flight(), 0)

    def test_they_count_against_max_in_flight(self) -> None:
        """The engine has them, whoever has brought them."""
        self.build((evolve(CODER, max_in_flight=2),))
        self.warm("coder")
        marks = Marks(self.fleet)
        marks.set({"coder": 2})
        client = self.client().get(b"/coder/x")
        self.assertEqual(len(self.servers.requests), 0)
        marks.set({"coder": 1})
        self.far().send(OK)
        self.assertEqual(client.answer()[0], 200)

    def test_children_are_spared_until_it_is_known(self) -> None:
        """What is not wanted any more ends when nobody has anything there."""
        marks = Marks(self.fleet)
        self.failureResultOf(marks.spared("coder"), CancelledError)
        marks.set({"coder": 1, "gone": 1})
        early, late = marks.spared("coder"), marks.spared("gone")
        late.addErrback(lambda _: None)
        late.cancel()
        marks.set({"coder": 1})
        self.assertNoResult(early)
        self.successResultOf(marks.spared("chat"))
        marks.set({})
        self.successResultOf(early)
        self.successResultOf(marks.spared("coder"))


def test_nothing_of_it_is_loaded_before() -> None:
    """A proxy that is neither upgraded nor supervised has none of this in its memory."""
    code = (
        "import sys, llmproxy.tap;"
        "print([name for name in sys.modules if name.startswith(('llmproxy.upgrade', 'llmproxy.systemd'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
