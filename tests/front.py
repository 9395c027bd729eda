"""A proxy in memory, for tests of what its clients see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import evolve
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.backend.backend import Backend
from llmproxy.backend.probe import INTERVAL
from llmproxy.config.model import BackendSpec, Config, Key, Limits
from llmproxy.fleet.fleet import Fleet
from llmproxy.runtimes.interface import Facts, IRuntime
from llmproxy.runtimes.url import UrlRuntime
from llmproxy.web.auth import Authenticator
from llmproxy.web.resources import RootResource
from llmproxy.web.site import ProxySite
from tests.fakes import FakeController, FakeRuntime
from tests.inmemory import Far, Servers
from tests.unit.test_front import Client, Log

__all__ = ["CODER", "CHAT", "KEYS", "FrontCase"]

CODER = BackendSpec(route="coder", container="c", models=("coder3b",))
CHAT = BackendSpec(route="chat", container="d", models=("sitechat",), aliases=("gpt-4",))
KEYS = (
    Key("root", "admin", admin=True),
    Key("me", "client"),
    Key("site", "limited", routes=("chat",)),
    Key("meek", "meek", may_start=False),
    Key("kind", "kind", may_evict=False),
)


class FrontCase(SynchronousTestCase):
    """A proxy of two models, unless a test builds another one."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.log = Log()
        self.build()

    def build(self, specs: Sequence[BackendSpec] = (CODER, CHAT), **settings: Any) -> None:
        """A proxy with these backends, none of which runs; they need half of a GPU each."""
        runtimes = self.runtimes()
        # A backend that starts answers, but not with 200 yet.
        self.servers = Servers(mode="sick")
        for spec in specs:
            if spec.container is not None:
                self.world.set_facts(spec.route, Facts(args=("--gpu-memory-utilization", "0.5")))
        self.config = Config(
            backends={spec.route: spec for spec in specs},
            keys=KEYS,
            backend_key="own",
            limits=Limits(max_body=100_000),
            **settings,
        )
        self.fleet = Fleet(self.clock, self.servers.connect, runtimes, self.config)
        self.fleet.start()
        root = RootResource(self.fleet)
        self.site = ProxySite(root, self.clock, Authenticator(KEYS), self.config.limits, self.log)

    def runtimes(self) -> dict[str, IRuntime]:
        """What runs the backends."""
        self.world = FakeController()
        return {"docker": FakeRuntime(self.world), "url": UrlRuntime()}

    def reload(self, **settings: Any) -> None:
        """The configuration with other settings, as after a HUP."""
        self.config = evolve(self.config, **settings)
        self.site.authenticator = Authenticator(KEYS)
        self.fleet.apply(self.config)

    def client(self) -> Client:
        client = Client(self.site)
        self.addCleanup(client.leave)
        return client

    def backend(self, route: str) -> Backend:
        return self.fleet.backends[route]

    def ready(self) -> None:
        """What has been started is healthy."""
        self.servers.mode = "healthy"
        self.clock.advance(INTERVAL)
        self.servers.mode = "sick"

    def warm(self, *routes: str) -> None:
        for route in routes:
            self.backend(route).demand()
            self.ready()
            assert self.backend(route).state == "ready", self.backend(route).state

    def far(self, index: int = -1) -> Far:
        return self.servers.requests[index]

    def body(self, index: int = -1) -> bytes:
        """The body of the last request that a backend got."""
        return self.far(index).received.rpartition(b"\r\n\r\n")[2]

    def started(self) -> int:
        return self.world.count("ensure_started")
