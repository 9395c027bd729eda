"""The services of one test in a Swarm, and the proxy in a container on one of its nodes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

from attrs import define, field, frozen

from tests.integration.engine import DEMO_IMAGE, TEST_LABEL
from tests.integration.swarm_node import ask
from tests.integration.swarm_world import SwarmWorld
from tests.integration.world import until

__all__ = ["PORT", "Services", "TaskView"]

PORT = 8000


@frozen
class TaskView:
    """What Swarm says of a task."""

    id: str
    state: str
    desired: str
    node: str
    container: str
    error: str
    slot: int


@define
class Services:
    """The services of one test: see :class:`tests.integration.world.World`.

    Besides the settings of a backend, :meth:`spec` takes ``options``, words for ``docker service create``.
    """

    swarm: SwarmWorld
    published: bool = False
    prefix: str = field(factory=lambda: f"t{uuid4().hex[:6]}")
    _made: set[str] = field(factory=set, init=False)

    def environment(self) -> dict[str, str]:
        """See :class:`~tests.integration.world.World`."""
        return {"DOCKER_HOST": self.swarm.manager.host}

    def name(self, route: str) -> str:
        """The service of a route."""
        return f"{self.prefix}-{route}"

    def spec(self, route: str, *arguments: str, **settings: Any) -> dict[str, Any]:
        """See :class:`~tests.integration.world.World`."""
        options: Sequence[str] = settings.pop("options", ())
        name = self.name(route)
        if name not in self._made:
            self._made.add(name)
            self.make(name, f"{route}-model", *arguments, options=options)
        return {"runtime": "swarm", "service": name, "port": PORT, "models": [f"{route}-model"], **settings}

    def make(self, name: str, model: str, *arguments: str, options: Sequence[str] = ()) -> None:
        """Create a service of no tasks."""
        where = ("--publish", f"mode=host,target={PORT}") if self.published else ()
        self.swarm.manager.docker(
            *(
                "service",
                "create",
                "--detach",
                "--quiet",
                "--no-resolve-image",
                "--name",
                name,
                "--label",
                TEST_LABEL,
            ),
            *("--network", self.swarm.network, "--replicas", "0", "--stop-grace-period", "10s"),
            *("--restart-delay", "500ms", *where, *options, DEMO_IMAGE),
            *("python3", "-m", "llmproxy.demo", "--port", str(PORT), "--model", model, *arguments),
        )

    def inspect(self, route: str) -> dict[str, Any]:
        """``GET /services/...``."""
        found = ask(self.swarm.manager.socket, "GET", f"/services/{self.name(route)}")
        assert isinstance(found, dict)
        return found

    def replicas(self, route: str) -> int:
        """How many tasks are wanted."""
        return int(self.inspect(route)["Spec"]["Mode"]["Replicated"].get("Replicas", 0))

    def version(self, route: str) -> int:
        """Goes up with each change of the service."""
        return int(self.inspect(route)["Version"]["Index"])

    def updates(self, route: str, since: float) -> list[dict[str, str]]:
        """What was changed since a POSIX time: attributes of the events, which name old and new replicas."""
        filters = json.dumps({"type": ["service"], "event": ["update"]})
        query = urlencode({"since": f"{since:.9f}", "until": f"{time.time():.9f}", "filters": filters})
        events = ask(self.swarm.manager.socket, "GET", f"/events?{query}", lines=True)
        assert isinstance(events, list)
        found = [each["Actor"]["Attributes"] for each in events]
        return [each for each in found if each.get("name") == self.name(route)]

    def tasks(self, route: str, *, ended: bool = False) -> list[TaskView]:
        """Those that are to run, or all that Swarm remembers."""
        filters: dict[str, list[str]] = {"service": [self.name(route)]}
        if not ended:
            filters["desired-state"] = ["running"]
        query = urlencode({"filters": json.dumps(filters)})
        tasks = ask(self.swarm.manager.socket, "GET", f"/tasks?{query}")
        names = {str(each["ID"]): str(each["Status"].get("Addr")) for each in self.swarm.nodes_listed()}
        nodes = {node.address: node.name for node in self.swarm.nodes}
        return [_view(each, nodes.get(names.get(each.get("NodeID", ""), ""), "")) for each in tasks]

    def running(self, route: str) -> list[TaskView]:
        """Those that run and are to."""
        return [each for each in self.tasks(route) if each.state == "running"]

    def until_running(self, route: str, count: int, seconds: float = 30.0) -> list[TaskView]:
        """Wait until exactly so many run."""
        until(lambda: len(self.running(route)) == count, seconds, 0.1)
        return self.running(route)

    def starts(self, route: str) -> int:
        """See :class:`~tests.integration.world.World`: tasks that Swarm has made."""
        return len(self.tasks(route, ended=True))

    def is_running(self, route: str) -> bool:
        """See :class:`~tests.integration.world.World`."""
        return any(each.state == "running" for each in self.tasks(route, ended=True))

    def asked(self, task: TaskView) -> int:
        """How many requests for completions a task has had; none while it does not answer."""
        code = f"import urllib.request as r; print(r.urlopen('http://127.0.0.1:{PORT}/demo/stats').read().decode())"
        told = self.swarm.node(task.node).docker("exec", task.container, "python3", "-c", code, check=False)
        return int(json.loads(told)["paths"].get("/v1/chat/completions", 0)) if told else 0

    def kill_task(self, task: TaskView) -> None:
        """End its server with KILL, behind everybody's back."""
        self.swarm.node(task.node).kill_container(task.container)

    def kill(self, route: str) -> None:
        """See :class:`~tests.integration.world.World`: all its tasks."""
        for task in self.running(route):
            self.kill_task(task)

    def close(self) -> None:
        """See :class:`~tests.integration.world.World`."""
        for name in self._made:
            self.swarm.manager.docker("service", "rm", name, check=False)


def _view(task: dict[str, Any], node: str) -> TaskView:
    status = task["Status"]
    return TaskView(
        id=task["ID"],
        state=status["State"],
        desired=task["DesiredState"],
        node=node,
        container=status.get("ContainerStatus", {}).get("ContainerID", ""),
        error=status.get("Err", ""),
        slot=task.get("Slot", 0),
    )
