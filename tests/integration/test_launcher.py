"""The owner's stack, end to end: the Dockerfile's launcher, the real Compose, README.md's commands.

The models' image is the Dockerfile's stand-in for vLLM's, a ``vllm`` command that is the demo server.
``docker-compose.yml`` is used as it is, but for the GPU reservation, which an engine without a GPU refuses,
and for names and ports that somebody else has (see :mod:`tests.integration.stack`).
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.integration.engine import docker, require_docker, unique
from tests.integration.stack import LAUNCHER_IMAGE, MODELS, Stack
from tests.integration.world import until

# Making the images takes a minute or two when they are not there yet.
pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One project for the whole module; each test says from which state it begins."""
    require_docker("stack")
    found = Stack.prepare(tmp_path_factory.mktemp("stack"))
    try:
        yield found
        print(found.logs())
    finally:
        found.remove()


def test_launcher_alone(stack: Stack) -> None:
    """``up -d launcher`` serves all three models, and none has so much as a container."""
    stack.fresh()
    listed = {model["id"]: model["meta"]["llmproxy"] for model in stack.ask("/v1/models").json["data"]}
    for route, model in MODELS.items():
        told = listed[model]
        assert (told["route"], told["state"]) == (route, "absent")
        # As docker-compose.yml has it.
        assert told["context_length"] in (8192, 16384)
    assert stack.containers() == {"launcher": "running"}


def test_first_requests(stack: Stack) -> None:
    """A first streamed chat to each model creates its container through Compose, and is answered."""
    stack.fresh()
    with ThreadPoolExecutor() as pool:
        answers = dict(zip(MODELS, pool.map(stack.chat, MODELS), strict=True))
    for route, answer in answers.items():
        assert answer.status == 200, answer.body
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert float(answer.headers["X-LLMProxy-Cold-Start"]) > 0
        assert answer.body.count(b"data: {") > 3
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert f'"model":"{MODELS[route]}"'.encode() in answer.body
    # In the same project: Compose knows them as its own.
    containers = stack.containers()
    assert containers.keys() == {"launcher", *MODELS.values()}
    # No two of them fit on one GPU: each has made room for the next.
    status = stack.status()
    (ready,) = (route for route, backend in status.items() if backend["state"] == "ready")
    assert {name for name, state in containers.items() if state == "running"} == {"launcher", MODELS[ready]}
    assert status[ready]["via"] == "network"
    for route, backend in status.items():
        assert backend["state"] == ("ready" if route == ready else "absent")
        assert backend["models"] == [MODELS[route]]
        assert backend["needs"]["memory"] == 0.85
        stack.started(MODELS[route], 1)


def test_curl(stack: Stack) -> None:
    """README.md's verification by real curl wakes the model, and needs the key."""
    stack.fresh()
    url = f"http://localhost:{stack.port}/chat/v1/models"

    def curl(*arguments: str) -> str:
        command = ["curl", "-s", "--max-time", "60", *arguments, url]
        return subprocess.run(command, capture_output=True, text=True, timeout=70, check=True).stdout

    assert '"invalid_api_key"' in curl()
    assert stack.containers() == {"launcher": "running"}
    assert '"id": "sitechat"' in curl("-H", f"Authorization: Bearer {stack.key}")
    assert stack.state("chat") == "ready"


def test_warm_model_is_adopted(stack: Stack) -> None:
    """``--profile coder3b up -d`` warms the model: it is ready with no request, and was started once."""
    stack.fresh()
    stack.up("coder3b")
    until(lambda: stack.state("coder") == "ready")
    assert stack.chat("coder").headers.get("X-LLMProxy-Cold-Start", "0") in ("0", "0.000")
    stack.started("coder3b", 1)
    assert stack.containers() == {"launcher": "running", "coder3b": "running"}
    # A model that the launcher had made itself is the same to Compose: it is not made anew. Another version
    # of Compose than the launcher's may see that otherwise.
    if stack.has_the_launchers_compose():
        stack.chat("chat")
        made = stack.inspect("sitechat", ".Id")
        stack.up("chat")
        assert stack.inspect("sitechat", ".Id") == made
        stack.started("sitechat", 1)


def test_stop_frees_the_gpu(stack: Stack) -> None:
    """``docker compose stop coder3b`` is noticed at once, and the next request starts it again."""
    stack.fresh()
    stack.chat("coder")
    made = stack.inspect("coder3b", ".Id")
    stack.compose("stop", "coder3b")
    until(lambda: stack.state("coder") == "absent", 2)
    assert stack.containers()["coder3b"] == "exited"
    assert stack.chat("coder").status == 200
    assert stack.inspect("coder3b", ".Id") == made
    stack.started("coder3b", 2)


def test_changed_model(stack: Stack) -> None:
    """A model that was changed in docker-compose.yml is made anew by README.md's commands and a request."""
    stack.fresh()
    stack.chat("coder")
    made = stack.inspect("coder3b", ".Id")
    assert "--max-model-len=16384" in stack.inspect("coder3b", ".Args")
    stack.edit("--max-model-len=16384", "--max-model-len=4096")
    stack.compose("restart", "launcher")
    stack.wait_until_ready()
    stack.compose("rm", "-s", "-f", "coder3b")
    until(partial(stack.is_in, "coder", "absent"), 2)
    assert stack.chat("coder").status == 200
    assert stack.inspect("coder3b", ".Id") != made
    assert "--max-model-len=4096" in stack.inspect("coder3b", ".Args")


def test_idle_model_is_stopped(stack: Stack) -> None:
    """``IDLE_SECONDS`` from the environment: what nobody uses is ended by TERM, and its container stays."""
    stack.fresh(IDLE_SECONDS="1")
    assert stack.chat("coder").status == 200
    until(lambda: stack.containers()["coder3b"] == "exited")
    until(lambda: stack.state("coder") == "absent")
    assert stack.inspect("coder3b", ".State.ExitCode") == "0"
    assert "coder: ready -> stopping (idle for 1 s)" in stack.logs()
    assert stack.chat("coder").status == 200
    stack.started("coder3b", 2)


def test_operator(stack: Stack) -> None:
    """The log has every change of state, ``llmproxy status`` works inside, and the launcher is healthy and no
    root."""
    stack.fresh()
    stack.chat("qwen7b")
    name = stack.names["launcher"]
    log = stack.logs()
    for change in ("absent -> starting (wanted)", "starting -> ready (healthy)"):
        assert f"qwen7b: {change}" in log
    assert stack.key not in log
    table = docker("exec", name, "llmproxy", "status")
    assert [line.split()[:2] for line in table.splitlines()[1:]] == [
        ["coder", "absent"],
        ["chat", "absent"],
        ["qwen7b", "ready"],
    ]
    assert docker("exec", name, "id", "-u") == "1000"
    assert docker("exec", name, "sh", "-c", "grep CapEff /proc/1/status").split()[1] == "0" * 16
    until(lambda: stack.inspect("launcher", ".State.Health.Status") == "healthy", 30, every=0.5)
    # Asked every few seconds, and no line of the log for it.
    assert "path=/healthz" not in stack.logs()


def test_nothing_to_write_to(stack: Stack) -> None:
    """The launcher's file system is read-only but for its state and /tmp, nothing in there makes it root, and
    a large body, which waits in a file, is passed on all the same."""
    stack.fresh()
    name = stack.names["launcher"]
    assert stack.inspect("launcher", ".HostConfig.ReadonlyRootfs") == "true"
    writable = (
        "for place in / /etc /opt/llmproxy /usr/local/bin /home/llmproxy /var/tmp /tmp /var/lib/llmproxy; do"
        " (: >$place/x) 2>/dev/null && echo $place; done; true"
    )
    assert docker("exec", name, "sh", "-c", writable).split() == ["/tmp", "/var/lib/llmproxy"]
    status = docker("exec", name, "cat", "/proc/1/status")
    assert "NoNewPrivs:\t1" in status
    assert "CapBnd:\t0000000000000000" in status
    long = [{"role": "user", "content": "x" * 3_000_000}]
    answer = stack.ask("/coder/v1/chat/completions", {"model": "coder3b", "messages": long, "max_tokens": 1})
    assert answer.status in (200, 400), answer
    assert stack.state("coder") == "ready"
    assert stack.inspect("coder3b", ".HostConfig.SecurityOpt") in (
        "[no-new-privileges:true]",
        "[no-new-privileges:true label=disable]",
    )


def test_stopped_launcher(stack: Stack) -> None:
    """``docker stop launcher``: answers in flight are finished, then it ends by itself; the models run on,
    and are adopted by the next one."""
    stack.fresh()
    stack.chat("coder")
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(stack.chat, "coder", X_Demo_Fault="slow-head=2")
        until(lambda: stack.ask("/api/backends/coder").json["in_flight"] == 1)
        began = time.monotonic()
        docker("stop", stack.names["launcher"])
        took = time.monotonic() - began
        assert answer.result().status == 200
        assert answer.result().body.endswith(b"data: [DONE]\n\n")
    assert 1 < took < 10
    # twistd ends by the signal that ended it (128 + 15), after an orderly end; KILL would be 137.
    assert stack.inspect("launcher", ".State.ExitCode") in ("0", "143")
    assert "Server Shut Down" in stack.logs()
    assert stack.containers() == {"launcher": "exited", "coder3b": "running"}
    docker("start", stack.names["launcher"])
    stack.wait_until_ready()
    until(lambda: stack.state("coder") == "ready")
    stack.started("coder3b", 1)


def test_killed_launcher(stack: Stack) -> None:
    """``docker kill launcher`` and ``docker start launcher``: what runs is adopted, and nothing is started
    twice."""
    stack.fresh()
    stack.chat("coder")
    docker("kill", stack.names["launcher"])
    docker("start", stack.names["launcher"])
    stack.wait_until_ready()
    until(partial(stack.is_in, "coder", "ready"))
    assert stack.chat("coder").status == 200
    stack.started("coder3b", 1)
    assert [stack.state(route) for route in ("chat", "qwen7b")] == ["absent", "absent"]


def test_wrong_group(stack: Stack) -> None:
    """A launcher that may not use the socket says in its log, and to its clients, which DOCKER_GID to set."""
    source = docker("inspect", "--format", "{{json .HostConfig.Binds}}", stack.names["launcher"])
    socket = next(bind for bind in source.strip("[]").replace('"', "").split(",") if "docker.sock" in bind)
    gid = docker("exec", stack.names["launcher"], "stat", "-c", "%g", "/var/run/docker.sock")
    name = unique("wrong-group")
    settings = ["-e", "VLLM_API_KEY=k", "-e", "MAP__coder__container=coder3b", "-e", "MAP__coder__port=8001"]
    try:
        # 54321: a group that no socket has.
        docker(
            "run",
            "-d",
            "--name",
            name,
            "--init",
            "--network",
            "none",
            "--group-add",
            "54321",
            "-v",
            socket,
            *settings,
            LAUNCHER_IMAGE,
        )
        until(lambda: "routes: /coder" in docker("logs", name), 20)
        done = subprocess.run(
            ["docker", "logs", name], capture_output=True, text=True, timeout=30, check=True
        )
        assert f"put DOCKER_GID={gid} into .env and bring the launcher up again" in done.stderr
        asked = docker("exec", name, "/opt/llmproxy/bin/python", "-c", _READYZ)
        assert "not ready" in asked
        assert f"put DOCKER_GID={gid} into .env" in asked
    finally:
        docker("rm", "-f", "-v", name)


_READYZ = """
from http.client import HTTPConnection
connection = HTTPConnection("127.0.0.1", 8000)
connection.request("GET", "/readyz")
print(connection.getresponse().read().decode())
"""
