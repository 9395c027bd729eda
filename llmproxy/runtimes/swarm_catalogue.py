"""Services that say by their labels that they are routes."""

from __future__ import annotations

from collections.abc import Callable

import requests
import urllib3
from attrs import define, field
from docker.api.client import APIClient
from docker.errors import APIError, DockerException
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from llmproxy.config.labels import LabelledContainer, says_something
from llmproxy.config.model import DockerSettings
from llmproxy.runtimes.docker_client import describe, make_client, unavailable
from llmproxy.runtimes.docker_host import docker_host
from llmproxy.runtimes.docker_state import ROUTE_LABEL
from llmproxy.runtimes.swarm_calls import get, trouble

__all__ = ["Labels", "list_labelled", "read_labelled_services"]

SETTLED = 0.2
"""Seconds after an event until the labels are read: a stack's services change one after the other."""


def list_labelled(client: APIClient) -> list[LabelledContainer]:
    """All of them, by name, with those labels that are settings."""
    found = (each["Spec"] for each in get(client, "services", filters={"label": [ROUTE_LABEL]}) or ())
    return sorted(
        (
            LabelledContainer(
                str(spec["Name"]),
                {label: text for label, text in (spec.get("Labels") or {}).items() if says_something(label)},
                kind="service",
            )
            for spec in found
        ),
        key=lambda each: each.name,
    )


def read_labelled_services(settings: DockerSettings, timeout: float) -> list[LabelledContainer] | None:
    """The same outside of the reactor; None: the engine manages no Swarm.  Blocks for ``timeout`` seconds or
    a little more.

    :raises RuntimeUnavailable: the engine does not answer.
    """
    try:
        client = make_client(settings, timeout)
        try:
            return list_labelled(client)
        finally:
            client.close()
    except APIError as error:
        # A proxy of the socket may know of no services.
        if error.status_code == 403 or "not a swarm manager" in describe(error):
            return None
        raise trouble(docker_host(settings), error) from error
    except (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise unavailable(docker_host(settings), error) from error


AGAIN_AFTER = 10.0
"""Seconds until they are read again where they could not be."""


@define(eq=False)
class Labels:
    """Tells when the labels say another thing: most changes of a service are to its count, or our own notes.

    :ivar changed: called then.
    """

    _reactor: IReactorTime
    _read: Callable[[], Deferred[list[LabelledContainer]]]
    changed: list[Callable[[], None]] = field(factory=list, init=False)
    _known: list[LabelledContainer] | None = field(default=None, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)
    _reading: bool = field(default=False, init=False)
    _again: bool = field(default=False, init=False)
    _closed: bool = field(default=False, init=False)

    def close(self) -> None:
        """Tell no more."""
        self._closed = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def look(self) -> None:
        """They may have changed."""
        if self._closed:
            return
        if self._timer is not None and self._timer.active():
            if self._timer.getTime() <= self._reactor.seconds() + SETTLED:
                return
            self._timer.cancel()
        self._timer = self._reactor.callLater(SETTLED, self._begin)

    def _begin(self) -> None:
        if self._reading:
            self._again = True
            return
        self._reading, self._again = True, False
        self._read().addCallbacks(self._heard, self._unheard)

    def _heard(self, found: list[LabelledContainer]) -> None:
        before, self._known = self._known, found
        self._over()
        if found != before and (found or before) and not self._closed:
            for callback in list(self.changed):
                callback()

    def _unheard(self, reason: Failure) -> None:
        # An engine that is away, or whose Swarm has no leader at the moment, says nothing of labels.
        self._over()
        if not self._closed and not (self._timer is not None and self._timer.active()):
            self._timer = self._reactor.callLater(AGAIN_AFTER, self._begin)

    def _over(self) -> None:
        self._reading = False
        if self._again:
            self.look()
