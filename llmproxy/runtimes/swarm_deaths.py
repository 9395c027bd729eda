"""What our own engine has told of containers, of which Swarm may not have heard so far.  Pure."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import define, evolve, field

from llmproxy.runtimes.interface import Exit
from llmproxy.runtimes.swarm_events import Happening
from llmproxy.runtimes.swarm_state import SwarmTask

__all__ = ["Deaths"]


@define(eq=False)
class Deaths:
    """Containers that have ended, and that the kernel ended for memory: Swarm tells of the one late, of the
    other never."""

    _died: dict[str, tuple[int | None, int]] = field(factory=dict, init=False)
    _oom: set[str] = field(factory=set, init=False)

    def __len__(self) -> int:
        return len(self._died.keys() | self._oom)

    def heard(self, event: Happening) -> None:
        """Take note of it, if it is one."""
        if event.type == "container" and event.action == "oom":
            self._oom.add(event.id)
        elif event.type == "container" and event.action == "die":
            self._died[event.id] = (event.code, event.at)

    def known(self, tasks: Iterable[SwarmTask]) -> tuple[SwarmTask, ...]:
        """The tasks as they are in truth."""
        return tuple(self._known(task) if task.container else task for task in tasks)

    def _known(self, task: SwarmTask) -> SwarmTask:
        oom = task.container in self._oom
        if task.told_over or task.container not in self._died:
            return evolve(task, oom=True) if oom else task
        code, at = self._died[task.container]
        return evolve(task, died=Exit(code, oom), changed_ns=max(at, task.changed_ns), oom=oom)

    def forget_but(self, tasks: Iterable[SwarmTask]) -> None:
        """Of containers of no such task nobody asks any more."""
        if self._died or self._oom:
            present = {task.container for task in tasks}
            self._died = {each: told for each, told in self._died.items() if each in present}
            self._oom &= present
