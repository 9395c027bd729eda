"""What llmproxy does to a real engine, and what it leaves alone there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from twisted.internet import reactor as global_reactor

from llmproxy.config.compose import ComposeService
from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.runtimes.docker import DockerRuntime
from llmproxy.runtimes.interface import StartRefused
from tests.contract_runtimes import Reactor, on_reactor
from tests.integration.engine import (
    BASE_IMAGE,
    TEST_LABEL,
    docker,
    remove_containers,
    require_docker,
    unique,
)
from tests.integration.proxy import ADMIN, demo, running

REACTOR: Reactor = global_reactor
pytestmark = pytest.mark.docker
SLEEPS = "trap 'exit 143' TERM; echo theirs; while :; do sleep 60 & wait $!; done"


@pytest.fixture
def prefix() -> Iterator[str]:
    """What the test's containers begin with; they are removed afterwards."""
    require_docker("demo")
    found = unique("safe")
    try:
        yield found
    finally:
        remove_containers(found)


def compose_runtime(folder: Path, name: str, settings: DockerSettings, *lines: str) -> DockerRuntime:
    """A runtime whose compose file has one service with these lines."""
    file = folder / "docker-compose.yml"
    command = json.dumps(["sh", "-c", SLEEPS.replace("$", "$$")])
    body = [
        "version: '3.9'",
        "services:",
        "  model:",
        f"    image: {BASE_IMAGE}",
        f"    container_name: {name}",
        f"    command: {command}",
        "    labels: {llmproxy.test: '1'}",
        *(lines or ("    network_mode: bridge",)),
    ]
    file.write_text("\n".join(body) + "\n", encoding="utf-8")
    settings = DockerSettings(None, str(file), settings.allowed_mounts, settings.allow_unsafe)
    runtime = DockerRuntime(REACTOR, settings, compose=lambda: [ComposeService("model", name)])
    runtime.start()
    return runtime


UNSAFE = {
    "privileged": "    privileged: true",
    "host_network": "    network_mode: host",
    "host_pid": "    pid: host",
    "capabilities": "    cap_add: [SYS_PTRACE]",
    "devices": "    devices: ['/dev/null:/dev/x']",
    "security_opt": "    security_opt: ['seccomp:unconfined']",
    "mounts": "    volumes: ['/etc:/host:ro']",
}


@pytest.mark.parametrize("kind", UNSAFE)
@on_reactor
async def test_compose_makes_nothing_unsafe(prefix: str, tmp_path: Path, kind: str) -> None:
    """A service that would get out is refused, and is gone; where the file allows it, it is created."""
    name = f"{prefix}-model"
    network = () if kind == "host_network" else ("    network_mode: bridge",)
    lines = (UNSAFE[kind], *network)
    runtime = compose_runtime(tmp_path, name, DockerSettings(), *lines)
    try:
        with pytest.raises(StartRefused, match="is not created") as refused:
            await runtime.ensure_started(BackendSpec("a", container=name, port=8000))
        assert refused.value.hint
    finally:
        await runtime.close()
    assert docker("ps", "-aq", "--filter", f"name={name}") == ""
    runtime = compose_runtime(tmp_path, name, DockerSettings(allow_unsafe=(kind,)), *lines)
    try:
        spec = BackendSpec("a", container=name, port=8000)
        with suppress(StartRefused):  # an engine in a container may not start a privileged one
            await runtime.ensure_started(spec)
        await runtime.stop(spec, 2)
    finally:
        await runtime.close()
    assert docker("ps", "-aq", "--filter", f"name={name}") != ""


@on_reactor
async def test_a_folder_of_the_list_is_mounted(prefix: str, tmp_path: Path) -> None:
    """What lies in docker.allowed_mounts needs no more than that."""
    name = f"{prefix}-model"
    lines = (f"    volumes: ['{tmp_path}:/data']", "    network_mode: bridge", "    ipc: host")
    runtime = compose_runtime(tmp_path, name, DockerSettings(allowed_mounts=(str(tmp_path),)), *lines)
    try:
        spec = BackendSpec("a", container=name, port=8000)
        await runtime.ensure_started(spec)
        await runtime.stop(spec, 2)
    finally:
        await runtime.close()


@on_reactor
async def test_no_container_of_others_by_the_beginning_of_its_id(prefix: str) -> None:
    """A route whose container is missing, and called as another's id begins, reaches nothing."""
    theirs = docker(
        "run", "-d", "--name", f"{prefix}-theirs", "--label", TEST_LABEL, BASE_IMAGE, "sh", "-c", SLEEPS
    )
    runtime = DockerRuntime(REACTOR, DockerSettings())
    runtime.start()
    try:
        spec = BackendSpec("a", container=theirs[:8], port=8000)
        with pytest.raises(StartRefused, match="does not exist"):
            await runtime.ensure_started(spec)
        assert await runtime.logs(spec, 10) == ""
        lines: list[str] = []
        await runtime.follow_logs(spec, 10, lines.append)
        assert lines == []
        await runtime.stop(spec, 0)
        assert docker("inspect", "-f", "{{.State.Running}}", theirs) == "true"
    finally:
        await runtime.close()


def test_an_administrator_reaches_routes_only(prefix: str, tmp_path: Path) -> None:
    """No path of the admin API leads to a container that is no route's, by whatever name, id or detour."""
    name = f"{prefix}-theirs"
    project = f"{prefix}-elsewhere"
    theirs = docker(
        "run", "-d", "--name", name, "--label", TEST_LABEL,
        "--label", f"com.docker.compose.project={project}", "--label", "com.docker.compose.service=db",
        BASE_IMAGE, "sh", "-c", SLEEPS,
    )  # fmt: skip
    with running("docker", tmp_path, {"a": demo()}) as proxy:
        for who in (name, theirs, theirs[:12], "db", f"a%2f..%2f{name}", f"..%2f..%2fcontainers%2f{name}"):
            for verb in ("start", "stop", "restart", "sleep", "wake", "reset"):
                answer = proxy.ask("POST", f"/api/backends/{who}/{verb}?wait=1", key=ADMIN)
                assert answer.status in (400, 404), (who, verb, answer)
            for look in ("", "/logs?tail=5", "/why"):
                answer = proxy.ask("GET", f"/api/backends/{who}{look}", key=ADMIN)
                assert answer.status in (400, 404), (who, look, answer)
                assert b"theirs\n" not in answer.body
        listed = proxy.ask("GET", "/api/backends", key=ADMIN)
        assert name.encode() not in listed.body
    assert docker("inspect", "-f", "{{.State.Running}} {{.RestartCount}}", theirs) == "true 0"
