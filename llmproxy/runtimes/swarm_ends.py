"""Ends what runs of a service: all of it, one task of it, or what Swarm would start again and again."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from attrs import define, field
from docker.api.client import APIClient
from docker.errors import NotFound
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.interface import Exit
from llmproxy.runtimes.swarm_labels import RUN
from llmproxy.runtimes.swarm_logs import read_task_tail
from llmproxy.runtimes.swarm_manager import Manager
from llmproxy.runtimes.swarm_monitor import Monitor
from llmproxy.runtimes.swarm_scale import Leaving, end_run, fewer, look_at, put_out
from llmproxy.runtimes.swarm_state import Picture, SwarmTask, service_name
from llmproxy.runtimes.swarm_stop import Ending

__all__ = ["Ends"]

LAST_LINES = 200
"""Lines of a failed run's output that are kept: with its last task Swarm removes them."""
LEAVING_WITHIN = 4.0
"""Seconds until it is known which task leaves, where Swarm chooses it."""


@define(eq=False)
class Ends:
    """The ends that are under way.

    :ivar last_words: of the last run of each service that has failed.
    """

    _reactor: IReactorTime
    _manager: Manager
    _monitor: Monitor
    last_words: dict[str, str] = field(factory=dict, init=False, repr=False)
    _endings: list[Ending] = field(factory=list, init=False)
    _log = Logger()

    def close(self) -> None:
        """Wait for no end any more."""
        for ending in list(self._endings):
            ending.fail(Failure(CancelledError()))

    def failed(self, spec: BackendSpec, picture: Picture, task: SwarmTask) -> Deferred[Exit]:
        """The last task of a run has ended by itself: keep its last words, and let Swarm start no other.

        :raises RuntimeUnavailable: the manager does not answer.
        """
        name, service = service_name(spec), picture.service
        mark = "" if service is None else service.labels.get(RUN, "")

        def finish(client: APIClient) -> tuple[str, bool]:
            terminal = service is not None and bool(service.container.get("TTY"))
            lines = read_task_tail(client, task.id, LAST_LINES, raw=terminal)
            oom = task.exit.oom or _out_of_memory(client, task)
            end_run(client, name, mark)
            return "\n".join(line.text for line in lines), oom

        def finished(found: tuple[str, bool]) -> Exit:
            words, oom = found
            self.last_words[name] = words
            self._monitor.look(name)
            return Exit(task.exit.code, oom)

        return self._manager.call(finish).addCallback(finished)

    async def stop(self, name: str, grace: float) -> None:
        """End all of it; see :meth:`llmproxy.runtimes.interface.IRuntime.stop`."""
        found = await self._manager.call(lambda client: look_at(client, name))
        if found is None:
            return
        if found.service.replicas:
            await self._manager.call(lambda client: put_out(client, name))
        if found.alive:
            # Before Swarm ends a task it waits until all nodes may have heard of that: we do not.
            await self._end(name, found.alive, found.node).start(grace)

    async def retire(self, spec: BackendSpec, task: str, replicas: int) -> None:
        """End one task; see :meth:`llmproxy.runtimes.interface.IReplicator.retire`."""
        name = service_name(spec)
        found = await self._manager.call(lambda client: look_at(client, name))
        if found is None or found.service.replicas != replicas:
            return
        chosen = found.alive.get(task)
        if chosen is not None and chosen.wanted and chosen.container and chosen.node == found.node:
            ending = self._end(name, {task: chosen}, found.node)
            # Of all tasks Swarm takes away one that does not run, once it knows of that.
            ending.told = True
            ended = ending.start(spec.stop_grace)
            ended.addCallback(lambda _: self._manager.call(lambda client: fewer(client, name, replicas)))
            ended.addErrback(self._not_fewer, name)
        elif await self._manager.call(lambda client: fewer(client, name, replicas)):
            await self._leaving(name, frozenset(id for id, each in found.alive.items() if each.wanted))

    def _not_fewer(self, reason: Failure, name: str) -> None:
        if not reason.check(CancelledError):
            self._log.warn("{name} keeps its task: {why}", name=name, why=reason.value)

    def _end(self, name: str, tasks: dict[str, SwarmTask], node: str) -> Ending:
        ending = Ending(self._reactor, self._manager.engine, name, tasks, node, self._over)
        self._endings.append(ending)
        self._monitor.add(ending)
        return ending

    def _over(self, ending: Ending) -> None:
        if ending in self._endings:
            self._endings.remove(ending)
        self._monitor.remove(ending)

    async def _leaving(self, name: str, tasks: frozenset[str]) -> None:
        leaving = Leaving(name, tasks)
        self._monitor.add(leaving)
        late = self._reactor.callLater(LEAVING_WITHIN, leaving.known.cancel)
        try:
            with suppress(CancelledError):
                await leaving.known
        finally:
            self._monitor.remove(leaving)
            if late.active():
                late.cancel()


def _out_of_memory(client: APIClient, task: SwarmTask) -> bool:
    """Whether the kernel ended it for memory; Swarm does not tell of that, and only our own engine does."""
    if not task.container or task.exit.code != 137:
        return False
    try:
        state: Any = client.inspect_container(task.container).get("State") or {}
    except NotFound:
        return False
    return bool(state.get("OOMKilled"))
