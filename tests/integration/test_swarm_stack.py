"""The stack file of the documentation, deployed to a real Swarm of one machine, with the demo server for
vLLM."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.engine import DEMO_IMAGE
from tests.integration.swarm_world import SwarmWorld
from tests.integration.world import until

pytestmark = pytest.mark.docker

STACK = Path(__file__).resolve().parent.parent.parent / "deploy" / "swarm" / "stack.yml"
KEY = "key-of-the-stack"
DEMO = ["python3", "-m", "llmproxy.demo", "--start-delay", "0.5"]
SERVE = "from twisted.scripts.twistd import run; run()"


@pytest.fixture(scope="module")
def world() -> Iterator[SwarmWorld]:
    """One machine."""
    made = SwarmWorld.make(workers=0)
    yield made
    for service in ("llm_llmproxy", "llm_chat"):
        for words in (("ps", "--no-trunc"), ("logs", "--tail", "20")):
            print(made.manager.docker("service", *words, service, check=False, timeout=20))
    made.close()


def deployable(socket: Path) -> dict[str, Any]:
    """The stack with the demo server in place of vLLM, and without the GPU that this machine has not."""
    stack: dict[str, Any] = yaml.safe_load(STACK.read_text())
    for name in ("chat", "coder"):
        service = stack["services"][name]
        service["command"] = [*DEMO, *service["command"]]
        del service["deploy"]["resources"]
    proxy = stack["services"]["llmproxy"]
    proxy["command"] = ["python3", "-c", SERVE, "-n", "--pidfile=", "llmproxy"]
    # The image that is put in its place has no folder for the volume, which would be root's.
    proxy["environment"].update(LLMPROXY_STATE_DIR="/tmp/llmproxy", HOME="/tmp")
    proxy["volumes"] = [f"{socket}:/var/run/docker.sock"]
    return stack


def ask(address: str, method: str, path: str, body: object = None) -> tuple[int, Any]:
    connection = HTTPConnection(address, 8000, timeout=60)
    try:
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_the_stack(world: SwarmWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deployed as it is told, it lists its models by their labels, runs none, and starts the one that is
    asked."""
    manager = world.manager
    file = tmp_path / "stack.yml"
    file.write_text(yaml.safe_dump(deployable(manager.socket)))
    for name, value in {
        "VLLM_API_KEY": KEY,
        "DOCKER_GID": str(os.stat(manager.socket).st_gid),
        "VLLM_IMAGE": DEMO_IMAGE,
        "LLMPROXY_IMAGE": DEMO_IMAGE,
    }.items():
        monkeypatch.setenv(name, value)
    manager.docker("stack", "deploy", "--resolve-image", "never", "-c", str(file), "llm")

    def models() -> set[str]:
        try:
            status, listed = ask(manager.address, "GET", "/v1/models")
        except OSError:
            return set()
        return {model["id"] for model in listed["data"]} if status == 200 else set()

    until(lambda: models() == {"sitechat", "coder3b"}, 60, 0.2)
    listed = manager.docker("service", "ls", "--filter", "name=llm_", "--format", "{{.Name}} {{.Replicas}}")
    assert listed.splitlines() == [
        "llm_chat 0/0",
        "llm_coder 0/0",
        "llm_llmproxy 1/1",
    ]
    question = {"model": "sitechat", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
    status, answer = ask(manager.address, "POST", "/v1/chat/completions", question)
    assert (status, answer["model"]) == (200, "sitechat")
    _, view = ask(manager.address, "GET", "/api/backends/chat")
    assert (view["state"], view["via"], view["replicas"]["max"]) == ("ready", "network", 4)
    assert manager.docker("service", "ls", "--format", "{{.Replicas}}", "--filter", "name=llm_chat") == "1/1"
