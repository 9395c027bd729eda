"""Has a running service have more tasks, or fewer, and writes down that it is used."""

from __future__ import annotations

from typing import Any

from attrs import define, field, frozen
from docker.api.client import APIClient
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from llmproxy.runtimes.swarm_body import with_replicas
from llmproxy.runtimes.swarm_calls import find, get, list_tasks, update
from llmproxy.runtimes.swarm_labels import RUN, note
from llmproxy.runtimes.swarm_reach import Here
from llmproxy.runtimes.swarm_state import Picture, SwarmService, SwarmTask

__all__ = ["Leaving", "Present", "end_run", "fewer", "grow", "look_at", "note_used", "put_out"]


@frozen
class Present:
    """A service, its tasks, and the node that we talk to, as they are."""

    service: SwarmService
    tasks: tuple[SwarmTask, ...]
    node: str

    @property
    def alive(self) -> dict[str, SwarmTask]:
        """Those that have not ended, by id."""
        return {task.id: task for task in self.tasks if not task.over}


def look_at(client: APIClient, name: str) -> Present | None:
    """How it is; None when there is no such service."""
    service = find(client, name)
    if service is None:
        return None
    tasks = list_tasks(client, [service.id]).get(service.id, ())
    node = str((get(client, "info").get("Swarm") or {}).get("NodeID") or "")
    return Present(service, tasks, node)


def grow(client: APIClient, name: str, replicas: int) -> None:
    """At least so many, if it has any."""

    def change(service: SwarmService) -> dict[str, Any] | None:
        if not service.replicas or service.replicas >= replicas:
            return None
        return with_replicas(service.spec, replicas)

    update(client, name, change)


def fewer(client: APIClient, name: str, replicas: int) -> bool:
    """One fewer than ``replicas``, if it has just so many.

    :return: whether it has.
    """
    done = False

    def change(service: SwarmService) -> dict[str, Any] | None:
        nonlocal done
        done = service.replicas == replicas > 1
        return with_replicas(service.spec, replicas - 1) if done else None

    update(client, name, change)
    return done


def put_out(client: APIClient, name: str) -> None:
    """None at all."""

    def change(service: SwarmService) -> dict[str, Any] | None:
        return with_replicas(service.spec, 0, run="") if service.replicas else None

    update(client, name, change)


def end_run(client: APIClient, name: str, mark: str) -> None:
    """None at all, unless somebody has started it anew meanwhile.

    :param mark: of the run that is to end.
    """

    def change(service: SwarmService) -> dict[str, Any] | None:
        if not service.replicas or service.labels.get(RUN, "") != mark:
            return None
        return with_replicas(service.spec, 0, run="")

    update(client, name, change)


def note_used(client: APIClient, name: str, me: str, now: float, replicas: int) -> None:
    """Write down that this proxy uses it, and needs so many tasks."""

    def change(service: SwarmService) -> dict[str, Any] | None:
        # Of one that has been put out there is nothing to say, and a mode without a count is none of ours.
        if not service.replicas:
            return None
        return with_replicas(service.spec, service.replicas, note(service.labels, me, now, replicas))

    update(client, name, change)


@define(eq=False)
class Leaving:
    """A :class:`~llmproxy.runtimes.swarm_monitor.Subject` that waits until it is known which task leaves.

    :ivar known: fires when one of them leaves or has left, or it cannot be seen.
    """

    name: str
    _tasks: frozenset[str]
    busy: bool = field(default=True, init=False)
    known: Deferred[None] = field(factory=Deferred, init=False)

    def seen(self, picture: Picture, here: Here) -> None:
        """See :class:`~llmproxy.runtimes.swarm_monitor.Subject`."""
        staying = {task.id for task in picture.alive if task.wanted}
        if not self._tasks <= staying:
            self._fire()

    def unseen(self, reason: Failure) -> None:
        """See :class:`~llmproxy.runtimes.swarm_monitor.Subject`."""
        if not self.known.called:
            self.known.errback(reason)

    def _fire(self) -> None:
        if not self.known.called:
            self.known.callback(None)
