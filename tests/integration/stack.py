"""The stack of docker-compose.yml, brought up by the real Compose as its owner brings it up."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from attrs import define, field, frozen

from llmproxy.config.model import DockerSettings
from llmproxy.runtimes.docker_host import docker_host
from tests.integration.engine import docker, unique
from tests.integration.world import ROOT, until

__all__ = ["MODELS", "PROFILES", "Answer", "Stack", "compose_command"]

LAUNCHER_IMAGE = "llmproxy-test-launcher:1"
VLLM_IMAGE = "llmproxy-test-vllm:1"
MODELS = {"coder": "coder3b", "chat": "sitechat", "qwen7b": "qwen7b-bnb4"}
"""Services, which are containers and model names, too, by route."""
PROFILES = ("launcher", "coder3b", "chat", "qwen7b")
_PORTS = (8000, 8001, 8002, 8003)


@frozen
class Answer:
    """Of one request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as what it says."""
        return json.loads(self.body)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def compose_command() -> list[str]:
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=30, check=False)
    if plugin.returncode == 0:
        return ["docker", "compose"]
    assert shutil.which("docker-compose"), "neither docker compose nor docker-compose is installed"
    return ["docker-compose"]


@define
class Stack:
    """One project of its own in a folder of its own: ``docker-compose.yml`` and ``.env``.

    :ivar names: containers by service; others than the file's where these are taken.
    :ivar port: where the launcher answers on this machine.
    """

    folder: Path
    project: str
    names: dict[str, str]
    port: int
    key: str = field(repr=False)
    _command: list[str]

    @classmethod
    def prepare(cls, folder: Path) -> Stack:
        """Write the files as README.md tells, with this test's images and folders in ``.env``.

        What is changed in docker-compose.yml, and why, is in :func:`_adapted`.
        """
        taken = set(docker("ps", "-a", "--format", "{{.Names}}").split())
        names = {name: unique(name) if name in taken else name for name in ("launcher", *MODELS.values())}
        ports = {port: port if _is_free(port) else _free_port() for port in _PORTS}
        project = f"llmproxy-test-{uuid4().hex[:8]}"
        text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
        (folder / "docker-compose.yml").write_text(_adapted(text, names, ports), encoding="utf-8")
        for name in (".cache", "weights"):
            (folder / "llm" / name).mkdir(parents=True)
        # `make env`
        (folder / "scripts").mkdir()
        for name in (".env.example", "scripts/make_env.sh"):
            shutil.copy(ROOT / name, folder / name)
        subprocess.run(["sh", "scripts/make_env.sh"], cwd=folder, check=True, capture_output=True, timeout=30)
        settings = (folder / ".env").read_text(encoding="utf-8")
        host = docker_host(DockerSettings())
        own = {
            "COMPOSE_PROJECT_NAME": project,
            "LLM_ROOT": str(folder / "llm"),
            "LLMPROXY_IMAGE": LAUNCHER_IMAGE,
            "VLLM_IMAGE": VLLM_IMAGE,
            "LAUNCHER_BIND": "127.0.0.1",
            "DOCKER_SOCKET": host.removeprefix("unix://"),
            "DOCKER_GID": str(os.stat(host.removeprefix("unix://")).st_gid),
        }
        kept = [line for line in settings.splitlines() if line.partition("=")[0] not in own]
        kept += [f"{name}={value}" for name, value in own.items()]
        (folder / ".env").write_text("\n".join(kept) + "\n", encoding="utf-8")
        (key,) = re.findall(r"^VLLM_API_KEY=(\w+)$", settings, re.MULTILINE)
        return cls(folder, project, names, ports[8000], key, compose_command())

    # -- the owner's commands ------------------------------------------------------------------------------

    def compose(self, *arguments: str, **environment: str) -> str:
        """``docker compose ...`` in the project's folder; what it says."""
        clean = {
            name: os.environ[name]
            for name in ("PATH", "HOME", "DOCKER_HOST", "DOCKER_CONFIG")
            if name in os.environ
        }
        done = subprocess.run(
            [*self._command, *arguments],
            cwd=self.folder,
            env={**clean, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"docker compose {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return (done.stdout + done.stderr).strip()

    def edit(self, old: str, new: str) -> None:
        """Change docker-compose.yml as editors do: a new file under the old name."""
        file = self.folder / "docker-compose.yml"
        text = file.read_text(encoding="utf-8")
        assert old in text
        (self.folder / "new").write_text(text.replace(old, new), encoding="utf-8")
        (self.folder / "new").replace(file)

    def has_the_launchers_compose(self) -> bool:
        """Whether the Compose here and the launcher's are of one version."""
        ask = "docker compose version --short 2>/dev/null || docker-compose version --short"
        return self.compose("version", "--short") == docker("exec", self.names["launcher"], "sh", "-c", ask)

    def up(self, *profiles: str, **environment: str) -> str:
        """README.md's commands: the launcher alone, or everything of the launcher's and other profiles."""
        if profiles:
            flags = [part for profile in ("launcher", *profiles) for part in ("--profile", profile)]
            said = self.compose(*flags, "up", "-d", **environment)
        else:
            said = self.compose("--profile", "launcher", "up", "-d", "launcher", **environment)
        self.wait_until_ready()
        return said

    def wait_until_ready(self) -> None:
        """The launcher answers, and may use Docker."""

        def ready() -> bool:
            try:
                return self.ask("/readyz", key=None).status == 200
            except (OSError, http.client.HTTPException):
                return False  # Docker's own proxy takes connections before the launcher does

        until(ready, 20)

    def status(self) -> dict[str, Any]:
        """What ``llmproxy status`` in the launcher's container tells, by backend."""
        told = json.loads(docker("exec", self.names["launcher"], "llmproxy", "status", "--json"))
        backends = told["backends"] if isinstance(told, dict) else told
        return {backend["name"]: backend for backend in backends}

    def logs(self) -> str:
        """``docker logs launcher``, both its streams."""
        return self._output("launcher")

    def _output(self, service: str) -> str:
        done = subprocess.run(
            ["docker", "logs", self.names[service]], capture_output=True, text=True, timeout=30, check=True
        )
        return done.stdout + done.stderr

    # -- its clients ---------------------------------------------------------------------------------------

    def ask(
        self, path: str, body: object = None, *, key: str | None = "", headers: dict[str, str] | None = None
    ) -> Answer:
        """One request to the launcher, by POST when it has a body.

        :param key: the stack's own when it is empty; ``None`` for none.
        """
        given = dict(headers or {})
        if key is not None:
            given["Authorization"] = f"Bearer {key or self.key}"
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            given["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET" if data is None else "POST", path, data, given)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def chat(self, route: str, *, stream: bool = True, **headers: str) -> Answer:
        """README.md's first request, to any of the models."""
        messages = [{"role": "user", "content": "Hello! Who are you?"}]
        body = {"model": MODELS[route], "stream": stream, "messages": messages}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask(f"/{route}/v1/chat/completions", body, headers=named)

    # -- looking behind it ---------------------------------------------------------------------------------

    def state(self, route: str) -> str:
        """Of the backend, as the launcher's API tells it."""
        return str(self.ask(f"/api/backends/{route}").json["state"])

    def is_in(self, route: str, state: str) -> bool:
        """Whether the backend is in that state."""
        return self.state(route) == state

    def containers(self) -> dict[str, str]:
        """State (``running``, ``exited`` ...) of the project's containers by service."""
        shape = '{{.Label "com.docker.compose.service"}} {{.State}}'
        lines = docker(
            "ps", "-a", "--filter", f"label=com.docker.compose.project={self.project}", "--format", shape
        )
        return dict(line.split() for line in lines.splitlines())

    def inspect(self, service: str, what: str) -> str:
        """A field of a service's container, as a Go template."""
        return docker("inspect", "--format", f"{{{{{what}}}}}", self.names[service])

    def started(self, service: str, times: int) -> None:
        """Assert how often the demo server in that container was started.

        The engine writes a container's output down a little after it was said.
        """

        def count() -> int:
            return self._output(service).count("Starting to load model")

        until(lambda: count() >= times)
        assert count() == times

    def fresh(self, **environment: str) -> None:
        """The launcher runs with these settings, and no model has a container."""
        present = [self.names[name] for name in self.containers() if name != "launcher"]
        if present:
            docker("rm", "-f", "-v", *present)
        self.up(**environment)
        for route in MODELS:
            until(partial(self.is_in, route, "absent"))

    def remove(self) -> None:
        """Take everything of the project away."""
        flags = [part for profile in PROFILES for part in ("--profile", profile)]
        try:
            self.compose(*flags, "down", "--volumes", "--timeout", "2")
        finally:
            left = docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={self.project}").split()
            if left:
                docker("rm", "-f", "-v", *left, check=False)
            docker("network", "rm", f"{self.project}_default", check=False)
            docker("volume", "rm", f"{self.project}_launcher-state", check=False)


def _adapted(text: str, names: dict[str, str], ports: dict[int, int]) -> str:
    """docker-compose.yml as it is, but for what a test machine cannot give.

    - ``deploy`` goes: an engine without a GPU refuses the reservation, and Compose 1.29 cannot take a list
      away with a second file.
    - Names of containers and published ports change only where somebody else has them.
    """
    text, count = re.subn(r"^  deploy:\n(?:    .*\n)+", "", text, flags=re.MULTILINE)
    assert count == 1, "docker-compose.yml has its GPU reservation in one place"
    for old, new in names.items():
        text = re.sub(
            rf"(container_name|__container): {re.escape(old)}$", rf"\1: {new}", text, flags=re.MULTILINE
        )
    for inside, outside in ports.items():
        text = text.replace(f"}}:{inside}:{inside}\n", f"}}:{outside}:{inside}\n")
    return text
