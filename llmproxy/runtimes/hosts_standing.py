"""Which hosts are there."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Protocol

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.config.labels import LabelledContainer
from llmproxy.config.model import LOCAL, DockerSettings
from llmproxy.runtimes.docker_host import docker_host
from llmproxy.runtimes.interface import HostState, IRuntime, RuntimeFaulty, RuntimeUnavailable

__all__ = ["IEngine", "Standing"]


class IEngine(IRuntime, Protocol):
    """One host's runtime (:class:`~llmproxy.runtimes.docker_later.DockerWhenNeeded`)."""

    settings: DockerSettings

    def catalogue(self) -> Deferred[list[LabelledContainer]]: ...

    def on_catalogue_change(self, callback: Callable[[], None]) -> None: ...

    def on_standing(self, callback: Callable[[str], None]) -> None: ...

    def settled(self) -> Deferred[None]: ...

    def doubt(self) -> None: ...

    def has_container(self, route: str) -> bool: ...


@define(eq=False)
class Standing:
    """Hears of all engines whether they answer.

    :param away: why each does not that is known to be away; what is not in it is not known yet.
    :param changed: told of a host that has gone away, or is there again.
    """

    _engines: Mapping[str, IEngine]
    _known_away: Mapping[str, str]
    _changed: Callable[[str], None]
    # Why it is away; empty: it is there.
    _away: dict[str, str] = field(factory=dict, init=False)
    _seen: set[str] = field(factory=set, init=False)
    # How often each host has come or gone, so that old news is known for such.
    _changes: dict[str, int] = field(factory=dict, init=False)
    _closed: bool = field(default=False, init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self._away.update(self._known_away)
        for host, engine in self._engines.items():
            engine.on_standing(partial(self._heard, host))

    def close(self) -> None:
        """Hear no more."""
        self._closed = True

    # -- what is known ------------------------------------------------------------------------------

    def is_there(self, host: str) -> bool:
        """It answers, and it is known what runs there."""
        return self._away.get(host) == ""

    def is_away(self, host: str) -> bool:
        """It does not answer.  Of some neither is known yet."""
        return bool(self._away.get(host))

    def refuses(self, host: str) -> bool:
        """It is no use to ask it: its event stream tries all the time, and each try of ours may take half a
        minute.  The local one tells at once."""
        return host != LOCAL and self.is_away(host)

    def unavailable(self, host: str) -> RuntimeUnavailable:
        """What is told to those who want something of it meanwhile."""
        return RuntimeUnavailable(f"host {host} is away: {self._reason(host)}")

    def _reason(self, host: str) -> str:
        return self._away.get(host, "it has not answered yet")

    def states(self, bound: Collection[str | None]) -> list[HostState]:
        """All hosts.

        :param bound: those that a backend is bound to.
        """
        return [
            HostState(
                name,
                docker_host(engine.settings),
                self._reason(name),
                expected=name != LOCAL
                or name in self._seen
                or name in bound
                or engine.settings.host is not None
                or "DOCKER_HOST" in os.environ,
            )
            for name, engine in self._engines.items()
        ]

    # -- what is heard ------------------------------------------------------------------------------

    def failed(self, host: str, failure: Failure) -> None:
        """A call to it has failed: if it did not answer, it is taken for away until it does."""
        if failure.check(RuntimeUnavailable) and not failure.check(RuntimeFaulty) and not self.is_away(host):
            self._changes[host] = self._changes.get(host, 0) + 1
            self._note(host, "it did not answer")
            self._engines[host].doubt()

    def _heard(self, host: str, reason: str) -> None:
        now = self._changes[host] = self._changes.get(host, 0) + 1
        if reason:
            self._note(host, reason)
            return

        def settled(_: None) -> None:
            if self._changes[host] == now:
                self._note(host, "")

        # Before it is known what runs there its GPUs look empty.
        self._engines[host].settled().addCallback(settled)

    def _note(self, host: str, reason: str) -> None:
        if self._closed:
            return
        if not reason:
            self._seen.add(host)
        before = self._away.get(host)
        self._away[host] = reason
        if before is not None and bool(before) == bool(reason):
            return
        if reason:
            self._log.warn("host {host} is away: {reason}", host=host, reason=reason)
        else:
            self._log.info("host {host} is there", host=host)
        self._changed(host)
