"""Starts a service: has it have tasks, and waits until one of them runs or it is known why none does."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from attrs import define, field, frozen
from docker.api.client import APIClient
from docker.errors import APIError
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.engines.phases import Phase
from llmproxy.runtimes.docker_client import describe
from llmproxy.runtimes.docker_create import has_image
from llmproxy.runtimes.docker_guard import refusal
from llmproxy.runtimes.docker_host import docker_host
from llmproxy.runtimes.docker_reach import find_reach, instance_port
from llmproxy.runtimes.interface import StartRefused, Step
from llmproxy.runtimes.swarm_arrival import Verdict, judge, no_address_hint, task_hint
from llmproxy.runtimes.swarm_body import is_outdated, service_body, with_replicas
from llmproxy.runtimes.swarm_calls import NameTaken, create, find, get, list_tasks, update
from llmproxy.runtimes.swarm_labels import RUN
from llmproxy.runtimes.swarm_reach import Here, task_addresses
from llmproxy.runtimes.swarm_state import Picture, SwarmService, service_name

__all__ = ["Arrival", "Arrived", "Begun", "begin", "make_service"]

UNREACHED_MOST = 5.0
"""Seconds for which a task may run without an address that leads to it from here."""
PREPARED_WITHIN = 1800.0
"""Seconds that a node has to get the image and to create the container; Swarm does not say how far it is."""
AWAY_MOST = 10.0
"""Seconds for which the manager may not answer: another one takes a leader's place within that."""


@frozen
class Arrived:
    """How a start has come out.

    :ivar task: that runs, or that has run and ended.
    """

    verdict: Verdict
    picture: Picture
    here: Here


@frozen
class Begun:
    """A start that has been written down.

    :ivar known: ids of tasks that had ended before.
    :ivar ours: it is we who have begun it; otherwise the service was to run already.
    """

    known: frozenset[str]
    ours: bool


def begin(
    client: APIClient, spec: BackendSpec, backend_key: str | None, settings: DockerSettings
) -> Begun | None:
    """Have the service have tasks if it has none.

    :return: None: there is no such service.
    :raises StartRefused: it is of a mode that cannot be scaled, or would have what it must not have.
    """
    name = service_name(spec)
    begun, made = Begun(frozenset(), False), None

    def change(service: SwarmService) -> dict[str, Any] | None:
        nonlocal begun, made
        if service.replicas is None:
            raise StartRefused(
                f"service {name!r} is of mode {service.mode.lower()}, of which nobody can say how many tasks"
                " there are",
                f"Deploy it as a replicated one (deploy: mode: replicated, replicas: 0); for a {service.mode}"
                " service that is always on take runtime url.",
            )
        tasks = list_tasks(client, [service.id]).get(service.id, ())
        begun = Begun(frozenset(task.id for task in tasks if task.over), not service.replicas)
        if service.replicas:
            return None
        written: Any = service.spec
        if is_outdated(spec, service, backend_key):
            made = _body(client, spec, backend_key, settings)
            written = {**made, "Labels": {**service.labels, **made["Labels"]}}
        return with_replicas(written, max(1, spec.replicas.min), run=uuid4().hex[:16])

    try:
        return None if update(client, name, change) is None else begun
    except APIError as error:
        if made is None or error.status_code == 503:
            raise
        said = describe(error)
        raise StartRefused(f"service {name!r} cannot be changed: {said}", task_hint(said, name)) from error


def make_service(
    client: APIClient, spec: BackendSpec, backend_key: str | None, settings: DockerSettings
) -> None:
    """Create the service of a backend with an image, with no task.

    :raises StartRefused: the manager says no, or it would have what it must not have.
    """
    name = service_name(spec)
    body = _body(client, spec, backend_key, settings)
    try:
        create(client, body)
    except NameTaken:
        if find(client, name) is None:
            raise StartRefused(f"service {name!r} cannot be created: its name is taken", None) from None
    except APIError as error:
        if error.status_code == 503:
            raise
        said = describe(error)
        raise StartRefused(f"service {name!r} cannot be created: {said}", task_hint(said, name)) from error


def _body(
    client: APIClient, spec: BackendSpec, backend_key: str | None, settings: DockerSettings
) -> dict[str, Any]:
    reach = find_reach(client, docker_host(settings))
    own = {} if reach.networks is None else reach.networks
    networks = spec.networks or tuple(name for name, id in own.items() if _is_overlay(client, id))
    shared = any(name in own or name in own.values() for name in networks)
    port = None
    if not shared:
        config: dict[str, Any] = dict(has_image(client, spec.image or "") or {})
        port = instance_port(spec, config, spec.args or None)
    # Its volumes have been looked at when the settings were read.
    host = {"NetworkMode": "host"} if "host" in networks else {}
    refused = refusal(service_name(spec), host, (), settings)
    if refused is not None:
        raise StartRefused(str(refused).replace("container", "service", 1), refused.hint)
    return service_body(spec, backend_key=backend_key, networks=networks, port=port)


def _is_overlay(client: APIClient, network: str) -> bool:
    try:
        found = get(client, f"networks/{network}")
    except APIError:
        return False
    return bool(found.get("Driver") == "overlay" and not found.get("Ingress"))


@define(eq=False)
class Arrival:
    """A :class:`~llmproxy.runtimes.swarm_monitor.Subject` that waits for the first task.

    :ivar over: fires with how it has come out; fails with ``StartRefused`` or ``RuntimeUnavailable``.  That
        somebody stops or removes the service is no failure: another try may help.
    :ivar to_end: mark of the run of which nothing comes, for anybody; None: it may be of use to others.
    """

    _reactor: IReactorTime
    spec: BackendSpec
    _begun: Begun
    _step: Step
    over: Deferred[Arrived] = field(factory=Deferred, init=False)
    to_end: str | None = field(default=None, init=False)
    _began: float = field(init=False)
    _placed_at: float | None = field(default=None, init=False)
    _ran_at: float | None = field(default=None, init=False)
    _away_since: float | None = field(default=None, init=False)
    _told: Phase | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._began = self._reactor.seconds()

    @property
    def name(self) -> str:
        """See :class:`~llmproxy.runtimes.swarm_monitor.Subject`."""
        return service_name(self.spec)

    @property
    def busy(self) -> bool:
        """See :class:`~llmproxy.runtimes.swarm_monitor.Subject`."""
        return True

    def unseen(self, reason: Failure) -> None:
        """See :class:`~llmproxy.runtimes.swarm_monitor.Subject`."""
        now = self._reactor.seconds()
        if self._away_since is None:
            self._away_since = now
        if now - self._away_since >= AWAY_MOST:
            self.fail(reason)

    def fail(self, reason: Failure) -> None:
        """Nothing comes of it."""
        if not self.over.called:
            self.over.errback(reason)

    def seen(self, picture: Picture, here: Here) -> None:
        """See :class:`~llmproxy.runtimes.swarm_monitor.Subject`."""
        self._away_since = None
        if self.over.called:
            return
        verdict = judge(
            picture, self._begun.known, lambda task: bool(task_addresses(self.spec, picture, task, here))
        )
        if verdict.kind == "refused" and verdict.task is not None:
            self._refuse(verdict.task.error or verdict.task.state, picture)
        elif verdict.kind != "waiting":
            self.over.callback(Arrived(verdict, picture, here))
        else:
            self._wait(verdict, picture)

    def _wait(self, verdict: Verdict, picture: Picture) -> None:
        now = self._reactor.seconds()
        if not verdict.placed:
            self._placed_at = None
        elif self._placed_at is None:
            self._placed_at = now
        if verdict.reached:
            self._ran_at = None
        elif self._ran_at is None:
            self._ran_at = now
        if self._ran_at is not None and now - self._ran_at >= UNREACHED_MOST:
            if self._begun.ours:
                self._give_up(picture)
            no_way = f"service {self.name!r} runs, but no address leads to it from here"
            self.fail(Failure(StartRefused(no_way, no_address_hint(self.name))))
        elif self._placed_at is None and now - self._began >= self.spec.start_timeout:
            self._refuse(picture.pending or "no node has been found so far", picture)
        elif self._placed_at is not None and now - self._placed_at >= max(
            PREPARED_WITHIN, self.spec.start_timeout
        ):
            state = verdict.task.state if verdict.task else "not running"
            self._refuse(f"it is {state} all the time", picture)
        elif verdict.phase is not None and verdict.phase != self._told:
            self._told = verdict.phase
            self._step(verdict.phase)

    def _refuse(self, why: str, picture: Picture) -> None:
        self._give_up(picture)
        refused = StartRefused(f"service {self.name!r} cannot be started: {why}", task_hint(why, self.name))
        self.fail(Failure(refused))

    def _give_up(self, picture: Picture) -> None:
        self.to_end = picture.service.labels.get(RUN, "") if picture.service is not None else None
