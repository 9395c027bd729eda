"""The Swarm runtime, loaded when something needs it: a backend, or an engine that manages a Swarm.

See :mod:`llmproxy.runtimes.docker_later`: the Docker SDK stays away for as long as there is no engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall

from llmproxy.config.labels import LabelledContainer
from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.runtimes.docker_host import docker_host, require_socket
from llmproxy.runtimes.docker_threads import Lane
from llmproxy.runtimes.interface import (
    Reservations,
    RuntimeUnavailable,
)
from llmproxy.runtimes.later import Later

if TYPE_CHECKING:
    from llmproxy.runtimes.docker import DockerReactor
    from llmproxy.runtimes.swarm import SwarmRuntime

__all__ = ["ASK_EVERY", "SwarmWhenNeeded", "read_service_labels"]

LOOK_EVERY = 1.0
"""Seconds between looks at whether there is a socket of an engine by now; one takes 5 microseconds."""
ASK_EVERY = 30.0
"""Seconds between questions to an engine whether it manages a Swarm by now: one is made once in its life."""


def read_service_labels(settings: DockerSettings, timeout: float) -> list[LabelledContainer]:
    """All services with a route label, for the start of the process; none where the engine manages no Swarm.
    Blocks for ``timeout`` seconds or a little more.

    :raises RuntimeUnavailable: the engine does not answer.
    """
    require_socket(docker_host(settings))
    from llmproxy.runtimes.swarm_catalogue import read_labelled_services

    return read_labelled_services(settings, timeout) or []


@define(eq=False, slots=False)
class SwarmWhenNeeded(Later["SwarmRuntime"]):
    """See :class:`llmproxy.runtimes.interface.IRuntime` and
    :class:`~llmproxy.runtimes.interface.IReplicator`; made like
    :class:`~llmproxy.runtimes.swarm.SwarmRuntime`, which does all the work once there is any."""

    _reactor: DockerReactor
    settings: DockerSettings
    _backend_key: str | None = field(default=None, kw_only=True, repr=False)
    _lane: Lane = field(init=False)
    _started: bool = field(default=False, init=False)
    _closed: bool = field(default=False, init=False)
    _next: IDelayedCall | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._lane = Lane(self._reactor, "llmproxy-swarm", 1)

    # -- IRuntime ------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._started = True
        if self._real is None:
            self._look()
        else:
            self._real.start()

    def close(self) -> Deferred[None]:
        self._closed = True
        self._forget()
        self._lane.close()
        return succeed(None) if self._real is None else self._real.close()

    # -- IReplicator ---------------------------------------------------------------------------------------

    def scale(self, spec: BackendSpec, replicas: int) -> Deferred[None]:
        return self._runtime().scale(spec, replicas)

    def can_choose(self, spec: BackendSpec, task: str) -> bool:
        return self._runtime().can_choose(spec, task)

    def retire(self, spec: BackendSpec, task: str, replicas: int) -> Deferred[None]:
        return self._runtime().retire(spec, task, replicas)

    def note_use(self, spec: BackendSpec, replicas: int) -> None:
        self._runtime().note_use(spec, replicas)

    # -- ICluster ------------------------------------------------------------------------------------------

    def reservations(self) -> Deferred[Reservations]:
        return self._runtime().reservations()

    def service_of(self, spec: BackendSpec) -> str:
        return self._runtime().service_of(spec)

    # -- Routes by label -----------------------------------------------------------------------------------

    def catalogue(self) -> Deferred[list[LabelledContainer]]:
        """See :meth:`~llmproxy.runtimes.swarm.SwarmRuntime.catalogue`."""
        if self._real is None or self._closed:
            return fail(RuntimeUnavailable("no engine that manages a Swarm has been found"))
        return self._real.catalogue()

    # -- The real one --------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._next = None
        try:
            require_socket(docker_host(self.settings))
        except RuntimeUnavailable:
            self._next = self._reactor.callLater(LOOK_EVERY, self._look)
            return
        asked = self._lane.run(lambda: _manages(self.settings))
        asked.addErrback(lambda _: False).addCallback(self._heard)

    def _heard(self, manages: bool) -> None:
        if self._closed or self._real is not None:
            return
        if manages:
            # Its first news is that the catalogue may be another one.
            self._runtime()
        else:
            self._next = self._reactor.callLater(ASK_EVERY, self._look)

    def _forget(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _runtime(self) -> SwarmRuntime:
        if self._real is None:
            from llmproxy.runtimes.swarm import SwarmRuntime

            self._forget()
            self._real = SwarmRuntime(self._reactor, self.settings, backend_key=self._backend_key)
            for callback in self._catalogue_changed:
                self._real.on_catalogue_change(callback)
            if self._started:
                self._real.start()
        return self._real


def _manages(settings: DockerSettings) -> bool:
    # Where there is an engine the SDK is loaded anyhow.
    from llmproxy.runtimes.swarm_catalogue import read_labelled_services

    return read_labelled_services(settings, ASK_EVERY) is not None
