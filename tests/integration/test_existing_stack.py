"""A stack that was made for the Node launcher, with nothing exchanged but the launcher's own service.

That service is the one that docs/migration.md shows, word for word but for names and ports of this machine.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from llmproxy.config.model import DockerSettings
from llmproxy.runtimes.docker_host import docker_host
from tests.integration.engine import BASE_IMAGE, DEMO_IMAGE, docker, require_docker, unique
from tests.integration.proxy import free_port
from tests.integration.stack import LAUNCHER_IMAGE, VLLM_IMAGE, Stack, compose_command
from tests.integration.world import ROOT, until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

KEY, OWN = "k" * 32, "o" * 32
"""The stack's key, and one that only the model of another kind knows."""

# No vLLM: another health path, no list of models, and a key of its own that the client has to show.
OTHER = f"""
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.answer(200 if self.path == "/healthz" else 404, {{}})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = self.headers.get("Authorization") == "Bearer {OWN}"
        self.answer(200 if known else 401, {{"model": asked.get("model"), "known": known}})

ThreadingHTTPServer(("0.0.0.0", 8004), Handler).serve_forever()
"""


def documented_launcher() -> dict[str, Any]:
    """The service of docs/migration.md."""
    text = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(  launcher:\n.*?)```", text, re.DOTALL)
    service = yaml.safe_load(block)["launcher"]
    assert isinstance(service, dict)
    return service


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The old stack's models, made by Compose and not started, and the new launcher, running."""
    require_docker("stack")
    require_docker("demo")
    folder = tmp_path_factory.mktemp("existing")
    names = {name: unique(name) for name in ("launcher", "coder3b", "vision", "speech")}
    port = free_port()
    socket = docker_host(DockerSettings()).removeprefix("unix://")
    launcher = documented_launcher()
    environment = launcher["environment"]
    # What the machine asks for: other names and ports, its own socket, the image of this checkout.
    launcher |= {
        "container_name": names["launcher"],
        "image": LAUNCHER_IMAGE,
        "ports": [f"127.0.0.1:{port}:8000"],
    }
    launcher["volumes"] = [f"{socket}:/var/run/docker.sock"]
    for route, service in (("coder", "coder3b"), ("vision", "vision")):
        assert environment[f"MAP__{route}__container"] == service
        environment[f"MAP__{route}__container"] = names[service]
    # A second key, which the launcher knows and passes through, and a model that it makes from an image.
    environment |= {
        "LLMPROXY_ADMIN_KEY": OWN,
        "MAP__speech__image": DEMO_IMAGE,
        "MAP__speech__container": names["speech"],
        "MAP__speech__args": "python3 -m llmproxy.demo --host 0.0.0.0 --port 8005 --served-model-name voice",
        "MAP__speech__port": "8005",
        "MAP__speech__models": "voice",
    }
    services = {
        "coder3b": {
            "image": VLLM_IMAGE,
            "container_name": names["coder3b"],
            "profiles": ["coder3b"],
            "command": ["org/coder", "--served-model-name=coder3b", "--port=8001"],
            "environment": {"VLLM_API_KEY": "${VLLM_API_KEY}"},
        },
        "vision": {
            "image": BASE_IMAGE,
            "container_name": names["vision"],
            "profiles": ["vision"],
            "command": ["python3", "-c", OTHER],
            "stop_grace_period": "1s",
        },
        "launcher": launcher,
    }
    (folder / "docker-compose.yml").write_text(yaml.safe_dump({"services": services}), encoding="utf-8")
    project = unique("existing")
    (folder / ".env").write_text(
        f"VLLM_API_KEY={KEY}\nCOMPOSE_PROJECT_NAME={project}\nDOCKER_GID={os.stat(socket).st_gid}\n",
        encoding="utf-8",
    )
    found = Stack(folder, project, names, port, KEY, compose_command())
    try:
        found.compose("--profile", "coder3b", "--profile", "vision", "up", "--no-start", "coder3b", "vision")
        found.up()
        yield found
        print(found.logs())
    finally:
        docker("rm", "-f", "-v", names["speech"], check=False)
        subprocess.run(
            [
                *found._command,
                "--profile",
                "launcher",
                "--profile",
                "coder3b",
                "--profile",
                "vision",
                "down",
                "-v",
            ],
            cwd=folder,
            capture_output=True,
            timeout=120,
            check=False,
        )
        docker("rm", "-f", "-v", *names.values(), check=False)


def test_the_old_paths(stack: Stack) -> None:
    """``/coder/v1/...`` wakes the container that was mapped, and is answered."""
    answer = stack.ask("/coder/v1/models")
    assert answer.status == 200, answer.body
    assert [each["id"] for each in answer.json["data"]] == ["coder3b"]
    assert stack.containers()["coder3b"] == "running"


def test_health_and_models_of_another_kind(stack: Stack) -> None:
    """``MAP__vision__health``, ``__models``: what is no vLLM is ready by its own path, and has names."""
    listed = {
        model["id"]: model["meta"]["llmproxy"]["route"] for model in stack.ask("/v1/models").json["data"]
    }
    assert {"qwen-vl": "vision", "vision": "vision"}.items() <= listed.items()
    answer = stack.ask("/v1/chat/completions", {"model": "qwen-vl", "messages": []}, key=OWN)
    assert answer.status == 200, answer.body
    assert answer.headers["X-LLMProxy-Backend"] == "vision"
    assert answer.json["model"] == "qwen-vl"
    assert (
        stack.ask("/v1/chat/completions", {"model": "vision", "messages": []}, key=OWN).json["model"]
        == "vision"
    )


def test_the_clients_key_is_passed_through(stack: Stack) -> None:
    """``MAP__vision__auth: passthrough``: the server sees the key that the client shows."""
    assert stack.ask("/vision/v1/chat/completions", {"model": "vision"}, key=OWN).json["known"] is True
    refused = stack.ask("/vision/v1/chat/completions", {"model": "vision"}, key=KEY)
    assert (refused.status, refused.json["known"]) == (401, False)
    # A stranger does not come so far.
    assert stack.ask("/vision/v1/chat/completions", {"model": "vision"}, key="x" * 32).status == 401
    assert stack.ask("/coder/v1/models", key=OWN).status == 200


def test_a_model_that_the_launcher_makes(stack: Stack) -> None:
    """A route that has an image and no container in the old file: it is created, and answers."""
    body = {"model": "voice", "messages": [{"role": "user", "content": "Hello"}]}
    answer = stack.ask("/v1/chat/completions", body)
    assert answer.status == 200, answer.body
    assert answer.headers["X-LLMProxy-Backend"] == "speech"
    assert docker("inspect", "--format", "{{.State.Running}}", stack.names["speech"]) == "true"


def test_what_was_stopped_by_hand(stack: Stack) -> None:
    """``docker compose stop vision`` frees the GPU at once, and the next request starts it again."""
    stack.ask("/vision/v1/chat/completions", {"model": "vision"}, key=OWN)
    stack.compose("--profile", "vision", "stop", "vision")
    until(lambda: stack.ask("/api/backends/vision", key=OWN).json["state"] == "absent", 5)
    assert stack.ask("/vision/v1/chat/completions", {"model": "vision"}, key=OWN).status == 200
