"""The Docker runtime, loaded when something needs it.

The Docker SDK brings ``requests``, ``urllib3`` and a guesser of character sets, 8 MB of memory.
Where no backend is a container and no engine is there whose containers could have labels, it stays away; from
the first sign of an engine on everything goes to the real runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from attrs import define, field
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall

from llmproxy.config.compose import ComposeService
from llmproxy.config.labels import LabelledContainer
from llmproxy.config.model import DockerSettings
from llmproxy.runtimes.docker_host import docker_host, require_socket
from llmproxy.runtimes.interface import RuntimeUnavailable
from llmproxy.runtimes.later import Later

if TYPE_CHECKING:
    from llmproxy.runtimes.docker import DockerReactor, DockerRuntime

__all__ = ["LOOK_EVERY", "DockerWhenNeeded", "read_labels"]

LOOK_EVERY = 1.0
"""Seconds between looks at whether there is a socket of an engine by now; one takes 5 microseconds."""


def read_labels(settings: DockerSettings, timeout: float) -> list[LabelledContainer]:
    """All containers with a route label, for the start of the process.  Blocks for ``timeout`` seconds or a
    little more.

    :raises RuntimeUnavailable: the engine does not answer.
    """
    require_socket(docker_host(settings))
    from llmproxy.runtimes.docker_catalogue import read_labelled_containers

    return read_labelled_containers(settings, timeout)


@define(eq=False, slots=False)
class DockerWhenNeeded(Later["DockerRuntime"]):
    """See :class:`llmproxy.runtimes.interface.IRuntime`; made like
    :class:`~llmproxy.runtimes.docker.DockerRuntime`, which does all the work once there is any."""

    _reactor: DockerReactor
    settings: DockerSettings
    _compose: Callable[[], Sequence[ComposeService]] = field(default=lambda: (), kw_only=True)
    _backend_key: str | None = field(default=None, kw_only=True, repr=False)
    _started: bool = field(default=False, init=False)
    _closed: bool = field(default=False, init=False)
    _look: IDelayedCall | None = field(default=None, init=False)
    _standing: list[Callable[[str], None]] = field(factory=list, init=False)

    # -- IRuntime ------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._started = True
        if self._real is None:
            self._look_for_engine()
        else:
            self._real.start()

    def close(self) -> Deferred[None]:
        self._closed = True
        self._forget_look()
        return succeed(None) if self._real is None else self._real.close()

    # -- Routes by label -----------------------------------------------------------------------------------

    def catalogue(self) -> Deferred[list[LabelledContainer]]:
        """See :meth:`~llmproxy.runtimes.docker.DockerRuntime.catalogue`."""
        if self._real is None:
            try:
                if self._closed:
                    raise RuntimeUnavailable("The proxy ends.")
                require_socket(docker_host(self.settings))
            except RuntimeUnavailable:
                return fail()
        return self._runtime().catalogue()

    # -- One host of several -------------------------------------------------------------------------------

    def on_standing(self, callback: Callable[[str], None]) -> None:
        """See :meth:`~llmproxy.runtimes.docker.DockerRuntime.on_standing`."""
        self._standing.append(callback)
        if self._real is not None:
            self._real.on_standing(callback)

    def settled(self) -> Deferred[None]:
        """See :meth:`~llmproxy.runtimes.docker.DockerRuntime.settled`."""
        return succeed(None) if self._real is None else self._real.settled()

    def doubt(self) -> None:
        """See :meth:`~llmproxy.runtimes.docker.DockerRuntime.doubt`."""
        if self._real is not None:
            self._real.doubt()

    def has_container(self, route: str) -> bool:
        """See :meth:`~llmproxy.runtimes.docker.DockerRuntime.has_container`."""
        return self._real is not None and self._real.has_container(route)

    # -- The real one --------------------------------------------------------------------------------------

    def _look_for_engine(self) -> None:
        self._look = None
        try:
            require_socket(docker_host(self.settings))
        except RuntimeUnavailable:
            self._look = self._reactor.callLater(LOOK_EVERY, self._look_for_engine)
        else:
            # Its first news is that the catalogue may be another one.
            self._runtime()

    def _forget_look(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _runtime(self) -> DockerRuntime:
        if self._real is None:
            from llmproxy.runtimes.docker import DockerRuntime

            self._forget_look()
            self._real = DockerRuntime(
                self._reactor, self.settings, compose=self._compose, backend_key=self._backend_key
            )
            for callback in self._catalogue_changed:
                self._real.on_catalogue_change(callback)
            for standing in self._standing:
                self._real.on_standing(standing)
            if self._started:
                self._real.start()
        return self._real
