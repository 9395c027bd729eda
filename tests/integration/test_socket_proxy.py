"""Docker's socket behind a proxy: what llmproxy asks of an engine, and that no more is let through."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from attrs import evolve
from twisted.internet import reactor as global_reactor

from llmproxy.config.compose import ComposeService
from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.runtimes.docker import DockerRuntime
from llmproxy.runtimes.docker_host import docker_host
from llmproxy.runtimes.interface import StartRefused
from tests.contract_runtimes import Reactor, eventually, on_reactor
from tests.fakes import RecordingWatcher
from tests.integration.engine import (
    BASE_IMAGE,
    DEMO_IMAGE,
    TEST_LABEL,
    docker,
    remove_containers,
    require_docker,
    unique,
)
from tests.integration.socket_rules import SocketProxy, by_flags, by_variables
from tests.integration.stack import MODELS, Stack
from tests.integration.world import ROOT, until

REACTOR: Reactor = global_reactor
pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
SLEEPS = "trap 'exit 143' TERM; echo hello; while :; do sleep 60 & wait $!; done"
ATTACH = "POST /containers/{name}/attach"
FILES = ("socket-proxy", "socket-proxy-strict")


def service(name: str) -> dict[str, Any]:
    """The proxy in one of the files, as YAML has it."""
    found = yaml.safe_load((ROOT / "deploy" / "compose" / f"{name}.yml").read_text(encoding="utf-8"))
    proxy = found["services"]["socket-proxy"]
    assert isinstance(proxy, dict)
    return proxy


def rules(name: str, folder: str = "/srv/llm") -> Callable[[str, str, bytes], bool]:
    """Its rules."""
    proxy = service(name)
    if "command" not in proxy:
        return by_variables(proxy["environment"])
    return by_flags([flag.replace("${LLM_ROOT:-/srv/llm}", folder) for flag in proxy["command"]])


def documented() -> set[str]:
    """The calls that docs/security.md lists."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    section = text.partition("### What it asks of the engine")[2].partition("\n#")[0]
    return set(re.findall(r"`((?:GET|HEAD|POST|DELETE|PUT) /[^`]+)`", section))


@pytest.fixture
def prefix() -> Iterator[str]:
    """What the test's containers begin with; they are removed afterwards."""
    require_docker("demo")
    found = unique("socket")
    try:
        yield found
    finally:
        remove_containers(found)


def engine() -> str:
    """Its socket."""
    return docker_host(DockerSettings()).removeprefix("unix://")


_CALLS: dict[str, set[str]] = {}


@pytest.mark.parametrize("name", FILES)
@on_reactor
async def test_all_that_is_asked_is_let_through(prefix: str, tmp_path: Path, name: str) -> None:
    """Whatever a runtime does with containers goes through, whoever made them, and nothing was refused."""
    file = tmp_path / "docker-compose.yml"
    command = json.dumps(["sh", "-c", SLEEPS.replace("$", "$$")])
    file.write_text(
        f"version: '3.9'\nservices:\n  model:\n    image: {BASE_IMAGE}\n"
        f"    container_name: {prefix}-composed\n    command: {command}\n    labels: {{llmproxy.test: '1'}}\n"
        f"    volumes: ['{tmp_path}:/data', 'cache:/cache']\nvolumes:\n  cache:\n",
        encoding="utf-8",
    )
    with SocketProxy(rules(name, str(tmp_path)), engine()) as proxy:
        settings = DockerSettings(f"tcp://127.0.0.1:{proxy.port}", str(file), (str(tmp_path),))
        services = [ComposeService("model", f"{prefix}-composed", image=BASE_IMAGE)]
        runtime = DockerRuntime(REACTOR, settings, compose=lambda: services, backend_key="k")
        runtime.start()
        try:
            await runtime.ping()
            assert isinstance(await runtime.catalogue(), list)
            composed = BackendSpec("composed", container=f"{prefix}-composed", port=8000)
            made = BackendSpec(
                "made",
                container=f"{prefix}-made",
                image=BASE_IMAGE,
                args=("sh", "-c", SLEEPS),
                volumes=(f"{tmp_path}:/data",),
                port=8000,
            )
            for spec in (composed, made):
                watcher = RecordingWatcher()
                await runtime.watch(spec, watcher)
                await runtime.facts(spec)
                await runtime.ensure_started(spec)
                await eventually(REACTOR, partial(_told, watcher))
                await eventually(REACTOR, partial(_has_said, runtime, spec, []))
                lines: list[str] = []
                following = runtime.follow_logs(spec, 5, lines.append)
                await eventually(REACTOR, partial(lines.__contains__, "hello"))
                docker("pause", str(spec.container))
                await runtime.ensure_started(spec)
                await runtime.stop(spec, 5)
                await following
            changed = evolve(made, environment={"NEW": "1"})
            await runtime.ensure_started(changed)
            docker("pause", f"{prefix}-made")
            await runtime.stop(changed, 5)
            await _a_container_that_restarts(runtime, prefix)
            nowhere = BackendSpec("none", container=f"{prefix}-none", image="127.0.0.1:9/none:1")
            with pytest.raises(StartRefused, match="cannot be pulled"):
                await runtime.ensure_started(nowhere)
        finally:
            await runtime.close()
            remove_containers(prefix)
            project = re.sub("[^a-z0-9_-]", "", tmp_path.name.lower())
            docker("network", "rm", f"{project}_default", check=False)
            docker("volume", "rm", f"{project}_cache", check=False)
    # Compose's first version would listen to what it has made, and can do without.
    assert proxy.asked(passed=False) <= {ATTACH}
    assert proxy.asked() <= documented(), "docs/security.md, What it asks of the engine"
    _CALLS[name] = proxy.asked()


async def _a_container_that_restarts(runtime: DockerRuntime, prefix: str) -> None:
    """One is started while it waits for its restart policy's next try, another is stopped then."""
    for route in ("one", "two"):
        name = f"{prefix}-restarts-{route}"
        docker(
            *("run", "-d", "--name", name, "--label", TEST_LABEL, "--restart", "always"),
            *(BASE_IMAGE, "sh", "-c", "exit 3"),
        )
        # The engine waits twice as long each time, from a tenth of a second on.
        look = ("inspect", "-f", "{{.State.Status}} {{ge .RestartCount 6}}", name)
        until(partial(lambda words: docker(*words) == "restarting true", look), 30)
        spec = BackendSpec(route, container=name, port=8000)
        if route == "one":
            await runtime.ensure_started(spec)
        else:
            await runtime.stop(spec, 0)


def _told(watcher: RecordingWatcher) -> bool:
    return "running" in watcher.kinds()


_SAID: dict[str, str] = {}


def _has_said(runtime: DockerRuntime, spec: BackendSpec, asked: list[None]) -> bool:
    if not asked:
        asked.append(None)
        runtime.logs(spec, 5).addCallback(lambda text: _SAID.__setitem__(str(spec.container), text))
    told = _SAID.get(str(spec.container))
    if told == "":
        asked.clear()
        _SAID.pop(str(spec.container))
    return told == "hello"


def test_the_documentation_lists_what_is_asked() -> None:
    """No call more than those that were seen; Compose's second version makes some that its first does not."""
    require_docker("demo")
    if len(_CALLS) < len(FILES):
        pytest.skip("the tests before this one did not record all")
    seen = set.union(*_CALLS.values())
    assert {call for call in seen if call.startswith(("POST", "DELETE"))} <= documented()
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rare = set(re.findall(r"`((?:GET|HEAD|POST|DELETE) /[^`]+)`\*", text))
    assert documented() - rare <= seen, "docs/security.md lists calls that nobody makes"


FORBIDDEN = (
    ("POST", "/v1.41/containers/launcher/exec"),
    ("POST", "/v1.41/exec/abc/start"),
    ("POST", "/v1.41/containers/x/attach"),
    ("GET", "/v1.41/containers/x/attach/ws"),
    ("GET", "/v1.41/containers/x/archive"),
    ("PUT", "/v1.41/containers/x/archive"),
    ("GET", "/v1.41/containers/x/export"),
    ("POST", "/v1.41/build"),
    ("POST", "/v1.41/commit"),
    ("POST", "/v1.41/swarm/init"),
    ("GET", "/v1.41/secrets"),
    ("POST", "/v1.41/plugins/pull"),
    ("POST", "/v1.41/auth"),
    ("POST", "/session"),
    ("GET", "/v1.41/system/df"),
)


@pytest.mark.parametrize("name", FILES)
def test_what_nobody_needs_is_refused(name: str) -> None:
    """Code in containers that run, files out of them, and the engine's own affairs."""
    allows = rules(name)
    assert [call for call in FORBIDDEN if allows(*call, b"{}")] == []


def test_the_strict_one_looks_at_folders_and_single_calls() -> None:
    """Only folders of LLM_ROOT, and no call beyond those that are listed."""
    allows = rules("socket-proxy-strict")

    def creates(**host: object) -> bool:
        return allows("POST", "/v1.41/containers/create", json.dumps({"HostConfig": host}).encode())

    assert creates(Binds=["/srv/llm/.cache:/root/.cache:rw", "named:/x"])
    assert not creates(Binds=["/:/host"])
    assert not creates(Binds=["/srv/llm/../../etc:/x"])
    assert not creates(Mounts=[{"Type": "bind", "Source": "/etc", "Target": "/x"}])
    for method, path in (
        ("DELETE", "/v1.41/images/x"),
        ("POST", "/v1.41/containers/prune"),
        ("POST", "/v1.41/containers/x/update"),
        ("POST", "/v1.41/containers/x/rename"),
        ("DELETE", "/v1.41/volumes/x"),
        ("GET", "/v1.41/containers/x/json/../../../secrets"),
    ):
        assert not allows(method, path, b"{}"), path


@pytest.mark.parametrize("name", FILES)
def test_the_proxy_is_confined(name: str) -> None:
    """It is in a network of its own that leads nowhere, publishes nothing, and has a version."""
    whole = yaml.safe_load((ROOT / "deploy" / "compose" / f"{name}.yml").read_text(encoding="utf-8"))
    proxy, launcher = whole["services"]["socket-proxy"], whole["services"]["launcher"]
    assert whole["networks"]["socket"] == {"internal": True}
    assert (proxy["networks"], launcher["networks"]) == (["socket"], ["default", "socket"])
    assert "ports" not in proxy
    assert (proxy["read_only"], proxy["cap_drop"]) == (True, ["ALL"])
    assert re.search(r":-\S+/\S+:v?\d+\.\d+\.\d+}$", proxy["image"])
    assert all(volume.endswith(":ro") for volume in proxy["volumes"])
    assert launcher["volumes"] == ["/dev/null:/var/run/docker.sock:ro"]


@pytest.mark.parametrize("name", FILES)
def test_the_stack_behind_it(tmp_path: Path, name: str) -> None:
    """The owner's stack with one of the files: the launcher has no socket, creates a model, serves, stops."""
    require_docker("stack")
    require_docker("demo")
    stack = Stack.prepare(tmp_path)
    text = (ROOT / "deploy" / "compose" / f"{name}.yml").read_text(encoding="utf-8")
    # No registry is to be had: the stand-in is Python with the same rules.
    text = text.replace(
        "    profiles: [launcher]\n",
        "    profiles: [launcher]\n    entrypoint: [python3, /rules.py]\n",
    ).replace(
        "    volumes:\n      - ${DOCKER", "    volumes:\n      - ./rules.py:/rules.py:ro\n      - ${DOCKER"
    )
    (tmp_path / "socket.yml").write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "tests" / "integration" / "socket_rules.py", tmp_path / "rules.py")
    with (tmp_path / ".env").open("a", encoding="utf-8") as settings:
        settings.write(f"COMPOSE_FILE=docker-compose.yml:socket.yml\nSOCKET_PROXY_IMAGE={DEMO_IMAGE}\n")
    try:
        stack.up()
        look = "test -S /var/run/docker.sock || echo none"
        assert docker("exec", stack.names["launcher"], "sh", "-c", look) == "none"
        answer = stack.chat("coder")
        assert answer.status == 200, answer.body
        assert stack.status()["coder"]["via"] == "network"
        assert stack.containers().keys() == {"launcher", "socket-proxy", MODELS["coder"]}
        told = stack.ask("/api/backends/coder/logs?tail=5")
        assert (told.status, bool(told.body)) == (200, True)
        networks = json.loads(stack.inspect(MODELS["coder"], "json .NetworkSettings.Networks"))
        assert [each.rpartition("_")[2] for each in networks] == ["default"]
        stopped = docker("exec", stack.names["launcher"], "llmproxy", "stop", "coder")
        assert "stopped" in stopped
        calls = stack.compose("logs", "--no-color", "socket-proxy")
        assert "passed POST /containers/create" in calls
        assert f"refused {ATTACH}" in calls or "refused" not in calls, calls
    finally:
        print(stack.logs())
        stack.remove()
        docker("network", "rm", f"{stack.project}_socket", check=False)
