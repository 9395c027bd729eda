"""The service: reload and the order of the end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.backend.probe import INTERVAL
from llmproxy.config.model import BackendSpec, Config, Key
from llmproxy.errors import ConfigError
from llmproxy.fleet.fleet import Fleet
from llmproxy.service import DRAIN_LOOK, ProxyService
from llmproxy.web.auth import Authenticator
from llmproxy.web.resources import RootResource
from llmproxy.web.site import ProxySite
from tests.fakes import FakeController, FakeRuntime
from tests.inmemory import Servers
from tests.unit.test_front import EVENTS, KEY, OK, Client, Log

CONFIG = Config(
    listen=("tcp:8000",),
    backends={"coder": BackendSpec(route="coder", container="c", models=("coder3b",))},
    keys=(Key("me", "client"),),
    drain=10.0,
)


class SlowRuntime(FakeRuntime):
    """A runtime whose first look at what runs takes long."""

    def watch(self, spec: BackendSpec, watcher: Any) -> Deferred[None]:
        return Deferred()


class ServiceTests(SynchronousTestCase):
    """One service over a backend in memory."""

    def build(self, runtime: type[FakeRuntime] = FakeRuntime) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.servers = Servers(mode="healthy")
        self.world = FakeController()
        self.fleet = Fleet(self.reactor, self.servers.connect, {"docker": runtime(self.world)}, CONFIG)
        self.site = ProxySite(
            RootResource(self.fleet), self.reactor, Authenticator(CONFIG.keys), CONFIG.limits, Log()
        )
        self.next: Any = succeed(CONFIG)
        self.failed: list[str] = []
        self.service = ProxyService(
            self.reactor, self.fleet, self.site, lambda: self.next, self.failed.append
        )
        self.service.startService()

    def client(self) -> Client:
        client = Client(self.site)
        self.addCleanup(client.leave)
        return client

    def streaming(self, version: bytes = b"HTTP/1.1") -> Client:
        client = self.client().send(b"GET /coder/x %b\r\nHost: h\r\n%b\r\n" % (version, KEY))
        self.reactor.advance(INTERVAL)
        self.servers.requests[-1].send(EVENTS + b"3\r\n1\n\n\r\n")
        return client

    def test_a_reload_without_keys_does_not_open_what_listens_to_the_network(self) -> None:
        """It is refused, since only a new start can listen on loopback only."""
        self.build()
        open_to_all = evolve(CONFIG, keys=(), listen=("tcp:8000:interface=127.0.0.1",))
        self.next = succeed(open_to_all)
        self.successResultOf(self.service.reload("test"))
        self.assertEqual(self.client().get(b"/v1/models", b"").answer()[0], 401)
        self.assertIs(self.fleet.config, CONFIG)

    def test_a_bad_file_leaves_the_old_configuration(self) -> None:
        """And a fault of our own while it is applied is logged."""
        self.build()
        self.next = fail(ConfigError("no such key"))
        self.successResultOf(self.service.reload("test"))
        self.assertIs(self.fleet.config, CONFIG)
        self.next = succeed(evolve(CONFIG, backends={"x": BackendSpec(route="x", runtime="swarm")}))
        self.successResultOf(self.service.reload("test"))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_the_end_waits_for_what_is_in_flight(self) -> None:
        """The answer finishes, and the end comes when its last byte has left."""
        self.build()
        client = self.streaming()
        ended = self.service.stopService()
        self.reactor.advance(DRAIN_LOOK)
        self.assertNoResult(ended)
        client.transport._tempDataLen = 5  # type: ignore[attr-defined]
        self.servers.requests[-1].send(b"0\r\n\r\n")
        self.reactor.advance(DRAIN_LOOK)
        self.assertNoResult(ended)
        client.transport._tempDataLen = 0  # type: ignore[attr-defined]
        self.reactor.advance(DRAIN_LOOK)
        self.successResultOf(ended)
        self.assertTrue(client.take().endswith(b"0\r\n\r\n"))

    def test_what_outlasts_the_drain_does_not_look_complete(self) -> None:
        """An event stream gets an error event and no clean end; a request without an answer gets one."""
        self.build()
        stream = self.streaming()
        plain = self.client().get(b"/coder/y")
        ended = self.service.stopService()
        self.reactor.pump([1.0] * 11)
        self.successResultOf(ended)
        data = stream.take()
        self.assertIn(b'"code": "backend_died"', data)
        self.assertFalse(data.endswith(b"0\r\n\r\n"))
        self.assertEqual(plain.error()[0], 502)

    def test_the_end_serves_who_has_just_connected(self) -> None:
        """It asks in a moment, and is answered as if it had asked before; who says nothing is let go."""
        self.build()
        self.streaming().leave()
        asks, silent = self.client(), self.client()
        ended = self.service.stopService()
        self.reactor.advance(DRAIN_LOOK)
        asks.get(b"/coder/x")
        self.servers.requests[-1].send(OK)
        status, fields, _ = asks.answer()
        self.assertEqual((status, fields["connection"]), (200, "close"))
        self.assertNoResult(ended)
        self.reactor.pump([DRAIN_LOOK] * 8)
        self.successResultOf(ended)
        self.assertTrue(silent.transport.disconnecting)

    def test_another_process_has_its_sockets(self) -> None:
        """They are not shut down when this one lets go of them, and its end touches no backend."""
        self.build()
        (port,) = self.service._ports
        did: list[str] = []
        for name in ("startReading", "stopReading"):
            setattr(port, name, lambda name=name: did.append(name))
        port.socket = SimpleNamespace(close=lambda: did.append("close"))  # type: ignore[attr-defined]
        self.service.pause()
        self.service.resume()
        self.service.hand_over()
        self.assertEqual(did, ["stopReading", "startReading", "stopReading", "close"])
        self.assertEqual(self.service.sockets, {})
        # Nor does it read its configuration again.
        self.next = fail(ConfigError("nobody reads it"))
        self.successResultOf(self.service.reload("test"))
        self.successResultOf(self.service.stopService())

    def test_who_is_interested_is_told(self) -> None:
        """When it serves, reads its configuration and has, and when its end begins."""
        self.build()
        told: list[str] = []
        self.service.reloaded.append(lambda begins: told.append("reloads" if begins else "has"))
        self.service.ending.append(lambda: told.append("ends"))
        self.successResultOf(self.service.reload("test"))
        self.next = fail(ConfigError("bad"))
        self.successResultOf(self.service.reload("test"))
        self.successResultOf(self.service.stopService())
        self.assertEqual(told, ["reloads", "has", "reloads", "has", "ends"])

    def test_the_end_answers_those_who_wait_for_the_first_look(self) -> None:
        """503 shutting_down, also when it is not known yet what runs."""
        self.build(SlowRuntime)
        client = self.client().get(b"/coder/x")
        self.assertEqual(client.take(), b"")
        self.successResultOf(self.service.stopService())
        status, error, _ = client.error()
        self.assertEqual((status, error["code"]), (503, "shutting_down"))

    def test_requests_wait_for_the_first_look(self) -> None:
        """They are served without it after a limit, and one that has left holds up nobody."""
        self.build(SlowRuntime)
        gone, client = self.client().get(b"/coder/1"), self.client().get(b"/coder/2")
        gone.leave()
        self.reactor.advance(5)
        self.reactor.advance(INTERVAL)
        self.servers.requests[-1].send(OK)
        self.assertEqual(client.answer()[0], 200)
