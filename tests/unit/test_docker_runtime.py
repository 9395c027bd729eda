"""Starts and stops at an engine in memory whose containers others interfere with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from attrs import evolve
from docker.errors import ImageNotFound
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.compose import ComposeService
from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.engines.phases import Phase
from llmproxy.errors import ConfigError
from llmproxy.runtimes import docker
from llmproxy.runtimes.docker import PING_EVERY, ROUNDS, DockerRuntime
from llmproxy.runtimes.docker_census import Containers
from llmproxy.runtimes.interface import Facts, RuntimeFaulty, RuntimeUnavailable, StartRefused
from tests.engine_words import said

OWN = BackendSpec("chat", image="vllm:1")
THEIRS = BackendSpec("coder", container="coder3b", port=8001)


class Client:
    """The engine.

    :ivar containers: by name, as they are inspected.
    :ivar meddle: called after each change, as others interfere.
    """

    def __init__(self) -> None:
        self.containers: dict[str, dict[str, Any]] = {}
        self.images = {"vllm:1"}
        self.done: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.meddle: Callable[[str], None] = lambda verb: None

    def add(self, name: str, status: str = "exited", **more: Any) -> dict[str, Any]:
        info = {"Id": f"id-{name}", "Name": f"/{name}", "Config": {}, "HostConfig": {}, **more}
        self.containers[name] = info
        self.set(name, status)
        return info

    def set(self, name: str, status: str) -> None:
        alive = status in ("running", "paused", "restarting")
        started = f"2026-01-01T00:00:{len(self.done):02}.000000001Z"
        state = {"Status": status, "Running": alive, "Paused": status == "paused", "StartedAt": started}
        self.containers[name]["State"] = {**state, "Pid": 7 if alive else 0}

    def _change(self, verb: str) -> None:
        self.done.append(verb)
        error = self.errors.pop(verb, None)
        if error is not None:
            self.meddle(verb)
            raise error

    def _name(self, container: str) -> str:
        for name, info in self.containers.items():
            if container in (name, info["Id"]):
                return name
        raise said(404, f"No such container: {container}")

    # What the SDK has.

    def inspect_container(self, container: str) -> dict[str, Any]:
        return self.containers[self._name(container)]

    def inspect_image(self, image: str) -> dict[str, Any]:
        if image not in self.images:
            raise ImageNotFound("no such image")
        return {"Config": {"ExposedPorts": {"8000/tcp": {}}}}

    def info(self) -> dict[str, Any]:
        return {}

    def ping(self) -> bool:
        self._change("ping")
        return True

    def create_container_from_config(self, body: dict[str, Any], name: str) -> dict[str, Any]:
        self._change("create")
        return self.add(name, "created", Config={"Labels": body["Labels"]})

    def start(self, container: str) -> None:
        self._change("start")
        self.set(self._name(container), "running")
        self.meddle("start")

    def kill(self, container: str, signal: str) -> None:
        self._change(signal)

    def remove_container(self, container: str, **_: object) -> None:
        self._change("remove")
        del self.containers[self._name(container)]


class Lane:
    """Runs what it is given at once."""

    crowded = False

    def run(self, job: Callable[[], Any]) -> Deferred[Any]:
        return maybeDeferred(job)


class Engine:
    """Calls to it, at once unless they are held."""

    host = "unix:///var/run/docker.sock"

    def __init__(self) -> None:
        self.client = Client()
        self.calls = self.starts = self.slow = Lane()
        self.hold = False
        self.held: list[Deferred[Any]] = []
        self.closed = 0

    def call(self, job: Callable[[Any], Any], **_: object) -> Deferred[Any]:
        if not self.hold:
            return maybeDeferred(job, self.client)
        waiting: Deferred[Any] = Deferred()
        self.held.append(waiting)
        return waiting.addCallback(lambda _: job(self.client))

    def close(self) -> None:
        self.closed += 1


class Events:
    """The event stream: whether it stands is up to the test."""

    def __init__(self) -> None:
        self.reconnects = 0

    def made(self, reactor: object, settings: object, stands: Callable[[], None], *_: object) -> Events:
        """As the runtime makes it."""
        self.stands = stands
        return self

    def start(self) -> None:
        """It stands when the test says so."""

    def close(self) -> None:
        """Nothing to do."""

    def reconnect(self) -> None:
        self.reconnects += 1


class Silent:
    """Follows the output of a container that says nothing."""

    def __init__(self, *_: object) -> None:
        self.ended: Deferred[None] = Deferred()

    def start(self) -> Deferred[None]:
        return self.ended


class Case(SynchronousTestCase):
    """One engine."""

    def setUp(self) -> None:
        self.make(DockerSettings("unix:///var/run/docker.sock"))

    def make(self, settings: DockerSettings, compose: Callable[[], Sequence[ComposeService]] = tuple) -> None:
        self.reactor = MemoryReactorClock()
        self.engine, self.events = Engine(), Events()
        self.client = self.engine.client
        self.patch(docker, "Engine", lambda *_: self.engine)
        self.patch(docker, "EventStream", self.events.made)
        self.runtime = DockerRuntime(cast(Any, self.reactor), settings, compose=compose)

    def refused(self, spec: BackendSpec) -> StartRefused:
        found: StartRefused = self.failureResultOf(self.runtime.ensure_started(spec), StartRefused).value
        return found


class StartTests(Case):
    """A start that others interfere with."""

    def test_one_that_is_not_there_is_created_and_started(self) -> None:
        """What runs then is what is told; a second start finds it."""
        instance = self.successResultOf(self.runtime.ensure_started(OWN))
        self.assertEqual(self.client.done, ["create", "start"])
        self.assertEqual(self.successResultOf(self.runtime.ensure_started(OWN)), instance)
        self.assertEqual(self.client.done, ["create", "start"])

    def test_one_of_another_description_is_created_anew(self) -> None:
        """When it is needed next, and not before."""
        self.successResultOf(self.runtime.ensure_started(OWN))
        self.client.set("llmproxy-chat", "exited")
        self.successResultOf(self.runtime.ensure_started(evolve(OWN, args=("--model", "m"))))
        self.assertEqual(self.client.done, ["create", "start", "remove", "create", "start"])

    def test_one_that_vanishes_whenever_it_is_started(self) -> None:
        """It is not tried without an end."""
        self.client.meddle = lambda verb: self.client.containers.clear()
        refused = self.refused(OWN)
        self.assertIn("vanishes whenever it is started", str(refused))
        self.assertEqual(self.client.done, ["create", "start"] * (ROUNDS // 2))

    def test_one_that_is_being_removed(self) -> None:
        """It cannot be started, and the hint says what can be done."""
        for status in ("removing", "dead"):
            self.client.add("coder3b", status)
            refused = self.refused(THEIRS)
            self.assertEqual(str(refused), f"container 'coder3b' is {status}")
            self.assertIn("docker rm -f coder3b", refused.hint or "")
        self.assertEqual(self.client.done, [])

    def test_one_that_is_removed_just_then(self) -> None:
        """The next look finds that out, and one of our own is created anew."""
        self.client.errors["start"] = said(404, "No such container: id-llmproxy-chat")

        def once(verb: str) -> None:
            self.client.containers.clear()
            self.client.meddle = lambda _: None

        self.client.meddle = once
        self.successResultOf(self.runtime.ensure_started(OWN))
        self.assertEqual(self.client.done, ["create", "start", "create", "start"])

    def test_something_else_that_it_needs_is_not_there(self) -> None:
        """That is told in the engine's words."""
        self.client.add("coder3b")
        self.client.errors["start"] = said(404, "network models not found")
        self.assertIn("cannot be started: network models not found", str(self.refused(THEIRS)))

    def test_somebody_else_starts_it_at_the_same_time(self) -> None:
        """Then it is started."""
        self.client.add("coder3b")
        self.client.errors["start"] = said(409, "start is already in progress")
        self.client.meddle = lambda verb: self.client.set("coder3b", "running")
        self.successResultOf(self.runtime.ensure_started(THEIRS))
        self.client.set("coder3b", "exited")
        self.client.errors["start"] = said(409, "some other conflict")
        self.assertIn("some other conflict", str(self.refused(THEIRS)))

    def test_one_that_uses_the_network_of_another(self) -> None:
        """It is reached where that one is; with that one gone there is nothing better to say."""
        networks = {"models": {"NetworkID": "n1", "IPAddress": "172.18.0.9"}}
        self.client.add("sidecar", "running", NetworkSettings={"Networks": networks})
        self.client.add("coder3b", "running", HostConfig={"NetworkMode": "container:sidecar"})
        instance = self.successResultOf(self.runtime.ensure_started(THEIRS))
        self.assertIn("172.18.0.9", [each.host for each in instance.addresses])
        del self.client.containers["sidecar"]
        instance = self.successResultOf(self.runtime.ensure_started(THEIRS))
        self.assertEqual([each.host for each in instance.addresses], ["127.0.0.1"])

    def test_where_hundreds_are_asked_for(self) -> None:
        """One list of all tells which of them are not there, and those are not asked for."""
        listed: list[int] = []

        class Listing:
            def containers(self) -> Deferred[Containers]:
                listed.append(1)
                return succeed(Containers(("1" * 64,), frozenset({"other"})))

        self.patch(docker, "Census", lambda *_: Listing())
        self.make(self.runtime.settings)
        self.engine.calls.crowded = True
        self.client.add("coder3b", "running")
        self.assertIn("does not exist", str(self.refused(THEIRS)))
        self.assertTrue(listed)
        self.assertEqual(self.successResultOf(self.runtime.facts(THEIRS)), Facts())


class ComposeTests(Case):
    """Containers that the compose file describes."""

    SERVICE = ComposeService("coder", "coder3b", "vllm:2", {}, ())

    def compose(self, services: Callable[[], Sequence[ComposeService]]) -> None:
        self.make(DockerSettings("unix:///var/run/docker.sock", compose_file="c.yml"), services)

    def test_a_file_that_cannot_be_read(self) -> None:
        """Why the container is missing, and why it cannot be made."""

        def wrong() -> Sequence[ComposeService]:
            raise ConfigError("c.yml: line 3: no valid YAML")

        self.compose(wrong)
        self.assertEqual(
            str(self.refused(THEIRS)),
            "container 'coder3b' does not exist, and c.yml: line 3: no valid YAML",
        )

    def test_an_image_that_is_yet_to_come(self) -> None:
        """That it is pulled is told before, as Compose says so only when it is over."""
        self.compose(lambda: (self.SERVICE,))
        self.patch(docker, "create_service", lambda settings, service: self.client.add("coder3b"))
        self.patch(docker, "check_created", lambda client, name, settings: True)
        steps: list[Phase] = []
        self.successResultOf(self.runtime.ensure_started(THEIRS, steps.append))
        self.assertEqual(steps, [Phase("pulling")])
        del self.client.containers["coder3b"]
        self.client.images.add("vllm:2")
        self.successResultOf(self.runtime.ensure_started(THEIRS, steps.append))
        self.assertEqual(steps, [Phase("pulling")])

    def test_a_compose_that_complains_of_what_it_has_made(self) -> None:
        """What counts is whether the container is there."""
        self.compose(lambda: (self.SERVICE,))
        made = True

        def create(settings: DockerSettings, service: str) -> None:
            if made:
                self.client.add("coder3b")
            raise StartRefused("it may not listen")

        self.patch(docker, "create_service", create)
        self.patch(docker, "check_created", lambda client, name, _: name in self.client.containers)
        self.successResultOf(self.runtime.ensure_started(THEIRS))
        made = False
        del self.client.containers["coder3b"]
        self.assertEqual(str(self.refused(THEIRS)), "it may not listen")


class EngineTests(Case):
    """The engine itself."""

    def test_an_engine_that_says_no_where_it_may_not(self) -> None:
        """Something is wrong with it; one that is away is away."""
        self.client.errors["ping"] = said(400, "client version is too old")
        faulty = self.failureResultOf(self.runtime.ping(), RuntimeFaulty)
        self.assertIn("says: client version is too old", str(faulty.value))
        self.client.errors["ping"] = RuntimeUnavailable("away")
        failure = self.failureResultOf(self.runtime.ping(), RuntimeUnavailable)
        self.assertIsNone(failure.check(RuntimeFaulty))
        self.successResultOf(self.runtime.ping())

    def test_somebody_doubts_that_it_is_there(self) -> None:
        """The event stream is made anew, which finds out."""
        self.runtime.doubt()
        self.assertEqual(self.events.reconnects, 1)

    def test_an_engine_across_a_network_is_asked_now_and_then(self) -> None:
        """No closed socket may tell of its end; while it is known to be away nobody asks for it twice."""
        self.engine.host = "tcp://tower:2376"
        self.runtime.start()
        self.reactor.advance(PING_EVERY)
        self.assertEqual((self.client.done, self.events.reconnects), (["ping"], 0))
        self.client.errors["ping"] = RuntimeUnavailable("away")
        self.reactor.advance(PING_EVERY)
        self.assertEqual(self.events.reconnects, 0)
        self.events.stands()
        self.client.errors["ping"] = RuntimeUnavailable("away")
        self.reactor.advance(PING_EVERY)
        self.assertEqual(self.events.reconnects, 1)
        self.successResultOf(self.runtime.close())
        self.reactor.advance(PING_EVERY)
        self.assertEqual((len(self.client.done), self.reactor.getDelayedCalls()), (3, []))

    def test_one_on_this_machine_is_not(self) -> None:
        """Its socket tells."""
        self.runtime.start()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_the_end_in_the_middle_of_everything(self) -> None:
        """Whoever waits is told, and nothing goes on."""
        self.client.add("coder3b", "running")
        stopping = self.runtime.stop(THEIRS, 10)
        self.engine.hold = True
        starting = self.runtime.ensure_started(OWN)
        self.patch(docker, "Follower", Silent)
        following = self.runtime.follow_logs(THEIRS, 5, self.fail)
        self.successResultOf(self.runtime.close())
        self.failureResultOf(stopping, CancelledError)
        self.failureResultOf(starting, CancelledError)
        self.failureResultOf(following, CancelledError)
        self.assertEqual((self.reactor.getDelayedCalls(), self.engine.closed), ([], 1))
