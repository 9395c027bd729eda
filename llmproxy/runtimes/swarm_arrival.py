"""What has become of a start, as the tasks of its service tell it.  Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from attrs import frozen

from llmproxy.engines.diagnosis import refusal_hint
from llmproxy.engines.phases import Phase
from llmproxy.runtimes.swarm_state import Picture, SwarmTask

__all__ = ["Verdict", "judge", "no_address_hint", "task_hint"]


@frozen
class Verdict:
    """How a start is.

    :ivar kind: ``runs``; ``ended``: it ran, and that is over; ``refused``; ``stopped``: somebody has scaled
        it to 0; ``missing``: there is no such service; ``waiting`` otherwise.
    :ivar task: the one that says so.
    :ivar placed: a node has been found.
    :ivar reached: no task runs that cannot be reached from here.
    """

    kind: Literal["runs", "ended", "refused", "stopped", "missing", "waiting"]
    task: SwarmTask | None = None
    phase: Phase | None = None
    placed: bool = False
    reached: bool = True


def judge(picture: Picture, known: frozenset[str], reachable: Callable[[SwarmTask], bool]) -> Verdict:
    """See how the start is.

    :param known: ids of tasks that had ended before it.
    """
    service = picture.service
    if service is None:
        return Verdict("missing")
    runs = [task for task in picture.running if task.wanted]
    for task in runs:
        if reachable(task):
            return Verdict("runs", task)
    ended = [task for task in picture.tasks if task.id not in known and task.ended_by_itself]
    # Not what Swarm puts in the place of one that has failed: that would fail again and again.
    again = {task.slot for task in ended}
    coming = [task for task in picture.alive if task.wanted and task.slot not in again]
    if not coming or service.replicas == 0:
        last = max(ended, key=lambda task: (task.changed_ns, task.id), default=None)
        if last is not None:
            return Verdict("ended" if last.ran else "refused", last)
        if service.replicas == 0:
            return Verdict("stopped")
    if runs:
        return Verdict("waiting", runs[0], placed=True, reached=False)
    newest = max(coming, key=lambda task: (task.created_ns, task.id), default=None)
    placed = newest is not None and not newest.unplaced
    name = "pulling" if newest is not None and newest.state == "preparing" else "placing"
    return Verdict("waiting", newest, Phase(name, reason=picture.pending), placed)


def task_hint(error: str, service: str) -> str:
    """The fix for what Swarm says of a task that does not run."""
    text = error.lower()
    ask = f"docker service ps --no-trunc {service} shows its tasks, docker node ls the nodes."
    if "insufficient resources" in text:
        return f"No node has free what a task reserves: free one, add one, or reserve less. {ask}"
    if "constraint" in text:
        return f"No node is one that its constraints allow: correct them, or the nodes' labels. {ask}"
    if "host-mode port already in use" in text:
        return f"The port that it publishes is taken on every node: publish none, or another one. {ask}"
    if "no suitable node" in text or "no node" in text:
        return f"No node can take it. {ask}"
    if "no such image" in text:
        return (
            "Each node gets the image itself: check its name, and pull, load or push it where they find it."
        )
    if "network" in text and ("not found" in text or "attach" in text):
        return f"Check the networks of the service (docker network ls on a manager). {ask}"
    return refusal_hint(error) or ask


def no_address_hint(service: str) -> str:
    """The fix where a task runs that cannot be reached."""
    return (
        "Put the proxy's own container and the service on one overlay network (attachable: true), or publish"
        " the service's port in host mode"
        f" (docker service update --publish-add mode=host,target=PORT {service})."
    )
