"""The Docker runtime is loaded when something needs it, and no sooner."""

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
from llmproxy.runtimes import docker
from llmproxy.runtimes.docker_later import LOOK_EVERY, DockerWhenNeeded, read_labels
from llmproxy.runtimes.interface import RuntimeUnavailable


class Real:
    """Stands where the Docker runtime would, and writes down what it is asked."""

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


class LaterTests(SynchronousTestCase):
    """One runtime whose engine comes when the test makes its socket."""

    def setUp(self) -> None:
        made.clear()
        self.patch(docker, "DockerRuntime", Real)
        self.clock = Clock()
        reactor: Any = self.clock
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.socket = Path(folder.name, "docker.sock")
        self.settings = DockerSettings(host=f"unix://{self.socket}")
        self.runtime = DockerWhenNeeded(reactor, self.settings)
        self.callback = lambda: None
        self.runtime.on_catalogue_change(self.callback)

    def test_an_engine_that_appears_is_followed(self) -> None:
        """Its labels may be routes, though no backend is a container."""
        self.runtime.start()
        self.clock.pump([LOOK_EVERY] * 10)
        self.failureResultOf(self.runtime.catalogue(), RuntimeUnavailable)
        self.assertEqual(made, [])
        self.socket.touch()
        self.clock.advance(LOOK_EVERY)
        (real,) = made
        self.assertEqual((real.calls, real.callbacks), (["start"], [self.callback]))
        self.successResultOf(self.runtime.catalogue())
        self.successResultOf(self.runtime.close())
        self.assertEqual(real.calls, ["start", "catalogue", "close"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_it_is_needed_before_the_proxy_begins(self) -> None:
        """It is loaded then, and started with everything else, once; who wants news later gets them."""
        told: list[str] = []
        self.socket.touch()
        self.runtime.on_standing(told.append)
        self.successResultOf(self.runtime.catalogue())
        (real,) = made
        self.assertEqual(real.calls, ["on_standing", "catalogue"])
        self.runtime.start()
        self.runtime.on_standing(told.append)

        def later() -> None:
            """Nothing to do."""

        self.runtime.on_catalogue_change(later)
        self.runtime.doubt()
        self.assertEqual(real.calls[2:], ["start", "on_standing", "doubt"])
        self.assertEqual(real.callbacks, [self.callback, later])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nothing_is_loaded_to_be_asked_for_nothing(self) -> None:
        """Doubts, and questions of what is not there, need no engine; nor does one who asks at the end."""
        self.runtime.start()
        self.runtime.doubt()
        self.successResultOf(self.runtime.settled())
        self.assertFalse(self.runtime.has_container("chat"))
        self.successResultOf(self.runtime.close())
        self.socket.touch()
        self.failureResultOf(self.runtime.catalogue(), RuntimeUnavailable)
        self.assertEqual((made, self.clock.getDelayedCalls()), ([], []))

    def test_a_backend_that_is_a_container_needs_it_at_once(self) -> None:
        """Though the engine is away: that is for the real runtime to tell."""
        self.runtime.start()
        spec: Any = BackendSpec(route="a", container="a")
        watcher: Any = None
        self.runtime.unwatch("a")
        self.successResultOf(self.runtime.watch(spec, watcher))
        self.successResultOf(self.runtime.ensure_started(spec))
        (real,) = made
        self.assertEqual(real.calls, ["start", "watch", "ensure_started"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_that_nobody_needed_leaves_nothing(self) -> None:
        """Neither a timer nor a runtime."""
        self.runtime.start()
        self.successResultOf(self.runtime.close())
        self.assertEqual((made, self.clock.getDelayedCalls()), ([], []))

    def test_labels_of_an_engine_that_is_not_there(self) -> None:
        """They are not known, and the cause is told."""
        with self.assertRaisesRegex(RuntimeUnavailable, "does not answer: No such file or directory"):
            read_labels(self.settings, 1.0)


def test_the_proxy_without_containers_loads_no_sdk() -> None:
    """It is an eighth of the memory."""
    script = "import llmproxy.tap, sys; print('docker' in sys.modules, 'requests' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=True)
    assert done.stdout.split() == [b"False", b"False"]
