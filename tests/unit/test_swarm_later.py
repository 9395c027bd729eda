"""The Swarm runtime is loaded when something needs it, and no sooner."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.runtimes import swarm, swarm_later
from llmproxy.runtimes.interface import ICluster, IReplicator, RuntimeUnavailable
from llmproxy.runtimes.swarm_later import ASK_EVERY, LOOK_EVERY, SwarmWhenNeeded, read_service_labels


class Real:
    """Stands where the Swarm runtime would, and writes down what it is asked."""

    def __init__(self, reactor: object, settings: object, **rest: object) -> None:
        self.calls: list[str] = []
        self.callbacks: list[object] = []
        made.append(self)

    def on_catalogue_change(self, callback: object) -> None:
        self.callbacks.append(callback)

    def __getattr__(self, name: str) -> Any:
        def verb(*arguments: object) -> Deferred[None]:
            self.calls.append(name)
            return succeed(None)

        return verb


made: list[Real] = []


class Lane:
    """Asks at once, in no thread."""

    def __init__(self, *arguments: object) -> None:
        self.closed = False

    def run(self, job: Any) -> Deferred[Any]:
        return succeed(None).addCallback(lambda _: job())

    def close(self) -> None:
        self.closed = True


class LaterTests(SynchronousTestCase):
    """One runtime whose engine comes, and manages a Swarm, when the test says so."""

    def setUp(self) -> None:
        made.clear()
        self.manages = False
        self.asked = 0
        self.patch(swarm, "SwarmRuntime", Real)
        self.patch(swarm_later, "Lane", Lane)
        self.patch(swarm_later, "_manages", self.ask)
        self.clock = Clock()
        reactor: Any = self.clock
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.socket = Path(folder.name, "docker.sock")
        self.runtime = SwarmWhenNeeded(reactor, DockerSettings(host=f"unix://{self.socket}"))
        self.callback = lambda: None
        self.runtime.on_catalogue_change(self.callback)

    def ask(self, settings: object) -> bool:
        self.asked += 1
        return self.manages

    def test_a_swarm_that_appears_is_followed(self) -> None:
        """The labels of its services may be routes, though no backend is one; an engine without one is asked
        now and then."""
        self.runtime.start()
        self.clock.pump([LOOK_EVERY] * 10)
        self.failureResultOf(self.runtime.catalogue(), RuntimeUnavailable)
        self.assertEqual((self.asked, made), (0, []))
        self.socket.touch()
        self.clock.advance(LOOK_EVERY)
        self.clock.pump([1] * 20)
        self.assertEqual((self.asked, made), (1, []))
        self.failureResultOf(self.runtime.catalogue(), RuntimeUnavailable)
        self.manages = True
        self.clock.advance(ASK_EVERY)
        (real,) = made
        self.assertEqual((real.calls, real.callbacks), (["start"], [self.callback]))
        self.successResultOf(self.runtime.catalogue())
        self.successResultOf(self.runtime.close())
        self.assertEqual(real.calls, ["start", "catalogue", "close"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_backend_of_it_needs_it_at_once(self) -> None:
        """Though the engine is away: that is for the real runtime to tell."""
        self.runtime.start()
        spec: Any = BackendSpec("a", runtime="swarm", service="a")
        watcher: Any = None
        self.runtime.unwatch("a")
        self.assertEqual(made, [])
        self.successResultOf(self.runtime.watch(spec, watcher))
        (real,) = made
        self.runtime.note_use(spec, 1)
        self.runtime.can_choose(spec, "t")
        waits: tuple[Deferred[Any], ...] = (
            self.runtime.scale(spec, 2),
            self.runtime.retire(spec, "t", 2),
            self.runtime.ping(),
            self.runtime.logs(spec, 1),
            self.runtime.facts(spec),
            self.runtime.stop(spec, 1),
            self.runtime.ensure_started(spec),
            self.runtime.follow_logs(spec, 1, lambda _: None),
        )
        for wait in waits:
            self.successResultOf(wait)
        self.assertEqual(real.calls[:2], ["start", "watch"])
        self.assertEqual(len(real.calls), 12)

    def test_closed_while_it_asks(self) -> None:
        """Nothing is loaded any more."""
        self.runtime.start()
        self.successResultOf(self.runtime.close())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_it_is(self) -> None:
        """It can all that the real one can."""
        self.assertIsInstance(self.runtime, IReplicator)
        self.assertIsInstance(self.runtime, ICluster)

    def test_no_engine(self) -> None:
        """There are no labels to be read."""
        with self.assertRaises(RuntimeUnavailable):
            read_service_labels(DockerSettings(host=f"unix://{self.socket}"), 1)


def test_the_sdk_stays_away() -> None:
    """Nothing of it is in memory before there is an engine."""
    code = "import sys, llmproxy.tap; print(any(name in sys.modules for name in ('docker', 'requests')))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
