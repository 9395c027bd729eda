"""The proxy on a node of a Swarm: in a container on the network of the services, or beside its engine."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

from attrs import define, field

from tests.integration.engine import DEMO_IMAGE, TEST_LABEL, unique
from tests.integration.proxy import PATIENCE, Proxy
from tests.integration.swarm_node import Node
from tests.integration.swarm_services import PORT, Services
from tests.integration.world import ROOT, until

__all__ = ["ContainedProxy", "NodeProxy", "services_of"]


def services_of(proxy: Proxy) -> Services:
    """What a proxy stands in front of."""
    assert isinstance(proxy.world, Services)
    return proxy.world


@define(eq=False)
class ContainedProxy(Proxy):
    """One proxy in one folder, which its container sees under the same name.

    It runs this checkout with the libraries of the demo server's image, and is reached by a port that its
    node publishes.
    """

    name: str = field(factory=lambda: unique("proxy"))

    @property
    def node(self) -> Node:
        """Where it runs."""
        return services_of(self).swarm.manager

    def start(self, *arguments: str, seconds: float = 30.0) -> None:
        """Start it and wait until it answers."""
        node = self.node
        self.address = node.address
        node.docker("rm", "-f", self.name, check=False)
        environment = {**self.environ(), "PATH": "/usr/bin:/bin"}
        mounts = [f"{self.folder}:{self.folder}", f"{node.folder}:{node.folder}", f"{ROOT}:{ROOT}:ro"]
        command = (
            *("python3", "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile="),
            *("llmproxy", "--config", str(self.file), "--listen", f"tcp:{PORT}", *arguments),
        )
        node.docker(
            *("run", "--detach", "--name", self.name, "--label", TEST_LABEL),
            *("--network", services_of(self).swarm.network, "--publish", f"{self.port}:{PORT}"),
            *(f"--env={name}={value}" for name, value in environment.items()),
            *(f"--volume={mount}" for mount in mounts),
            *("--workdir", str(self.folder), DEMO_IMAGE),
            *("sh", "-c", 'exec "$@" >>"$0" 2>&1', str(self.log_file), *command),
        )
        until(self._answers, seconds, 0.05)

    def _answers(self) -> bool:
        assert self.runs, f"the proxy ended:\n{self.log()}"
        try:
            return self.ask("GET", "/healthz", key=None).status == 200
        except OSError:
            return False

    @property
    def runs(self) -> bool:
        """Whether its container does."""
        return self.node.docker("inspect", "--format", "{{.State.Running}}", self.name, check=False) == "true"

    @property
    def pid(self) -> int:
        """See :class:`~tests.integration.proxy.Proxy`."""
        return self.node.pid_of(self.name)

    def wait(self, seconds: float = PATIENCE) -> int:
        """See :class:`~tests.integration.proxy.Proxy`."""
        return int(self.node.docker("wait", self.name, timeout=seconds))

    def kill(self) -> None:
        """See :class:`~tests.integration.proxy.Proxy`."""
        os.kill(self.pid, signal.SIGKILL)
        until(lambda: not self.runs, 10)

    def sent_to(self, address: str) -> Callable[[], int]:
        """Count what it sends to an address from now on: TCP segments with something to read.

        :return: says how many there were.
        """
        tool = ["nsenter", f"--net=/proc/{self.pid}/ns/net", "iptables", "-w"]
        rule = ["-I", "OUTPUT", "-p", "tcp", "-d", address, "--tcp-flags", "PSH", "PSH"]
        subprocess.run([*tool, *rule], timeout=20, check=True)

        def count() -> int:
            listed = subprocess.run(
                [*tool, "-L", "OUTPUT", "-nvx"], capture_output=True, text=True, timeout=20, check=True
            )
            rows = (line.split() for line in listed.stdout.splitlines())
            return next(int(row[0]) for row in rows if address in row)

        return count

    def close(self) -> None:
        """See :class:`~tests.integration.proxy.Proxy`."""
        self.node.docker("rm", "-f", self.name, check=False)
        super().close()


@define(eq=False)
class NodeProxy(Proxy):
    """One proxy as a process of the manager's machine, without a container."""

    def command(self, *arguments: str) -> list[str]:
        """See :class:`~tests.integration.proxy.Proxy`."""
        node = services_of(self).swarm.manager
        self.address = node.address
        return node.inside(*super().command(*arguments))
