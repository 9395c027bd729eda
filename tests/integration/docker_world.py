"""Backends of a test as containers of a real Docker engine, and what somebody else does to them."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import define, field

from tests.integration.engine import DEMO_IMAGE, TEST_LABEL, docker, unique

__all__ = ["DockerWorld"]


@define
class DockerWorld:
    """See :class:`tests.integration.world.World`.

    Besides the settings of a backend, :meth:`spec` takes ``options``, words for ``docker create``;
    ``created``: the container is left to the proxy, which gets an image instead of a name that exists; and
    ``plain``: no shell stands before the server, so that the proxy can read its flags.

    Each start of a demo server adds a line to a file in ``folder``, which its containers share.  A file
    ``broken-<route>`` there makes every start of that route exit with status 3, unless it is ``plain``.

    :ivar host: the engine, in ``DOCKER_HOST`` form; the environment's or the default one if ``None``.
    :ivar bridge: whether containers get a network of their own; else they listen on the host's loopback.
    """

    folder: Path
    host: str | None = None
    bridge: bool = True
    prefix: str = field(factory=lambda: unique("w"))
    _made: dict[tuple[Any, ...], str] = field(factory=dict, init=False)
    _current: dict[str, str] = field(factory=dict, init=False)

    def environment(self) -> dict[str, str]:
        """See :class:`~tests.integration.world.World`."""
        host = self.host or os.environ.get("DOCKER_HOST")
        return {"DOCKER_HOST": host} if host else {}

    def docker(self, *arguments: str, check: bool = True) -> str:
        """The docker command, at this engine."""
        return docker(*(("-H", self.host) if self.host else ()), *arguments, check=check)

    def spec(self, route: str, *arguments: str, **settings: Any) -> dict[str, Any]:
        """See :class:`~tests.integration.world.World`."""
        environment = settings.pop("environment", {})
        wrapper: Sequence[str] = settings.pop("wrapper", ())
        options: Sequence[str] = settings.pop("options", ())
        created = settings.pop("created", False)
        plain = settings.pop("plain", False)
        key = (route, arguments, tuple(environment.items()), tuple(wrapper), tuple(options))
        known = key in self._made
        name = self._made.setdefault(key, f"{self.prefix}-{route}-{len(self._made)}")
        self._current[route] = name
        port = 8000 if self.bridge else self.free_port(name)
        command = self._command(route, port, wrapper, arguments)
        if not plain:
            command = [*self._breakable(route), *command]
        variables = {"LLMPROXY_DEMO_STARTS": f"/starts/{self._starts(route).name}", **environment}
        found = {"container": name, "port": port, "models": [f"{route}-model"], **settings}
        if created:
            return {
                "image": DEMO_IMAGE,
                "args": command,
                "environment": variables,
                "volumes": [f"{self.folder}:/starts"],
                **found,
            }
        if not known:
            given = [f"--env={variable}={value}" for variable, value in variables.items()]
            self.make(name, command, *given, *options)
        return found

    def _command(self, route: str, port: int, wrapper: Sequence[str], more: Sequence[str]) -> list[str]:
        host = "0.0.0.0" if self.bridge else "127.0.0.1"
        demo = ("python3", "-m", "llmproxy.demo", "--host", host, "--port", str(port))
        return [*wrapper, *demo, "--model", f"{route}-model", *more]

    def _breakable(self, route: str) -> list[str]:
        return ["/bin/sh", "-c", f'test ! -e /starts/broken-{route} || exit 3; exec "$@"', "sh"]

    def make(self, name: str, command: Sequence[str], *options: str) -> None:
        """Create a container; ``name`` has to begin with :attr:`prefix`."""
        network = "bridge" if self.bridge else "host"
        common = ("--label", TEST_LABEL, "--network", network, "--volume", f"{self.folder}:/starts")
        self.docker("create", "--name", name, *common, *options, DEMO_IMAGE, *command)

    def free_port(self, name: str) -> int:
        """A port of the host for a container without a network of its own; stays what it is."""
        file = self.folder / f"port-{name}"
        if not file.exists():
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                file.write_text(str(free.getsockname()[1]))
        return int(file.read_text())

    def _starts(self, route: str) -> Path:
        return self.folder / f"starts-{route}"

    def name(self, route: str) -> str:
        """The container of a route."""
        return self._current[route]

    def act(self, verb: str, route: str, *options: str) -> None:
        """``docker VERB`` on it, as somebody else would."""
        self.docker(verb, *options, self.name(route))

    def look(self, route: str, what: str) -> str:
        """A part of ``docker inspect``, such as ``.State.StartedAt``; empty when there is no container."""
        return self.docker("inspect", "--format", "{{" + what + "}}", self.name(route), check=False)

    def breaks(self, route: str, broken: bool) -> None:
        """From now on every start of it fails, or none."""
        file = self.folder / f"broken-{route}"
        if broken:
            file.touch()
        else:
            file.unlink(missing_ok=True)

    def kill(self, route: str) -> None:
        """See :class:`~tests.integration.world.World`."""
        self.act("kill", route)

    def is_running(self, route: str) -> bool:
        """See :class:`~tests.integration.world.World`."""
        return self.look(route, ".State.Running") == "true"

    def starts(self, route: str) -> int:
        """See :class:`~tests.integration.world.World`."""
        file = self._starts(route)
        return len(file.read_text().splitlines()) if file.exists() else 0

    def close(self) -> None:
        """See :class:`~tests.integration.world.World`."""
        names = self.docker("ps", "-a", "--format", "{{.Names}}", "--filter", f"name={self.prefix}").split()
        if names:
            self.docker("rm", "-f", "-v", *names, check=False)
